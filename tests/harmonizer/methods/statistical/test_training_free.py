"""Each training-free method against its own closed form."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.contrast.intensity import LANDMARKS, trimmed_moments
from harmonizer.errors import InputError
from harmonizer.methods.statistical.histogram_matching import (
    HistogramMatching,
    HistogramMatchingConfig,
)
from harmonizer.methods.statistical.moment_matching import MomentMatching, MomentMatchingConfig
from harmonizer.methods.statistical.spectrum_swap import SpectrumSwap, SpectrumSwapConfig
from tests.contract.brains import at_site_b, brain_of, scan_of


@pytest.fixture
def one_scan(tmp_path) -> Cohort:
    """A cohort of one scan, so that the target is that scan's own statistics."""
    return Cohort((scan_of(tmp_path, 1, "A"),))


@pytest.mark.parametrize("method", ["quantiles", "landmarks"])
def test_histogram_matching_carries_quantiles_onto_quantiles(one_scan, method):
    backend = HistogramMatching(HistogramMatchingConfig(method)).fit(one_scan)
    source = at_site_b(brain_of(2)).with_data(at_site_b(brain_of(2)).data ** 1.3)
    after = backend.harmonize(source, backend.target("A")).in_mask()
    truth = one_scan.scans[0].read().in_mask()
    for p in LANDMARKS:
        assert np.quantile(after, p) == pytest.approx(np.quantile(truth, p), abs=1.0)


def test_histogram_matching_keeps_the_order_of_voxels(one_scan):
    backend = HistogramMatching().fit(one_scan)
    source = at_site_b(brain_of(2))
    after = backend.harmonize(source, backend.target("A"))
    order = np.argsort(source.in_mask(), kind="stable")
    assert (np.diff(after.in_mask()[order]) >= 0).all()


def test_moment_matching_gives_the_targets_moments(one_scan):
    backend = MomentMatching().fit(one_scan)
    after = backend.harmonize(at_site_b(brain_of(2)), backend.target("A")).in_mask()
    expected = trimmed_moments(one_scan.scans[0].read().in_mask())
    np.testing.assert_allclose(trimmed_moments(after), expected, rtol=2e-3)


def test_spectrum_swap_gives_the_targets_low_amplitudes(one_scan):
    backend = SpectrumSwap(SpectrumSwapConfig(band=0.05)).fit(one_scan)
    truth, source = one_scan.scans[0].read(), at_site_b(brain_of(2))
    band = backend._band_of(truth)
    change = backend.intensity_map(source, backend.target("A"))
    swapped = change.gain * np.where(source.mask, source.data, 0.0) + change.field
    spectrum = np.fft.rfftn(swapped)
    target = np.abs(np.fft.rfftn(np.where(truth.mask, truth.data, 0.0)))
    expected = target[band] * np.abs(spectrum[0, 0, 0]) / target[0, 0, 0]
    np.testing.assert_allclose(np.abs(spectrum)[band], expected, rtol=1e-3, atol=1.0)
    original = change.gain * np.fft.rfftn(np.where(source.mask, source.data, 0.0))
    np.testing.assert_allclose(spectrum[~band], original[~band], atol=1e-2)


def test_spectrum_swap_refuses_another_grid(one_scan):
    backend = SpectrumSwap().fit(one_scan)
    small = brain_of(2)
    small = type(small)(small.data[:-1], small.affine, small.mask[:-1])
    with pytest.raises(InputError, match="works on the grid of its fit"):
        backend.harmonize(small, backend.target("A"))


@pytest.mark.parametrize("make, message", [
    (lambda: HistogramMatchingConfig("nyul"), "method: expected one of"),
    (lambda: MomentMatchingConfig(0.5), "trim: expected a number in"),
    (lambda: SpectrumSwapConfig(0.0), "band: expected a number in"),
])
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
