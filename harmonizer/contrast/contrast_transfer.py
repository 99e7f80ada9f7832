"""Contrast transfer: the part of a method's change that is a smooth map of tissue contrast.

`fit_contrast_transfer` compares a scan x with the image h that a method made of it on the same
grid, and fits a `TissueMap` to the change by local regressions of h on x. For each tissue, the
source mean is the local mean of x, and the target mean is the predicted h at that intensity. The
ratio is the slope of the regression. The map is then applied to the scan's own voxels on the scan's
own grid, so detail that the method added cannot enter the result.

`compute_residual` returns the rest, h minus the transferred image. A large residual means that the
method changed anatomy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..volume import Volume
from .local_statistics import Lattice, measure, world_points
from .tissue_map import TissueMap, TissueProbabilities, clip_std_ratio

__all__ = ["fit_contrast_transfer", "compute_residual"]


def fit_contrast_transfer(before: Volume, after: Volume, probabilities: np.ndarray, *,
                          sigma_mm: float = 8.0, step_mm: float = 4.0) -> TissueMap:
    """Fit the local tissue map that is nearest to the change from one image to another.

    Parameters
    ----------
    before, after : Volume
        The scan and the method's result, on one grid and with one brain mask.
    probabilities : (3, I, J, K) ndarray
        Probabilities of CSF, GM and WM on that grid, 0 to 1.
    sigma_mm : float
        Standard deviation of the Gaussian neighborhood, mm.
    step_mm : float
        Distance of the lattice points on which the map is stored, mm.

    Returns
    -------
    TissueMap
        The map, to be applied to the scan on any grid.
    """
    lattice = Lattice.around(before, step_mm)
    source = measure(before, probabilities, lattice, sigma_mm)
    points = world_points(before)
    x, h = before.in_mask().astype(np.float64), after.in_mask().astype(np.float64)
    fits = [_regress(x, h, probability[before.mask], mean, std, points, lattice, sigma_mm)
            for probability, mean, std in zip(probabilities, source.mean, source.std)]
    mean, ratio = (np.stack(maps).astype(np.float32) for maps in zip(*fits))
    return TissueMap(lattice, source, mean, clip_std_ratio(ratio, mean / source.mean),
                     TissueProbabilities.of(probabilities, before), {"Detail": "guided"})


def _regress(
    x: np.ndarray, h: np.ndarray, probability: np.ndarray, mean: np.ndarray, std: np.ndarray,
    points: np.ndarray, lattice: Lattice, sigma_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Regress h on x locally, for one tissue: maps of h at the local mean of x, and of the slope.

    Only voxels within three local standard deviations of the tissue's mean take part.
    """
    center, width = lattice.sample(np.stack([mean, std]), points)
    offset = x - center
    weight = probability ** 2 * (np.abs(offset) < 3 * width)
    cells = lattice.cells(points)
    total, first, second, level, product = (
        lattice.smooth(lattice.gather(cells, weight * part), sigma_mm)
        for part in (1.0, offset, offset ** 2, h, h * offset))
    total = np.maximum(total, 1e-12)
    first, second, level, product = (part / total for part in (first, second, level, product))
    slope = (product - first * level) / np.maximum(second - first ** 2, 1e-12 + 1e-6 * mean ** 2)
    at_mean = level - slope * first
    return np.maximum(at_mean, 1e-2 * np.abs(level).max()), slope


def compute_residual(direct: Volume, guided: Volume) -> tuple[np.ndarray, dict[str, Any]]:
    """Compute what a method changed beyond the contrast transfer.

    Parameters
    ----------
    direct : Volume
        The method's own result, with a brain mask.
    guided : Volume
        The scan after the contrast transfer, on the same grid.

    Returns
    -------
    residual : (I, J, K) float32 ndarray
        direct - guided inside the mask, 0 outside.
    summary : dict
        Root mean square (``RMS``) and 99th percentile of the absolute residual
        (``Percentile99``), as fractions of the 0.5 to 99.5 % intensity range of ``direct``.
    """
    difference = np.where(direct.require_mask(), direct.data - guided.data, np.float32(0))
    values = difference[direct.mask]
    low, high = np.percentile(direct.in_mask(), [0.5, 99.5])
    unit = max(float(high - low), 1e-30)
    return difference, {
        "RMS": float(f"{np.sqrt(np.mean(values.astype(np.float64) ** 2)) / unit:.4g}"),
        "Percentile99": float(f"{np.percentile(np.abs(values), 99) / unit:.4g}"),
        "Unit": "range of the direct image in the mask, 0.5 to 99.5 %",
    }
