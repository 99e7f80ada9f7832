"""A change of contrast as a value: fitted on one grid, applied on another, printed in a sidecar.

A method that needs no training does not hand out voxels but a map of intensities. The map is
fitted on the template grid, where people can be compared, and applied to the subject's own voxels
on the subject's own grid, so that nothing but the (smooth) map is ever resampled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ..volume import Volume
from .intensity import strictly_increasing

__all__ = ["IntensityMap", "PointwiseMap", "FieldMap"]

FLOOR = 0.1  # an additive field may darken a voxel to a tenth, never to zero or below


class IntensityMap(ABC):
    """In-mask intensities before -> after. Voxels outside the mask are returned bit for bit."""

    def apply(self, volume: Volume, to_map: np.ndarray | None = None) -> Volume:
        """Map the voxels inside `volume.mask`.

        Parameters
        ----------
        volume : image with a mask, on any grid
        to_map : (4, 4) world mm of `volume` -> world mm in which the map was fitted; None if the
            two are the same world
        """
        world = np.eye(4) if to_map is None else np.asarray(to_map, dtype=np.float64)
        data = volume.data.copy()
        mask = volume.mask if volume.mask is not None else np.ones(volume.shape, dtype=bool)
        data[mask] = self._values(volume, mask, world)
        return volume.with_data(data)

    @abstractmethod
    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        """(n,) new values of the n voxels of `mask`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a sidecar says of the map; JSON types only."""


@dataclass(frozen=True, eq=False)
class PointwiseMap(IntensityMap):
    """y = f(x): piecewise linear through (x, y), strictly increasing, hence invertible.

    Between zero and a positive first knot f runs on the line from the origin, below zero with the
    first slope; above the last knot on the line from the origin. So an intensity stays positive,
    and a lesion brighter than all else keeps its contrast.

    Attributes
    ----------
    x, y : (n,) knots. Knots of equal x (8-bit images) are merged to their mean y, then y is made
        strictly increasing; a y[0] of zero at a positive x[0] is lifted just above zero
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        x, y = _merged(np.asarray(self.x, np.float64), np.asarray(self.y, np.float64))
        step = 1e-6 * max(y[-1] - y[0], abs(y[-1]), 1e-30)
        if x[0] > 0 and y[0] >= 0:
            y = np.maximum(y, step)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", strictly_increasing(y, step))

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        return self(volume.data[mask])

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) intensities before -> (n,) float32 after."""
        knots_x, knots_y = self._from_origin()
        x = np.asarray(values, dtype=np.float64)
        y = np.interp(x, knots_x, knots_y)
        below, above = x < knots_x[0], x > knots_x[-1]
        first = (self.y[1] - self.y[0]) / (self.x[1] - self.x[0])
        last = (self.y[-1] - self.y[-2]) / (self.x[-1] - self.x[-2])
        if self.x[-1] > 0 and self.y[-1] > 0:
            last = self.y[-1] / self.x[-1]
        y[below] = knots_y[0] + (x[below] - knots_x[0]) * first
        y[above] = knots_y[-1] + (x[above] - knots_x[-1]) * last
        return y.astype(np.float32)

    def _from_origin(self) -> tuple[np.ndarray, np.ndarray]:
        """Knots with the origin in front where the first one is positive."""
        if self.x[0] <= 0 or self.y[0] <= 0:
            return self.x, self.y
        return np.concatenate([[0.0], self.x]), np.concatenate([[0.0], self.y])

    def inverse(self) -> PointwiseMap:
        """The map back, exact between the knots and beyond them."""
        return PointwiseMap(self.y, self.x)

    def describe(self) -> dict[str, Any]:
        """Type and knots, six significant digits."""
        return {
            "Type": "pointwise, piecewise linear",
            "Before": [float(f"{v:.6g}") for v in self.x],
            "After": [float(f"{v:.6g}") for v in self.y],
        }


def _merged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strictly increasing x, each with the mean y of its ties; at least two knots."""
    unique, group = np.unique(x, return_inverse=True)
    mean = np.bincount(group, weights=y) / np.bincount(group)
    if len(unique) > 1:
        return unique, mean
    reach = abs(unique[0]) or 1.0  # a single knot: go on along the line from the origin
    return np.append(unique, unique[0] + reach), np.append(mean, mean[0] + (abs(mean[0]) or 1.0))


@dataclass(frozen=True, eq=False)
class FieldMap(IntensityMap):
    """y = max(g x + d(v) min(1, x / low), FLOOR g x): a gain g and a smooth additive field d.

    The weight fades the field out towards zero intensity, so that dark voxels stay dark and
    nothing becomes negative; voxels at or below zero get the gain alone.

    Attributes
    ----------
    gain : g; > 0
    field : (I, J, K) d, intensity units, on the grid of `affine` (voxel -> world mm)
    low : intensity below which the change fades; > 0
    band : what is said of the field in a sidecar, such as its cut-off in cycles/mm
    """

    gain: float
    field: np.ndarray
    affine: np.ndarray
    low: float
    band: str

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        x = volume.data[mask].astype(np.float64)
        d = self._sample(volume.affine, mask, world)
        scaled = self.gain * x
        y = np.maximum(scaled + d * np.clip(x / self.low, 0.0, 1.0), FLOOR * scaled)
        return np.where(x > 0, y, scaled).astype(np.float32)

    def _sample(self, affine: np.ndarray, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        """(n,) field at the masked voxels of another grid, linear; the edge value beyond."""
        to_field = np.linalg.inv(self.affine) @ world @ affine
        voxels = np.argwhere(mask)
        coordinates = voxels @ to_field[:3, :3].T + to_field[:3, 3]
        return ndimage.map_coordinates(self.field, coordinates.T, order=1, mode="nearest")

    def describe(self) -> dict[str, Any]:
        """Type, band and range of the field."""
        return {
            "Type": "gain and additive smooth field",
            "Gain": float(f"{self.gain:.6g}"),
            "Band": self.band,
            "Minimum": float(f"{self.field.min():.6g}"),
            "Maximum": float(f"{self.field.max():.6g}"),
        }
