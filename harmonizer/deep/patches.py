"""Cut a volume into overlapping patches, blend them back: weights sum to one everywhere.

Patches lie on a regular grid whose last one ends at the border, so that no voxel is left out. They
are blended with a Hann window that is positive at its ends, so that the volume's own border has
weight. Slices are patches of depth 1, slabs of depth 2n + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

__all__ = ["PatchGrid", "hann"]


def hann(length: int) -> np.ndarray:
    """(n,) Hann window without its zeros: sin^2(pi (i + 1) / (n + 1)) > 0."""
    return np.sin(np.pi * (np.arange(length) + 1) / (length + 1)) ** 2


@dataclass(frozen=True)
class PatchGrid:
    """Where patches lie in a volume.

    Attributes
    ----------
    shape : (I, J, K) of the volume
    patch : (i, j, k), each at most the volume's side
    stride : distance between patches, at most the patch; None is half a patch
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", tuple(max(1, p // 2) for p in self.patch))
        for n, p, s in zip(self.shape, self.patch, self.stride, strict=True):
            if not 1 <= s <= p <= n:
                raise ValueError(
                    f"patches of {self.patch} with stride {self.stride} do not tile {self.shape}: "
                    "1 <= stride <= patch <= shape along every axis. Pad the volume."
                )

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """The lowest voxel of each patch, in lexicographic order."""
        axes = []
        for n, p, s in zip(self.shape, self.patch, self.stride, strict=True):
            axes.append(sorted({*range(0, n - p, s), n - p}))
        return tuple(product(*axes))

    @cached_property
    def window(self) -> np.ndarray:
        """Blending weight within a patch, float32, > 0."""
        window = np.ones(())
        for p in self.patch:
            window = window[..., None] * hann(p)
        return window.astype(np.float32)

    @cached_property
    def total(self) -> np.ndarray:
        """(I, J, K) sum of all windows; > 0 everywhere."""
        total = np.zeros(self.shape, np.float32)
        for corner in self.corners:
            total[self.at(corner)] += self.window
        return total

    def at(self, corner: tuple[int, ...]) -> tuple[slice, ...]:
        """The slices of one patch."""
        return tuple(slice(c, c + p) for c, p in zip(corner, self.patch, strict=True))

    def cut(self, volume: np.ndarray) -> Iterator[np.ndarray]:
        """Views (..., i, j, k) of a (..., I, J, K) volume, in the order of `corners`."""
        for corner in self.corners:
            yield volume[(..., *self.at(corner))]

    def weight(self, corner: tuple[int, ...]) -> np.ndarray:
        """(i, j, k) share of one patch; over all patches the shares of a voxel sum to one."""
        return self.window / self.total[self.at(corner)]

    def blend(self, patches: Iterable[np.ndarray]) -> np.ndarray:
        """(..., I, J, K) float32 from one (..., i, j, k) patch for each corner, in order.

        The inverse of `cut`: what was cut and not changed comes back.
        """
        volume = None
        count = 0
        for corner, patch in zip(self.corners, patches):
            if volume is None:
                lead = patch.shape[:patch.ndim - len(self.shape)]
                volume = np.zeros((*lead, *self.shape), np.float32)
            volume[(..., *self.at(corner))] += patch * self.weight(corner)
            count += 1
        if volume is None or count != len(self.corners):
            raise ValueError(f"expected {len(self.corners)} patches, got {count}.")
        return volume
