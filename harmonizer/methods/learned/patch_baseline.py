"""Baseline of slabs and patches, for training on parts of volumes.

Local tissue matching needs a whole brain, but a training batch contains parts of brains. Here each
tissue is matched in mean and standard deviation to the same part of another subject at the target.
This is the map of tissue matching without its spatial variation. If tissue probabilities are not
known or not used, histograms are matched instead.
"""

from __future__ import annotations

import numpy as np

from ...contrast.intensity import QUANTILE_LEVELS
from ...contrast.tissue_map import clip_std_ratio

__all__ = ["match_tissues", "match_histogram", "match_patch"]

MIN_TISSUE_VOXELS = 8.0


def match_patch(x: np.ndarray, y: np.ndarray, tissues: tuple[np.ndarray, np.ndarray] | None
                ) -> np.ndarray:
    """Match intensities by tissue if tissues are given, otherwise by histogram.

    Parameters
    ----------
    x, y : ndarray, shape (n,) and (m,)
        Intensities >= 0 of source and target.
    tissues : (ndarray, ndarray), shape (3, n) and (3, m), optional
        Tissue probabilities of both.
    """
    return match_histogram(x, y) if tissues is None else match_tissues(x, tissues[0], y, tissues[1])


def match_tissues(x: np.ndarray, x_tissues: np.ndarray, y: np.ndarray, y_tissues: np.ndarray
                  ) -> np.ndarray:
    """Match mean and standard deviation of each tissue to those of another image.

    Parameters
    ----------
    x, y : ndarray, shape (n,) and (m,)
        Intensities >= 0 in the brains of both.
    x_tissues, y_tissues : ndarray, shape (3, n) and (3, m)
        Tissue probabilities, 0..1.

    Returns
    -------
    ndarray, shape (n,), float32
        >= 0. A tissue that is rare in either image, and a voxel without any tissue, is scaled by
        the ratio of the overall means.
    """
    overall = float(y.mean() / max(float(x.mean()), 1e-6))
    total = x_tissues.sum(axis=0)
    result = np.where(total > 0, 0, overall * x)
    for x_tissue, y_tissue in zip(x_tissues, y_tissues):
        before, after = _moments(x, x_tissue), _moments(y, y_tissue)
        if before is None or after is None:
            new = overall * x
        else:
            gain = after[0] / before[0]
            ratio = clip_std_ratio(after[1] / before[1], gain)
            new = after[0] + (x - before[0]) * ratio
        result = result + x_tissue / np.maximum(total, 1e-6) * new
    return np.maximum(result, 0).astype(np.float32)


def _moments(values: np.ndarray, probability: np.ndarray) -> tuple[float, float] | None:
    """Return mean and standard deviation of a tissue, weighted by p^2; None if it is rare."""
    weight = probability.astype(np.float64) ** 2
    total = weight.sum()
    if total < MIN_TISSUE_VOXELS:
        return None
    mean = float(weight @ values / total)
    std = float(np.sqrt(weight @ (values - mean) ** 2 / total))
    return (mean, std) if mean > 0 and std > 0 else None


def match_histogram(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Map (n,) intensities to the quantiles of (m,) others; piecewise linear, float32."""
    return np.interp(x, np.quantile(x, QUANTILE_LEVELS), np.quantile(y, QUANTILE_LEVELS)
                     ).astype(np.float32)
