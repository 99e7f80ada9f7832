"""Cut a volume into overlapping patches and blend them back with weights that sum to one.

Patches lie on a regular grid whose last one ends at the border, so every voxel is covered. The
blending weight is a Hann window that is positive at its ends, so border voxels have weight.
Slices are patches of depth 1, slabs of depth 2n + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

__all__ = ["PatchGrid", "fit_patch", "hann", "patch_slices", "random_corner"]


def hann(length: int) -> np.ndarray:
    """Return the (n,) Hann window without its zeros, sin^2(pi (i + 1) / (n + 1))."""
    return np.sin(np.pi * (np.arange(length) + 1) / (length + 1)) ** 2


def fit_patch(patch: Sequence[int] | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Shrink the sides of a patch to those of a volume; None is the whole volume."""
    return tuple(shape) if patch is None else tuple(min(p, n) for p, n in zip(patch, shape))


def patch_slices(corner: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a patch with a given lowest voxel."""
    return tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))


def random_corner(rng: np.random.Generator, extent: Sequence[Sequence[int]], patch: Sequence[int],
                  shape: Sequence[int]) -> tuple[int, ...]:
    """Draw the lowest voxel of a patch that lies within the extent of the brain where it fits.

    Parameters
    ----------
    extent : sequence of (int, int)
        First and last + 1 brain voxel along each axis.
    patch, shape : sequence of int
        Sides of the patch and of the volume, voxels.
    """
    corner = []
    for (low, high), side, n in zip(extent, patch, shape):
        first = int(np.clip(low, 0, n - side))
        last = int(np.clip(high - side, first, n - side))
        corner.append(int(rng.integers(first, last + 1)))
    return tuple(corner)


@dataclass(frozen=True)
class PatchGrid:
    """Positions of overlapping patches in a volume.

    Attributes
    ----------
    shape : tuple of int
        (I, J, K) of the volume.
    patch : tuple of int
        (i, j, k) of a patch, each at most the volume's side.
    stride : tuple of int, optional
        Distance between patches, at most the patch. Default: half a patch.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.stride:
            object.__setattr__(self, "stride", tuple(max(1, p // 2) for p in self.patch))
        for n, p, s in zip(self.shape, self.patch, self.stride, strict=True):
            if not 1 <= s <= p <= n:
                raise ValueError(
                    f"patches of {self.patch} with stride {self.stride} do not tile {self.shape}: "
                    "expected 1 <= stride <= patch <= shape along every axis. Pad the volume."
                )

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """Lowest voxel of each patch, in lexicographic order."""
        axes = []
        for n, p, s in zip(self.shape, self.patch, self.stride, strict=True):
            axes.append(sorted({*range(0, n - p, s), n - p}))
        return tuple(product(*axes))

    @cached_property
    def window(self) -> np.ndarray:
        """Blending weight within a patch, shape (i, j, k), float32, > 0."""
        window = np.ones(())
        for p in self.patch:
            window = window[..., None] * hann(p)
        return window.astype(np.float32)

    @cached_property
    def total(self) -> np.ndarray:
        """Sum of all windows, shape (I, J, K), float32, > 0."""
        total = np.zeros(self.shape, np.float32)
        for corner in self.corners:
            total[self.slices(corner)] += self.window
        return total

    def slices(self, corner: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the slices of one patch."""
        return patch_slices(corner, self.patch)

    def cut(self, volume: np.ndarray) -> Iterator[np.ndarray]:
        """Yield views (..., i, j, k) of a (..., I, J, K) volume, in the order of `corners`."""
        for corner in self.corners:
            yield volume[(..., *self.slices(corner))]

    def weight(self, corner: tuple[int, ...]) -> np.ndarray:
        """Return the (i, j, k) weight of one patch; the weights of a voxel sum to one."""
        return self.window / self.total[self.slices(corner)]

    def blend(self, patches: Iterable[np.ndarray]) -> np.ndarray:
        """Blend patches into a volume; the inverse of `cut` for unchanged patches.

        Parameters
        ----------
        patches : iterable of ndarray, shape (..., i, j, k)
            One for each corner, in the order of `corners`.

        Returns
        -------
        ndarray, shape (..., I, J, K), float32

        Raises
        ------
        ValueError
            If the number of patches is not that of the corners.
        """
        volume = None
        count = 0
        for corner, patch in zip(self.corners, patches):
            if volume is None:
                lead = patch.shape[:patch.ndim - len(self.shape)]
                volume = np.zeros((*lead, *self.shape), np.float32)
            volume[(..., *self.slices(corner))] += patch * self.weight(corner)
            count += 1
        if volume is None or count != len(self.corners):
            raise ValueError(f"expected {len(self.corners)} patches, got {count}.")
        return volume
