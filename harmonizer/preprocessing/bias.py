"""The scanner's slow shading, taken out by N4.

Model (Tustison 2010, doi:10.1109/TMI.2010.2046908): v(x) = u(x) f(x), log f a smooth B-spline. The
field is smooth, so it is estimated on voxels of 3-4 mm (block means) and its logarithm is
evaluated at full resolution by cubic splines: seconds instead of a minute. Outside the box of the
mask it is held constant, as nothing is known there. It is scaled such that
**the mean intensity inside the mask is the same before and after**; the unit of the image stays.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline

from ..errors import InputError
from ..volume import Volume
from .ants_bridge import ants_module, to_ants

__all__ = ["correct_bias", "estimate_log_bias", "head_mask", "largest_piece", "whole_head"]

WORKING_SPACING_MM = 3.6
# Three levels: knots 40-50 mm apart in a brain. A fourth (20-25 mm) takes anatomy for bias: it cut
# the contrast of grey to white matter (.706 -> .742, oasis) and the ratio of contrast to noise
# (2.60 -> 2.28); with three both hold (.705, 2.60), whatever field is put on top.
FULL_ITERATIONS = [50, 50, 50]
MIN_VOXELS = 200  # of a mask at working spacing: fewer cannot carry a field
FIELD_RANGE = (0.05, 20.0)  # of the field against its mean; beyond is extrapolation, not physics


def correct_bias(
    volume: Volume, mask: np.ndarray | None = None, *, rough: bool = False, sloppy: bool = False
) -> tuple[Volume, np.ndarray]:
    """Divide an image by its bias field.

    Parameters
    ----------
    volume : any contrast; voxels that are not positive do not take part in the estimate
    mask : (I, J, K) bool, where the field is estimated (the brain); by default the volume's own
        mask, and without one the head found by `head_mask` (a rough correction before extraction)
    rough : fewer iterations, for the step before brain extraction
    sloppy : low quality, for tests

    Returns
    -------
    corrected : Volume on the same grid with the same mask; data = volume.data / field everywhere
    field : (I, J, K) float32, positive, about 1; scaled so that the mean inside the mask is kept

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
    """(I, J, K) float32 logarithm of the bias field at full resolution, mean zero inside `mask`.

    Raises `InputError` where the mask holds fewer than 200 positive voxels at 3.6 mm.
    """
    factors = _block_factors(volume)
    usable = np.asarray(mask, bool) & (volume.data > 0)
    weight = _block_mean(usable.astype(np.float32), factors)
    total = _block_mean(np.where(usable, volume.data, 0), factors)
    inside = weight > 0.5
    if inside.sum() < min(MIN_VOXELS, 0.5 * usable.sum() + 1) or not inside.any():
        raise InputError(
            f"bias correction needs a mask with positive intensities, got {int(usable.sum())} "
            "usable voxels. Check the mask and the image's scaling."
        )
    coarse = np.where(inside, total / np.maximum(weight, 1e-6), 1.0).astype(np.float32)
    box = _box(inside)
    log_field = _n4(coarse[box], inside[box], factors, volume, rough, sloppy)
    log_field -= log_field[inside[box]].mean()
    return _evaluate(log_field, [part.start for part in box], factors, volume.shape)


def head_mask(volume: Volume) -> np.ndarray:
    """(I, J, K) bool: above half of Otsu's threshold on clipped intensities, holes filled."""
    from skimage.filters import threshold_otsu

    clipped = np.clip(volume.data, 0, max(float(np.percentile(volume.data, 99.5)), 1e-6))
    return ndimage.binary_fill_holes(clipped > 0.5 * threshold_otsu(clipped))


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected piece of a mask."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def whole_head(volume: Volume) -> np.ndarray:
    """(I, J, K) bool: the largest piece of `head_mask` and all of the brain mask, filled slice by
    slice in all three planes: the dark skull is open at the neck. A brain alone gives its mask."""
    assert volume.mask is not None
    head = largest_piece(head_mask(volume)) | volume.mask
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
    """N4 on the coarse grid -> float64 log field."""
    ants = ants_module()
    iterations = [20, 10] if sloppy else [30, 20, 10] if rough else FULL_ITERATIONS
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
    """(3,) voxels per block along each axis, so that blocks come near 3.6 mm."""
    return np.maximum(np.round(WORKING_SPACING_MM / volume.spacing), 1).astype(int)


def _block_mean(data: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Mean over blocks of `factors` voxels; the last block repeats the border voxel."""
    padding = [(0, -n % f) for n, f in zip(data.shape, factors)]
    data = np.pad(np.asarray(data, np.float32), padding, mode="edge")
    i, j, k = (n // f for n, f in zip(data.shape, factors))
    a, b, c = factors
    return data.reshape(i, a, j, b, k, c).mean(axis=(1, 3, 5))


def _box(inside: np.ndarray, margin: int = 2) -> tuple[slice, ...]:
    """The bounding box of a mask and `margin` voxels around it: N4's time goes with its volume."""
    where = np.argwhere(inside)
    low, high = where.min(axis=0) - margin, where.max(axis=0) + margin + 1
    return tuple(
        slice(max(int(a), 0), min(int(b), n)) for a, b, n in zip(low, high, inside.shape)
    )


def _evaluate(
    coarse: np.ndarray, starts: list[int], factors: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """A coarse (i, j, k) field, whose first block is number `starts`, at every voxel of `shape`."""
    out = coarse.astype(np.float32)
    for axis, (start, factor, size) in enumerate(zip(starts, factors, shape)):
        matrix = _spline_matrix(coarse.shape[axis], start, int(factor), size).astype(np.float32)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _spline_matrix(blocks: int, start: int, factor: int, size: int) -> np.ndarray:
    """(size, blocks): values at block centres -> values at voxels; held constant past the ends."""
    if blocks == 1:
        return np.ones((size, 1))
    centres = (np.arange(blocks) + start + 0.5) * factor - 0.5
    wanted = np.clip(np.arange(size), centres[0], centres[-1])
    kind = "not-a-knot" if blocks > 3 else "natural"
    return CubicSpline(centres, np.eye(blocks), bc_type=kind)(wanted)
