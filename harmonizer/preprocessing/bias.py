"""Correct the bias field with N4.

Model [1]_: v(x) = u(x) f(x), where log f is a smooth B-spline. Because the field is smooth, it is
estimated on blocks of 3 to 4 mm, and its logarithm is interpolated to full resolution by cubic
splines. This takes seconds instead of a minute. Beyond the bounding box of the mask, the field is
constant. The field is scaled so that **the mean intensity inside the mask does not change**.

References
----------
.. [1] Tustison, N. J. et al. (2010). N4ITK: improved N3 bias correction. IEEE Trans. Med. Imaging
   29(6), 1310-1320. doi:10.1109/TMI.2010.2046908
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline

from ..errors import InputError
from ..volume import Volume
from .ants_bridge import ants_module, to_ants

__all__ = ["correct_bias", "estimate_log_bias", "head_mask", "largest_component", "whole_head"]

WORKING_SPACING_MM = 3.6
# Three levels give knots 40 to 50 mm apart. With a fourth level (20 to 25 mm), N4 removes anatomy:
# on OASIS, GM over WM intensity rose from 0.706 to 0.742, and contrast-to-noise fell from 2.60 to
# 2.28. With three levels both are unchanged (0.705, 2.60), also under an added bias field.
ITERATIONS_PER_LEVEL = [50, 50, 50]
MIN_COARSE_VOXELS = 200  # inside the mask at the working spacing
FIELD_RANGE = (0.05, 20.0)  # relative to its mean; values beyond are extrapolation


def correct_bias(
    volume: Volume, mask: np.ndarray | None = None, *, rough: bool = False, sloppy: bool = False
) -> tuple[Volume, np.ndarray]:
    """Divide an image by its bias field.

    Parameters
    ----------
    volume : Volume
        Image of any contrast. Voxels at or below zero are not used for the estimate.
    mask : (I, J, K) bool ndarray, optional
        Region of the estimate, usually the brain. By default the volume's mask, and without one the
        head found by `head_mask`.
    rough : bool
        Use fewer iterations, for the step before brain extraction.
    sloppy : bool
        Low quality, for tests.

    Returns
    -------
    corrected : Volume
        Same grid and mask; data = volume.data / field everywhere.
    field : (I, J, K) float32 ndarray
        Positive, about 1; keeps the mean inside the mask.

    Raises
    ------
    InputError
        If the mask holds too few positive voxels.
    """
    if mask is None:
        mask = head_mask(volume) if volume.mask is None else volume.mask
    log_field = estimate_log_bias(volume, mask, rough=rough, sloppy=sloppy)
    field = np.exp(np.clip(log_field, *np.log(FIELD_RANGE)))
    corrected = volume.data / field
    scale = np.float32(
        corrected[mask].mean(dtype=np.float64) / volume.data[mask].mean(dtype=np.float64)
    )
    field *= scale
    return volume.with_data(volume.data / field), field


def estimate_log_bias(
    volume: Volume, mask: np.ndarray, *, rough: bool = False, sloppy: bool = False
) -> np.ndarray:
    """Estimate the logarithm of the bias field at full resolution.

    Parameters
    ----------
    volume, rough, sloppy
        See `correct_bias`.
    mask : (I, J, K) bool ndarray
        Region of the estimate.

    Returns
    -------
    (I, J, K) float32 ndarray
        Mean zero inside the mask.

    Raises
    ------
    InputError
        If the mask holds fewer than 200 positive voxels at 3.6 mm.
    """
    factors = _block_factors(volume)
    usable = np.asarray(mask, bool) & (volume.data > 0)
    weight = _block_mean(usable.astype(np.float32), factors)
    total = _block_mean(np.where(usable, volume.data, 0), factors)
    inside = weight > 0.5
    if inside.sum() < min(MIN_COARSE_VOXELS, 0.5 * usable.sum() + 1) or not inside.any():
        raise InputError(
            f"bias correction needs a mask with positive intensities, got {int(usable.sum())} "
            "positive voxels. Check the mask and the image's scaling."
        )
    coarse = np.where(inside, total / np.maximum(weight, 1e-6), 1.0).astype(np.float32)
    box = _box(inside)
    log_field = _n4(coarse[box], inside[box], factors, volume, rough, sloppy)
    log_field -= log_field[inside[box]].mean()
    return _upsample_field(log_field, [part.start for part in box], factors, volume.shape)


def head_mask(volume: Volume) -> np.ndarray:
    """Find the head: voxels above half of Otsu's threshold, with holes filled.

    Returns
    -------
    (I, J, K) bool ndarray
    """
    from skimage.filters import threshold_otsu

    clipped = np.clip(volume.data, 0, max(float(np.percentile(volume.data, 99.5)), 1e-6))
    return ndimage.binary_fill_holes(clipped > 0.5 * threshold_otsu(clipped))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest face-connected component of a mask."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def whole_head(volume: Volume) -> np.ndarray:
    """Find the head as one filled region that contains the brain mask.

    The region is the largest component of `head_mask` and the brain mask. It is filled slice by
    slice in all three planes, because the dark skull is open at the neck. For a brain without a
    head it is the brain mask.

    Parameters
    ----------
    volume : Volume
        Image with a brain mask.

    Returns
    -------
    (I, J, K) bool ndarray
    """
    assert volume.mask is not None
    head = largest_component(head_mask(volume)) | volume.mask
    filled = head.copy()
    for axis in range(3):
        for one, whole in zip(np.moveaxis(head, axis, 0), np.moveaxis(filled, axis, 0)):
            whole |= ndimage.binary_fill_holes(one)
    return filled


def _n4(
    coarse: np.ndarray,
    inside: np.ndarray,
    factors: np.ndarray,
    volume: Volume,
    rough: bool,
    sloppy: bool,
) -> np.ndarray:
    """Run N4 on the coarse grid; returns the log field in float64."""
    ants = ants_module()
    iterations = [20, 10] if sloppy else [30, 20, 10] if rough else ITERATIONS_PER_LEVEL
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, :3] * factors
    grid = Volume(coarse, affine)
    image = to_ants(grid)
    field = ants.n4_bias_field_correction(
        image,
        mask=to_ants(grid, inside),
        shrink_factor=2 if sloppy or rough else 1,
        convergence={"iters": iterations, "tol": 1e-6},
        return_bias_field=True,
    )
    return np.log(np.maximum(field.numpy().astype(np.float64), 1e-6))


def _block_factors(volume: Volume) -> np.ndarray:
    """(3,) voxels per block along each axis, for blocks of about 3.6 mm."""
    return np.maximum(np.round(WORKING_SPACING_MM / volume.spacing), 1).astype(int)


def _block_mean(data: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Mean over blocks of `factors` voxels; the last block repeats the border voxel."""
    padding = [(0, -n % f) for n, f in zip(data.shape, factors)]
    data = np.pad(np.asarray(data, np.float32), padding, mode="edge")
    i, j, k = (n // f for n, f in zip(data.shape, factors))
    a, b, c = factors
    return data.reshape(i, a, j, b, k, c).mean(axis=(1, 3, 5))


def _box(inside: np.ndarray, margin: int = 2) -> tuple[slice, ...]:
    """Bounding box of a mask with a margin in voxels; the run time of N4 grows with the box."""
    where = np.argwhere(inside)
    low, high = where.min(axis=0) - margin, where.max(axis=0) + margin + 1
    return tuple(
        slice(max(int(a), 0), min(int(b), n)) for a, b, n in zip(low, high, inside.shape)
    )


def _upsample_field(
    coarse: np.ndarray, first_blocks: list[int], factors: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Interpolate a coarse (i, j, k) field that begins at `first_blocks` to all voxels."""
    out = coarse.astype(np.float32)
    for axis, (start, factor, size) in enumerate(zip(first_blocks, factors, shape)):
        matrix = _spline_matrix(coarse.shape[axis], start, int(factor), size).astype(np.float32)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _spline_matrix(blocks: int, start: int, factor: int, size: int) -> np.ndarray:
    """(size, blocks) matrix from values at block centers to voxels, constant beyond the ends."""
    if blocks == 1:
        return np.ones((size, 1))
    centers = (np.arange(blocks) + start + 0.5) * factor - 0.5
    wanted = np.clip(np.arange(size), centers[0], centers[-1])
    kind = "not-a-knot" if blocks > 3 else "natural"
    return CubicSpline(centers, np.eye(blocks), bc_type=kind)(wanted)
