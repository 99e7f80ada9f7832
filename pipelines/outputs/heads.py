"""Masks of whole heads, for methods that change the head and not the brain alone."""

from __future__ import annotations

from pathlib import Path

from harmonizer.files import write_json
from harmonizer.preprocessing.bias import whole_head
from harmonizer.volume import read_volume, write_mask

from . import sidecars
from .names import ScanPaths, sidecar

__all__ = ["mask_of"]


def mask_of(paths: ScanPaths, region: str, *, template: bool = False) -> Path:
    """The mask of a region (``brain``, ``head``); a head's is made where it is first asked for."""
    goal = paths.mask(template=template, region=region)
    if region == "brain" or goal.is_file():
        return goal
    volume = read_volume(paths.image("preproc", template=template), paths.mask(template=template))
    write_json(sidecar(goal), {
        "Type": "ROI", "Description": "head: the largest part brighter than half of Otsu's "
        "threshold, and the brain mask, filled in each slice",
        "Sources": [paths.uri(paths.image("preproc", template=template))],
        **sidecars.space(template, paths.resolution)})
    return write_mask(goal, whole_head(volume), volume.affine)
