"""Preprocess one image in memory: the steps of the BIDS App without files between them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..template import load_template
from ..volume import Volume
from .bias import correct_bias
from .brain import QualityCheck, check_quality, extract_brain, is_brain_only
from .conform import Conformed, conform, original_image
from .registration import register_to_template
from .transforms import resample, resample_mask

__all__ = ["PreprocessedImage", "conform_mask", "preprocess_image", "to_template"]


@dataclass(frozen=True, eq=False)
class PreprocessedImage:
    """A preprocessed image.

    Attributes
    ----------
    native : Volume
        Bias-corrected image with its brain mask on the subject's own grid, axes RAS+.
    template : Volume
        The same image and mask on the template grid.
    to_template : ndarray, shape (4, 4)
        World of `native` -> template world, mm.
    conformed : Conformed
        What is needed to write an array of `native` on the stored grid of the input.
    quality : QualityCheck
        Check of mask and registration; ``quality.low_confidence`` asks for a look at the mask.
    brain_only : bool
        Whether the input was skull-stripped.
    tissues : dict of str to ndarray
        Tissue probabilities on the template grid; empty until `segment_image` filled them.
    """

    native: Volume
    template: Volume
    to_template: np.ndarray
    conformed: Conformed
    quality: QualityCheck
    brain_only: bool
    tissues: dict[str, np.ndarray] = field(default_factory=dict)

    def to_nifti(self, array: np.ndarray) -> Any:
        """Return a nibabel image of an array on the native grid, with the input's own affine."""
        image = original_image(array, self.conformed)
        return nib.Nifti1Image(image.dataobj, self.conformed.original_affine, header=image.header)


def preprocess_image(
    image: str | os.PathLike[str] | Any, mask: str | os.PathLike[str] | Any | None = None, *,
    resolution_mm: int = 1, skull_strip: str = "auto", seed: int = 0, sloppy: bool = False,
) -> PreprocessedImage:
    """Correct the bias field, find the brain, and register the image to the template.

    Parameters
    ----------
    image : path or nibabel image
        One 3D image of a head or a brain.
    mask : path or nibabel image, optional
        Brain mask on the image's own grid. Default: the brain is extracted.
    resolution_mm : {1, 2}
        Voxel size of the template grid.
    skull_strip : {"auto", "force", "skip"}
        See `harmonizer.preprocessing.brain.extract_brain`.
    seed : int
        Seed of ANTs' sampling; the same seed gives the same bits.
    sloppy : bool
        Coarse and fast, for tests.

    Returns
    -------
    PreprocessedImage

    Raises
    ------
    InputError
        If the image cannot be used, no brain is found, or the mask lies on another grid.
    """
    conformed = conform(image)
    volume = conformed.volume
    initial = None
    if mask is None:
        rough, _ = correct_bias(volume, rough=True, sloppy=sloppy)
        found = extract_brain(rough, skull_strip=skull_strip, seed=seed, sloppy=sloppy)
        brain, initial, brain_only = found.mask, found.matrix, found.brain_only
    else:
        brain, brain_only = conform_mask(mask, volume), is_brain_only(volume)
    corrected, _ = correct_bias(volume.with_mask(brain), sloppy=sloppy)
    registration = register_to_template(corrected, initial, seed=seed, sloppy=sloppy)
    moved = to_template(corrected, registration.matrix, resolution_mm)
    quality = check_quality(corrected.with_mask(None), brain, registration.matrix)
    return PreprocessedImage(corrected, moved, registration.matrix, conformed, quality, brain_only)


def conform_mask(mask: str | os.PathLike[str] | Any, image: Volume) -> np.ndarray:
    """Read a brain mask that was given with an image, and reorient it to RAS+.

    Parameters
    ----------
    mask : path or nibabel image
        Voxels above 0.5 are brain.
    image : Volume
        The conformed image.

    Returns
    -------
    ndarray, shape (I, J, K), bool

    Raises
    ------
    InputError
        If the mask lies on another grid than the image.
    """
    given = conform(mask).volume
    if not given.same_grid(image):
        name = mask if isinstance(mask, (str, os.PathLike)) else "the mask"
        raise InputError(f"{name}: lies on another grid (shape {given.shape}) than its image "
                         f"({image.shape}). Give a mask in the image's own space.")
    return given.data > 0.5


def to_template(volume: Volume, matrix: np.ndarray, resolution_mm: int) -> Volume:
    """Resample an image and its mask onto the template grid.

    Parameters
    ----------
    volume : Volume
        Image with its brain mask.
    matrix : ndarray, shape (4, 4)
        World of the image -> template world, mm.
    resolution_mm : {1, 2}
        Voxel size of the template grid.

    Raises
    ------
    InputError
        If no part of the mask lies on the template grid.
    """
    grid = load_template(resolution_mm)
    mask = resample_mask(volume.require_mask(), volume.affine, grid, matrix)
    if not mask.any():
        raise InputError("no part of the brain mask lies inside the template's grid after "
                         "registration. Look at the image's orientation and position.")
    return resample(volume.with_mask(None), grid, matrix).with_mask(mask)
