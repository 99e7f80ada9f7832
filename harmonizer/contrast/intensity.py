"""What the intensities inside a brain look like, as a few robust numbers.

The unit of an MR image is arbitrary: two scans of one person on one scanner may differ by a gain.
So what is averaged over the scans of a site is divided by each scan's own in-mask median first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "PROBABILITIES", "LANDMARKS", "IntensityScale", "quantile_function", "trimmed_moments",
    "strictly_increasing",
]

PROBABILITIES = np.concatenate(
    [[0.001, 0.0025, 0.005], np.linspace(0.01, 0.99, 99), [0.995, 0.9975, 0.999]]
)
"""(105,) probabilities at which a quantile function is kept; denser in the tails."""

LANDMARKS = np.array([0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
"""(11,) landmarks of Nyul, Udupa and Zhang 2000 (doi:10.1109/42.836373): p1, deciles, p99."""


def quantile_function(values: np.ndarray, probabilities: np.ndarray = PROBABILITIES) -> np.ndarray:
    """(p,) float64 quantiles of (n,) values at (p,) probabilities in [0, 1], linear between."""
    return np.quantile(np.asarray(values, dtype=np.float64), probabilities)


def trimmed_moments(values: np.ndarray, trim: float = 0.005) -> tuple[float, float]:
    """Mean and standard deviation of the values between the `trim` and 1 - `trim` quantiles.

    Bright vessels and the dark rim of a mask weigh little then; `trim` lies in [0, 0.5).
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(values, [trim, 1 - trim])
    kept = values[(values >= low) & (values <= high)]
    return float(kept.mean()), float(kept.std())


def strictly_increasing(values: np.ndarray, step: float) -> np.ndarray:
    """The smallest strictly increasing sequence above `values` with steps of at least `step`.

    Ties (8-bit images, flat tails) are opened by `step`, so that a map over them has an inverse.

    >>> strictly_increasing(np.array([1.0, 1.0, 2.0]), 0.25).tolist()
    [1.0, 1.25, 2.0]
    """
    offsets = step * np.arange(len(values))
    return np.maximum.accumulate(np.asarray(values, dtype=np.float64) - offsets) + offsets


@dataclass(frozen=True)
class IntensityScale:
    """A straight line between scanner units and the [-1, 1] that networks see, exactly undone.

    Attributes
    ----------
    low, high : intensities that become -1 and 1; high > low
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, tail: float = 0.005) -> IntensityScale:
        """From the `tail` and 1 - `tail` quantiles of in-mask values (CACD: 0.5 and 99.5 %)."""
        low, high = np.quantile(np.asarray(values, dtype=np.float64), [tail, 1 - tail])
        if not high > low:  # nearly constant: the extremes are all there is
            low, high = float(np.min(values)), float(np.max(values))
        return cls(float(low), float(max(high, np.nextafter(low, np.inf))))

    def to_unit(self, data: np.ndarray) -> np.ndarray:
        """float32, not clipped: what lies beyond the quantiles lies beyond [-1, 1]."""
        scaled = (np.asarray(data, np.float64) - self.low) * (2 / (self.high - self.low)) - 1
        return scaled.astype(np.float32)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The inverse of `to_unit`, float32."""
        wide = (np.asarray(unit, np.float64) + 1) * ((self.high - self.low) / 2) + self.low
        return wide.astype(np.float32)
