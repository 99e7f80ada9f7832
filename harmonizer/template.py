"""The space that every brain is brought to: MNI152NLin2009aSym, bundled with nilearn.

It comes with the package (ICBM 152, Fonov 2009, doi:10.1016/S1053-8119(09)70884-5), so nothing is
fetched. The template is **already skull-stripped**: background zero, intensities 0..1, T1 contrast.
Its brain is large (1.88 L with sulcal CSF), as is usual for MNI templates.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .errors import UsageError
from .volume import Volume

__all__ = ["TEMPLATE", "TEMPLATE_CITATION", "load_template", "tissue_priors", "template_affine"]

TEMPLATE = "MNI152NLin2009aSym"  # the BIDS space label
TEMPLATE_CITATION = "doi:10.1016/S1053-8119(09)70884-5"
RESOLUTIONS_MM = (1, 2, 3, 4, 5, 6, 8)
ORIGIN_MM = (-98.0, -134.0, -72.0)  # world position of the first voxel, at every resolution
SHAPES = {1: (197, 233, 189), 2: (99, 117, 95)}


@functools.lru_cache(maxsize=4)
def load_template(resolution_mm: int = 1) -> Volume:
    """The skull-stripped T1 template with its brain mask.

    Parameters
    ----------
    resolution_mm : isotropic voxel size; 1 for outputs, 2 for working, up to 8

    Returns
    -------
    Volume, data 0..1 and exactly zero outside the mask; RAS+ axes; 1 mm: (197, 233, 189)

    Raises
    ------
    UsageError
        If the resolution is not one of 1, 2, 3, 4, 5, 6, 8 mm.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    resolution = _known(resolution_mm)
    image = load_mni152_template(resolution=resolution)
    mask = np.asarray(load_mni152_brain_mask(resolution=resolution).dataobj) > 0
    data = np.where(mask, np.asarray(image.dataobj, dtype=np.float32), np.float32(0))
    return Volume(data, image.affine, mask)


def template_affine(shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the (4, 4) affine of the template's grid of this shape; None if it has no such grid.

    Grids of 1 and 2 mm are known, those of outputs and of sloppy runs.
    """
    for step, known in SHAPES.items():
        if tuple(shape) == known:
            affine = np.diag([float(step)] * 3 + [1.0])
            affine[:3, 3] = ORIGIN_MM
            return affine
    return None


@functools.lru_cache(maxsize=4)
def tissue_priors(resolution_mm: int = 1) -> Mapping[str, np.ndarray]:
    """Tissue probabilities on the grid of `load_template(resolution_mm)`.

    Returns
    -------
    mapping of "GM", "WM", "CSF" to (I, J, K) read-only float32 arrays in 0..1 that add up to one
    inside the brain mask and are zero outside it. GM and WM are nilearn's maps; CSF is what they
    leave over inside the mask, so it also holds vessels and the mask's rim.

    Raises
    ------
    UsageError
        If the resolution is not one of 1, 2, 3, 4, 5, 6, 8 mm.
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    resolution = _known(resolution_mm)
    mask = load_template(resolution).mask
    grey, white = (
        np.clip(np.asarray(load(resolution=resolution).dataobj, dtype=np.float32), 0, 1) * mask
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    total = np.maximum(grey + white, 1)  # interpolation at 2 mm may pass one by a rounding
    maps = {"GM": grey / total, "WM": white / total}
    maps["CSF"] = np.clip(1 - maps["GM"] - maps["WM"], 0, 1) * mask
    for array in maps.values():
        array.flags.writeable = False
    return MappingProxyType(maps)


def _known(resolution_mm: int) -> int:
    if resolution_mm not in RESOLUTIONS_MM:
        raise UsageError(
            f"the template comes at {RESOLUTIONS_MM} mm, not at {resolution_mm!r}. "
            "Ask for one of these."
        )
    return int(resolution_mm)
