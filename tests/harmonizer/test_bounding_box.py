"""What a box shows of a grid that it may reach beyond."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.bounding_box import Canvas


def test_canvas_takes_and_puts_beyond_the_border():
    array = np.arange(60.0).reshape(3, 4, 5)
    canvas = Canvas((-1, 1, 2), (5, 2, 4))
    shown = canvas.take(array, -9)
    assert shown.shape == (5, 2, 4) and (shown[0] == -9).all() and (shown[:, :, 3] == -9).all()
    np.testing.assert_array_equal(shown[1:4, :, :3], array[:, 1:3, 2:])
    np.testing.assert_array_equal(canvas.put(shown, array), array)
    assert canvas.put(shown + 1, array).sum() == array.sum() + 18
    mask = np.zeros((12, 12, 8), bool)
    mask[3:8, 2:9, 4:5] = True
    around = Canvas.around(mask, (4, 4, 2))
    assert around.shape == (8, 8, 2) and around.take(mask, False).sum() == mask.sum()


@pytest.mark.parametrize("start", [(-9, 0, 0), (0, 7, 0), (4, 5, 6)])
def test_a_canvas_beside_the_grid_shows_nothing(start):
    array = np.ones((3, 4, 5))
    canvas = Canvas(start, (2, 2, 2))
    assert (canvas.take(array, -1) == -1).all()
    np.testing.assert_array_equal(canvas.put(np.zeros((2, 2, 2)), array), array)
