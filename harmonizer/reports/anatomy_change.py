"""Where it moved: the map behind a flag of the anatomy guard, on slices through the largest change.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..evaluation.questions.anatomy import anatomy_change_map
from ..volume import Volume
from .draw import Colours, draw_mosaic
from .figures import Figure
from .mosaic import PLANES, Mosaic, _to_ras, plan_mosaic

__all__ = ["moved_figure"]

COLUMNS = 3
APART_MM = 8.0  # from one slice to the next
LEAST_SHOWN = 2.0  # percent of the range at which colours end, at least


def moved_figure(name: str, before: Volume, after: Volume, reasons: str = "") -> Figure:
    """What no change of contrast or bias field explains, over the harmonized image.

    Both on one grid, ``before`` with its mask; ``reasons``: of the flag, for the caption.
    InputError for a constant harmonized image.
    """
    moved = 100 * anatomy_change_map(before.data, after.data, before.mask, tuple(before.spacing))
    peak = np.unravel_index(np.abs(moved).argmax(), moved.shape)
    place = before.affine[:3, :3] @ peak + before.affine[:3, 3]
    limit = max(LEAST_SHOWN, float(np.abs(moved).max()))
    shown = np.where(np.abs(moved) >= 0.15 * limit, moved, np.nan)
    mosaic = _through(moved, before)
    window = tuple(np.percentile(after.data[before.mask], [0.5, 99.5]))
    colours = Colours("RdBu_r", -limit, limit, "moved, % of range", 0.75)
    at = ", ".join(f"{v:.0f}" for v in place)
    return Figure(
        name, f"Flagged: {reasons or 'no limit is broken'}. The largest change, {limit:.1f} % of "
        f"the range, is at ({at}) mm. Red: brighter than the source's contrast explains, blue: "
        "darker; averaged over 2.5 mm. A spot that stands alone was painted in or erased.",
        f"Slices through the largest local change of {name}, before, after and with the map",
        tuple(draw_mosaic(mosaic, image, w, overlay=shown if over else np.full_like(shown, np.nan),
                          colours=colours)
              for image, w, over in ((before.data, _window(before), False),
                                     (after.data, window, True))),
        ("before", "after, and where it moved"))


def _window(volume: Volume) -> tuple[float, float]:
    low, high = np.percentile(volume.in_mask(), [0.5, 99.5])
    return float(low), float(high)


def _through(moved: np.ndarray, volume: Volume) -> Mosaic:
    """Three slices in each plane, the middle one through the largest change."""
    mosaic = plan_mosaic(volume.mask, volume.affine, columns=COLUMNS)
    upright = np.abs(_to_ras(moved, volume.affine))
    peak = np.unravel_index(upright.argmax(), upright.shape)
    count: dict[str, int] = {}
    tiles = []
    for tile in mosaic.tiles:
        axis = PLANES[tile.plane][0]
        step = max(int(round(APART_MM / volume.spacing.min())), 1)
        column = count[tile.plane] = count.get(tile.plane, 0) + 1
        index = int(peak[axis]) + (column - 2) * step
        tiles.append(replace(tile, index=min(max(index, 0), upright.shape[axis] - 1)))
    return replace(mosaic, tiles=tuple(tiles))
