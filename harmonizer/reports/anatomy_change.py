"""Maps of changes that the anatomy guard flags, on slices through the largest change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..evaluation.questions.anatomy import anatomy_change_map
from ..volume import Volume
from .draw import ColorScale, draw_mosaic
from .figures import Figure
from .mosaic import PLANE_AXES, Mosaic, _to_ras, plan_mosaic

__all__ = ["anatomy_change_figure"]

SLICES_PER_PLANE = 3
SLICE_DISTANCE_MM = 8.0
MIN_COLOR_LIMIT_PERCENT = 2.0  # limit of the color scale, percent of the range


def anatomy_change_figure(name: str, before: Volume, after: Volume, reasons: str = "") -> Figure:
    """Draw the change that neither contrast nor bias field explains, over the harmonized image.

    Parameters
    ----------
    name : str
        Scan, for the title.
    before, after : Volume
        Image before and after harmonization on one grid; `before` has a mask.
    reasons : str
        Limits that the image exceeds, for the caption.

    Returns
    -------
    Figure
        Two frames: before, and after with the map.

    Raises
    ------
    InputError
        If the harmonized image is constant.
    """
    change = 100 * anatomy_change_map(before.data, after.data, before.require_mask(),
                                      tuple(before.spacing))
    peak = np.unravel_index(np.abs(change).argmax(), change.shape)
    place = before.affine[:3, :3] @ peak + before.affine[:3, 3]
    limit = max(MIN_COLOR_LIMIT_PERCENT, float(np.abs(change).max()))
    shown = np.where(np.abs(change) >= 0.15 * limit, change, np.nan)
    mosaic = _through(change, before)
    window = tuple(np.percentile(after.data[before.mask], [0.5, 99.5]))
    color_scale = ColorScale("RdBu_r", -limit, limit, "change, % of range", 0.75)
    at = ", ".join(f"{v:.0f}" for v in place)
    return Figure(
        name, f"Flagged: {reasons or 'no limit exceeded'}. The largest change, {limit:.1f} % of "
        f"the range, is at ({at}) mm. Red: brighter than the source's contrast explains, blue: "
        "darker; averaged over 2.5 mm. An isolated spot was added or removed by the method.",
        f"Slices through the largest local change of {name}, before, after and with the map",
        tuple(draw_mosaic(mosaic, image, w, overlay=shown if over else np.full_like(shown, np.nan),
                          color_scale=color_scale)
              for image, w, over in ((before.data, _window(before), False),
                                     (after.data, window, True))),
        ("before", "after with change map"))


def _window(volume: Volume) -> tuple[float, float]:
    low, high = np.percentile(volume.in_mask(), [0.5, 99.5])
    return float(low), float(high)


def _through(change: np.ndarray, volume: Volume) -> Mosaic:
    """Plan three slices in each plane; the middle one passes through the largest change."""
    mosaic = plan_mosaic(volume.require_mask(), volume.affine, columns=SLICES_PER_PLANE)
    upright = np.abs(_to_ras(change, volume.affine))
    peak = np.unravel_index(upright.argmax(), upright.shape)
    count: dict[str, int] = {}
    tiles = []
    for tile in mosaic.tiles:
        axis = PLANE_AXES[tile.plane][0]
        step = max(int(round(SLICE_DISTANCE_MM / volume.spacing.min())), 1)
        column = count[tile.plane] = count.get(tile.plane, 0) + 1
        index = int(peak[axis]) + (column - 2) * step
        tiles.append(replace(tile, index=min(max(index, 0), upright.shape[axis] - 1)))
    return replace(mosaic, tiles=tuple(tiles))
