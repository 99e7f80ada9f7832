"""Wall of brains: one slice of every scan before, only rescaled and after harmonization, by site.

All tiles of a modality have one window, that of the target's scans. Before harmonization, all scans
are multiplied by one common factor; if the units of the sites differ, each site has its own. Only
rescaled, each scan has the target's mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.metrics.distribution import LEVELS, QuantileTable, moment_map
from .charts import STAGE_TITLES
from .slices import ScanSlices, gray_webp, read_gray

__all__ = ["Tile", "Wall", "WallRow", "WallSlice", "make_wall", "wall_picture", "wall_slice"]

WALL_POSITION_MM = 16.0  # axial slice through ventricles, caudate nucleus and putamen
TILE_WIDTHS = ((24, 104), (80, 76), (240, 56))  # up to so many scans -> pixels
MIN_TILE_WIDTH = 44
TILE_QUALITY = 72
PICTURE_GAP_PIXELS = 3
MAX_COMMON_UNIT_RATIO = 3.0  # of the sites' median intensities; above it the units differ
MAX_BACKGROUND_GRAY = 6  # of 255: lossy compression leaves a few gray levels


@dataclass(frozen=True)
class WallSlice:
    """Slice of one scan in its own intensities: gray values (uint8) and their windows.

    Attributes
    ----------
    before, after : (rows, columns) ndarray of uint8
        Gray values.
    windows : mapping
        "before" and "after" -> intensities of 0 and 255.
    """

    before: np.ndarray
    after: np.ndarray
    windows: Mapping[str, tuple[float, float]]

    def mapped(self, stage: str, gain: float, offset: float) -> np.ndarray:
        """Return ``gain * x + offset`` of the slice before or after; the background stays 0."""
        low, high = self.windows[stage]
        gray = getattr(self, stage)
        intensities = low + gray.astype(np.float32) / 255 * (high - low)
        return np.where(gray > MAX_BACKGROUND_GRAY, gain * intensities + offset, 0.0)


@dataclass(frozen=True)
class Tile:
    """Picture of one scan at one stage: WebP bytes."""

    scan: str
    image: bytes


@dataclass(frozen=True)
class WallRow:
    """Scans of one site: title of the stage -> tiles, in the order of the scans."""

    site: str
    stages: Mapping[str, tuple[Tile, ...]]


@dataclass(frozen=True)
class Wall:
    """Wall of one modality.

    Attributes
    ----------
    rows : tuple of WallRow
        One for each site.
    width, height : int
        Size of a tile in pixels.
    before : str
        How the scans before harmonization were brought to the window, in words.
    """

    rows: tuple[WallRow, ...]
    width: int
    height: int
    before: str


def wall_slice(slices: ScanSlices) -> WallSlice:
    """Take the slice for the wall out of the slices of a scan."""
    stack = next(stack for stack in slices.stacks if stack.plane == "axial")
    top = stack.nearest(WALL_POSITION_MM) * stack.height
    gray = {name: read_gray(stack.images[name])[top:top + stack.height]
            for name in ("before", "after")}
    return WallSlice(gray["before"], gray["after"], slices.windows)


def make_wall(slices: Mapping[str, WallSlice], quantiles: QuantileTable, target: np.ndarray
              ) -> Wall | None:
    """Make the wall of one modality; None without slices.

    Parameters
    ----------
    slices : mapping
        Scan -> its slice.
    quantiles : QuantileTable
        Quantile functions of the scans of this modality in the brain.
    target : (200,) ndarray
        Quantile function of the target.
    """
    before = quantiles.select(stage="before")
    rows = [row for row in before.rows if row.scan in slices]
    if not rows:
        return None
    sites = np.array([row.site for row in rows])
    curves = np.stack([row.quantiles for row in rows])
    gains, words = _gains_before(np.median(curves, axis=1), sites, float(np.median(target)))
    gain, offset = moment_map(curves, target)
    maps = {"before": [(value, 0.0) for value in gains],
            "rescaled": list(zip(gain[:, 0].tolist(), offset[:, 0].tolist())),
            "after": [(1.0, 0.0)] * len(rows)}
    low, high = np.interp([0.005, 0.995], LEVELS, target)
    window = min(0.0, float(low)), float(high + 0.05 * (high - low))
    width = next((pixels for limit, pixels in TILE_WIDTHS if len(rows) <= limit), MIN_TILE_WIDTH)
    found: dict[str, dict[str, list[Tile]]] = {}
    height = width
    for number, row in enumerate(rows):
        for stage, title in STAGE_TITLES.items():
            picture = slices[row.scan].mapped("after" if stage == "after" else "before",
                                              *maps[stage][number])
            pixels = _tile(picture, window, width)
            height = pixels.shape[0]
            found.setdefault(row.site, {}).setdefault(title, []).append(
                Tile(row.scan, gray_webp(pixels, TILE_QUALITY)))
    return Wall(tuple(WallRow(site, {title: tuple(tiles) for title, tiles in found[site].items()})
                      for site in sorted(found)), width, height, words)


def _gains_before(medians: np.ndarray, sites: np.ndarray, target: float
                  ) -> tuple[list[float], str]:
    """Return the gain of each scan before harmonization, and what was done in words.

    Parameters
    ----------
    medians : (scans,) ndarray
        Median intensity of each scan.
    sites : (scans,) ndarray of str
        Site of each scan.
    target : float
        Median intensity of the target.
    """
    of_site = {site: float(np.median(medians[sites == site])) for site in np.unique(sites)}
    levels = list(of_site.values())
    if min(levels) <= 0 or target <= 0:
        return [1.0] * len(sites), "the scans' own intensities"
    if max(levels) / min(levels) > MAX_COMMON_UNIT_RATIO:
        return ([target / of_site[site] for site in sites],
                "all scans of a site are multiplied by one factor, because the sites' units differ")
    return ([target / float(np.median(medians))] * len(sites),
            "all scans are multiplied by one common factor")


def _tile(picture: np.ndarray, window: tuple[float, float], width: int) -> np.ndarray:
    """Window a slice and reduce it to `width` pixels: uint8."""
    from PIL import Image

    low, high = window
    gray = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    height = round(picture.shape[0] * width / picture.shape[1])
    image = Image.fromarray(np.round(255 * gray).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def wall_picture(wall: Wall, stages: Sequence[str] = tuple(STAGE_TITLES.values()),
                 tiles_per_row: int = 6) -> bytes:
    """Draw the wall as one PNG: a row of tiles for each site, a column for each stage."""
    from .draw import new_canvas, to_png

    columns = min(tiles_per_row, max(len(tiles) for row in wall.rows
                                     for tiles in row.stages.values()))
    sheets = [[_sheet(row.stages[stage], wall, columns) for stage in stages] for row in wall.rows]
    left, top, gap = 64, 24, 18
    width = left + sum(sheet.shape[1] + gap for sheet in sheets[0])
    height = top + sum(line[0].shape[0] + PICTURE_GAP_PIXELS for line in sheets)
    pixels = np.full((height, width), 255, np.uint8)
    canvas = new_canvas(width, height)
    y = top
    for row, line in zip(wall.rows, sheets):
        x = left
        _write(canvas, 4, y + line[0].shape[0] / 2, row.site, width, height)
        for stage, sheet in zip(stages, line):
            pixels[y:y + sheet.shape[0], x:x + sheet.shape[1]] = sheet
            if y == top:
                _write(canvas, x, top / 2, stage, width, height)
            x += sheet.shape[1] + gap
        y += line[0].shape[0] + PICTURE_GAP_PIXELS
    axes = canvas.add_axes((0, 0, 1, 1), zorder=-1)
    axes.set_axis_off()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    return to_png(canvas)


def _write(canvas: Any, x: float, y: float, text: str, width: int, height: int) -> None:
    canvas.text(x / width, 1 - y / height, text, fontsize=8, ha="left", va="center")


def _sheet(tiles: Sequence[Tile], wall: Wall, columns: int) -> np.ndarray:
    """Lay out tiles in lines of `columns`: uint8, white where there is none."""
    lines = -(-len(tiles) // columns)
    sheet = np.full((lines * wall.height, columns * wall.width), 255, np.uint8)
    for number, tile in enumerate(tiles):
        y, x = (number // columns) * wall.height, (number % columns) * wall.width
        sheet[y:y + wall.height, x:x + wall.width] = read_gray(tile.image)
    return sheet
