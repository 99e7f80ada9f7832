"""Intensity maps: changes of contrast that are fitted on one grid and applied on another.

Methods without training return an `IntensityMap` instead of an image. The map is fitted on the
template grid, where scans can be compared, and applied to the voxels of the subject's own grid.
Only the smooth map is resampled, never the image. A map describes itself for the sidecar.
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

MIN_FIELD_FACTOR = 0.1  # an additive field darkens no voxel below this fraction of g x


class IntensityMap(ABC):
    """Map of intensities inside a mask; voxels outside the mask keep their values bit for bit."""

    def apply(self, volume: Volume, to_map: np.ndarray | None = None) -> Volume:
        """Map the intensities inside the mask of a volume.

        Parameters
        ----------
        volume : Volume
            Image on any grid. Without a mask, all voxels are mapped.
        to_map : (4, 4) ndarray, optional
            World of the volume to the world in which the map was fitted, mm; identity by default.

        Returns
        -------
        Volume
            Same grid and mask.
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
        """Summarize the map for a sidecar, in JSON types only."""


@dataclass(frozen=True, eq=False)
class PointwiseMap(IntensityMap):
    """Piecewise linear, strictly increasing function of the intensity alone.

    Between zero and a positive first knot, and above the last knot, the function is the line
    through the origin. Below zero it has the slope of the first segment. Positive intensities
    therefore stay positive, and a lesion brighter than all knots keeps its contrast.

    Attributes
    ----------
    x, y : (n,) ndarray
        Knots. Knots with equal x (8-bit images) are merged to their mean y, then y is made strictly
        increasing. A y[0] of zero at a positive x[0] is raised just above zero.
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
        """Map (n,) intensities to (n,) float32 intensities."""
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
        """Knots, with the origin prepended where the first knot is positive."""
        if self.x[0] <= 0 or self.y[0] <= 0:
            return self.x, self.y
        return np.concatenate([[0.0], self.x]), np.concatenate([[0.0], self.y])

    def inverse(self) -> PointwiseMap:
        """Return the inverse map, which is exact between the knots and beyond them."""
        return PointwiseMap(self.y, self.x)

    def describe(self) -> dict[str, Any]:
        """Summarize the map for a sidecar: type and knots, with six significant digits."""
        return {
            "Type": "pointwise, piecewise linear",
            "Before": [float(f"{v:.6g}") for v in self.x],
            "After": [float(f"{v:.6g}") for v in self.y],
        }


def _merged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge knots of equal x to their mean y; returns at least two knots with increasing x."""
    unique, group = np.unique(x, return_inverse=True)
    mean = np.bincount(group, weights=y) / np.bincount(group)
    if len(unique) > 1:
        return unique, mean
    # A single knot gets a second one on the line through the origin.
    return (np.append(unique, unique[0] + (abs(unique[0]) or 1.0)),
            np.append(mean, mean[0] + (abs(mean[0]) or 1.0)))


@dataclass(frozen=True, eq=False)
class FieldMap(IntensityMap):
    """Map y = max(g x + d(v) min(1, x / low), MIN_FIELD_FACTOR g x).

    A gain g and a smooth additive field d. The field fades out as the intensity approaches zero, so
    dark voxels stay dark and no voxel becomes negative. Voxels at or below zero get the gain alone.

    Attributes
    ----------
    gain : float
        g; > 0.
    field : (I, J, K) ndarray
        d, intensity units.
    affine : (4, 4) ndarray
        Voxel indices of the field to world, mm.
    low : float
        Intensity below which the field fades out; > 0.
    band : str
        Description of the field for the sidecar, such as its cutoff in cycles/mm.
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
        y = np.maximum(scaled + d * np.clip(x / self.low, 0.0, 1.0), MIN_FIELD_FACTOR * scaled)
        return np.where(x > 0, y, scaled).astype(np.float32)

    def _sample(self, affine: np.ndarray, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        """(n,) field at the masked voxels of another grid, by linear interpolation."""
        to_field = np.linalg.inv(self.affine) @ world @ affine
        voxels = np.argwhere(mask)
        coordinates = voxels @ to_field[:3, :3].T + to_field[:3, 3]
        return ndimage.map_coordinates(self.field, coordinates.T, order=1, mode="nearest")

    def describe(self) -> dict[str, Any]:
        """Summarize the map for a sidecar: type, gain, band and range of the field."""
        return {
            "Type": "gain and additive smooth field",
            "Gain": float(f"{self.gain:.6g}"),
            "Band": self.band,
            "Minimum": float(f"{self.field.min():.6g}"),
            "Maximum": float(f"{self.field.max():.6g}"),
        }
