"""A scan as networks see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...bounding_box import Canvas
from ...contrast.intensity import IntensityScale

__all__ = ["Shown", "balanced"]


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of a scan, on a canvas.

    Attributes
    ----------
    unit : (I, J, K) float32, intensities in [-1, 1], background -1
    mask : (I, J, K) bool, the brain
    canvas : where it was cut from the volume
    scale : the scan's own intensities that are -1 and 1
    shares : (3, I, J, K) of the tissues, where they are known
    source : site label of the scan, where it is known
    """

    unit: np.ndarray
    mask: np.ndarray
    canvas: Canvas
    scale: IntensityScale
    shares: np.ndarray | None = None
    source: str | None = None

    def weights(self) -> np.ndarray:
        """(I, J, K) float32, see `balanced`; the mask where tissues are not known."""
        if self.shares is None:
            return self.mask.astype(np.float32)
        return balanced(self.shares, self.mask)


def balanced(shares: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Weights by which each tissue of a brain counts alike, however much there is of it.

    What a person is made of is then no part of statistics over the brain.

    Parameters
    ----------
    shares : (3, ...) of the tissues, >= 0
    mask : (...) bool

    Returns
    -------
    ndarray
        (...) float32 >= 0, zero outside the mask, 1 on average in it. A tissue that is missing
        counts nothing; without any, all places in the mask count alike.
    """
    inside = shares * mask
    volumes = inside.reshape(len(shares), -1).sum(axis=1, dtype=np.float64)
    weights = sum(share / volume for share, volume in zip(inside, volumes) if volume > 0)
    if not volumes.any():
        return mask.astype(np.float32)
    return (weights * (mask.sum() / np.count_nonzero(volumes))).astype(np.float32)
