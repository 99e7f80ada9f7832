"""Input of the networks: a scan cropped to the brain and scaled to [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...bounding_box import BoundingBox
from ...contrast.intensity import IntensityScale

__all__ = ["NetworkInput", "tissue_balanced_weights"]


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """A scan as the networks receive it.

    Attributes
    ----------
    image : ndarray, shape (I, J, K), float32
        Intensities in [-1, 1], background -1.
    mask : ndarray, shape (I, J, K), bool
        Brain.
    box : BoundingBox
        Where it was cropped from the volume.
    scale : IntensityScale
        Intensities of the scan that are -1 and 1.
    tissues : ndarray, shape (3, I, J, K), optional
        Tissue probabilities, if the method uses them.
    source : str, optional
        Site label of the scan.
    modality : str, optional
        BIDS suffix of the scan.
    """

    image: np.ndarray
    mask: np.ndarray
    box: BoundingBox
    scale: IntensityScale
    tissues: np.ndarray | None = None
    source: str | None = None
    modality: str | None = None

    def weights(self) -> np.ndarray:
        """Return `tissue_balanced_weights`, or the mask if the tissues are not known."""
        if self.tissues is None:
            return self.mask.astype(np.float32)
        return tissue_balanced_weights(self.tissues, self.mask)


def tissue_balanced_weights(tissues: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute voxel weights by which each tissue counts equally, whatever its volume.

    Weighted statistics over the brain then do not depend on a subject's tissue volumes.

    Parameters
    ----------
    tissues : ndarray, shape (3, ...)
        Tissue probabilities, >= 0.
    mask : ndarray, shape (...), bool

    Returns
    -------
    ndarray, shape (...), float32
        Zero outside the mask, 1 on average within it. A missing tissue is ignored; without any
        tissue all voxels in the mask count equally.
    """
    inside = tissues * mask
    volumes = inside.reshape(len(tissues), -1).sum(axis=1, dtype=np.float64)
    weights = sum(tissue / volume for tissue, volume in zip(inside, volumes) if volume > 0)
    if not volumes.any():
        return mask.astype(np.float32)
    return (weights * (mask.sum() / np.count_nonzero(volumes))).astype(np.float32)
