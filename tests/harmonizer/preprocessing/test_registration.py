"""A tilted and shifted brain is brought back; the truth is known, as we moved it ourselves."""
import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.preprocessing.registration import (
    affine_scales,
    mutual_information,
    register_to_template,
    search_pose,
    working_copy,
)
from harmonizer.volume import Volume

from .heads import brain_in_head

POINTS = np.array([[0, -20, 10, 1], [50, -20, 10, 1], [0, 50, 10, 1], [0, -20, 60, 1.0],
                   [-45, -60, -20, 1]]).T  # template world, mm


def error_mm(found, truth):
    """Mean distance of template points that went to the head by truth and came back."""
    return np.linalg.norm((found @ np.linalg.inv(truth) @ POINTS - POINTS)[:3], axis=0).mean()


@pytest.mark.parametrize("tilt, shift", [
    ((0, 0, 0), (0, 0, 0)), ((30, 0, 0), (0, 0, 40)), ((0, 30, 0), (40, 0, 0)),
    ((20, -20, 25), (20, -30, 30)), ((-30, 0, 15), (0, 40, -20)),
])
def test_pose_search_survives_tilt_and_shift(tilt, shift):
    head, truth = brain_in_head(4, tilt, shift)
    assert error_mm(search_pose(head), truth) < 12
    assert error_mm(np.eye(4), truth) > 3


def test_registration_of_a_tilted_brain():
    head, truth = brain_in_head(4, (25, -15, 10), (30, -20, 25), skull=False)
    found = register_to_template(head, sloppy=True)
    assert error_mm(found.matrix, truth) < 4
    assert 0.93 < found.overlap <= 1
    np.testing.assert_allclose(found.scales, 1 / 0.9, rtol=0.06)
    assert found.mutual_information > 0.3


def test_contrast_does_not_matter():
    head, truth = brain_in_head(4, (10, 5, -8), (10, 5, 0), skull=False)
    inverted = head.with_data(np.where(head.mask, 400 - head.data, 0))
    assert error_mm(register_to_template(inverted, sloppy=True).matrix, truth) < 5


def test_start_is_used():
    head, truth = brain_in_head(4, skull=False)
    found = register_to_template(head, initial=truth, sloppy=True)
    assert error_mm(found.matrix, truth) < 3


def test_without_mask_is_refused():
    with pytest.raises(InputError, match="needs a brain mask"):
        register_to_template(Volume(np.ones((9, 9, 9)), np.eye(4)))


def test_image_without_signal_is_refused():
    with pytest.raises(InputError, match="needs positive voxels, the image has none"):
        search_pose(Volume(-np.ones((30, 30, 30)), np.diag([4.0, 4, 4, 1])))


def test_mutual_information_of_independent_and_of_identical_samples():
    rng = np.random.default_rng(0)
    one, two = rng.uniform(size=(2, 200_000))
    assert mutual_information(one, two) == pytest.approx(31 * 31 / 2 / 200_000, abs=2e-3)
    # every bin equally full but the half-width first and last: entropy near log(31)
    assert mutual_information(one, one) == pytest.approx(np.log(31), abs=0.03)
    assert mutual_information(one, -one) == pytest.approx(mutual_information(one, one), abs=0.02)


def test_scales_are_the_stretch_whatever_the_rotation():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([0.9, 1.3, 1.1])
    np.testing.assert_allclose(affine_scales(matrix), (1.3, 1.1, 0.9))


def test_working_copy_is_between_zero_and_one():
    head, _ = brain_in_head(4)
    small = working_copy(head, 6)
    assert small.data.min() == 0 and small.data.max() == 1
    np.testing.assert_allclose(small.spacing, 6)
