"""What the network sees: channels and conditioning of a scan and its baseline on any grid.

Intensities are divided by the brightest tissue's level: the target's for the baseline, the scan's
own for the scan. Arrays are brought to the axes nearest to RAS+, so that the conditioning's axes
are those of the array.
"""

from __future__ import annotations

import numpy as np

from ....contrast.tissue_map import TissueMap
from .scan_card import CARD_NAMES

__all__ = ["CHANNELS", "CONDITIONS", "levels_of", "map_numbers", "condition", "stack_channels"]

CHANNELS = ("baseline", "scan", "CSF", "GM", "WM", "mask")
CONDITIONS = (
    *(f"target_{n}" for n in CARD_NAMES), *(f"scan_{n}" for n in CARD_NAMES),
    *(f"slope_{t}" for t in ("csf", "gm", "wm")), *(f"voxel_{a}" for a in "RAS"), "template_mm",
)
"""Names of the conditioning; slopes and sizes are logarithms."""


def levels_of(change: TissueMap) -> tuple[float, float]:
    """Return the intensity of the brightest tissue in scan and target, by the tissue map."""
    return tuple(float(max(_middle(one, mass) for one, mass in zip(maps, change.source.mass)))
                 for maps in (change.source.mean, change.mean))  # type: ignore[return-value]


def map_numbers(change: TissueMap) -> np.ndarray:
    """Return the log slope of each tissue's map, shape (3,), in the units of `levels_of`."""
    before, after = levels_of(change)
    slopes = [_middle(one, mass) for one, mass in zip(change.ratio, change.source.mass)]
    return np.log(np.maximum(np.array(slopes) * before / after, 1e-3)).astype(np.float32)


def condition(target_card: np.ndarray, scan_card: np.ndarray, slopes: np.ndarray,
              spacing_mm: np.ndarray, template_mm: float) -> np.ndarray:
    """Return the conditioning, shape (len(CONDITIONS),); `spacing_mm` along R, A and S."""
    return np.concatenate([target_card, scan_card, slopes, np.log(spacing_mm),
                           [np.log(template_mm)]]).astype(np.float32)


def stack_channels(baseline: np.ndarray, scan: np.ndarray, probabilities: np.ndarray,
                   mask: np.ndarray) -> np.ndarray:
    """Stack the channels, (6, I, J, K) float32, zero outside the mask.

    Intensities are in the units of `levels_of` already.
    """
    return np.concatenate([baseline[None], scan[None], probabilities, mask[None]]) \
        .astype(np.float32) * mask.astype(np.float32)


def _middle(one: np.ndarray, mass: np.ndarray) -> float:
    here = mass > 0.1 * mass.max()
    return float(np.median(one[here]))
