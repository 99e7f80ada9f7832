"""The baseline of a learned method: the training-free method whose result the networks correct.

An untrained network changes nothing, so the result of a learned method is initially that of the
baseline. The style of a site contains the baseline's style, with names that begin with `PREFIX`.
With the baseline ``none``, as in the papers, intensities are scaled by two robust percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from ...contrast.intensity import IntensityScale
from ...errors import UsageError
from ...volume import Volume
from .. import registry
from ..base import MAX_INTENSITY, ScanContext, StatisticsBackend
from ..target import Target
from .config import NONE

__all__ = ["PREFIX", "PERCENTILES", "baseline_of", "baseline_style", "with_prefix",
           "match_percentiles", "apply_baseline", "check_baseline_style"]

PREFIX = "baseline."
PERCENTILES = PREFIX + "percentiles"


def baseline_of(name: str) -> StatisticsBackend | None:
    """Create the baseline that a config names, not fitted yet; None for ``none``.

    Raises
    ------
    UsageError
        If the named method needs training.
    """
    if name == NONE:
        return None
    kind = registry.get(name)
    if not kind.capabilities.intensity_map:
        raise UsageError(f"baseline {name!r} is not a training-free method. Use tissue_matching, "
                         "histogram_matching, moment_matching, spectrum_swap or none.")
    return cast(StatisticsBackend, kind())


def baseline_style(style: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the part of a style that belongs to the baseline, without the prefix."""
    return {k.removeprefix(PREFIX): v for k, v in style.items()
            if k.startswith(PREFIX) and k != PERCENTILES}


def with_prefix(style: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the prefix to the names of a baseline's style."""
    return {PREFIX + k: v for k, v in style.items()}


def apply_baseline(baseline: StatisticsBackend | None, volume: Volume, target: Target,
                   context: ScanContext) -> Volume:
    """Harmonize an image by the baseline, or by two percentiles if there is none."""
    if baseline is None:
        return match_percentiles(volume, target.style[PERCENTILES])
    return baseline.apply_baseline(volume, replace(target, backend=baseline.name,
                                                   style=baseline_style(target.style)), context)


def match_percentiles(volume: Volume, percentiles: np.ndarray) -> Volume:
    """Scale a volume so that its two robust percentiles in the brain become the given ones.

    Non-negative voxels stay non-negative.

    Parameters
    ----------
    percentiles : ndarray, shape (2,)
        Intensities of the 0.5 and 99.5 % quantiles.
    """
    target = IntensityScale(*(float(v) for v in percentiles))
    values = target.from_unit(IntensityScale.of(volume.in_mask()).to_unit(volume.data))
    return volume.with_data(np.where(volume.require_mask(), np.where(volume.data >= 0,
                                     np.maximum(values, 0), values), volume.data))


def check_baseline_style(baseline: StatisticsBackend | None, style: Mapping[str, np.ndarray]
                         ) -> None:
    """Raise KeyError or ValueError if a style lacks numbers of the baseline or of the scale."""
    low_high = np.asarray(style[PERCENTILES], np.float64)
    if low_high.shape != (2,) or not (np.abs(low_high) < MAX_INTENSITY).all():
        raise ValueError(f"expected two percentiles below {MAX_INTENSITY:g}")
    if not low_high[0] < low_high[1]:
        raise ValueError("the upper percentile is not above the lower one")
    if baseline:
        baseline._check_style(baseline_style(style))
