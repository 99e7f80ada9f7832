"""From the template grid to the subject's own: the change travels, the image stays.

A change of contrast is fitted on the template grid. What is applied to the subject's own voxels is
the map (`IntensityMap`), never a resampled image. A method that makes no map is carried as the
difference it made, which is then the only thing that is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..contrast.intensity_map import FieldMap, IntensityMap
from ..volume import Volume
from .base import Backend, StatisticsBackend
from .target import Target

__all__ = ["change_of", "apply_with_head"]


def change_of(
    backend: Backend, volume: Volume, target: Target, *, source: str | None = None, seed: int = 0,
    covariates: Mapping[str, Any] | None = None, tissues: Mapping[str, np.ndarray] | None = None,
) -> IntensityMap:
    """The change that `backend` makes to a template-grid volume, as a map in template world.

    For a method without maps of its own it is the overall gain, by which units of scanners may
    differ a hundredfold, and the field after - gain before, which is zero outside the mask.
    """
    if isinstance(backend, StatisticsBackend):
        return backend.intensity_map(volume, target, source=source, covariates=covariates,
                                     tissues=tissues)
    after = backend.harmonize(volume, target, source=source, seed=seed, covariates=covariates,
                              tissues=tissues)
    values = volume.in_mask()
    low = max(float(np.quantile(values, 0.01)), 1e-3 * float(np.abs(values).max()))
    gain = _gain(volume, after)
    field = np.where(volume.mask, after.data - np.float32(gain) * volume.data, np.float32(0))
    return FieldMap(gain, field, volume.affine, low, f"of {backend.name}")


def apply_with_head(change: IntensityMap, volume: Volume, to_map: np.ndarray | None = None
                    ) -> Volume:
    """Apply a change to the brain; the head around it gets the change's overall gain.

    The gain is the ratio of the in-mask medians after and before, so that brain and head stay
    comparable and a background of zero stays zero; otherwise the head is as it was.

    Parameters
    ----------
    change : fitted in the world that `to_map` leads to
    volume : image with a mask, on any grid
    to_map : (4, 4) world mm of `volume` -> world of the map; None if they are the same
    """
    after = change.apply(volume, to_map)
    gain = np.float32(_gain(volume, after))
    return after.with_data(np.where(after.mask, after.data, gain * volume.data))


def _gain(before: Volume, after: Volume) -> float:
    """Ratio of the in-mask medians; 1 where one of them is not positive."""
    medians = [float(np.median(volume.in_mask())) for volume in (before, after)]
    return medians[1] / medians[0] if min(medians) > 0 else 1.0
