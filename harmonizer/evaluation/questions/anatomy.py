"""Measures of anatomical change between an image and its source.

The change of contrast is removed first: harmonized = a + b f(source) + residual, where f is a
piecewise linear function of intensity and a, b vary slowly in space (a bias field, 12 mm). The
residual, averaged over 2.5 mm against noise, is the map of anatomical change. It shows an erased or
added lesion, which a mean over the brain does not. The limits are in `anatomy_limits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from ...errors import InputError
from ...segmentation.segmentations import Segment, Segmentation, as_labels, summary, tissue_ratios
from ...tissues import TISSUES
from ...volume import Volume
from ..metrics import image as near
from ..metrics.distribution import intensity_range, quantile_function

__all__ = ["GUARDED", "anatomy_change_map", "compare_anatomy", "edge_displacement",
           "match_contrast", "nearest_overlap", "overlap"]

GUARDED = {  # measure -> description, and whether higher is better
    "ssim_structure": ("structure (SSIM)", True),
    "gradient_agreement": ("direction of edges", True),
    "edge_displacement": ("displacement of edges, mm", False),
    "largest_change": ("largest local change, fraction of the range", False),
    "dice": ("overlap of tissues (Dice)", True),
    "ravd": ("change of tissue volumes", False),
}
Spacing = Sequence[float] | np.ndarray
N_KNOTS = 11  # ends included
N_BINS = 512
BIAS_SIGMA_MM = 12.0  # standard deviation of the window of gain and offset
MIN_LOCAL_VARIANCE = 1e-4  # of f(source) in ranges squared; with less, the local gain is 1
CHANGE_SIGMA_MM = 2.5  # standard deviation of the window of the change map
MASK_MARGIN_MM = 4.0  # removed at the border, which depends on skull-stripping
BLOCK_MM = 2.0  # resolution of the change map
EDGE_FRACTION = 0.1  # of the voxels, by gradient


def match_contrast(source: np.ndarray, result: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Predict the result from the source as if only the contrast had changed: f(source).

    f is piecewise linear with 11 knots between the 1st and the 99th percentile of the source,
    fitted by least squares and extrapolated by up to half the range. It need not be monotonic (T1w
    to T2w contrast), but cannot follow the intensities of a lesion.

    Parameters
    ----------
    source, result : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to fit.

    Returns
    -------
    ndarray, shape (I, J, K)
        float32, in the units of the result; 0 outside the mask.
    """
    values, wanted = source[mask].astype(np.float64), result[mask].astype(np.float64)
    first, low, high, last = np.percentile(values, [0.5, 1, 99, 99.5])
    reach = (last - first) / 2
    if not high > low:
        return np.where(mask, wanted.mean(), 0).astype(np.float32)
    counts, edges = np.histogram(values, N_BINS, (low, high))
    total = np.histogram(values, edges, weights=wanted)[0]
    full = counts > 0
    middle = ((edges[:-1] + edges[1:]) / 2)[full]
    knots = np.linspace(low, high, N_KNOTS)
    weight = np.sqrt(counts[full])
    coefficients = np.linalg.lstsq(_hinges(middle, knots) * weight[:, None],
                           total[full] / counts[full] * weight, rcond=None)[0]
    expected = np.zeros(source.shape, dtype=np.float32)
    expected[mask] = _hinges(np.clip(values, first - reach, last + reach), knots) @ coefficients
    return expected


