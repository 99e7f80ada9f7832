"""Where tissue borders are, with as little as possible of how bright the tissues are.

    I^g = I^exp(log_gamma),  G = |grad I^g|,  H = |I^g - Gauss(I^g)|,  A = share G + (1 - share) H

(Hache 2026, eq. 1-3; the patch diffusion backend is told the anatomy by A.) G and H are each
divided by their own 99.5 % quantile in the brain, A's 0.5 and 99.5 % become -1 and 1. So A does not
know the gain of a scanner; its contrast it still knows in part, which is what a random `log_gamma`
in training is for. `coarse` is A of the whole volume at the size of a patch.

The paper leaves share, sigma and quantiles open and says nothing of the brain's rim. Here both
filters see the brain alone (smoothing is divided by that of the mask), for the step from brain to
zero would otherwise be the strongest gradient of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["AnatomyPrior", "coarse", "places"]

BACKGROUND = -1.0
TAIL = 0.005  # of the brain's voxels beyond the range, on either side


@dataclass(frozen=True)
class AnatomyPrior:
    """How A is made.

    Attributes
    ----------
    share : of the gradient; the rest is the high-frequency map
    sigma : of the Gaussian, voxels; its radius is max(1, ceil(3 sigma))
    """

    share: float = 0.5
    sigma: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.sigma > 0:
            raise ValueError(f"share lies in [0, 1] and sigma above 0, got {self.share} and "
                             f"{self.sigma}.")

    def __call__(self, image: np.ndarray, mask: np.ndarray, log_gamma: float = 0.0) -> np.ndarray:
        """A, (I, J, K) float32 in [-1, 1], background -1.

        Parameters
        ----------
        image : (I, J, K), any gain; below zero counts as zero, outside the mask as unknown
        mask : (I, J, K) bool, not empty
        log_gamma : of the perturbation; 0 changes nothing
        """
        unit = np.clip(image, 0, None) / max(_quantile(image, mask, 1 - TAIL), 1e-12)
        unit = np.where(mask, unit, 0).astype(np.float32)
        if log_gamma:
            unit **= np.float32(math.exp(log_gamma))
        smooth = self._smooth(unit, mask)
        filled = np.where(mask, unit, smooth)  # the rim has no step into the background
        gradient = np.sqrt(sum(g * g for g in np.gradient(filled)))
        mixed = self.share * _scaled(gradient, mask) \
            + (1 - self.share) * _scaled(np.abs(filled - smooth), mask)
        low, high = _quantile(mixed, mask, TAIL), _quantile(mixed, mask, 1 - TAIL)
        a = np.clip(2 * (mixed - low) / max(high - low, 1e-12) - 1, -1, 1)
        return np.where(mask, a, BACKGROUND).astype(np.float32)

    def _smooth(self, unit: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Gaussian mean over the brain's voxels; 0 where none is near."""
        radius = max(1, math.ceil(3 * self.sigma))
        settings = dict(sigma=self.sigma, radius=radius, mode="constant")
        total = ndimage.gaussian_filter(unit, **settings)
        weight = ndimage.gaussian_filter(mask.astype(np.float32), **settings)
        return np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), 0).astype(np.float32)


def coarse(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(I, J, K) map, all of it, trilinear at another (i, j, k); at half the size: means of 2^3."""
    factors = [after / before for before, after in zip(a.shape, shape, strict=True)]
    out = ndimage.zoom(a.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    assert out.shape == tuple(shape)
    return out


def places(shape: tuple[int, ...]) -> np.ndarray:
    """(3, I, J, K) float32 coordinates of voxel centres, -1 to 1 from border to border."""
    axes = [(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _scaled(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return values / max(_quantile(values, mask, 1 - TAIL), 1e-12)


def _quantile(values: np.ndarray, mask: np.ndarray, share: float) -> float:
    """A quantile in the mask: an order statistic, hence a voxel's own value."""
    inside = values[mask]
    place = min(len(inside) - 1, int(share * len(inside)))
    return float(np.partition(inside, place)[place])
