"""Tests of the refinement of prior tissue probabilities by the image's intensities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from harmonizer.segmentation.refine import NETWORK_PRIOR, refine

LEVELS = {"familiar": (20.0, 60.0, 100.0), "turned round": (100.0, 60.0, 40.0),
          "folded": (60.0, 100.0, 30.0)}


def brain() -> tuple[np.ndarray, np.ndarray]:
    """(48, 48, 48) labels 0, 1, 2 of folded layers, and where the brain is."""
    i, j, k = np.meshgrid(*[np.arange(48)] * 3, indexing="ij")
    radius = np.sqrt((i - 23.5) ** 2 + (j - 23.5) ** 2 + (k - 23.5) ** 2)
    folded = radius + 2 * np.sin(i / 2.5) * np.sin(j / 2.5)
    labels = np.where(folded < 12, 2, np.where(folded < 17, 1, 0))
    return labels, radius < 22


def rough_prior(labels: np.ndarray) -> np.ndarray:
    """A poor prior: blurred and shifted by a voxel."""
    return np.stack([ndimage.gaussian_filter(np.roll(labels == n, 1, 0).astype(np.float32), 2.5)
                     for n in range(3)])


def dice(labels: np.ndarray, found: np.ndarray, inside: np.ndarray) -> list[float]:
    predicted = found.argmax(axis=0)
    return [2 * float(((labels == n) & (predicted == n) & inside).sum())
            / float(((labels == n) & inside).sum() + ((predicted == n) & inside).sum())
            for n in range(3)]


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_borders_sharpen_at_any_contrast_and_under_a_bias_field(levels) -> None:
    labels, inside = brain()
    rng = np.random.default_rng(0)
    bias = np.exp(0.4 * np.linspace(-1, 1, 48))[:, None, None]
    data = (np.array(levels)[labels] + 3 * rng.standard_normal(labels.shape)) * bias
    rough = rough_prior(labels)
    before, after = dice(labels, rough, inside), dice(labels, refine(data, inside, rough), inside)
    assert min(before) < 0.9
    assert min(after) > 0.95


def test_posterior_sums_to_one_inside_and_is_zero_outside() -> None:
    labels, inside = brain()
    found = refine(labels * 10.0, inside, rough_prior(labels))
    np.testing.assert_allclose(found.sum(axis=0)[inside], 1, atol=1e-5)
    assert float(np.abs(found[:, ~inside]).max()) == 0


def test_prior_decides_where_intensities_are_equal() -> None:
    labels, inside = brain()
    data = np.random.default_rng(1).standard_normal(labels.shape) + 50
    rough = rough_prior(labels)
    after = dice(labels, refine(data, inside, rough), inside)
    assert min(after) > 0.7


def test_scaling_the_intensities_changes_nothing() -> None:
    labels, inside = brain()
    data = np.array((20.0, 60.0, 100.0))[labels] + np.random.default_rng(2).normal(
        0, 3, labels.shape)
    one, two = (refine(scale * data, inside, rough_prior(labels)) for scale in (1.0, 1e4))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("size", [46, 47, 48])  # of every remainder, divided by the blocks' size
def test_a_mirrored_brain_has_mirrored_borders(size: int) -> None:
    labels, inside = (array[:size] for array in brain())
    data = np.array((20.0, 60.0, 100.0))[labels] + np.random.default_rng(4).normal(
        0, 15, labels.shape)
    prior = rough_prior(labels)
    mirrored = refine(data[::-1], inside[::-1], prior[:, ::-1])
    np.testing.assert_allclose(mirrored[:, ::-1], refine(data, inside, prior), atol=1e-4)


def test_an_absent_tissue_is_not_found() -> None:
    labels, inside = brain()
    labels = np.maximum(labels, 1)
    data = np.array((20.0, 60.0, 100.0))[labels] + np.random.default_rng(3).normal(
        0, 3, labels.shape)
    found = refine(data, inside, rough_prior(labels))
    assert (found.argmax(axis=0)[inside] == 0).mean() < 0.01


def test_prior_dominates_where_gm_and_wm_overlap() -> None:
    labels, inside = brain()
    data = np.array((20.0, 60.0, 84.0))[labels] + np.random.default_rng(5).normal(
        0, 14, labels.shape)
    by_brightness = [np.abs(data - level) for level in (20.0, 60.0, 84.0)]
    alone = dice(labels, -np.stack(by_brightness), inside)
    after = dice(labels, refine(data, inside, rough_prior(labels)), inside)
    assert after[1] > alone[1] + 0.05 and after[2] > alone[2] + 0.05
    assert after[0] > alone[0] - 0.01


def test_csf_missed_by_the_prior_is_found_by_its_intensity() -> None:
    labels, inside = brain()
    data = np.array((20.0, 60.0, 100.0))[labels] + np.random.default_rng(6).normal(
        0, 5, labels.shape)
    rough = rough_prior(labels)
    rough[1] += 0.6 * rough[0]
    rough[0] *= 0.4
    assert dice(labels, rough, inside)[0] < 0.1
    assert min(dice(labels, refine(data, inside, rough), inside)) > 0.95


def test_a_lesion_as_dark_as_csf_stays_wm_where_the_prior_is_certain() -> None:
    """The prior of WM is 0.95; around the lesion nothing changes."""
    labels, inside = brain()
    i, j, k = np.indices(labels.shape)
    lesion = (i - 24) ** 2 + (j - 20) ** 2 + (k - 24) ** 2 <= 9
    assert (labels[lesion] == 2).all()
    healthy = np.array((20.0, 60.0, 100.0))[labels] + np.random.default_rng(6).normal(
        0, 8, labels.shape)
    prior = rough_prior(labels)
    prior[:, lesion] = np.array((0.03, 0.02, 0.95))[:, None]
    ill = np.where(lesion, healthy - 80, healthy)
    found = refine(ill, inside, prior)
    assert found[2][lesion].mean() > 0.6
    beside = inside & ~ndimage.binary_dilation(lesion, iterations=2)
    np.testing.assert_allclose(found[:, beside], refine(healthy, inside, prior)[:, beside],
                               atol=0.01)
    without_outliers = refine(ill, inside, prior, replace(NETWORK_PRIOR, outlier_density=0.0))
    assert without_outliers[2][lesion].mean() < 0.1


def test_intensity_decides_where_the_prior_of_wm_is_uncertain() -> None:
    """The tip of a ventricle with a prior of 0.4 for CSF is no lesion."""
    labels, inside = brain()
    i, j, k = np.indices(labels.shape)
    tip = (i - 24) ** 2 + (j - 20) ** 2 + (k - 24) ** 2 <= 9
    data = np.where(tip, 20.0, np.array((20.0, 60.0, 100.0))[labels]) + np.random.default_rng(
        6).normal(0, 3, labels.shape)
    prior = rough_prior(labels)
    prior[:, tip] = np.array((0.4, 0.1, 0.5))[:, None]
    assert refine(data, inside, prior)[0][tip].mean() > 0.7
