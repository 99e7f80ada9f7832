"""Fallback segmentation: transfer tissue maps from another image of the same session.

Thick FLAIR and T2w images often have too little contrast between GM and WM to be segmented
(docs/concepts/segmentation.md), while the T1w image of the same session has enough. The T1w
image's tissue probabilities are then transferred by a rigid transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..preprocessing.registration import refine_linear, template_neighborhood, working_copy
from ..preprocessing.transforms import resample
from ..volume import Volume
from .segmentations import dice

__all__ = ["FallbackSegmentation", "transfer_segmentation", "MIN_CONTRAST_RATIO"]

REGISTRATION_SPACING_MM = 2.0
REGISTRATION_MARGIN_MM = 6.0  # around the brain mask, within which the metric is computed
MIN_MASK_DICE = 0.85  # of the two brain masks after registration; 0.95 to 1.00 were measured
MIN_CONTRAST_RATIO = 0.75  # contrast-to-noise with the transferred over that with the own tissues
"""The limit is below one because the own tissues were fitted to the image, the others were not."""


@dataclass(frozen=True, eq=False)
class FallbackSegmentation:
    """Tissue probabilities that were transferred from another image.

    Attributes
    ----------
    tissues : mapping of str to (I, J, K) float32 ndarray
        Probabilities of CSF, GM and WM. They sum to one inside the mask and are zero outside.
    mask_dice : float
        Dice coefficient of the two brain masks after registration, 0 to 1.
    """

    tissues: Mapping[str, np.ndarray]
    mask_dice: float

    @property
    def is_reliable(self) -> bool:
        """Whether the brain masks overlap by at least `MIN_MASK_DICE`."""
        return self.mask_dice >= MIN_MASK_DICE


def transfer_segmentation(
    volume: Volume, source: Volume, tissues: Mapping[str, np.ndarray], initial: np.ndarray, *,
    seed: int = 0,
) -> FallbackSegmentation:
    """Transfer tissue probabilities from one image of a brain to another.

    Parameters
    ----------
    volume, source : Volume
        Bias-corrected images of one subject with their brain masks, of any contrast.
    tissues : mapping of str to (I, J, K) ndarray
        Probabilities of CSF, GM and WM on the grid of ``source``, 0 to 1.
    initial : (4, 4) ndarray
        Initial transform, world of ``source`` to world of ``volume``, mm.
    seed : int
        Seed of the registration's sampling.

    Returns
    -------
    FallbackSegmentation
        Voxels of the volume's mask that lie outside the mask of ``source`` become CSF.
    """
    fixed, moving = (working_copy(v.with_data(np.where(v.require_mask(), np.maximum(v.data, 0), 0)),
                                  REGISTRATION_SPACING_MM) for v in (volume, source))
    assert fixed.mask is not None and volume.mask is not None
    region = template_neighborhood(fixed, REGISTRATION_MARGIN_MM)
    matrix = refine_linear("Rigid", moving, fixed, region, _nearest_rigid(initial, moving),
                           seed=seed)
    resampled = resample(moving, fixed, matrix)
    assert resampled.mask is not None
    mask_dice = dice(resampled.mask, fixed.mask)
    maps = {name: resample(source.with_mask(None).with_data(one), volume, matrix,
                           antialias=True).data for name, one in tissues.items()}
    maps["CSF"] = maps["CSF"] + np.maximum(1 - sum(maps.values()), 0)
    total = sum(maps.values())
    return FallbackSegmentation(
        {name: np.divide(one, total, out=np.zeros_like(one), where=volume.mask)
         for name, one in maps.items()}, mask_dice)


def _nearest_rigid(matrix: np.ndarray, moving: Volume) -> np.ndarray:
    """Rigid matrix with the nearest rotation that maps the brain's center as `matrix` does."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    center = np.argwhere(moving.require_mask()).mean(axis=0)
    world = moving.affine[:3, :3] @ center + moving.affine[:3, 3]
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = matrix[:3, :3] @ world + matrix[:3, 3] - rigid[:3, :3] @ world
    return rigid