def _hinges(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return the basis of piecewise linear functions: 1, x, and max(x - knot, 0) at inner knots."""
    unit = (x - knots[0]) / (knots[-1] - knots[0])
    inner = (knots[1:-1] - knots[0]) / (knots[-1] - knots[0])
    return np.column_stack([np.ones_like(unit), unit, np.maximum(unit[:, None] - inner, 0)])


def anatomy_change_map(source: np.ndarray, result: np.ndarray, mask: np.ndarray,
              spacing: Spacing = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Compute the map of anatomical change, as a fraction of the result's 0.5 to 99.5 % range.

    The map is result - (a + b f(source)), with a and b fitted over 12 mm around each voxel,
    averaged over 2.5 mm. The Gaussian windows use only voxels inside the mask. The map is computed
    on blocks of about 2 mm, which is fine enough for a window of 2.5 mm.

    Parameters
    ----------
    source, result : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Brain mask.
    spacing : sequence of float
        Voxel size in mm.

    Returns
    -------
    ndarray, shape (I, J, K)
        float32, signed; 0 outside the mask.

    Raises
    ------
    InputError
        If the result is constant.
    """
    expected = match_contrast(source, result, mask)
    box, coarse, factor = _change_on_blocks(expected, result, mask, spacing)
    full = np.zeros(mask.shape, dtype=np.float32)
    full[box] = _interpolate(coarse, factor, mask[box].shape) * mask[box]
    return full


def _change_on_blocks(expected: np.ndarray, result: np.ndarray, mask: np.ndarray,
                  spacing: Spacing
                  ) -> tuple[tuple[slice, ...], np.ndarray, tuple[int, ...]]:
    """Return the mask's box, the map on blocks inside it, and the voxels per block by axis."""
    scale = intensity_range(quantile_function(result[mask]))
    if not scale > 0:
        raise InputError("expected a harmonized image with contrast, got a constant one.")
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    factor = tuple(max(int(BLOCK_MM / step + 1e-6), 1) for step in spacing)
    fraction = _blocks(mask[box].astype(np.float32), factor)
    x, y = (_blocks(np.where(mask[box], array[box], 0), factor) / scale
            / np.maximum(fraction, 1e-6) for array in (expected, result))
    size = np.asarray(spacing) * factor
    rest = _without_local_line(y, x, fraction, size)
    return box, _mean_inside(rest, fraction, size, CHANGE_SIGMA_MM), factor


def _blocks(array: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """Average blocks of `factor` voxels; the last ones are padded with zeros."""
    if tuple(factor) == (1, 1, 1):
        return array.astype(np.float32)
    padded = np.pad(array, [(0, -size % step) for size, step in zip(array.shape, factor)])
    i, j, k = (size // step for size, step in zip(padded.shape, factor))
    a, b, c = factor
    return padded.reshape(i, a, j, b, k, c).mean(axis=(1, 3, 5), dtype=np.float32)


def _without_local_line(y: np.ndarray, x: np.ndarray, fraction: np.ndarray, spacing: Spacing
                        ) -> np.ndarray:
    """Return y - (a + b x), see `_local_line`."""
    mean_x, mean_y, slope = _local_line(y, x, fraction, spacing)
    return np.where(fraction > 0, y - mean_y - slope * (x - mean_x), 0)


def _local_line(y: np.ndarray, x: np.ndarray, fraction: np.ndarray, spacing: Spacing
                ) -> tuple[np.ndarray, ...]:
    """Fit y = mean_y + b (x - mean_x) by least squares over 12 mm around each voxel.

    Means are computed on blocks of about 4 mm. `fraction` is the part of each voxel inside the
    mask. Returns mean_x, mean_y and b.
    """
    factor = tuple(max(int(BIAS_SIGMA_MM / 3 / step + 1e-6), 1) for step in spacing)
    coarse_fraction = _blocks(fraction, factor)
    size = np.asarray(spacing) * factor
    means = [_mean_inside(_blocks(array * fraction, factor) / np.maximum(coarse_fraction, 1e-6),
                          coarse_fraction, size, BIAS_SIGMA_MM) for array in (x, y, x * x, x * y)]
    mean_x, mean_y, square, product = (_interpolate(mean, factor, x.shape) for mean in means)
    variance = np.maximum(square - mean_x**2, 0)
    return mean_x, mean_y, (product - mean_x * mean_y + MIN_LOCAL_VARIANCE) / (
        variance + MIN_LOCAL_VARIANCE)


def _interpolate(coarse: np.ndarray, factor: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Interpolate blocks of `factor` voxels linearly to `shape`.

    Axis by axis, this takes a tenth of the time of `ndimage.map_coordinates`.
    """
    for axis, (size, step) in enumerate(zip(shape, factor)):
        last = coarse.shape[axis] - 1
        where = np.clip((np.arange(size) + 0.5) / step - 0.5, 0, last)
        before = where.astype(int)
        weight = np.expand_dims((where - before).astype(coarse.dtype),
                                tuple(i for i in range(coarse.ndim) if i != axis))
        low, high = (np.take(coarse, at, axis) for at in (before, np.minimum(before + 1, last)))
        coarse = low + weight * (high - low)
    return coarse


def _mean_inside(array: np.ndarray, fraction: np.ndarray, spacing: Spacing, width_mm: float
                 ) -> np.ndarray:
    """Return the Gaussian mean of an array, weighted by each voxel's fraction in the mask."""
    sigma = width_mm / np.asarray(spacing)
    weight = ndimage.gaussian_filter(fraction.astype(np.float32), sigma, truncate=3)
    total = ndimage.gaussian_filter((array * fraction).astype(np.float32), sigma, truncate=3)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-4)


def _core(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Return the mask without its outer 4 mm, or the mask itself if nothing would be left."""
    padded = np.pad(mask, 1)
    depth_mm = ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1]
    inner = depth_mm > MASK_MARGIN_MM
    return inner if inner.any() else mask


def edge_displacement(source: np.ndarray, result: np.ndarray, mask: np.ndarray,
                      spacing: Spacing = (1.0, 1.0, 1.0)) -> float:
    """Compute the mean distance between the edges of a + b f(source) and of the result, both ways.

    a and b vary over 12 mm as in `anatomy_change_map`: a bias field changes which edges are
    steepest, but displaces none. Edges are the tenth of the voxels inside the eroded mask with the
    largest gradient (Gaussian derivative of 1 voxel).

    Parameters
    ----------
    source, result : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Brain mask.
    spacing : sequence of float
        Voxel size in mm.

    Returns
    -------
    float
        In mm, 0 or more; NaN if an image has no edges.
    """
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    expected = match_contrast(source, result, mask)
    return _displacement(expected[box], result[box], mask[box], _core(mask[box], spacing), spacing)


def _displacement(expected: np.ndarray, result: np.ndarray, mask: np.ndarray, core: np.ndarray,
                  spacing: Spacing) -> float:
    """Compute `edge_displacement` inside the mask's box; `core` is the eroded mask."""
    steep = [_steepness(image, spacing) for image in (expected, result)]
    steep[0] *= np.abs(_local_gain(expected, result, mask, spacing))
    edges = [_edges(one, core) for one in steep]
    if not all(edge.any() for edge in edges):
        return math.nan
    distances = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float((distances[1][edges[0]].mean() + distances[0][edges[1]].mean()) / 2)


def _local_gain(expected: np.ndarray, result: np.ndarray, mask: np.ndarray,
                spacing: Spacing) -> np.ndarray:
    """Return b of `_local_line` at each voxel; 1 for a constant result, which has no edges."""
    scale = intensity_range(quantile_function(result[mask]))
    if not scale > 0:
        return np.ones(mask.shape, dtype=np.float32)
    x, y = (np.where(mask, image, 0).astype(np.float32) / np.float32(scale)
            for image in (expected, result))
    return _local_line(y, x, mask.astype(np.float32), spacing)[2]


def _steepness(image: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Return the length of the gradient (Gaussian derivative of 1 voxel) in intensity per mm."""
    image = image.astype(np.float32)
    return np.sqrt(sum((ndimage.gaussian_filter1d(image, 1.0, axis=axis, order=1, mode="nearest")
                        / spacing[axis]) ** 2 for axis in range(3)))


def _edges(steepness: np.ndarray, core: np.ndarray) -> np.ndarray:
    limit = np.quantile(steepness[core], 1 - EDGE_FRACTION)
    return core & (steepness >= limit) & (steepness > 0)


def overlap(source: Segmentation, result: Segmentation) -> tuple[float, float]:
    """Compute Dice and relative absolute volume difference, each of the worst tissue.

    Parameters
    ----------
    source, result : Segmentation
        Segmentations of one brain.

    Returns
    -------
    dice : float
        2 |A and B| / (|A| + |B|), 0 to 1, higher is better.
    ravd : float
        |V_result - V_source| / V_source of tissue ratios, 0 or more; NaN for a tissue that the
        source does not have. A tissue that neither has is left out.
    """
    one, two = as_labels(source), as_labels(result)
    before, after = tissue_ratios(source), tissue_ratios(result)
    dice, change = [], []
    for code, name in enumerate(TISSUES, start=1):
        size = np.count_nonzero(one == code) + np.count_nonzero(two == code)
        if not size and not before[name] + after[name]:
            continue
        shared = np.count_nonzero((one == code) & (two == code))
        dice.append(2 * shared / size if size else math.nan)
        change.append(abs(after[name] - before[name]) / before[name] if before[name] else math.nan)
    return float(np.min(dice)), float(np.max(change))


def nearest_overlap(sources: Sequence[Segmentation], result: Segmentation) -> tuple[float, float]:
    """Compute `overlap` with the segmentation of the source that is more similar.

    Two segmentations of one brain with different contrasts differ; anatomical change differs from
    both. The choice is made for each measure.

    Parameters
    ----------
    sources : sequence of Segmentation
        Segmentations of the source.
    result : Segmentation
        Segmentation of the harmonized image.

    Returns
    -------
    dice, ravd : float
        As in `overlap`.
    """
    found = np.array([overlap(one, result) for one in sources])
    return float(np.fmax.reduce(found[:, 0])), float(np.fmin.reduce(found[:, 1]))


def compare_anatomy(source: Volume, result: Volume, segment: Segment | None = None, *,
                    of_source: Segmentation | None = None, of_result: Segmentation | None = None,
                    limits: Mapping[str, float] | None = None, same_contrast: bool = False
                    ) -> dict[str, float]:
    """Compute all anatomy measures of an image against its source.

    With a segmenter, the result is compared with the source and, unless this is within the limits,
    with f(source), and the more similar one counts. A segmenter that depends on contrast would take
    a change of contrast for anatomy; and if the source has poor contrast, f(source) is worse than
    the source.

    Parameters
    ----------
    source, result : Volume
        On one grid; compared inside the mask of the source and, if present, of the result.
    segment : callable, optional
        Segmenter of a volume; without it there is no Dice and no volume difference.
    of_source, of_result : Segmentation, optional
        Segmentations by `segment`, if they are known already.
    limits : mapping of str to float, optional
        Limits of the guard. f(source) is segmented only if "dice" or "ravd" exceeds its limit,
        which saves a third of the time; without limits, it always is.
    same_contrast : bool
        Whether both are scans of one scanner; f(source) is then not segmented.

    Returns
    -------
    dict of str to float
        Keys as in `GUARDED`. A constant image has the worst possible values.

    Raises
    ------
    InputError
        If the source has no mask or the grids differ.
    """
    if source.mask is None or not source.same_grid(result):
        raise InputError(f"expected a masked source and its result on one grid, got {source.shape} "
                         f"and {result.shape}.")
    mask = source.mask if result.mask is None else source.mask & result.mask
    one, two, spacing = source.data, result.data, tuple(float(v) for v in source.spacing)
    ranges = [intensity_range(quantile_function(data[mask])) for data in (one, two)]
    if not min(ranges) > 0:
        worst = {"ssim_structure": 0.0, "gradient_agreement": 0.0, "largest_change": 1.0}
        return worst if segment is None else {**worst, "dice": 0.0, "ravd": 1.0}
    expected = match_contrast(one, two, mask)
    box, change, factor = _change_on_blocks(expected, two, mask, spacing)
    core = _core(mask[box], spacing)
    inner = _blocks(core, factor) >= 0.5
    values = {
        "ssim_structure": near.ssim_structure(one, two, mask, *ranges),
        "gradient_agreement": near.gradient_agreement(one, two, mask, spacing),
        "edge_displacement": _displacement(expected[box], two[box], mask[box], core, spacing),
        "largest_change": float(np.abs(change[inner]).max()),
    }
    if segment is not None:
        after = summary(segment(result) if of_result is None else of_result)
        sources = [summary(segment(source) if of_source is None else of_source)]
        found = overlap(sources[0], after)
        if not (same_contrast or _overlap_is_within(found, limits)) and np.ptp(expected[mask]) > 0:
            sources.append(summary(segment(Volume(expected, source.affine, mask))))
            found = nearest_overlap(sources, after)
        values["dice"], values["ravd"] = found
    return values


def _overlap_is_within(found: tuple[float, float], limits: Mapping[str, float] | None) -> bool:
    """Return whether Dice and volume difference are known and keep their limits."""
    if limits is None or "dice" not in limits or "ravd" not in limits:
        return False
    return found[0] >= limits["dice"] and found[1] <= limits["ravd"]
