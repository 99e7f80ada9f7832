"""The simulator: same seed same bits, independent noise, truth in the target's contrast, detail."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from harmonizer.segmentation import structures as st
from harmonizer.simulation import anatomy as anatomy_module
from harmonizer.simulation.anatomy import label_map_anatomy, phantom_anatomy
from harmonizer.simulation.fields import smooth_field
from harmonizer.simulation.imaging import acquire, render, sample, scan_grid
from harmonizer.simulation.scanners import PRIOR, draw_scanner

COUNT = len(st.STRUCTURES)


@pytest.fixture(scope="module")
def anatomy():
    return phantom_anatomy(70_000_001, 40.0, "F", 4.0)


def scanner(seed: int, **changes):
    return replace(draw_scanner(np.random.default_rng(seed), COUNT), **changes)


def test_the_same_seed_gives_the_same_scanner_and_another_seed_another():
    one, again, other = scanner(3), scanner(3), scanner(4)
    assert one.noise == again.noise and np.array_equal(one.table, again.table)
    assert one.noise != other.noise


def test_scanners_lie_within_the_prior_and_white_matter_is_brightest():
    for seed in range(60):
        one = scanner(seed)
        assert PRIOR.noise[0] <= one.noise <= PRIOR.noise[1]
        assert PRIOR.voxel_mm[0] <= one.voxel_mm.min()
        assert one.voxel_mm.max() <= PRIOR.thick_slice_mm[1]
        assert one.table[2, 0] == pytest.approx(1) and one.table[1, 0] < 1 / 1.05
    assert max(scanner(seed).voxel_mm.max() for seed in range(60)) > 2  # thick slices occur


def test_a_smooth_field_is_the_same_in_the_same_place_of_another_grid():
    fine = smooth_field(np.random.default_rng(1), [np.arange(-20.0, 21)] * 3, 15.0)
    coarse = smooth_field(np.random.default_rng(1), [np.arange(-20.0, 21, 4)] * 3, 15.0)
    np.testing.assert_allclose(fine[:, ::4, ::4, ::4], coarse, atol=1e-5)
    wide = smooth_field(np.random.default_rng(2), [np.arange(-100.0, 100, 4)] * 3, 10.0)
    assert 0.8 < wide.std() < 1.2


def test_noise_of_two_scans_of_one_anatomy_is_independent_and_absent_from_the_truth(anatomy):
    machine = scanner(5, noise=0.08, noise_sigma_voxels=0.0, bias=0.0, noise_unevenness=0.0,
                      voxel_mm=np.full(3, 4.0))
    grid = scan_grid(np.random.default_rng(0), anatomy, np.full(3, 4.0))
    shown = render(anatomy, machine)
    clean = sample(shown, anatomy, grid)
    first, second = (acquire(np.random.default_rng(seed), anatomy, machine, grid, shown)
                     for seed in (1, 2))
    core = ndimage.binary_erosion(first.mask & second.mask, iterations=2)
    errors = [(scan.data - clean)[core] for scan in (first, second)]
    assert abs(np.corrcoef(*errors)[0, 1]) < 0.05
    assert np.std(errors[0]) == pytest.approx(0.08 * machine.gain, rel=0.15)
    again = acquire(np.random.default_rng(1), anatomy, machine, grid, shown)
    assert np.array_equal(first.data, again.data)


def test_the_truth_has_the_targets_contrast_and_sharpness(anatomy):
    sharp = scanner(6, gain=100.0, tone=(0.0, 1.0, 0.0), gamma=1.0, region_std=0.0, outside=0.0,
                    psf_mm=np.full(3, 0.8), voxel_mm=np.full(3, 1.0))
    blurred = replace(sharp, psf_mm=np.full(3, 9.0))
    bright = replace(sharp, table=sharp.table * np.array([[1], [0.7], [1], [1]], np.float32))
    core = anatomy.fractions[2] > 0.95
    gray = anatomy.fractions[1] > 0.9
    images = [render(anatomy, one) for one in (sharp, blurred, bright)]
    edges = [np.abs(np.diff(image, axis=0)).mean() for image in images]
    assert edges[1] < 0.8 * edges[0]
    assert images[2][gray].mean() < 0.8 * images[0][gray].mean()
    assert images[2][core].mean() == pytest.approx(images[0][core].mean(), rel=0.1)


def test_anatomies_hold_detail_that_no_label_map_has(anatomy):
    machine = scanner(7, region_std=0.0, tone=(0.0, 1.0, 0.0), gamma=1.0, outside=0.0,
                      psf_mm=np.full(3, 0.8), voxel_mm=np.full(3, 1.0))
    plain = replace(machine, table=machine.table * np.array([[1, 0, 0]], np.float32))
    white = ndimage.binary_erosion(anatomy.fractions[2] + anatomy.fractions[0] > 0.98)
    detail = (render(anatomy, machine) - render(anatomy, plain))[white] / machine.gain
    assert np.std(detail) > 0.005  # beyond what the tissues' fractions explain


def test_a_label_map_becomes_an_anatomy_and_the_cache_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy_module, "ALIGNMENT_STEPS", 4)
    anatomy_module._aligned_map.cache_clear()
    size = np.array([100, 120, 90])
    axes = [np.arange(n) - (n - 1) / 2 for n in size]
    radius = np.sqrt(sum((a / s) ** 2 for a, s in zip(np.meshgrid(*axes, indexing="ij"),
                                                     (40, 50, 36))))
    labels = np.zeros(size, np.int16)
    for limit, label in ((1.0, 24), (0.95, 3), (0.8, 2), (0.25, 4)):
        labels[radius < limit] = label
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "map_1.nii.gz")
    plain = label_map_anatomy(tmp_path, 0, 5, 4.0)
    cached = label_map_anatomy(tmp_path, 0, 5, 4.0, tmp_path / "cache")
    again = label_map_anatomy(tmp_path, 0, 5, 4.0, tmp_path / "cache")
    assert (tmp_path / "cache" / "aligned_00_4mm.npz").exists()
    for one in (cached, again):
        assert np.array_equal(plain.fractions, one.fractions)
        assert np.array_equal(plain.texture, one.texture)
    total = plain.fractions.sum(axis=0)
    assert total.max() <= 1.001 and (total[plain.brain > 0.95] > 0.9).mean() > 0.95
    assert not np.array_equal(plain.fractions, label_map_anatomy(tmp_path, 0, 6, 4.0).fractions)
