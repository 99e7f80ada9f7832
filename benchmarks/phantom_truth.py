"""The true brain of a phantom's scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from harmonizer.preprocessing.conform import conform
from harmonizer.segmentation.label_maps import CSF_MARGIN_MM

CSF = 1  # of the phantom's labels


def true_brains(folder: Path, stem: str, suffix: str) -> tuple[np.ndarray, np.ndarray]:
    """(I, J, K) bool on the scan's RAS+ grid: the brain, and the brain with the fluid near it."""
    volume = conform(next(folder.glob(f"**/{stem}_desc-brain{suffix}_mask.nii.gz"))).volume
    labels = conform(next(folder.glob(f"**/{stem}_desc-{suffix}_dseg.nii.gz"))).volume.data
    brain = volume.data > 0
    near = ndimage.distance_transform_edt(~brain, sampling=volume.spacing) <= CSF_MARGIN_MM
    return brain, brain | ((np.rint(labels) == CSF) & near)
