"""Tissues at 2 mm in two seconds, for images that are too coarse for the network to be worth it.

The template's tissue maps say roughly what lies where, the image's own brightness moves the borders
(`refine`). Less true than the network at 1 mm; what is wanted of it is a sloppy run's answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..preprocessing.transforms import resample
from ..template import load_template, tissue_priors
from ..tissues import TISSUES
from ..volume import Volume
from .refine import Advice, refine

__all__ = ["CoarseSegmenter"]

OF_TEMPLATE = Advice(contrast=(0.25, 0.5), blur_mm=0.7, fluid_floor=0.8, fluid_in_white=0.8,
                     fluid_logit=0.15, image_weight=1.0, lesions=0.0)
"""The template has not seen the image, so the image weighs in full. Less contrast is asked than of
the network's shares: a person's ventricles and gyri do not lie where the template's do, which mixes
the tissues' means by the template's shares."""


@dataclass(frozen=True)
class CoarseSegmenter:
    """``segmenter(volume)`` -> shares of CSF, GM and WM of an image in the template's space."""

    name: str = "coarse-2"

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """On the volume's own grid; `InputError` without a mask."""
        if volume.mask is None or not volume.mask.any():
            raise InputError("segmentation needs a brain mask. Give a mask.")
        grid, priors = load_template(2), tissue_priors(2)
        image = volume if volume.same_grid(grid) else resample(volume, grid, antialias=True)
        rough = np.stack([priors[name] for name in TISSUES])
        found = refine(image.data, image.mask, rough + np.float32(1e-3) * image.mask, OF_TEMPLATE)
        if image is volume:
            return dict(zip(TISSUES, found))
        maps = [resample(grid.with_mask(None).with_data(one), volume).data for one in found]
        total = sum(maps)
        known = volume.mask & (total > 1e-3)
        return {name: np.divide(one, total, out=np.zeros_like(one), where=known)
                for name, one in zip(TISSUES, maps)}
