"""Artifact statistics z_s: means and standard deviations of features over a volume (eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ....deep.networks.feature_pyramid import FeaturePyramid
from ....deep.networks.hierarchy_flow import mean_and_std, moments
from ....deep.networks.vgg import VggFeatures

__all__ = ["Features", "feature_moments", "modality_code", "artifact_statistics", "sum_slices",
           "sum_volumes", "mean_by_height", "height_of"]

Features = FeaturePyramid | VggFeatures


def feature_moments(features: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
    """Return the `moments` of each level within a (N, 1, H, W) mask."""
    return [moments(f, mask) for f in features]


def sum_slices(batches: Iterable[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Sum the moments of all slices of one volume, level by level, in float64; shape (1, ...)."""
    total: list[torch.Tensor] = []
    for batch in batches:
        sums = [level.double().sum(0, keepdim=True) for level in batch]
        total = [a + b for a, b in zip(total, sums)] if total else sums
    return [t.float() for t in total]


def sum_volumes(sums: torch.Tensor, count: int) -> torch.Tensor:
    """Sum the moments of slices over each of `count` volumes, (P S, ...) -> (P, ...)."""
    return sums.unflatten(0, (count, -1)).sum(1)


def artifact_statistics(sums: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate the means of all levels, then their standard deviations: z_s, (N, 2 C)."""
    both = [mean_and_std(s) for s in sums]
    return torch.cat([mean for mean, _ in both] + [std for _, std in both], dim=1)


def mean_by_height(z_s: np.ndarray, middles: np.ndarray, heights: int) -> np.ndarray:
    """Average the (n, 2 C) statistics of slabs over equal parts of the brain's height.

    Parameters
    ----------
    middles : ndarray, shape (n,)
        Slices of the slabs, rising.

    Returns
    -------
    ndarray, shape (heights, 2 C), float32
        A part without a slab has the mean of the nearest slab.
    """
    at = height_of(middles, heights)
    nearest = [np.abs(at - height).argmin() for height in range(heights)]
    means = [z_s[at == height].mean(axis=0) if (at == height).any() else z_s[nearest[height]]
             for height in range(heights)]
    return np.stack(means).astype(np.float32)


def height_of(middles: np.ndarray, heights: int) -> np.ndarray:
    """Return which of `heights` equal parts of the brain's height slices lie in, lowest first."""
    low, extent = middles[0], middles[-1] - middles[0] + 1
    return (middles - low) * heights // extent


def modality_code(modality: str | None, modalities: tuple[str, ...]) -> list[float]:
    """Return the one-hot code of a modality; empty if there is only one modality."""
    return [float(modality == other) for other in modalities] if len(modalities) > 1 else []
