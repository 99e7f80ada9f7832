"""Tissues of an image from another image of the same person and visit, which shows them better.

Thick FLAIR and T2w images often do not bear out any division into grey and white matter
(docs/segmentation.md), while the T1w image of the same session does. The shares found there are
brought over by a rigid transform; the brain is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..preprocessing.registration import refine_linear, template_neighbourhood, working_copy
from ..preprocessing.transforms import resample
from ..volume import Volume
from .segmentations import dice

__all__ = ["Borrowed", "borrow", "ENOUGH"]

SPACING_MM = 2.0  # of the registration
NEAR_MM = 6.0  # around the brain, that the registration looks at
LEAST_OVERLAP = 0.85  # Dice of the two brain masks after it; 0.95 to 1.00 measured
ENOUGH = 0.75  # of the own shares' support: those were fitted to the image, a donor's were not


@dataclass(frozen=True, eq=False)
class Borrowed:
    """What came over.

    Attributes
    ----------
    tissues : 'CSF', 'GM', 'WM' -> (I, J, K) float32, 0..1; they sum to one in the mask, and are
        zero elsewhere
    overlap : Dice of the brain masks under the transform; below `LEAST_OVERLAP`, not to be used
    """

    tissues: Mapping[str, np.ndarray]
    overlap: float

    @property
    def fits(self) -> bool:
        """Whether the two images show the same brain in the same place."""
        return self.overlap >= LEAST_OVERLAP


def borrow(volume: Volume, donor: Volume, tissues: Mapping[str, np.ndarray], start: np.ndarray, *,
           seed: int = 0) -> Borrowed:
    """Shares of another image of this brain, on this image's grid.

    Parameters
    ----------
    volume, donor : bias-corrected images with their brain masks, of any contrast
    tissues : 'CSF', 'GM', 'WM' -> share of each voxel of the donor
    start : (4, 4) world mm of the donor -> world mm of the volume, roughly
    seed : of the registration's sampling

    Where the volume's mask reaches beyond the donor's, there is fluid.
    """
    fixed, moving = (working_copy(v.with_data(np.where(v.mask, np.maximum(v.data, 0), 0)),
                                  SPACING_MM) for v in (volume, donor))
    assert fixed.mask is not None and volume.mask is not None
    near = template_neighbourhood(fixed, NEAR_MM)
    matrix = refine_linear("Rigid", moving, fixed, near, _rigid(start, moving), seed=seed)
    moved = resample(moving, fixed, matrix)
    assert moved.mask is not None
    overlap = dice(moved.mask, fixed.mask)
    maps = {name: resample(donor.with_mask(None).with_data(share), volume, matrix,
                           antialias=True).data for name, share in tissues.items()}
    maps["CSF"] = maps["CSF"] + np.maximum(1 - sum(maps.values()), 0)
    total = sum(maps.values())
    return Borrowed({name: np.divide(share, total, out=np.zeros_like(share), where=volume.mask)
                     for name, share in maps.items()}, overlap)


def _rigid(matrix: np.ndarray, moving: Volume) -> np.ndarray:
    """The rotation nearest to a matrix, which moves the middle of the brain as the matrix does."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    middle = np.argwhere(moving.mask).mean(axis=0)
    world = moving.affine[:3, :3] @ middle + moving.affine[:3, 3]
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = matrix[:3, :3] @ world + matrix[:3, 3] - rigid[:3, :3] @ world
    return rigid
