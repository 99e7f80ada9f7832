"""Moment matching: y = (x - m_scan) s_target / s_scan + m_target, over the brain.

Mean m and standard deviation s are of the central 99 % of in-mask intensities. The smallest thing
that can be called harmonization: it undoes gain and offset, and leaves contrast as it is. Where
the line would fall to zero or below, it is bent to the line from the origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...contrast.intensity import trimmed_moments
from ...contrast.intensity_map import PointwiseMap
from ...volume import Volume
from ..base import BRIGHTEST, Capabilities, StatisticsBackend

__all__ = ["MomentMatching", "MomentMatchingConfig"]

LOWEST = 0.05  # share of the target's mean at which the line is bent towards the origin


@dataclass(frozen=True)
class MomentMatchingConfig:
    """`trim`: share of voxels left out at each end before mean and deviation; 0 to 0.25."""

    trim: float = 0.005

    def __post_init__(self) -> None:
        if not 0 <= self.trim <= 0.25:
            raise ValueError(f"trim must lie between 0 and 0.25, got {self.trim}.")


class MomentMatching(StatisticsBackend):
    """Two numbers a scanner: location and scale."""

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
        if moments.shape != (2,) or not ((0 < moments) & (moments < BRIGHTEST)).all():
            raise ValueError(f"expected a mean and a deviation above 0 and below {BRIGHTEST:g}")

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> PointwiseMap:
        values = volume.in_mask()
        mean, deviation = trimmed_moments(values, self.config.trim)
        mean_after, deviation_after = style["moments"]
        slope = deviation_after / max(deviation, 1e-12)
        bend = mean + (LOWEST - 1) * mean_after / slope  # here y = LOWEST * mean_after
        low = max(float(values.min()), bend)
        high = max(float(values.max()), low + deviation)
        return _line(low, high, slope, mean_after - slope * mean)


def _line(low: float, high: float, slope: float, offset: float) -> PointwiseMap:
    """y = slope x + offset between `low` and `high` (the map's own rule holds beyond)."""
    x = np.array([low, high])
    return PointwiseMap(x, slope * x + offset)
