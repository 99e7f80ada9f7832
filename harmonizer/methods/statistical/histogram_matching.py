"""Histogram matching: map the scan's quantile function to the target's.

y = Q_target(F_scan(x)). The quantile function of the target is the mean over its scans. Because the
gain of a scan is arbitrary, each scan is first divided by its median, and the mean is multiplied by
the mean median.

With ``method="landmarks"`` the quantile functions have only p1, the deciles and p99, and each scan
is scaled by its p1 to p99 range. Nyul, Udupa and Zhang use an arbitrary standard scale; here the
scale is that of the target.

References
----------
Nyul, Udupa and Zhang 2000, doi:10.1109/42.836373.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...contrast.intensity import LANDMARKS, QUANTILE_LEVELS, quantile_function
from ...contrast.intensity_map import PointwiseMap
from ...volume import Volume
from ..base import MAX_INTENSITY, Capabilities, StatisticsBackend
from ..config import Settings, setting

__all__ = ["HistogramMatching", "HistogramMatchingConfig"]


@dataclass(frozen=True)
class HistogramMatchingConfig(Settings):
    """Settings of histogram matching.

    Attributes
    ----------
    method : {"quantiles", "landmarks"}
        105 quantiles from 0.1 to 99.9 %, or the landmarks of Nyul and Udupa.
    """

    method: str = setting("quantiles", choices=("quantiles", "landmarks"))


class HistogramMatching(StatisticsBackend):
    """Map intensities by one monotone curve; regional differences are not corrected."""

    name = "histogram_matching"
    reference = "Nyul, Udupa and Zhang 2000, IEEE Trans Med Imaging, doi:10.1109/42.836373"
    summary = ("In-mask intensities were mapped by the monotone curve that carries the scan's "
               "quantiles onto the mean quantiles of the target.")
    uses_location = False
    capabilities = Capabilities(intensity_map=True)
    Config = HistogramMatchingConfig

    @property
    def _probabilities(self) -> np.ndarray:
        return LANDMARKS if self.config.method == "landmarks" else QUANTILE_LEVELS

    def _scale(self, q: np.ndarray) -> tuple[float, float]:
        """Return the (offset, unit) that make a scan's quantiles comparable."""
        if self.config.method == "landmarks":
            return float(q[0]), float(max(q[-1] - q[0], 1e-12))
        return 0.0, float(max(np.interp(0.5, self._probabilities, q), 1e-12))

    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        q = quantile_function(volume.in_mask(), self._probabilities)
        offset, unit = self._scale(q)
        return {"quantiles": (q - offset) / unit, "scale": np.array([offset, unit])}

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        shape = np.mean([s["quantiles"] for s in summaries], axis=0)
        offset, unit = np.mean([s["scale"] for s in summaries], axis=0)
        return {"quantiles": np.maximum(offset + unit * shape, 0.0)}

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        q, n = np.asarray(style["quantiles"], np.float64), len(self._probabilities)
        if q.shape != (n,) or q[0] < 0 or not 0 < q[-1] < MAX_INTENSITY or (np.diff(q) < 0).any():
            raise ValueError(f"expected {n} rising quantiles from 0 to {MAX_INTENSITY:g}")

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> PointwiseMap:
        return PointwiseMap(
            quantile_function(volume.in_mask(), self._probabilities), style["quantiles"]
        )
