"""Patches cover everything, blend to what was cut, and no weight is zero."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.deep.patches import PatchGrid, hann


@pytest.mark.parametrize("shape, patch, stride", [
    ((17, 14, 11), (8, 6, 5), None),
    ((16, 16, 16), (8, 8, 8), (4, 4, 4)),
    ((9, 7, 5), (9, 7, 5), None),
    ((10, 9, 7), (4, 9, 1), (3, 9, 1)),
])
def test_blend_undoes_cut_and_shares_sum_to_one(shape, patch, stride):
    grid = PatchGrid(shape, patch, stride)
    volume = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    np.testing.assert_allclose(grid.blend(grid.cut(volume)), volume, atol=2e-6)
    weights = np.zeros(shape)
    for corner in grid.corners:
        weights[grid.slices(corner)] += grid.weight(corner)
    np.testing.assert_allclose(weights, 1, atol=1e-6)
    assert grid.total.min() > 0
    assert len(set(grid.corners)) == len(grid.corners)


def test_the_papers_patches_are_27():
    grid = PatchGrid((160, 192, 160), (80, 96, 80))
    assert len(grid.corners) == 27
    assert grid.corners[-1] == (80, 96, 80)


def test_hann_is_positive_symmetric_and_one_in_the_middle():
    window = hann(7)
    assert window.min() == pytest.approx(np.sin(np.pi / 8) ** 2)
    np.testing.assert_allclose(window, window[::-1])
    assert window[3] == pytest.approx(1)


@pytest.mark.parametrize("patch, stride", [((8, 8, 20), None), ((8, 8, 8), (9, 8, 8)),
                                           ((8, 8, 8), (0, 4, 4))])
def test_patches_that_leave_holes_are_refused(patch, stride):
    with pytest.raises(ValueError, match="do not tile"):
        PatchGrid((16, 16, 16), patch, stride)


def test_a_missing_patch_is_refused():
    grid = PatchGrid((8, 8, 8), (4, 8, 8))
    patches = list(grid.cut(np.ones((8, 8, 8))))
    with pytest.raises(ValueError, match="expected 3 patches, got 2"):
        grid.blend(patches[:2])
