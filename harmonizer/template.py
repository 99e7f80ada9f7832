"""The template space MNI152NLin2009aSym, from files that are part of nilearn.

No download is needed. The template (ICBM 152 [1]_) is **skull-stripped**: its background is zero,
its intensities lie in 0..1, and its contrast is T1-weighted. Its brain is large, 1.88 L with sulcal
CSF, as in all MNI templates.

References
----------
.. [1] Fonov, V. S. et al. (2009). Unbiased nonlinear average age-appropriate brain templates from
   birth to adulthood. NeuroImage 47, S102. doi:10.1016/S1053-8119(09)70884-5
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .errors import UsageError
from .volume import Volume

__all__ = ["TEMPLATE", "load_template", "tissue_priors", "template_affine"]

TEMPLATE = "MNI152NLin2009aSym"  # the BIDS space label
RESOLUTIONS_MM = (1, 2, 3, 4, 5, 6, 8)
ORIGIN_MM = (-98.0, -134.0, -72.0)  # world position of the first voxel, at every resolution
TEMPLATE_SHAPES = {1: (197, 233, 189), 2: (99, 117, 95)}


@functools.lru_cache(maxsize=4)
def load_template(resolution_mm: int = 1) -> Volume:
    """Load the skull-stripped T1w template with its brain mask.

    Parameters
    ----------
    resolution_mm : int
        Isotropic voxel size, mm: 1 for outputs, 2 for working grids, up to 8.

    Returns
    -------
    Volume
        Data in 0..1, zero outside the mask; RAS+ axes. The shape at 1 mm is (197, 233, 189).

    Raises
    ------
    UsageError
        If the resolution is not one of 1, 2, 3, 4, 5, 6, 8 mm.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    resolution = _check_resolution(resolution_mm)
    image = load_mni152_template(resolution=resolution)
    mask = np.asarray(load_mni152_brain_mask(resolution=resolution).dataobj) > 0
    data = np.where(mask, np.asarray(image.dataobj, dtype=np.float32), np.float32(0))
    return Volume(data, image.affine, mask)


def template_affine(shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the (4, 4) affine of the template's grid of this shape; None if it has no such grid.

    Grids of 1 and 2 mm are known, those of outputs and of sloppy runs.
    """
    for step, known in TEMPLATE_SHAPES.items():
        if tuple(shape) == known:
            affine = np.diag([float(step)] * 3 + [1.0])
            affine[:3, 3] = ORIGIN_MM
            return affine
    return None


@functools.lru_cache(maxsize=4)
def tissue_priors(resolution_mm: int = 1) -> Mapping[str, np.ndarray]:
    """Load prior tissue probabilities on the template grid.

    GM and WM are nilearn's maps. CSF is the remainder inside the mask, so it also holds vessels and
    the rim of the mask.

    Parameters
    ----------
    resolution_mm : int
        Resolution of the grid, see `load_template`.

    Returns
    -------
    mapping of str to (I, J, K) float32 ndarray
        "GM", "WM" and "CSF", read-only. They sum to one inside the brain mask and are zero outside.

    Raises
    ------
    UsageError
        If the resolution is not one of 1, 2, 3, 4, 5, 6, 8 mm.
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    resolution = _check_resolution(resolution_mm)
    mask = load_template(resolution).require_mask()
    gm, wm = (
        np.clip(np.asarray(load(resolution=resolution).dataobj, dtype=np.float32), 0, 1) * mask
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    total = np.maximum(gm + wm, 1)  # interpolation at 2 mm exceeds one by rounding
    maps = {"GM": gm / total, "WM": wm / total}
    maps["CSF"] = np.clip(1 - maps["GM"] - maps["WM"], 0, 1) * mask
    for array in maps.values():
        array.flags.writeable = False
    return MappingProxyType(maps)


def _check_resolution(resolution_mm: int) -> int:
    if resolution_mm not in RESOLUTIONS_MM:
        raise UsageError(
            f"expected a template resolution of {RESOLUTIONS_MM} mm, got {resolution_mm!r}. "
            "Use one of these."
        )
    return int(resolution_mm)
