"""Load the label maps from which training images are synthesized."""

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
CSF_MARGIN_MM = 4.0  # around the brain's tissue; CSF within it belongs to the brain mask
CLOSING_RADIUS_MM = 4.0  # of the morphological closing, which includes dural folds and vessels


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Label map of one head.

    Attributes
    ----------
    name : str
        Name of the file.
    indices : (I, J, K) uint8 ndarray
        Indices in `STRUCTURES`, at 1 mm, axes RAS+, cropped to the head.
    sha256 : str
        Digest of the file.
    """

    name: str
    indices: np.ndarray
    sha256: str

    @cached_property
    def brain(self) -> np.ndarray:
        """Brain mask (I, J, K) bool: tissue, CSF within `CSF_MARGIN_MM`, and dural folds between.

        Some maps label space outside the head, and cisterns far below the brain, as CSF too.
        """
        classes = class_table()[self.indices]
        near = ndimage.distance_transform_edt(classes <= SULCAL_CLASS) <= CSF_MARGIN_MM
        brain = np.pad(near & (classes > 0), int(CLOSING_RADIUS_MM) + 1)
        grown = ndimage.distance_transform_edt(~brain) <= CLOSING_RADIUS_MM
        closed = ndimage.distance_transform_edt(grown) > CLOSING_RADIUS_MM
        inside = ndimage.binary_fill_holes(closed | brain)
        pad = int(CLOSING_RADIUS_MM) + 1
        return inside[pad:-pad, pad:-pad, pad:-pad]


def load_label_maps(folder: Path) -> tuple[LabelMap, ...]:
    """Load all label maps of a folder.

    Parameters
    ----------
    folder : Path
        Folder with `.nii` or `.nii.gz` files.

    Returns
    -------
    tuple of LabelMap
        In the order of the file names.

    Raises
    ------
    InputError
        If the folder holds no label map, or if a map is not at 1 mm or has unknown labels.
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
            "Resample it with nearest neighbors."
        )
    labels = np.rint(np.asanyarray(image.dataobj, dtype=np.float32)).astype(np.int32)
    indices = index_labels(labels, str(path))
    head = np.argwhere(indices)
    low, high = head.min(0), head.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high))
    return LabelMap(path.name, np.ascontiguousarray(indices[box]), sha256_of(path))
