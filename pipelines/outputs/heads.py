"""Masks of whole heads, for methods that change the head and not the brain alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from harmonizer.files import write_json
from harmonizer.preprocessing.bias import head_mask
from harmonizer.volume import read_volume, write_mask

from . import sidecars
from .names import ScanPaths, sidecar

__all__ = ["mask_of"]


def mask_of(paths: ScanPaths, region: str, *, template: bool = False) -> Path:
    """The mask of a region (``brain``, ``head``); a head's is made where it is first asked for.

    It is the largest connected part of what is brighter than half of Otsu's threshold, holes
    filled, and all of the brain mask; of an image without a head, its brain.
    """
    goal = paths.mask(template=template, region=region)
    if region == "brain" or goal.is_file():
        return goal
    volume = read_volume(paths.image("preproc", template=template), paths.mask(template=template))
    parts, count = ndimage.label(head_mask(volume))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    head = parts == 1 + int(np.argmax(sizes)) if count else volume.mask
    write_json(sidecar(goal), {
        "Type": "ROI", "Description": "head: the largest part brighter than half of Otsu's "
        "threshold, holes filled, and the brain mask",
        "Sources": [paths.uri(paths.image("preproc", template=template))],
        **sidecars.space(template, paths.resolution)})
    return write_mask(goal, head | volume.mask, volume.affine)
