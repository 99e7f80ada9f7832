"""Matrices, files and resampling agree with each other and with ITK."""
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from harmonizer.errors import InputError
from harmonizer.preprocessing.ants_bridge import ants_module, to_ants
from harmonizer.preprocessing.transforms import (
    isotropic_grid,
    read_itk_affine,
    resample,
    resample_mask,
    write_itk_affine,
)
from harmonizer.volume import Volume

from .heads import blob, grids

GRIDS = grids()


def some_matrix():
    matrix = np.eye(4)
    turn = Rotation.from_euler("xyz", (8, -5, 14), degrees=True).as_matrix()
    matrix[:3, :3] = turn @ np.diag([1.1, 0.95, 1.02])
    matrix[:3, 3] = (3.5, -6.25, 2.125)
    return matrix


def test_text_file_gives_the_matrix_back(tmp_path):
    path = write_itk_affine(tmp_path / "a_xfm.txt", some_matrix())
    np.testing.assert_allclose(read_itk_affine(path), some_matrix(), rtol=0, atol=1e-12)


def test_text_file_of_the_inverse_is_the_inverse(tmp_path):
    path = write_itk_affine(tmp_path / "a_xfm.txt", np.linalg.inv(some_matrix()))
    np.testing.assert_allclose(
        read_itk_affine(path) @ some_matrix(), np.eye(4), rtol=0, atol=1e-12
    )


def test_center_of_rotation_is_taken_into_account(tmp_path):
    ants = ants_module()
    turn = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    transform = ants.create_ants_transform(
        transform_type="AffineTransform", matrix=turn, translation=(1, 2, 3), center=(10, -20, 5)
    )
    ants.write_transform(transform, str(tmp_path / "c.txt"))
    point = np.array([7.0, -3, 11])  # an LPS point of the target
    lps = np.diag([-1, -1, 1, 1])
    back = lps @ np.linalg.inv(read_itk_affine(tmp_path / "c.txt")) @ lps @ [*point, 1]
    np.testing.assert_allclose(back[:3], transform.apply_to_point(tuple(point)), atol=1e-5)


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", ["RAS", "oblique_thick"])
def test_resampling_is_what_ants_does_with_the_file(tmp_path, source, target):
    """The point convention: file, matrix and ITK move the same image to the same place."""
    ants = ants_module()
    affine = GRIDS[source].copy()
    affine[:3, 3] = 0
    affine[:3, 3] = -(affine @ [9.5, 11.5, 8.5, 1])[:3]  # all grids share one center
    target = GRIDS[target].copy()
    target[:3, 3] = 0
    target[:3, 3] = -(target @ [9.5, 11.5, 8.5, 1])[:3]
    moving, fixed = Volume(blob(), affine), Volume(blob(seed=1), target)
    matrix = some_matrix()
    path = write_itk_affine(tmp_path / "m_xfm.txt", matrix)
    theirs = ants.apply_transforms(
        fixed=to_ants(fixed), moving=to_ants(moving), transformlist=[str(path)],
        interpolator="linear",
    ).numpy()
    ours = resample(moving, fixed, matrix).data
    whole = resample(Volume(np.ones(moving.shape), affine), fixed, matrix).data > 0.999
    assert whole.sum() > 300
    # ITK rounds in float32; values reach 400
    np.testing.assert_allclose(ours[whole], theirs[whole], rtol=0, atol=0.2)
    assert np.ptp(theirs[whole]) > 50


def test_own_grid_changes_nothing():
    volume = Volume(blob(), GRIDS["oblique"])
    np.testing.assert_allclose(resample(volume, volume).data, volume.data, rtol=0, atol=1e-3)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_values_stay_in_range_and_outside_is_zero(order):
    volume = Volume(blob() + 100, GRIDS["RAS"])
    wide = isotropic_grid(volume, 2.0, margin_mm=12)
    out = resample(volume, wide, order=order).data
    assert out[0, 0, 0] == 0 and out.min() >= 0
    assert out.max() <= volume.data.max() * (1 + 1e-6)


def test_negative_values_survive():
    volume = Volume(blob() - 1000, GRIDS["RAS"])
    out = resample(volume, volume, order=3).data
    np.testing.assert_allclose(out, volume.data, rtol=0, atol=0.05)


def test_mask_comes_along_and_keeps_its_volume():
    ball = np.linalg.norm(np.argwhere(np.ones((20, 24, 18))) - [9.5, 11.5, 8.5], axis=1) < 7
    ball = ball.reshape(20, 24, 18)
    volume = Volume(ball.astype(np.float32), GRIDS["oblique"], ball)
    grid = isotropic_grid(volume, 2.0)
    transformed = resample(volume, grid)
    np.testing.assert_array_equal(transformed.mask, resample_mask(ball, volume.affine, grid))
    assert transformed.mask.sum() * 8 == pytest.approx(ball.sum() * 27, rel=0.05)


def test_antialias_averages_instead_of_picking():
    stripes = np.zeros((24, 24, 24), np.float32)
    stripes[::2] = 1
    fine = Volume(stripes, np.eye(4))
    coarse = isotropic_grid(fine, 4.0)
    smooth = resample(fine, coarse, antialias=True).data[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(smooth, 0.5, rtol=0, atol=0.02)


def test_isotropic_grid_covers_the_volume_about_the_same_center():
    volume = Volume(blob(), GRIDS["oblique_thick"])
    grid = isotropic_grid(volume, 2.5)
    middle = [[*((np.array(v.shape) - 1) / 2), 1] for v in (volume, grid)]
    np.testing.assert_allclose(volume.affine @ middle[0], grid.affine @ middle[1], atol=1e-9)
    np.testing.assert_allclose(grid.spacing, 2.5)
    extra = np.array(grid.shape) * 2.5 - np.array(volume.shape) * volume.spacing
    assert (extra >= -1e-6).all() and (extra < 2.5).all()


def test_unreadable_and_warps_are_refused(tmp_path):
    with pytest.raises(InputError, match="none.txt: cannot be read"):
        read_itk_affine(tmp_path / "none.txt")
    (tmp_path / "two.txt").write_text("Parameters: 1 2 3\nParameters: 1\n")
    with pytest.raises(InputError, match="got 2 transforms"):
        read_itk_affine(tmp_path / "two.txt")
    with pytest.raises(InputError, match="invertible"):
        write_itk_affine(tmp_path / "flat.txt", np.zeros((4, 4)))


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("steps", [(0, 0, 0), (3, -2, 5), (-4, 1, 40)])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_grids_that_share_their_voxels_share_their_values(source, steps, order):
    """As interpolation at whole voxels, and nothing where the source has none."""
    data = np.random.default_rng(0).normal(5, 1, (7, 9, 8)).astype(np.float32)
    affine, shape = GRIDS[source].copy(), (9, 6, 11)
    target = affine.copy()
    target[:3, 3] += affine[:3, :3] @ steps
    truth = np.zeros(shape, np.float32)
    for index in np.ndindex(*shape):
        at = tuple(np.add(index, steps))
        if all(0 <= a < n for a, n in zip(at, data.shape)):
            truth[index] = data[at]
    found = resample(Volume(data, affine, data > 5), Volume(np.zeros(shape), target), order=order)
    np.testing.assert_array_equal(found.data, truth)
    np.testing.assert_array_equal(found.mask, truth > 5)
    beside = target.copy()
    beside[:3, 3] += affine[:3, :3] @ (0.01, 0, 0)
    near = resample(Volume(data, affine), Volume(np.zeros(shape), beside), order=order).data
    assert order == 0 or not truth.any() or not np.array_equal(near, truth)
