"""A box of voxels cut from a grid, which may reach beyond it, and put back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Canvas"]


@dataclass(frozen=True)
class Canvas:
    """From voxel `start` (may be negative) of a grid, over `shape` voxels.

    What lies beyond the grid is background.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    @classmethod
    def around(cls, mask: np.ndarray, multiple: tuple[int, int, int],
               at_least: tuple[int, int, int] = (1, 1, 1)) -> Canvas:
        """The box around the True voxels, grown evenly to multiples of `multiple`."""
        start, shape = [], []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            hits = np.flatnonzero(mask.any(axis=others))
            low, high = int(hits[0]), int(hits[-1]) + 1
            need = max(high - low, at_least[axis])
            side = -(-need // multiple[axis]) * multiple[axis]
            start.append(low - (side - (high - low)) // 2)
            shape.append(side)
        return cls(tuple(start), tuple(shape))  # type: ignore[arg-type]

    def take(self, array: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """What the canvas shows of an (I, J, K) array."""
        out = np.full(self.shape, fill, dtype=array.dtype)
        inside, within = self._overlap(array.shape)
        out[within] = array[inside]
        return out

    def put(self, shown: np.ndarray, array: np.ndarray) -> np.ndarray:
        """A copy of `array` with the canvas' part replaced."""
        out = np.array(array)
        inside, within = self._overlap(array.shape)
        out[inside] = shown[within]
        return out

    def _overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        inside, within = [], []
        for a, n, size in zip(self.start, self.shape, shape):
            low, high = max(a, 0), min(a + n, size)
            inside.append(slice(low, max(high, low)))
            within.append(slice(low - a, max(high, low) - a))
        return tuple(inside), tuple(within)
