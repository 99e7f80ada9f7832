"""Label maps in memory: small, in one orientation, at 1 mm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..files import sha256_of
from ..volume import load_nifti
from .structures import index_labels

__all__ = ["LabelMap", "load_label_maps"]

SPACING_TOLERANCE_MM = 0.05


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One head.

    Attributes
    ----------
    name : the file's
    indices : (I, J, K) uint8 indices in `STRUCTURES`, 1 mm, axes RAS+, cropped to the head
    sha256 : of the file
    """

    name: str
    indices: np.ndarray
    sha256: str


def load_label_maps(folder: Path) -> tuple[LabelMap, ...]:
    """All `.nii` and `.nii.gz` label maps of a folder, in the order of their names.

    Raises
    ------
    InputError
        If the folder holds none, or one is not at 1 mm or has labels that are not known.
    """
    paths = sorted(p for p in Path(folder).glob("*.nii*") if p.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise InputError(
            f"{folder}: no label maps (.nii, .nii.gz). Give the folder of SynthSeg's training "
            "label maps (github.com/BBillot/SynthSeg, data/training_label_maps)."
        )
    return tuple(_load(path) for path in paths)


def _load(path: Path) -> LabelMap:
    image = nib.as_closest_canonical(load_nifti(path))
    spacing = np.asarray(image.header.get_zooms()[:3])
    if len(image.shape) != 3 or np.abs(spacing - 1).max() > SPACING_TOLERANCE_MM:
        raise InputError(
            f"{path}: expected a 3D label map at 1 mm, got shape {image.shape} at {spacing} mm. "
            "Resample it with nearest neighbours."
        )
    labels = np.rint(np.asanyarray(image.dataobj, dtype=np.float32)).astype(np.int32)
    indices = index_labels(labels, str(path))
    head = np.argwhere(indices)
    low, high = head.min(0), head.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high))
    return LabelMap(path.name, np.ascontiguousarray(indices[box]), sha256_of(path))
