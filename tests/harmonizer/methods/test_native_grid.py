"""The change travels to the subject's own grid; the head around the brain is only scaled."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.methods.base import Backend, Capabilities, HarmonizationResult
from harmonizer.methods.native_grid import apply_with_head, change_of
from harmonizer.methods.statistical.histogram_matching import HistogramMatching
from harmonizer.methods.statistical.moment_matching import MomentMatching
from harmonizer.volume import Volume
from tests.contract.brains import at_site_b, brain_of, scan_of


@pytest.fixture
def fitted(tmp_path):
    return HistogramMatching().fit(Cohort((scan_of(tmp_path, 1, "A"), scan_of(tmp_path, 2, "B"))))


def test_head_keeps_its_place_beside_the_brain(fitted):
    seen = at_site_b(brain_of(3))
    head = seen.with_data(np.where(seen.mask, seen.data, 30.0))
    after = apply_with_head(change_of(fitted, head, fitted.target("A")), head)
    gain = np.median(after.in_mask()) / np.median(head.in_mask())
    np.testing.assert_allclose(after.data[~head.mask], 30.0 * gain, rtol=1e-5)
    inside = fitted.harmonize(head, fitted.target("A")).data[head.mask]
    np.testing.assert_array_equal(after.data[head.mask], inside)


def test_own_grid_gets_the_same_map_without_resampling(fitted):
    """Any grid, any world: a pointwise map asks for intensities alone."""
    seen = at_site_b(brain_of(3))
    change = change_of(fitted, seen, fitted.target("A"))
    own = Volume(np.flip(seen.data, 0), np.diag([-3.0, 1, 2, 1]), np.flip(seen.mask, 0))
    turned = np.eye(4)
    turned[:3, 3] = 40.0
    after = apply_with_head(change, own, turned)
    np.testing.assert_array_equal(np.flip(after.data, 0),
                                  apply_with_head(change, seen).data)
    assert after.affine is own.affine


@pytest.mark.parametrize("factor", [0.002, 0.5, 300.0])
def test_method_without_a_map_is_carried_as_its_difference(tmp_path, monkeypatch, factor):
    """Whatever the unit of the target's scanner."""
    cohort = Cohort((scan_of(tmp_path, 1, "A"), scan_of(tmp_path, 2, "B")))
    monkeypatch.setattr(Voxels, "factor", factor)
    backend = Voxels().fit(cohort)
    seen = at_site_b(brain_of(3))
    change = change_of(backend, seen, backend.target("A"))
    assert not change.field[~seen.mask].any()  # half of a change at the edge would be a rim
    expected = backend.harmonize(seen, backend.target("A"))
    got = apply_with_head(change_of(backend, seen, backend.target("A")), seen)
    bright = seen.mask & (seen.data > np.quantile(seen.in_mask(), 0.05))
    np.testing.assert_allclose(got.data[bright], expected.data[bright], rtol=1e-4)


class Voxels(Backend):
    """Takes every voxel times something and adds a slope; derives from `Backend` alone."""

    factor = 0.5

    name, reference, summary = "voxels", "none", "Halved."
    capabilities = Capabilities()
    Config = MomentMatching.Config

    def _fit(self, cohort, seed, progress):
        pass

    def _harmonize(self, volume, target, context, rng, checkpoint_folder):
        slope = np.linspace(0.9, 1.1, volume.shape[0], dtype=np.float32)[:, None, None]
        return HarmonizationResult(volume.with_data(np.float32(self.factor) * slope * volume.data))

    def _site_style(self, label):
        return {}

    def _enroll(self, scans):
        return {}

    def _state(self):
        return {}

    def _set_state(self, arrays):
        pass
