"""Robust summaries and rescaling of the intensities inside a brain.

The unit of an MR image is arbitrary: two scans of one subject on one scanner may differ by a gain.
Callers that average over scans therefore divide each scan by its own median inside the mask first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "QUANTILE_LEVELS", "LANDMARKS", "IntensityScale", "quantile_function", "trimmed_moments",
    "strictly_increasing",
]

QUANTILE_LEVELS = np.concatenate(
    [[0.001, 0.0025, 0.005], np.linspace(0.01, 0.99, 99), [0.995, 0.9975, 0.999]]
)
"""(105,) probabilities at which quantile functions are stored; denser in the tails."""

LANDMARKS = np.array([0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
"""(11,) landmark probabilities of Nyul, Udupa and Zhang (2000), doi:10.1109/42.836373."""


def quantile_function(values: np.ndarray, levels: np.ndarray = QUANTILE_LEVELS) -> np.ndarray:
    """Compute quantiles of a sample with linear interpolation.

    Parameters
    ----------
    values : (n,) array_like
        The sample.
    levels : (p,) array_like
        Probabilities of the quantiles, 0 to 1.

    Returns
    -------
    (p,) float64 ndarray
    """
    return np.quantile(np.asarray(values, dtype=np.float64), levels)


def trimmed_moments(values: np.ndarray, trim: float = 0.005) -> tuple[float, float]:
    """Compute mean and standard deviation between two symmetric quantiles.

    Trimming limits the influence of bright vessels and of the dark rim of a mask.

    Parameters
    ----------
    values : (n,) array_like
        The sample.
    trim : float
        Fraction removed at each end, 0 to below 0.5.

    Returns
    -------
    mean, std : float
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(values, [trim, 1 - trim])
    values = values[(values >= low) & (values <= high)]
    return float(values.mean()), float(values.std())


def strictly_increasing(values: np.ndarray, step: float) -> np.ndarray:
    """Raise values just enough to make a sequence strictly increasing.

    Ties occur in 8-bit images and in flat tails. A map through tied knots would have no inverse.

    Parameters
    ----------
    values : (n,) array_like
        The sequence.
    step : float
        Smallest difference between neighbors in the result; > 0.

    Returns
    -------
    (n,) float64 ndarray

    Examples
    --------
    >>> strictly_increasing(np.array([1.0, 1.0, 2.0]), 0.25).tolist()
    [1.0, 1.25, 2.0]
    """
    offsets = step * np.arange(len(values))
    return np.maximum.accumulate(np.asarray(values, dtype=np.float64) - offsets) + offsets


@dataclass(frozen=True)
class IntensityScale:
    """Linear scaling between image intensities and the range [-1, 1] of the networks.

    Attributes
    ----------
    low, high : float
        Intensities that become -1 and 1; high > low.
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, tail: float = 0.005) -> IntensityScale:
        """Estimate the scale from quantiles of the intensities inside a mask.

        Parameters
        ----------
        values : (n,) array_like
            Intensities inside the mask.
        tail : float
            The `tail` and 1 - `tail` quantiles become -1 and 1. The default is that of CACD.

        Returns
        -------
        IntensityScale
        """
        low, high = np.quantile(np.asarray(values, dtype=np.float64), [tail, 1 - tail])
        if not high > low:  # a nearly constant image has no range between the quantiles
            low, high = float(np.min(values)), float(np.max(values))
        return cls(float(low), float(max(high, np.nextafter(low, np.inf))))

    def to_unit(self, data: np.ndarray) -> np.ndarray:
        """Scale intensities to [-1, 1] as float32; values beyond the quantiles are not clipped."""
        scaled = (np.asarray(data, np.float64) - self.low) * (2 / (self.high - self.low)) - 1
        return scaled.astype(np.float32)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """Undo `to_unit`; returns float32 intensities."""
        wide = (np.asarray(unit, np.float64) + 1) * ((self.high - self.low) / 2) + self.low
        return wide.astype(np.float32)
