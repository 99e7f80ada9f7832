"""A brain-like image with known noise and PSF, on any grid."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from harmonizer.volume import Volume

LEVELS = (0.2, 0.6, 0.9)  # CSF, GM, WM
FWHM_PER_SIGMA = 2.3548


def tissues(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """(3, I, J, K) hard tissues: folds of about 12 mm."""
    field = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    field = ndimage.gaussian_filter(field, 5.0 / np.array(spacing), mode="wrap")
    field /= field.std()
    return np.stack([field < -1.2, (field >= -1.2) & (field < 0), field >= 0]).astype(np.float32)


def affine_of(spacing: tuple[float, float, float], degrees: float = 0.0, flip: bool = False
              ) -> np.ndarray:
    """Voxels -> world, turned about the third axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    if flip:
        affine[:3, :3] = affine[:3, :3] @ np.diag([-1, 1, -1])
    return affine


def scan(noise: float = 0.0, fwhm_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
         spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
         shape: tuple[int, int, int] = (56, 60, 52), seed: int = 0, affine: np.ndarray | None = None
         ) -> tuple[Volume, np.ndarray]:
    """An image with white noise of this standard deviation, and its tissue probabilities."""
    sigma = np.array(fwhm_mm) / FWHM_PER_SIGMA / np.array(spacing)
    probabilities = np.stack([ndimage.gaussian_filter(one, sigma)
                              for one in tissues(shape, spacing)])
    data = np.einsum("c,cijk->ijk", np.array(LEVELS, np.float32), probabilities)
    data += np.float32(noise) * np.random.default_rng(seed).standard_normal(shape, np.float32)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    mask = (grid ** 2).sum(axis=0) < 0.95
    affine = affine_of(spacing) if affine is None else affine
    return Volume(np.where(mask, data, 0).astype(np.float32), affine, mask), probabilities * mask


def range_of(volume: Volume) -> float:
    """1 to 99 % range in the mask."""
    return float(np.ptp(np.quantile(volume.in_mask(), [0.01, 0.99])))
