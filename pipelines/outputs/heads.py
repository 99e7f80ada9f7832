"""Head masks, for methods that harmonize the whole head."""

from __future__ import annotations

from pathlib import Path

from harmonizer.files import write_json
from harmonizer.preprocessing.bias import whole_head
from harmonizer.volume import read_volume, write_mask

from . import sidecars
from .names import ScanPaths, sidecar

__all__ = ["mask_of"]


def mask_of(paths: ScanPaths, region: str, *, template: bool = False) -> Path:
    """Return the mask of a region (``brain``, ``head``); a head mask is computed on first use."""
    destination = paths.mask(template=template, region=region)
    if region == "brain" or destination.is_file():
        return destination
    volume = read_volume(paths.image("preproc", template=template), paths.mask(template=template))
    write_json(sidecar(destination), {
        "Type": "ROI", "Description": "head: the largest part brighter than half of Otsu's "
        "threshold, and the brain mask, filled in each slice",
        "Sources": [paths.uri(paths.image("preproc", template=template))],
        **sidecars.space(template, paths.resolution)})
    return write_mask(destination, whole_head(volume), volume.affine)
