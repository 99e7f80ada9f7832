"""Label maps in memory: small, in one orientation, at 1 mm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..files import sha256_of
from ..volume import load_nifti
from .structures import SULCAL_CLASS, class_table, index_labels

__all__ = ["LabelMap", "label_map_paths", "load_label_map", "load_label_maps"]

SPACING_TOLERANCE_MM = 0.05
FLUID_MM = 4.0  # around the brain's tissue; what of the fluid belongs to the brain's mask
FOLD_MM = 4.0  # half the width of what is closed: folds of the dura, vessels


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

    @cached_property
    def brain(self) -> np.ndarray:
        """(I, J, K) bool: all tissue of the brain, fluid as far as `FLUID_MM` around it, and the
        folds of the dura in between.

        Some maps call things beside the head, and the cisterns far below the brain, fluid as well.
        """
        classes = class_table()[self.indices]
        near = ndimage.distance_transform_edt(classes <= SULCAL_CLASS) <= FLUID_MM
        brain = np.pad(near & (classes > 0), int(FOLD_MM) + 1)
        grown = ndimage.distance_transform_edt(~brain) <= FOLD_MM
        closed = ndimage.distance_transform_edt(grown) > FOLD_MM
        inside = ndimage.binary_fill_holes(closed | brain)
        return inside[tuple(slice(int(FOLD_MM) + 1, -int(FOLD_MM) - 1) for _ in range(3))]


def load_label_maps(folder: Path) -> tuple[LabelMap, ...]:
    """All `.nii` and `.nii.gz` label maps of a folder, in the order of their names.

    Raises
    ------
    InputError
        If the folder holds none, or one is not at 1 mm or has labels that are not known.
    """
    return tuple(load_label_map(path) for path in label_map_paths(folder))


def label_map_paths(folder: Path) -> list[Path]:
    """Paths of the label maps of a folder, in the order of their names; `InputError` if none."""
    paths = sorted(p for p in Path(folder).glob("*.nii*") if p.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise InputError(
            f"{folder}: no label maps (.nii, .nii.gz). Give the folder of SynthSeg's training "
            "label maps (github.com/BBillot/SynthSeg, data/training_label_maps)."
        )
    return paths


def load_label_map(path: Path) -> LabelMap:
    """Load one label map; `InputError` if it is not at 1 mm or has labels that are not known."""
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
