"""Mosaic of upright slices of a volume.

A :class:`Mosaic` is planned once from a mask and an affine. It then cuts any array of that grid on
the same slices, so that frames and contours match. Voxels are first brought to RAS order (first
axis to the subject's right, second to the front, third to the top). Axial slices show front up;
coronal slices top up; sagittal slices top up and front to the right.

The "neurological" convention shows the subject's left at the left, as in nilearn and fMRIPrep;
"radiological" shows it at the right. Letters on the image mark the directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from scipy import ndimage

__all__ = ["Mosaic", "Letter", "plan_mosaic", "plan_stack", "slice_positions"]

PLANE_AXES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
"""Plane -> RAS axes (across the slices, horizontal, vertical)."""
DIRECTION_LETTERS = {0: ("L", "R"), 1: ("P", "A"), 2: ("I", "S")}
TILE_GAP_PIXELS = 4
MOSAIC_ENDS = (0.14, 0.86)  # first and last slice, fractions of the brain's extent
STACK_END_FRACTION = 0.04  # of the brain's extent, outside the slices of a stack


@dataclass(frozen=True)
class Letter:
    """Short text on the mosaic: row and column in pixels from the top left, anchor "l" or "r"."""

    row: float
    column: float
    text: str
    anchor: str = "l"


@dataclass(frozen=True)
class Tile:
    """Slice: plane, index, first and last voxel along both axes, and place in pixels."""

    plane: str
    index: int
    horizontal: tuple[float, float]
    vertical: tuple[float, float]
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Mosaic:
    """Plan of slices for one grid; :meth:`cut` applies it to any array of that grid."""

    affine: np.ndarray
    shape: tuple[int, int, int]
    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    convention: str = "neurological"

    def cut(self, array: np.ndarray, order: int = 1, fill: float = 0.0) -> np.ndarray:
        """Cut the slices out of an array.

        Parameters
        ----------
        array : (I, J, K) ndarray
            Values on the mosaic's grid.
        order : int
            1 interpolates linearly; 0 takes the nearest voxel (labels, masks).
        fill : float
            Value between tiles.

        Returns
        -------
        (rows, columns) float32 ndarray
            Image with the first row on top.
        """
        canvas = np.full(self.size, fill, dtype=np.float32)
        upright = _to_ras(np.asarray(array), self.affine)
        for tile in self.tiles:
            rows, columns = slice(tile.top, tile.top + tile.height), slice(
                tile.left, tile.left + tile.width)
            canvas[rows, columns] = self._slice(upright, tile, order, fill)
        return canvas

    def letters(self) -> tuple[Letter, ...]:
        """Return direction letters of each plane and each slice's position in mm."""
        first = {tile.plane: tile for tile in reversed(self.tiles)}
        letters = [letter for tile in first.values() for letter in self._ends(tile)]
        return tuple(letters + [self._place(tile) for tile in self.tiles])

    def _flipped(self, plane: str) -> bool:
        return self.convention == "radiological" and plane != "sagittal"

    def _slice(self, upright: np.ndarray, tile: Tile, order: int, fill: float) -> np.ndarray:
        across, _, _ = PLANE_AXES[tile.plane]
        plane = np.take(upright, tile.index, axis=across).astype(np.float32)
        x, y = (_centers(*tile.horizontal, tile.width), _centers(*tile.vertical, tile.height))
        x = x[::-1] if self._flipped(tile.plane) else x
        grid = np.meshgrid(x, y[::-1])  # the top row is the far end of the vertical axis
        return ndimage.map_coordinates(plane, grid, order=order, mode="constant", cval=fill)

    def _ends(self, tile: Tile) -> list[Letter]:
        low, high = DIRECTION_LETTERS[PLANE_AXES[tile.plane][1]]
        if self._flipped(tile.plane):
            low, high = high, low
        return [Letter(tile.top + 9, tile.left + 2, low),
                Letter(tile.top + 9, tile.left + tile.width - 2, high, "r")]

    def _place(self, tile: Tile) -> Letter:
        across, *_ = PLANE_AXES[tile.plane]
        position = slice_positions(replace(self, tiles=(tile,)))[0]
        text = f"{'xyz'[across]} {round(position):+d}"
        return Letter(tile.top + tile.height - 2, tile.left + 2, text)


