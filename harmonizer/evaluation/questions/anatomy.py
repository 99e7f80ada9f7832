"""What the guard measures: did anatomy move? (The limits are in `tolerance`.)

What moved is seen after the contrast is explained away: harmonized = a + b f(source) + rest, where
f is a stiff function of intensity alone and a, b vary only over 12 mm (a bias field). The rest,
averaged over 2.5 mm (noise), is the map of where it moved. A lesion erased or painted in stands out
there, though no mean over the brain notices it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ...errors import InputError
from ...segmentation.segmentations import Segment, Segmentation, as_labels, summary, tissue_ratios
from ...tissues import TISSUES
from ...volume import Volume
from ..metrics import image as near
from ..metrics.distribution import intensity_range, quantile_function

__all__ = ["GUARDED", "explained_by_contrast", "moved_map", "edge_displacement", "overlap",
           "nearest_overlap", "compare_anatomy"]

GUARDED = {  # measure -> what a reader is told; True where higher is better
    "ssim_structure": ("structure (SSIM)", True),
    "gradient_agreement": ("direction of edges", True),
    "edge_displacement": ("displacement of edges, mm", False),
    "largest_change": ("largest local change, share of the range", False),
    "dice": ("overlap of tissues (Dice)", True),
    "ravd": ("change of tissue volumes", False),
}
KNOTS = 11  # ends included
LINE_BINS = 512
SMOOTH_MM = 12.0  # standard deviation of the window in which gain and offset may differ
LEAST_VARIANCE = 1e-4  # of f(source) in ranges squared; with less around it, the local gain is 1
LOCAL_MM = 2.5  # standard deviation of the window over which a local change is averaged
RIM_MM = 4.0  # taken off the mask: its border belongs to the skull-strip
BLOCK_MM = 2.0  # blocks that the map of where it moved is worked out on
EDGE_SHARE = 0.1  # of the voxels, those with the steepest gradient


def explained_by_contrast(source: np.ndarray, result: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """f(source): what ``result`` would be if only the contrast had changed, zero off the mask.

    Arrays (I, J, K). f is a broken line with 9 knots between the 1st and the 99th percentile of the
    source, fitted there by least squares; beyond them it goes on straight, for up to half the
    range. It may turn (T1 to T2 contrast), but follows no intensity that only a lesion has.
    """
    values, goal = source[mask].astype(np.float64), result[mask].astype(np.float64)
    first, low, high, last = np.percentile(values, [0.5, 1, 99, 99.5])
    reach = (last - first) / 2
    if not high > low:
        return np.where(mask, goal.mean(), 0).astype(np.float32)
    counts, edges = np.histogram(values, LINE_BINS, (low, high))
    total = np.histogram(values, edges, weights=goal)[0]
    full = counts > 0
    middle = ((edges[:-1] + edges[1:]) / 2)[full]
    knots = np.linspace(low, high, KNOTS)
    weight = np.sqrt(counts[full])
    line = np.linalg.lstsq(_hinges(middle, knots) * weight[:, None],
                           total[full] / counts[full] * weight, rcond=None)[0]
    expected = np.zeros(source.shape, dtype=np.float32)
    expected[mask] = _hinges(np.clip(values, first - reach, last + reach), knots) @ line
    return expected


def _hinges(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """(n, knots) basis of broken lines: a constant, x, and max(x - knot, 0) at inner knots."""
    unit = (x - knots[0]) / (knots[-1] - knots[0])
    inner = (knots[1:-1] - knots[0]) / (knots[-1] - knots[0])
    return np.column_stack([np.ones_like(unit), unit, np.maximum(unit[:, None] - inner, 0)])


def moved_map(source: np.ndarray, result: np.ndarray, mask: np.ndarray,
              spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Where it moved: (I, J, K) float32, signed, in shares of the result's 0.5 to 99.5 % range.

    result - (a + b f(source)) with a and b fitted over 12 mm around each voxel (a bias field is no
    anatomy), averaged over 2.5 mm; Gaussian windows that count only voxels inside the mask; 0 off
    the mask. Worked out on blocks of about 2 mm, which a window of 2.5 mm does not notice.
    InputError for a constant result.
    """
    expected = explained_by_contrast(source, result, mask)
    box, coarse, factor = _moved_blocks(expected, result, mask, spacing)
    full = np.zeros(mask.shape, dtype=np.float32)
    full[box] = _between(coarse, factor, mask[box].shape) * mask[box]
    return full


