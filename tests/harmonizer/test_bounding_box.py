"""Cropping and pasting of boxes that extend beyond the grid."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.bounding_box import BoundingBox


def test_crop_and_paste_beyond_the_border():
    array = np.arange(60.0).reshape(3, 4, 5)
    box = BoundingBox((-1, 1, 2), (5, 2, 4))
    cropped = box.crop(array, -9)
    assert (
        cropped.shape == (5, 2, 4) and (cropped[0] == -9).all() and (cropped[:, :, 3] == -9).all()
    )
    np.testing.assert_array_equal(cropped[1:4, :, :3], array[:, 1:3, 2:])
    np.testing.assert_array_equal(box.paste(cropped, array), array)
    assert box.paste(cropped + 1, array).sum() == array.sum() + 18
    mask = np.zeros((12, 12, 8), bool)
    mask[3:8, 2:9, 4:5] = True
    around = BoundingBox.around(mask, (4, 4, 2))
    assert around.shape == (8, 8, 2) and around.crop(mask, False).sum() == mask.sum()


@pytest.mark.parametrize("start", [(-9, 0, 0), (0, 7, 0), (4, 5, 6)])
def test_a_box_outside_the_grid_is_empty(start):
    array = np.ones((3, 4, 5))
    box = BoundingBox(start, (2, 2, 2))
    assert (box.crop(array, -1) == -1).all()
    np.testing.assert_array_equal(box.paste(np.zeros((2, 2, 2)), array), array)
