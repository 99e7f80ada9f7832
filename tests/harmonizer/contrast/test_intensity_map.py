"""Tests of intensity maps: monotonic, positive, invertible, and independent of the grid."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.contrast.intensity import quantile_function, strictly_increasing, trimmed_moments
from harmonizer.contrast.intensity_map import FieldMap, PointwiseMap
from harmonizer.volume import Volume


def test_knots_are_met_and_the_ends_follow_the_origin():
    f = PointwiseMap(np.array([10.0, 20.0, 40.0]), np.array([5.0, 20.0, 30.0]))
    np.testing.assert_allclose(f(np.array([10, 20, 30, 40])), [5, 20, 25, 30], rtol=1e-6)
    np.testing.assert_allclose(f(np.array([0, 5, 80])), [0, 2.5, 60], rtol=1e-6)


def test_negative_intensities_keep_their_sign_and_size():
    f = PointwiseMap(np.array([1e-6, 20.0]), np.array([5.0, 20.0]))
    assert -2.0 < f(np.array([-1.0]))[0] < 0.0


@pytest.mark.parametrize("x0, y0", [(5.0, 0.0), (0.0, 3.0), (-4.0, 2.0), (5.0, 9.0)])
def test_increasing_everywhere_positive_stays_positive_and_inverse_is_exact(x0, y0):
    f = PointwiseMap(np.array([x0, 30.0, 60.0]), np.array([y0, 40.0, 40.0]))
    x = np.linspace(-5, 200, 2000)
    y = f(x)
    assert (np.diff(y.astype(np.float64)) >= 0).all()
    assert (y[x >= 0] >= 0).all()
    inside = np.linspace(max(x0, 0.5), 30.0, 50)
    np.testing.assert_allclose(f.inverse()(f(inside)), inside, atol=1e-3)


def test_ties_are_merged_to_their_mean():
    f = PointwiseMap(np.array([1.0, 1.0, 2.0]), np.array([10.0, 20.0, 30.0]))
    assert f(np.array([1.0]))[0] == pytest.approx(15.0, abs=1e-4)


def test_field_map_on_a_finer_grid_and_in_another_world_is_the_same_field():
    grid = np.linspace(0, 1, 9)
    field = (10 * grid[:, None, None] + 20 * grid[None, :, None] + 0 * grid[None, None, :])
    change = FieldMap(2.0, field.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]), 1.0, "test")
    shift = np.eye(4)
    shift[:3, 3] = (100.0, 0.0, -50.0)  # world of the volume -> world of the map
    fine = np.linalg.inv(shift) @ np.diag([1.0, 2.0, 4.0, 1.0])
    volume = Volume(np.full((33, 17, 9), 50.0), fine, np.ones((33, 17, 9), bool))
    after = change.apply(volume, shift).data
    expected = 100 + 10 * np.linspace(0, 1, 33)[:, None, None] \
        + 20 * np.linspace(0, 1, 17)[None, :, None] + np.zeros((33, 17, 9))
    np.testing.assert_allclose(after, expected, atol=1e-3)


def test_field_map_never_makes_negative_and_fades_at_zero():
    field = np.full((4, 4, 4), -500.0, np.float32)
    data = np.linspace(-10, 100, 64).reshape(4, 4, 4)
    volume = Volume(data, np.eye(4), np.ones((4, 4, 4), bool))
    after = FieldMap(1.0, field, np.eye(4), 5.0, "test").apply(volume).data
    assert (after[data >= 0] >= 0).all()
    np.testing.assert_allclose(after[data < 0], data[data < 0], rtol=1e-6)
    assert (np.diff(after.ravel()) > 0).all()


def test_only_the_mask_changes():
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3] = True
    volume = Volume(np.full((4, 4, 4), 3.0), np.eye(4), mask)
    after = PointwiseMap(np.array([1.0, 5.0]), np.array([2.0, 10.0])).apply(volume).data
    assert set(np.unique(after[mask])) == {6.0} and set(np.unique(after[~mask])) == {3.0}


def test_robust_numbers_of_known_samples():
    values = np.concatenate([np.linspace(0, 1, 100_001), [1e9]])
    mean, deviation = trimmed_moments(values)
    assert mean == pytest.approx(0.5, abs=1e-3)
    assert deviation == pytest.approx(0.99 / np.sqrt(12), abs=1e-3)
    assert quantile_function(values, np.array([0.25]))[0] == pytest.approx(0.25, abs=1e-4)
    assert strictly_increasing(np.array([3.0, 1.0]), 0.5).tolist() == [3.0, 3.5]