def _moved_blocks(expected: np.ndarray, result: np.ndarray, mask: np.ndarray,
                  spacing: Sequence[float]
                  ) -> tuple[tuple[slice, ...], np.ndarray, tuple[int, int, int]]:
    """The mask's box, the map on blocks inside it, and how many voxels a block has along an axis.
    """
    scale = intensity_range(quantile_function(result[mask]))
    if not scale > 0:
        raise InputError("expected a harmonized image with contrast, got a constant one.")
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    factor = tuple(max(int(BLOCK_MM / step + 1e-6), 1) for step in spacing)
    share = _blocks(mask[box].astype(np.float32), factor)
    x, y = (_blocks(np.where(mask[box], array[box], 0), factor) / scale
            / np.maximum(share, 1e-6) for array in (expected, result))
    size = np.asarray(spacing) * factor
    rest = _without_local_line(y, x, share, size)
    return box, _mean_inside(rest, share, size, LOCAL_MM), factor


def _blocks(array: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """Mean over blocks of ``factor`` voxels, float32; the last ones are filled up with zeros."""
    if tuple(factor) == (1, 1, 1):
        return array.astype(np.float32)
    padded = np.pad(array, [(0, -size % step) for size, step in zip(array.shape, factor)])
    i, j, k = (size // step for size, step in zip(padded.shape, factor))
    a, b, c = factor
    return padded.reshape(i, a, j, b, k, c).mean(axis=(1, 3, 5), dtype=np.float32)


def _without_local_line(y: np.ndarray, x: np.ndarray, share: np.ndarray, spacing: Sequence[float]
                        ) -> np.ndarray:
    """y - (a + b x), see `_local_line`; ``share`` of a block in the mask."""
    mean_x, mean_y, slope = _local_line(y, x, share, spacing)
    return np.where(share > 0, y - mean_y - slope * (x - mean_x), 0)


def _local_line(y: np.ndarray, x: np.ndarray, share: np.ndarray, spacing: Sequence[float]
                ) -> tuple[np.ndarray, ...]:
    """Of y = mean_y + b (x - mean_x), by least squares over 12 mm: mean_x, mean_y and b at each
    place. ``share`` (0 to 1) of each place in the mask. Means are taken on blocks of about 4 mm.
    """
    factor = tuple(max(int(SMOOTH_MM / 3 / step + 1e-6), 1) for step in spacing)
    wide = _blocks(share, factor)
    size = np.asarray(spacing) * factor
    means = [_mean_inside(_blocks(array * share, factor) / np.maximum(wide, 1e-6), wide, size,
                          SMOOTH_MM) for array in (x, y, x * x, x * y)]
    mean_x, mean_y, square, product = (_between(mean, factor, x.shape) for mean in means)
    variance = np.maximum(square - mean_x**2, 0)
    return mean_x, mean_y, (product - mean_x * mean_y + LEAST_VARIANCE) / (
        variance + LEAST_VARIANCE)


def _between(coarse: np.ndarray, factor: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Blocks of ``factor`` places read at each of ``shape`` places, linearly: axis by axis, which
    is a tenth of the work of reading each place by itself.
    """
    for axis, (size, step) in enumerate(zip(shape, factor)):
        last = coarse.shape[axis] - 1
        where = np.clip((np.arange(size) + 0.5) / step - 0.5, 0, last)
        before = where.astype(int)
        onward = np.expand_dims((where - before).astype(coarse.dtype),
                                tuple(i for i in range(coarse.ndim) if i != axis))
        low, high = (np.take(coarse, at, axis) for at in (before, np.minimum(before + 1, last)))
        coarse = low + onward * (high - low)
    return coarse


def _mean_inside(array: np.ndarray, share: np.ndarray, spacing: Sequence[float], width_mm: float
                 ) -> np.ndarray:
    """Gaussian mean of ``array`` weighted by ``share`` (0 to 1) of each voxel in the mask."""
    sigma = width_mm / np.asarray(spacing)
    weight = ndimage.gaussian_filter(share.astype(np.float32), sigma, truncate=3)
    total = ndimage.gaussian_filter((array * share).astype(np.float32), sigma, truncate=3)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-4)


def _core(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The mask without its outer 4 mm, or the mask itself where that leaves nothing."""
    padded = np.pad(mask, 1)
    inner = ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1] > RIM_MM
    return inner if inner.any() else mask


def edge_displacement(source: np.ndarray, result: np.ndarray, mask: np.ndarray,
                      spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> float:
    """Mean distance in mm between the edges of a + b f(source) and of the result, both ways.

    a and b vary over 12 mm, as in :func:`moved_map`: a bias field makes other edges the steepest
    ones, and moves none. Edges: the tenth of the voxels of the mask's core with the steepest
    gradient (Gaussian derivative of 1 voxel). 0 to infinity, lower is better; NaN where an image
    has no edges.
    """
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    expected = explained_by_contrast(source, result, mask)
    return _displacement(expected[box], result[box], mask[box], _core(mask[box], spacing), spacing)


def _displacement(expected: np.ndarray, result: np.ndarray, mask: np.ndarray, core: np.ndarray,
                  spacing: Sequence[float]) -> float:
    """See `edge_displacement`; all in the mask's box, ``core`` that of the mask."""
    steep = [_steepness(image, spacing) for image in (expected, result)]
    steep[0] *= np.abs(_local_gain(expected, result, mask, spacing))
    edges = [_edges(one, core) for one in steep]
    if not all(edge.any() for edge in edges):
        return math.nan
    away = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float((away[1][edges[0]].mean() + away[0][edges[1]].mean()) / 2)


def _local_gain(expected: np.ndarray, result: np.ndarray, mask: np.ndarray,
                spacing: Sequence[float]) -> np.ndarray:
    """b of `_local_line` at each voxel; 1 for a constant result, which has no edges anyway."""
    scale = intensity_range(quantile_function(result[mask]))
    if not scale > 0:
        return np.ones(mask.shape, dtype=np.float32)
    x, y = (np.where(mask, image, 0).astype(np.float32) / np.float32(scale)
            for image in (expected, result))
    return _local_line(y, x, mask.astype(np.float32), spacing)[2]


def _steepness(image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Length of the gradient (Gaussian derivative of 1 voxel), in units of the image per mm."""
    image = image.astype(np.float32)
    return np.sqrt(sum((ndimage.gaussian_filter1d(image, 1.0, axis=axis, order=1, mode="nearest")
                        / spacing[axis]) ** 2 for axis in range(3)))


def _edges(steepness: np.ndarray, core: np.ndarray) -> np.ndarray:
    limit = np.quantile(steepness[core], 1 - EDGE_SHARE)
    return core & (steepness >= limit) & (steepness > 0)


def overlap(source: Segmentation, result: Segmentation) -> tuple[float, float]:
    """Dice and rAVD of two segmentations of one brain, each of the tissue where it is worst.

    Dice = 2 |A and B| / (|A| + |B|), 0 to 1, higher is better. rAVD = |V_result - V_source| /
    V_source of tissue ratios, 0 to infinity, lower is better; NaN for a tissue that the source does
    not have. A tissue that neither has is left out.
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
    """Dice and rAVD (see :func:`overlap`) against whichever segmentation of the source is nearer.

    One brain segmented from two contrasts gives two answers, both of its anatomy: what moved is far
    from each. Chosen for either number by itself.
    """
    found = np.array([overlap(one, result) for one in sources])
    return float(np.fmax.reduce(found[:, 0])), float(np.fmin.reduce(found[:, 1]))


def compare_anatomy(source: Volume, result: Volume, segment: Segment | None = None, *,
                    of_source: Segmentation | None = None, of_result: Segmentation | None = None
                    ) -> dict[str, float]:
    """All guarded measures of an image against its source; keys as in GUARDED.

    Both on one grid; inside the source's mask, and the result's where it has one. With ``segment``
    also ``dice`` and ``ravd``, of the result against f(source) or the source as it is, whichever is
    nearer: a segmentation that sees the scanner would call the removal of the scanner a change of
    anatomy, and where the source's contrast is poor, f(source) is poorer. ``of_source`` and
    ``of_result``: what ``segment`` gives of the two, where it is known already. A constant image
    gets the worst values there are. InputError for other grids.
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
    expected = explained_by_contrast(one, two, mask)
    box, moved, factor = _moved_blocks(expected, two, mask, spacing)
    core = _core(mask[box], spacing)
    inner = _blocks(core, factor) >= 0.5
    values = {
        "ssim_structure": near.ssim_structure(one, two, mask, *ranges),
        "gradient_agreement": near.gradient_agreement(one, two, mask, spacing),
        "edge_displacement": _displacement(expected[box], two[box], mask[box], core, spacing),
        "largest_change": float(np.abs(moved[inner]).max()),
    }
    if segment is not None:
        goal = summary(segment(result) if of_result is None else of_result)
        sources = [summary(segment(source) if of_source is None else of_source)]
        if np.ptp(expected[mask]) > 0:
            sources.append(summary(segment(Volume(expected, source.affine, mask))))
        values["dice"], values["ravd"] = nearest_overlap(sources, goal)
    return values
