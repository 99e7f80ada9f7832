"""Moment matching: y = (x - m_scan) s_target / s_scan + m_target, over the brain.

Mean m and standard deviation s are those of the central 99 % of in-mask intensities. The method
corrects gain and offset, and leaves contrast unchanged. Where the line would fall to zero or below,
it is replaced by the line from the origin.

References
----------
Reinhold, Dewey, Carass and Prince 2019, doi:10.1117/12.2513089 (z-score).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...contrast.intensity import trimmed_moments
from ...contrast.intensity_map import PointwiseMap
from ...volume import Volume
from ..base import MAX_INTENSITY, Capabilities, StatisticsBackend
from ..config import Settings, setting

__all__ = ["MomentMatching", "MomentMatchingConfig"]

MIN_MEAN_FRACTION = 0.05  # of the target's mean, below which the line leads to the origin


@dataclass(frozen=True)
class MomentMatchingConfig(Settings):
    """Settings of moment matching.

    Attributes
    ----------
    trim : float
        Fraction of voxels excluded at each end before mean and standard deviation, 0 to 0.25.
    """

    trim: float = setting(0.005, low=0, high=0.25)


class MomentMatching(StatisticsBackend):
    """Match mean and standard deviation of the brain to those of the target."""

    name = "moment_matching"
    reference = "Reinhold, Dewey, Carass and Prince 2019, doi:10.1117/12.2513089 (z-score)"
    summary = ("In-mask intensities were shifted and scaled to the mean and the standard deviation "
               "of the target.")
    uses_location = False
    capabilities = Capabilities(intensity_map=True)
    Config = MomentMatchingConfig

    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        mean, deviation = trimmed_moments(volume.in_mask(), self.config.trim)
        return {"moments": np.array([mean, deviation / max(mean, 1e-12)])}

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        mean, variation = np.mean([s["moments"] for s in summaries], axis=0)
        return {"moments": np.array([mean, mean * variation])}

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        moments = np.asarray(style["moments"], np.float64)
        if moments.shape != (2,) or not ((moments > 0) & (moments < MAX_INTENSITY)).all():
            raise ValueError(f"expected a mean and a deviation above 0 and below {MAX_INTENSITY:g}")

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> PointwiseMap:
        values = volume.in_mask()
        mean, deviation = trimmed_moments(values, self.config.trim)
        mean_after, deviation_after = style["moments"]
        slope = deviation_after / max(deviation, 1e-12)
        bend = mean + (MIN_MEAN_FRACTION - 1) * mean_after / slope  # y = fraction * mean_after
        low = max(float(values.min()), bend)
        high = max(float(values.max()), low + deviation)
        return _line(low, high, slope, mean_after - slope * mean)


def _line(low: float, high: float, slope: float, offset: float) -> PointwiseMap:
    """Return y = slope x + offset between `low` and `high`; beyond, the map extrapolates."""
    x = np.array([low, high])
    return PointwiseMap(x, slope * x + offset)
