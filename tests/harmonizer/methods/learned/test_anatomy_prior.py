"""The anatomical prior: what it forgets (gain), what it keeps (borders)."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.methods.learned.patch_diffusion.anatomy_prior import (
    AnatomyPrior,
    coordinate_maps,
    resize,
)


@pytest.fixture(scope="module")
def brain() -> tuple[np.ndarray, np.ndarray]:
    """Two tissues with a flat border at i = 12, some texture, in a ball."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij"))
    mask = (grid**2).sum(axis=0) < 100
    image = np.where(grid[0] < 0, 60.0, 100.0) + rng.normal(0, 1, mask.shape)
    return np.where(mask, image, 0).astype(np.float32), mask


@pytest.mark.parametrize("gain", [0.013, 4.0, 3e4])
@pytest.mark.parametrize("log_gamma", [0.0, 0.4])
def test_gain_is_forgotten(brain, gain, log_gamma):
    image, mask = brain
    prior = AnatomyPrior()
    np.testing.assert_allclose(prior(gain * image, mask, log_gamma), prior(image, mask, log_gamma),
                               atol=1e-4)


def test_border_is_bright_rim_is_not_background_is_minus_one(brain):
    image, mask = brain
    a = AnatomyPrior()(image, mask)
    assert (a[~mask] == -1).all() and a.min() == -1 and a.max() == 1
    border = a[11:13][mask[11:13]].mean()
    away = a[4:8][mask[4:8]].mean()  # holds the ball's rim
    assert border > 0.4 and away < -0.4


def test_what_lies_outside_the_mask_does_not_matter(brain):
    image, mask = brain
    loud = np.where(mask, image, 1e4).astype(np.float32)
    np.testing.assert_array_equal(AnatomyPrior()(loud, mask), AnatomyPrior()(image, mask))


def test_gamma_changes_it_and_no_gamma_does_not(brain):
    image, mask = brain
    prior = AnatomyPrior()
    np.testing.assert_array_equal(prior(image, mask, 0.0), prior(image, mask))
    assert np.abs(prior(image, mask, 0.5) - prior(image, mask)).max() > 0.01


def test_shares_are_the_two_maps():
    """On a parabola, the gradient grows along the axis and the high-frequency map is flat."""
    i = np.arange(30, dtype=np.float32)
    image = np.broadcast_to((i**2)[:, None, None], (30, 9, 9)) + 1
    mask = np.ones(image.shape, bool)
    middle = np.s_[8:22, 4, 4]
    gradient = AnatomyPrior(gradient_fraction=1.0)(image, mask)[middle]
    fine = AnatomyPrior(gradient_fraction=0.0, sigma=1.0)(image, mask)[middle]
    np.testing.assert_allclose(np.diff(gradient), np.diff(gradient).mean(), rtol=1e-3)
    assert np.diff(gradient).mean() > 0.03
    assert np.ptp(fine) < 0.01


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="gradient_fraction and sigma: expected a number in"):
        AnatomyPrior(gradient_fraction=1.5)


def test_half_size_is_the_mean_of_eight():
    a = np.random.default_rng(1).normal(size=(8, 6, 10)).astype(np.float32)
    mean = a.reshape(4, 2, 3, 2, 5, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(resize(a, (4, 3, 5)), mean, atol=1e-6)
    assert resize(a, (5, 6, 7)).shape == (5, 6, 7)


def test_places_are_centers_of_voxels():
    at = coordinate_maps((4, 2, 5))
    assert at.shape == (3, 4, 2, 5)
    np.testing.assert_allclose(at[0, :, 0, 0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(at[1, 0, :, 0], [-0.5, 0.5])
    np.testing.assert_allclose(at.mean(axis=(1, 2, 3)), 0, atol=1e-7)
