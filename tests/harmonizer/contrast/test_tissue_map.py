"""Tests of local tissue maps, local statistics and contrast transfer."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from harmonizer.contrast.contrast_transfer import compute_residual, fit_contrast_transfer
from harmonizer.contrast.local_statistics import (
    Lattice,
    measure,
    pool,
    relative_gain,
    stack_probabilities,
)
from harmonizer.contrast.tissue_map import TissueMap, TissueProbabilities, std_ratio
from harmonizer.errors import InputError
from harmonizer.volume import Volume

SHAPE = (30, 34, 28)  # 3 mm voxels: a brain of 90 mm
AFFINE = np.array([[3.0, 0, 0, -45], [0, 3, 0, -51], [0, 0, 3, -42], [0, 0, 0, 1]])
LEVELS = np.array([40.0, 80.0, 110.0])


def ball(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (3, I, J, K) and mask: white matter core, folded GM shell, rim of CSF."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    folds = 0.08 * np.sin(6 * grid[0] + seed) * np.cos(5 * grid[1])
    radius = np.sqrt((grid ** 2).sum(axis=0)) + folds
    hard = np.stack([(radius >= 0.8) & (radius < 0.95), (radius >= 0.55) & (radius < 0.8),
                     radius < 0.55]).astype(np.float32)
    soft = np.stack([ndimage.gaussian_filter(one, 0.5) for one in hard])
    mask = hard.any(axis=0)
    return np.where(mask, soft / np.maximum(soft.sum(axis=0), 1e-6), 0).astype(np.float32), mask


def image(levels: np.ndarray, noise: float = 3.0, seed: int = 0, field: float = 0.0) -> Volume:
    """Tissues of these levels under a bias field of +- `field` from left to right."""
    probabilities, mask = ball()
    bias = 1 + field * np.linspace(-1, 1, SHAPE[0])[:, None, None]
    data = np.einsum("c,cijk->ijk", levels, probabilities) * bias
    data += np.random.default_rng(seed).normal(0, noise, SHAPE)
    return Volume(np.where(mask, np.maximum(data, 1), 0).astype(np.float32), AFFINE, mask)


def map_between(source: Volume, target: Volume, sigma: float = 12.0) -> TissueMap:
    probabilities, _ = ball()
    lattice = Lattice.around(source)
    before, after = (measure(volume, probabilities, lattice, sigma) for volume in (source, target))
    return TissueMap(lattice, before, after.mean, std_ratio(before, after),
                     TissueProbabilities.of(probabilities, source))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values ** 2)))


def test_statistics_find_mean_and_std_of_each_tissue():
    probabilities, mask = ball()
    volume = image(LEVELS, noise=4.0)
    found = measure(volume, probabilities, Lattice.around(volume))
    for level, mean, std, mass in zip(LEVELS, found.mean, found.std, found.mass):
        here = mass > 0.2 * mass.max()
        assert np.median(mean[here]) == pytest.approx(level, abs=4)
        assert 3 < np.median(std[here]) < 12
    assert np.isfinite(found.mean).all() and (found.mean > 0).all() and (found.std > 0).all()


def test_contrast_gain_and_bias_field_are_corrected_at_once():
    """A non-monotone change that no single curve can undo: WM becomes darker than GM."""
    source, target = image(LEVELS, seed=1), image(np.array([30.0, 100, 60]), seed=2, field=0.2)
    after = map_between(source, target).apply(source)
    before_error = rms(source.in_mask() - target.in_mask())
    assert rms(after.in_mask() - target.in_mask()) < 0.25 * before_error


def test_map_is_increasing_positive_and_keeps_zero_and_what_is_outside():
    source, target = image(LEVELS), image(np.array([20.0, 60, 150]), seed=3)
    change = map_between(source, target)
    last = np.full(np.count_nonzero(source.mask), -np.inf)
    for level in (-5.0, 0.0, 1.0, 20.0, 60.0, 90.0, 130.0, 500.0):
        flat = source.with_data(np.full(SHAPE, level, np.float32))
        after = change.apply(flat)
        assert (after.in_mask() > last).all()
        assert (np.sign(after.in_mask()) == np.sign(level)).all()
        np.testing.assert_array_equal(after.data[~source.mask], level)
        last = after.in_mask()


def test_map_can_be_undone():
    source, target = image(LEVELS), image(np.array([30.0, 100, 60]), seed=2, field=0.2)
    wild = source.with_data(np.where(source.mask, source.data - 30, 0))  # negative voxels too
    change = map_between(source, target)
    back = change.undo(change.apply(wild))
    assert np.abs(back.data - wild.data).max() < 1e-3 * np.ptp(wild.in_mask())


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_painted_lesion_keeps_its_contrast_and_does_not_bend_the_map(factor):
    """Called white matter, dark or bright: after over surroundings as before, within 5 %."""
    target = image(1.4 * LEVELS, seed=5)
    whole = image(LEVELS, noise=2.0, seed=4)
    lesion = np.zeros(SHAPE, bool)
    lesion[13:17, 15:19, 12:16] = True
    around = ndimage.binary_dilation(lesion, iterations=2) & ~lesion
    data = whole.data.copy()
    data[lesion] *= factor
    painted = whole.with_data(data)

    def contrast(volume: Volume) -> float:
        return float(volume.data[lesion].mean() / volume.data[around].mean())

    change = map_between(painted, target, sigma=8.0)
    assert contrast(change.apply(painted)) == pytest.approx(contrast(painted), rel=0.05)
    healthy = map_between(whole, target, sigma=8.0).apply(whole)
    np.testing.assert_allclose(change.apply(whole).data[around], healthy.data[around], rtol=0.05)


def test_no_halo_at_borders_or_at_the_edge_of_the_mask():
    """A map to the image's own contrast, brighter: nowhere is the result off by a tissue's step."""
    source = image(LEVELS, noise=0.0)
    after = map_between(source, source.with_data(1.5 * source.data)).apply(source)
    np.testing.assert_allclose(after.in_mask(), 1.5 * source.in_mask(), rtol=0.01)


def test_maps_are_carried_to_another_grid_and_world():
    """The same voxels in another world, 40 mm off and mirrored, get the same change."""
    source, target = image(LEVELS), image(1.3 * LEVELS[::-1].copy() + 20, seed=2)
    change = map_between(source, target)
    own = Volume(np.flip(source.data, 0), np.diag([-3.0, 3, 3, 1]), np.flip(source.mask, 0))
    to_map = np.eye(4)
    to_map[:3, 3] = AFFINE[:3, 3] + [3.0 * (SHAPE[0] - 1), 0, 0]
    np.testing.assert_allclose(np.flip(change.apply(own, to_map).data, 0),
                               change.apply(source).data, rtol=1e-4, atol=1e-3)


def test_voxels_without_tissue_are_filled_from_their_neighbors():
    probabilities, mask = ball()
    hole = np.zeros(SHAPE, bool)
    hole[14:16, 16:18, 13:15] = True  # in the white core
    torn = np.where(hole, 0, probabilities)
    found = TissueProbabilities.of(torn, image(LEVELS)).sample(AFFINE, hole)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-4)
    assert (found[2] > 0.9).all()


def test_pooling_removes_the_gains_of_scans():
    probabilities, _ = ball()
    volumes = [image(LEVELS, seed=s).data * g for s, g in ((1, 1.0), (2, 2.0), (3, 4.0))]
    lattice = Lattice.around(image(LEVELS))
    each = [measure(image(LEVELS).with_data(data), probabilities, lattice) for data in volumes]
    site, gains = pool(each)
    np.testing.assert_allclose(gains, [0.5, 1, 2], rtol=0.02)
    assert relative_gain(each[2], each[0]) == pytest.approx(4, rel=0.02)
    assert relative_gain(site, each[1]) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("spoil, message", [
    (lambda maps: {"GM": maps["GM"]}, "probabilities of CSF .* got nothing"),
    (lambda maps: {**maps, "WM": maps["WM"][1:]}, "on the image's grid"),
    (lambda maps: {name: 0 * one for name, one in maps.items()}, "expected tissue inside"),
])
def test_unusable_probabilities_are_refused(spoil, message):
    probabilities, _ = ball()
    with pytest.raises(InputError, match=message):
        stack_probabilities(spoil(dict(zip(("CSF", "GM", "WM"), probabilities))), image(LEVELS))


def test_guided_image_keeps_the_change_of_contrast_and_drops_invented_detail():
    probabilities, mask = ball()
    source = image(LEVELS, seed=7)
    contrast = map_between(source, image(np.array([60.0, 70, 100]), seed=8)).apply(source)
    invented = contrast.data.copy()
    invented[14:17, 16:19, 20:22] += 60  # a thing that is not there
    direct = contrast.with_data(np.where(mask, invented, 0))
    guided = fit_contrast_transfer(source, direct, probabilities).apply(source)
    thing = invented != contrast.data
    contrast_range = np.ptp(np.percentile(contrast.in_mask(), [1, 99]))
    assert rms((guided.data - contrast.data)[mask & ~thing]) < 0.05 * contrast_range
    assert abs((guided.data - contrast.data)[thing]).max() < 0.3 * 60
    difference, summary = compute_residual(direct, guided)
    assert difference[thing].mean() == pytest.approx(60, rel=0.3)
    np.testing.assert_array_equal(difference[~mask], 0)
    transferred = fit_contrast_transfer(source, contrast, probabilities).apply(source)
    quiet = compute_residual(contrast, transferred)[1]
    assert summary["RMS"] > 1.5 * quiet["RMS"] >= 0
