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

    It is the largest connected part of what is brighter than half of Otsu's threshold, and all of
    the brain mask, filled slice by slice in all three planes: the dark skull is open at the neck.
    """
    goal = paths.mask(template=template, region=region)
    if region == "brain" or goal.is_file():
        return goal
    volume = read_volume(paths.image("preproc", template=template), paths.mask(template=template))
    parts, count = ndimage.label(head_mask(volume))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    head = (parts == 1 + int(np.argmax(sizes))) | volume.mask if count else volume.mask
    write_json(sidecar(goal), {
        "Type": "ROI", "Description": "head: the largest part brighter than half of Otsu's "
        "threshold, and the brain mask, filled in each slice",
        "Sources": [paths.uri(paths.image("preproc", template=template))],
        **sidecars.space(template, paths.resolution)})
    return write_mask(goal, _filled(head), volume.affine)


def _filled(mask: np.ndarray) -> np.ndarray:
    """What is enclosed in a slice of some plane belongs to it."""
    filled = mask.copy()
    for axis in range(3):
        for one, whole in zip(np.moveaxis(mask, axis, 0), np.moveaxis(filled, axis, 0)):
            whole |= ndimage.binary_fill_holes(one)
    return filled