def plan_mosaic(
    mask: np.ndarray,
    affine: np.ndarray,
    columns: int = 7,
    tile_pixels: int = 164,
    planes: Sequence[str] = ("axial", "coronal", "sagittal"),
    convention: str = "neurological",
    margin_mm: float = 6.0,
) -> Mosaic:
    """Plan `columns` slices of each plane, evenly spaced over the bounding box of a mask.

    All tiles have one scale, at which the widest is `tile_pixels` wide, and include a margin around
    the mask.

    Parameters
    ----------
    mask : (I, J, K) ndarray
        Mask; if empty, the whole volume is shown.
    affine : (4, 4) ndarray
        Affine of the grid.
    columns : int
        Number of slices per plane.
    tile_pixels : int
        Width of the widest tile.
    planes : sequence of str
        "axial", "coronal", "sagittal".
    convention : str
        "neurological" or "radiological".
    margin_mm : float
        Margin around the mask.
    """
    low, high, edges, extent = _region(mask, affine, margin_mm)
    scale = tile_pixels / max(extent[PLANE_AXES[plane][1]] for plane in planes)
    tiles: list[Tile] = []
    top = TILE_GAP_PIXELS
    for plane in planes:
        across, h, v = PLANE_AXES[plane]
        width, height = round(extent[h] * scale), round(extent[v] * scale)
        for column, index in enumerate(_slice_indices(low[across], high[across], columns)):
            left = (TILE_GAP_PIXELS + column * (tile_pixels + TILE_GAP_PIXELS)
                    + (tile_pixels - width) // 2)
            tiles.append(Tile(plane, index, edges[h], edges[v], top, left, height, width))
        top += height + TILE_GAP_PIXELS
    return Mosaic(np.asarray(affine), mask.shape, tuple(tiles),
                  (top, TILE_GAP_PIXELS + columns * (tile_pixels + TILE_GAP_PIXELS)), convention)


def plan_stack(
    mask: np.ndarray,
    affine: np.ndarray,
    plane: str,
    count: int,
    pixel_mm: float,
    convention: str = "neurological",
    margin_mm: float = 6.0,
) -> Mosaic:
    """Plan `count` slices of one plane in a column, the first on top and without gaps.

    Parameters
    ----------
    mask : (I, J, K) ndarray
        Mask whose bounding box is covered; if empty, the whole volume.
    affine : (4, 4) ndarray
        Affine of the grid.
    plane : str
        "axial", "coronal" or "sagittal".
    count : int
        Number of slices, evenly spaced from the low to the high end of the axis.
    pixel_mm : float
        Size of a pixel.
    convention : str
        "neurological" or "radiological".
    margin_mm : float
        Margin around the mask.
    """
    low, high, edges, extent = _region(mask, affine, margin_mm)
    across, h, v = PLANE_AXES[plane]
    width, height = round(extent[h] / pixel_mm), round(extent[v] / pixel_mm)
    ends = STACK_END_FRACTION, 1 - STACK_END_FRACTION
    indices = _slice_indices(low[across], high[across], count, ends)
    tiles = tuple(Tile(plane, index, edges[h], edges[v], number * height, 0, height, width)
                  for number, index in enumerate(indices))
    return Mosaic(np.asarray(affine), mask.shape, tiles, (count * height, width), convention)


def slice_positions(mosaic: Mosaic) -> list[float]:
    """Return the world coordinate (mm) of each slice along the axis that it is perpendicular to."""
    upright = _ras_affine(mosaic.affine, mosaic.shape)
    positions = []
    for tile in mosaic.tiles:
        across, *_ = PLANE_AXES[tile.plane]
        center = (np.array(_ras_shape(mosaic.affine, mosaic.shape)) - 1) / 2
        center[across] = tile.index
        positions.append(float((upright @ [*center, 1])[across]))
    return positions


def _region(mask: np.ndarray, affine: np.ndarray, margin_mm: float
            ) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float]], np.ndarray]:
    """Return first and last voxel of the mask, edges with a margin (voxels) and extent (mm).

    The axes are in RAS order.
    """
    upright = _to_ras(np.asarray(mask, dtype=bool), affine)
    spacing = np.linalg.norm(_ras_affine(affine, mask.shape)[:3, :3], axis=0)
    low, high = _box(upright if upright.any() else np.ones_like(upright))
    margin = margin_mm / spacing
    edges = [(a - m, b + m) for a, b, m in zip(low - 0.5, high + 0.5, margin)]
    return low, high, edges, np.array([b - a for a, b in edges]) * spacing


def _slice_indices(low: int, high: int, count: int, ends: tuple[float, float] = MOSAIC_ENDS
                   ) -> list[int]:
    fractions = np.linspace(*ends, count)
    return [round(low + fraction * (high - low)) for fraction in fractions]


def _centers(start: float, stop: float, count: int) -> np.ndarray:
    """Return voxel coordinates of the centers of `count` equal pixels between two edges."""
    return start + (np.arange(count) + 0.5) * (stop - start) / count


def _box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last index of the mask along each axis."""
    found = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([f[0] for f in found]), np.array([f[-1] for f in found])


def _to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.orientations.apply_orientation(array, nib.io_orientation(affine))


def _ras_affine(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(affine), shape)


def _ras_shape(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    places = nib.io_orientation(affine)[:, 0].astype(int)
    return tuple(int(shape[list(places).index(axis)]) for axis in range(3))
