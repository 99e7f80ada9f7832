"""Smooth random fields on regular grids, drawn on coarse knots in millimeters.

The same generator state and knot spacing give the same field on every grid of one world.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["WORLD_BOX_MM", "axis_coordinates", "smooth_field"]

WORLD_BOX_MM = np.array([[-112.0, 112.0], [-148.0, 128.0], [-142.0, 120.0]])
"""Lowest and highest world coordinate of the knots; beyond it, the edge value is read."""

B_SPLINE_STD = 0.331  # of a cubic B-spline with unit-variance coefficients in 3D, on average


def axis_coordinates(affine: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
    """World coordinates (mm) along each axis of a grid whose axes are those of the world."""
    return [affine[axis, 3] + affine[axis, axis] * np.arange(n) for axis, n in enumerate(shape)]


def smooth_field(rng: np.random.Generator, coordinates: Sequence[np.ndarray], knot_mm: float,
                 channels: int = 1) -> np.ndarray:
    """Draw fields of unit variance (on average) that vary over about `knot_mm`.

    Parameters
    ----------
    rng : state of the generator; the number of draws depends on `knot_mm` and `channels` alone
    coordinates : world coordinates along each axis, see `axis_coordinates`
    knot_mm : distance of the cubic B-spline's knots
    channels : number of independent fields

    Returns
    -------
    np.ndarray
        (channels, I, J, K) float32.
    """
    counts = [int(np.ceil((high - low) / knot_mm)) + 3 for low, high in WORLD_BOX_MM]
    knots = rng.standard_normal((channels, *counts), dtype=np.float32)
    x, y, z = (_weights(at, low, knot_mm, count)
               for at, (low, _), count in zip(coordinates, WORLD_BOX_MM, counts))
    field = np.matmul(knots, z.T)  # (channels, nx, ny, K)
    field = np.matmul(y, field)  # (channels, nx, J, K)
    flat = field.reshape(channels, counts[0], -1)
    field = np.matmul(x, flat).reshape(channels, len(x), len(y), len(z))
    return field / np.float32(B_SPLINE_STD)


def _weights(at: np.ndarray, low: float, knot_mm: float, count: int) -> np.ndarray:
    """(n, count) float32 weights of a cubic B-spline's knots at n coordinates."""
    position = np.clip((np.asarray(at) - low) / knot_mm, 0, count - 3) + 1
    distance = np.abs(position[:, None] - np.arange(count)[None])
    near = 2 / 3 - distance ** 2 + distance ** 3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)
