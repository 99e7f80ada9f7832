"""Bounding box of voxels in a volume: crop a region and paste it back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["BoundingBox"]


@dataclass(frozen=True)
class BoundingBox:
    """A box of voxels, which may extend beyond the grid.

    Attributes
    ----------
    start : tuple of int
        Lowest voxel along each axis; may be negative.
    shape : tuple of int
        Number of voxels along each axis.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def around(cls, mask: np.ndarray, multiple: tuple[int, int, int] = (1, 1, 1)
               ) -> BoundingBox:
        """Make the smallest centered box around a mask whose sides are multiples.

        Parameters
        ----------
        mask : ndarray, shape (I, J, K), bool
            At least one voxel is True.
        multiple : tuple of int
            Each side is a multiple of these.
        """
        start, shape = [], []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            hits = np.flatnonzero(mask.any(axis=others))
            low, high = int(hits[0]), int(hits[-1]) + 1
            side = -(-(high - low) // multiple[axis]) * multiple[axis]
            start.append(low - (side - (high - low)) // 2)
            shape.append(side)
        return cls(tuple(start), tuple(shape))

    def crop(self, array: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Copy the box out of an (I, J, K) array; `fill` where the box leaves the grid."""
        out = np.full(self.shape, fill, dtype=array.dtype)
        inside, within = self._overlap(array.shape)
        out[within] = array[inside]
        return out

    def paste(self, cropped: np.ndarray, array: np.ndarray) -> np.ndarray:
        """Return a copy of an (I, J, K) array with the box replaced by a cropped one."""
        out = np.array(array)
        inside, within = self._overlap(array.shape)
        out[inside] = cropped[within]
        return out

    def _overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the common region as slices of the array and as slices of the box."""
        inside, within = [], []
        for a, n, size in zip(self.start, self.shape, shape):
            low, high = max(a, 0), min(a + n, size)
            inside.append(slice(low, max(high, low)))
            within.append(slice(low - a, max(high, low) - a))
        return tuple(inside), tuple(within)
