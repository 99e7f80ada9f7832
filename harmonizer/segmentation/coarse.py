"""Tissues in two seconds, for images whose voxels are too coarse for the network to be worth it.

The template's tissue maps say roughly what lies where, the image's own brightness moves the borders
(`refine`). Less true than the network at 1 mm; what is wanted of it is a sloppy run's answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..preprocessing.transforms import resample
from ..template import load_template, tissue_priors
from ..volume import Volume
from .refine import refine
from .structures import TISSUES

__all__ = ["CoarseSegmenter"]


@dataclass(frozen=True)
class CoarseSegmenter:
    """``segmenter(volume)`` -> shares of CSF, GM and WM of an image in the template's space."""

    name: str = "coarse"

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """On the volume's own grid; `InputError` without a mask."""
        if volume.mask is None or not volume.mask.any():
            raise InputError("segmentation needs a brain mask. Give a mask.")
        grid, priors = load_template(2), tissue_priors(2)
        rough = np.stack([resample(grid.with_mask(None).with_data(priors[name]), volume).data
                          for name in TISSUES])
        found = refine(volume.data, volume.mask, rough + np.float32(1e-3) * volume.mask)
        return dict(zip(TISSUES, found))
