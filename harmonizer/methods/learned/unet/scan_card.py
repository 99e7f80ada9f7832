"""Describe a scan by numbers that transfer: noise, sharpness per axis, tissue levels.

All numbers are relative to the mean of the brightest tissue, so a gain changes none of them. The
numbers of a site are the means over its scans.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ....volume import Volume

__all__ = ["CARD_NAMES", "scan_card"]

LAGS = (1, 2, 4)  # voxels between the values whose differences measure sharpness
AXES = "RAS"
FLOOR = 1e-3  # of the brightest tissue: added before a logarithm
COARSE_MM = 1.5  # voxels above it leave only one voxel of margin to a tissue's border

CARD_NAMES = (
    *(f"noise_wm_{a}" for a in AXES), *(f"noise_gm_{a}" for a in AXES),
    *(f"difference_{lag}_{a}" for lag in LAGS for a in AXES),
    *(f"std_{t}" for t in ("csf", "gm", "wm")), *(f"mean_{t}" for t in ("csf", "gm", "wm")),
)
"""Names of the numbers of a card; noise, differences and std are logarithms."""


def scan_card(volume: Volume, probabilities: np.ndarray) -> np.ndarray:
    """Measure one scan.

    Parameters
    ----------
    volume : template-grid image with a brain mask
    probabilities : (3, I, J, K) of CSF, GM and WM

    Returns
    -------
    np.ndarray
        (len(CARD_NAMES),) float32.
    """
    box = _box(volume.mask)
    mask, p = volume.mask[box], probabilities[(slice(None), *box)]
    weights = (p * mask) ** 2
    data = volume.data[box].astype(np.float32)
    mean = np.array([(w * data).sum(dtype=np.float64) / max(w.sum(dtype=np.float64), 1e-9)
                     for w in weights])
    unit = max(float(mean.max()), 1e-30)
    u = data * np.float32(1 / unit)
    steps = 1 if float(volume.spacing.max()) > COARSE_MM else 2
    core = ndimage.binary_erosion(mask, iterations=steps)
    noise = [_noise(u, core & (p[c] > limit)) for c, limit in ((2, 0.95), (1, 0.85))]
    differences = [np.sqrt(np.mean(_difference(u, core, axis, lag) ** 2))
                   for lag in LAGS for axis in range(3)]
    std = [np.sqrt((w * (u - m / unit) ** 2).sum(dtype=np.float64)
                   / max(w.sum(dtype=np.float64), 1e-9)) for w, m in zip(weights, mean)]
    logs = np.log(np.concatenate([*noise, differences, std]) + FLOOR)
    return np.concatenate([logs, mean / unit]).astype(np.float32)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    sides = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(s[0]), int(s[-1]) + 1) for s in sides)


def _noise(u: np.ndarray, where: np.ndarray) -> list[float]:
    """Robust standard deviation of second differences along each axis, inside one tissue."""
    found = []
    for axis in range(3):
        n = u.shape[axis]
        left, middle, right = (_part(u, axis, a, n - 2 + a) for a in range(3))
        seen = np.logical_and.reduce([_part(where, axis, a, n - 2 + a) for a in range(3)])
        values = (left[seen] - 2 * middle[seen] + right[seen]) / np.float32(np.sqrt(6))
        found.append(1.4826 * float(np.median(np.abs(values))) if values.size > 50 else 0.0)
    return found


def _difference(u: np.ndarray, where: np.ndarray, axis: int, lag: int) -> np.ndarray:
    """(n,) differences of values `lag` voxels apart; zero where there are none."""
    n = u.shape[axis]
    if n <= lag:
        return np.zeros(1, np.float32)
    seen = _part(where, axis, 0, n - lag) & _part(where, axis, lag, n)
    values = _part(u, axis, lag, n)[seen] - _part(u, axis, 0, n - lag)[seen]
    return values if values.size else np.zeros(1, np.float32)


def _part(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    return array[tuple(slice(start, stop) if a == axis else slice(None) for a in range(3))]
