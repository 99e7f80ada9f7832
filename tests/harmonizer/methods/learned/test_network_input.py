"""Statistics in which each tissue counts alike say nothing of how much there is of it."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.bounding_box import BoundingBox
from harmonizer.methods.base import ScanContext
from harmonizer.methods.learned.ihf.backend import Ihf
from harmonizer.methods.learned.network_input import tissue_balanced_weights
from harmonizer.volume import Volume
from tests.contract.brains import brain_of, three_levels


def hard(counts: tuple[int, ...]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[:, np.repeat(np.arange(3), counts)]


@pytest.mark.parametrize("counts", [(100, 400, 500), (450, 300, 250)])
def test_a_mean_over_the_brain_is_the_mean_of_its_tissues(counts):
    values = np.repeat([10.0, 60.0, 110.0], counts)
    weights = tissue_balanced_weights(hard(counts), np.ones(1000, bool))
    assert weights.dtype == np.float32 and weights.mean() == pytest.approx(1)
    assert np.average(values, weights=weights) == pytest.approx(60)


def test_soft_shares_count_for_both_and_outside_is_nothing():
    tissues = np.array([[1, 0.5, 0, 1], [0, 0.5, 1, 0], [0, 0, 0, 0]], np.float32)
    weights = tissue_balanced_weights(tissues, np.array([True, True, True, False]))
    assert weights[3] == 0 and weights[0] == weights[1] == weights[2] == pytest.approx(1)


def test_without_tissues_all_places_count_alike():
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(tissue_balanced_weights(np.zeros((3, 3)), mask), [1, 0, 1])


def ihf_on(volume: Volume, start: str) -> Ihf:
    """Not fitted, but with a box."""
    backend = Ihf(Ihf.config_from({"preset": "tiny", "baseline": start}))
    backend.box_ = BoundingBox.around(volume.mask, backend.model_.multiple)
    return backend


def z_s(backend: Ihf, volume: Volume, context: ScanContext | None = None) -> np.ndarray:
    scan = backend.inference.network_input(volume, context)
    return backend.model_.describe(scan, backend.model_.options)["z_s"]


def test_the_style_of_ihf_does_not_know_how_wide_ventricles_are():
    """The same three levels in other amounts: other statistics of the brain, the same style."""
    narrow, tissues = brain_of(3), three_levels(brain_of(3))
    grown = tissues["CSF"].copy()
    grown[6:11] = np.maximum(grown[6:11], tissues["GM"][6:11])  # fluid where gray matter was
    level = {k: narrow.data[v > 0].mean() for k, v in tissues.items()}
    changed = (grown > 0) & (tissues["CSF"] == 0)
    wide = narrow.with_data(narrow.data + changed * np.float32(level["CSF"] - level["GM"]))
    others = {**tissues, "CSF": grown, "GM": tissues["GM"] * (grown == 0)}
    backend = ihf_on(narrow, "tissue_matching")
    with_tissues = [z_s(backend, v, ScanContext(tissues=t))
                    for v, t in ((narrow, tissues), (wide, others))]
    without = [z_s(backend, v) for v in (narrow, wide)]
    half = len(without[0]) // 2  # the means; filters also see where tissues meet
    difference, before = (np.abs(a[:half] - b[:half]).mean() for a, b in (with_tissues, without))
    assert difference < 0.7 * before


def test_where_training_knew_no_tissues_none_are_counted():
    """Started from a histogram, IHF is trained on statistics of the brain: so it is used."""
    volume = brain_of(3)
    backend = ihf_on(volume, "histogram_matching")
    weights = backend.inference.network_input(
        volume, ScanContext(tissues=three_levels(volume))
    ).weights()
    assert set(np.unique(weights)) == {0, 1}
