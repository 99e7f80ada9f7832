"""Anatomical prior: a map of tissue borders that depends little on tissue brightness.

    I^g = I^exp(log_gamma),  G = |grad I^g|,  H = |I^g - Gauss(I^g)|,  A = f G + (1 - f) H

G and H are each divided by their own 99.5 % quantile in the brain; the 0.5 and 99.5 % quantiles of
A become -1 and 1. A does not depend on the gain of a scanner. It still depends in part on its
contrast, which the random `log_gamma` in training compensates.

The paper does not state f, sigma and quantiles, and does not mention the border of the brain. Here
both filters use only brain voxels (the smoothed image is divided by the smoothed mask). Otherwise
the step from brain to background would be the strongest gradient.

References
----------
Hache et al. 2026, "Patch-level anatomy- and style-guided 3D diffusion", eq. 1-3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["AnatomyPrior", "coordinate_maps", "resize"]

BACKGROUND = -1.0
TAIL = 0.005  # fraction of the brain's voxels beyond the range, on either side


@dataclass(frozen=True)
class AnatomyPrior:
    """Filter that computes A.

    Attributes
    ----------
    gradient_fraction : float
        Weight f of the gradient, 0..1; the rest is the high-frequency map.
    sigma : float
        Standard deviation of the Gaussian, voxels, > 0. Its radius is max(1, ceil(3 sigma)).
    """

    gradient_fraction: float = 0.5
    sigma: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.gradient_fraction <= 1 or not self.sigma > 0:
            raise ValueError("gradient_fraction and sigma: expected a number in [0, 1] and one "
                             f"above 0, got {self.gradient_fraction} and {self.sigma}.")

    def __call__(self, image: np.ndarray, mask: np.ndarray, log_gamma: float = 0.0) -> np.ndarray:
        """Compute A.

        Parameters
        ----------
        image : ndarray, shape (I, J, K)
            Any gain; negative values count as zero, values outside the mask as unknown.
        mask : ndarray, shape (I, J, K), bool
            Not empty.
        log_gamma : float
            Perturbation; 0 for none.

        Returns
        -------
        ndarray, shape (I, J, K), float32
            In [-1, 1], background -1.
        """
        unit = np.clip(image, 0, None) / max(_quantile(image, mask, 1 - TAIL), 1e-12)
        unit = np.where(mask, unit, 0).astype(np.float32)
        if log_gamma:
            unit **= np.float32(math.exp(log_gamma))
        smooth = self._smooth(unit, mask)
        filled = np.where(mask, unit, smooth)  # no step at the border of the brain
        gradient = np.sqrt(sum(g * g for g in np.gradient(filled)))
        mixed = self.gradient_fraction * _scaled(gradient, mask) \
            + (1 - self.gradient_fraction) * _scaled(np.abs(filled - smooth), mask)
        low, high = _quantile(mixed, mask, TAIL), _quantile(mixed, mask, 1 - TAIL)
        a = np.clip(2 * (mixed - low) / max(high - low, 1e-12) - 1, -1, 1)
        return np.where(mask, a, BACKGROUND).astype(np.float32)

    def _smooth(self, unit: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the Gaussian mean over brain voxels; 0 where none is near."""
        radius = max(1, math.ceil(3 * self.sigma))
        settings = dict(sigma=self.sigma, radius=radius, mode="constant")
        total = ndimage.gaussian_filter(unit, **settings)
        weight = ndimage.gaussian_filter(mask.astype(np.float32), **settings)
        return np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), 0).astype(np.float32)


def resize(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize an (I, J, K) map to another shape, trilinearly; at half the size: means of 2^3."""
    factors = [after / before for before, after in zip(a.shape, shape, strict=True)]
    out = ndimage.zoom(a.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    assert out.shape == tuple(shape)
    return out


def coordinate_maps(shape: tuple[int, ...]) -> np.ndarray:
    """Return the coordinates of voxel centers, (3, I, J, K), -1 to 1 from border to border."""
    axes = [(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _scaled(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return values / max(_quantile(values, mask, 1 - TAIL), 1e-12)


def _quantile(values: np.ndarray, mask: np.ndarray, fraction: float) -> float:
    """Return a quantile in the mask without interpolation: the value of a voxel."""
    inside = values[mask]
    place = min(len(inside) - 1, int(fraction * len(inside)))
    return float(np.partition(inside, place)[place])
