"""The first guess of slabs and patches, which training sees in the place of whole volumes.

Local tissue matching needs a brain; a batch holds parts of one. Here each tissue gets the mean and
the spread that it has in the same part of another person, at the target: the same map without the
places. By histogram where tissues are not known or not asked for.
"""

from __future__ import annotations

import numpy as np

from ...contrast.intensity import QUANTILE_LEVELS
from ...contrast.tissue_map import clip_std_ratio

__all__ = ["matched_by_tissue", "matched_by_histogram"]

LEAST = 8.0  # voxels of a tissue below which a part says nothing of it


def matched_by_tissue(x: np.ndarray, own: np.ndarray, y: np.ndarray, theirs: np.ndarray
                      ) -> np.ndarray:
    """Intensities whose tissues are as bright, and spread as much, as another image's.

    Parameters
    ----------
    x, y : (n,) and (m,) intensities >= 0 in the brains of both
    own, theirs : (3, n) and (3, m) shares of the tissues, 0..1

    Returns
    -------
    ndarray
        (n,) float32, >= 0. A tissue that either part has too little of, and a voxel of no tissue,
        gets the ratio of the overall means.
    """
    overall = float(y.mean() / max(float(x.mean()), 1e-6))
    total = own.sum(axis=0)
    result = np.where(total > 0, 0, overall * x)
    for mine, other in zip(own, theirs):
        before, after = _moments(x, mine), _moments(y, other)
        if before is None or after is None:
            new = overall * x
        else:
            gain = after[0] / before[0]
            ratio = clip_std_ratio(after[1] / before[1], gain)
            new = after[0] + (x - before[0]) * ratio
        result = result + mine / np.maximum(total, 1e-6) * new
    return np.maximum(result, 0).astype(np.float32)


def _moments(values: np.ndarray, share: np.ndarray) -> tuple[float, float] | None:
    """Mean and standard deviation of a tissue, pure voxels weighing most; None if it is rare."""
    weight = share.astype(np.float64) ** 2
    total = weight.sum()
    if total < LEAST:
        return None
    mean = float(weight @ values / total)
    spread = float(np.sqrt(weight @ (values - mean) ** 2 / total))
    return (mean, spread) if mean > 0 and spread > 0 else None


def matched_by_histogram(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) float32 intensities with the quantiles of (m,) others; piecewise linear."""
    return np.interp(x, np.quantile(x, QUANTILE_LEVELS), np.quantile(y, QUANTILE_LEVELS)
                     ).astype(np.float32)
