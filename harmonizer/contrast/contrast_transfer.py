"""The carrier: what a method did to contrast, on the subject's own voxels and nothing else.

Between a scan x and the image h that a method made of it, on the same grid, the same family of maps
is fitted as for local tissue matching: S_c and T_c are the local means of tissue c in x and in h,
r_c the slope of the local regression of h on x. Applied to the scan's own voxels on its own grid,
structure is the scan's by construction: detail that a method invented cannot pass. What is left
out, h - guided, is the measure of how far the method changed anatomy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..volume import Volume
from .local_statistics import Lattice, measure, world_points
from .tissue_map import STEEPEST, Shares, TissueMap

__all__ = ["guide", "left_out"]


def guide(before: Volume, after: Volume, shares: np.ndarray, *, sigma_mm: float = 8.0,
          step_mm: float = 4.0) -> TissueMap:
    """The local tissue map that comes nearest to what a method did.

    Parameters
    ----------
    before, after : one grid, one mask
    shares : (3, I, J, K) memberships of CSF, GM and WM on that grid
    """
    lattice = Lattice.around(before, step_mm)
    source = measure(before, shares, lattice, sigma_mm)
    points = world_points(before)
    x, h = before.in_mask().astype(np.float64), after.in_mask().astype(np.float64)
    fits = [_regression(x, h, share[before.mask], mean, spread, points, lattice, sigma_mm)
            for share, mean, spread in zip(shares, source.mean, source.spread)]
    mean, ratio = (np.stack(maps).astype(np.float32) for maps in zip(*fits))
    gain = mean / source.mean
    return TissueMap(lattice, source, mean, np.clip(ratio, gain / STEEPEST, gain * STEEPEST),
                     Shares.of(shares, before), {"Detail": "guided"})


def _regression(
    x: np.ndarray, h: np.ndarray, share: np.ndarray, mean: np.ndarray, spread: np.ndarray,
    points: np.ndarray, lattice: Lattice, sigma_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(h at the local mean of x, slope) maps of one tissue, over the voxels near that mean."""
    centre, width = lattice.sample(np.stack([mean, spread]), points)
    off = x - centre
    weight = share ** 2 * (np.abs(off) < 3 * width)
    cells = lattice.cells(points)
    total, first, second, level, product = (
        lattice.smooth(lattice.gather(cells, weight * part), sigma_mm)
        for part in (1.0, off, off ** 2, h, h * off))
    total = np.maximum(total, 1e-12)
    first, second, level, product = (part / total for part in (first, second, level, product))
    slope = (product - first * level) / np.maximum(second - first ** 2, 1e-12 + 1e-6 * mean ** 2)
    at_mean = level - slope * first
    return np.maximum(at_mean, 1e-2 * np.abs(level).max()), slope


def left_out(direct: Volume, guided: Volume) -> tuple[np.ndarray, dict[str, Any]]:
    """(direct - guided, its summary): where it is large, the method changed anatomy.

    The summary is relative to the 0.5 to 99.5 % range of the direct image in the mask.
    """
    difference = np.where(direct.mask, direct.data - guided.data, np.float32(0))
    values = difference[direct.mask]
    low, high = np.percentile(direct.in_mask(), [0.5, 99.5])
    unit = max(float(high - low), 1e-30)
    return difference, {
        "RMS": float(f"{np.sqrt(np.mean(values.astype(np.float64) ** 2)) / unit:.4g}"),
        "Percentile99": float(f"{np.percentile(np.abs(values), 99) / unit:.4g}"),
        "Unit": "range of the direct image in the mask, 0.5 to 99.5 %",
    }
