"""Transfer of a change of contrast from the template grid to the subject's own grid.

The change is fitted on the template grid. What is applied to the subject's own voxels is the map
(`IntensityMap`), never a resampled image. A method that makes no maps is transferred as the
difference that it made, and only this difference is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..contrast.intensity_map import FieldMap, IntensityMap
from ..volume import Volume
from .base import Backend
from .target import Target

__all__ = ["change_of", "change_with_uncertainty", "apply_with_head"]


def change_of(
    backend: Backend, volume: Volume, target: Target, *, source: str | None = None, seed: int = 0,
    covariates: Mapping[str, Any] | None = None, tissues: Mapping[str, np.ndarray] | None = None,
) -> IntensityMap:
    """Return the change of a template-grid volume; see `change_with_uncertainty`."""
    return change_with_uncertainty(backend, volume, target, source=source, seed=seed,
                                   covariates=covariates, tissues=tissues)[0]


def change_with_uncertainty(
    backend: Backend, volume: Volume, target: Target, *, source: str | None = None, seed: int = 0,
    covariates: Mapping[str, Any] | None = None, tissues: Mapping[str, np.ndarray] | None = None,
    checkpoint_folder: Path | None = None,
) -> tuple[IntensityMap, np.ndarray | None]:
    """Compute the change that a backend makes to a template-grid volume.

    Parameters
    ----------
    backend, volume, target, source, seed, covariates, tissues, checkpoint_folder
        See `Backend.harmonize_with_uncertainty`.

    Returns
    -------
    change : IntensityMap
        Map in template world. For a method without maps it is the overall gain, by which units of
        scanners may differ a hundredfold, and the field after - gain before, which is zero outside
        the mask.
    uncertainty : ndarray, shape (I, J, K), optional
        See `HarmonizationResult`.
    """
    if backend.capabilities.intensity_map:
        return backend.intensity_map(volume, target, source=source, covariates=covariates,
                                     tissues=tissues), None
    result = backend.harmonize_with_uncertainty(
        volume, target, source=source, seed=seed, covariates=covariates, tissues=tissues,
        checkpoint_folder=checkpoint_folder)
    values = volume.in_mask()
    low = max(float(np.quantile(values, 0.01)), 1e-3 * float(np.abs(values).max()))
    gain = _gain(volume, result.volume)
    field = np.where(volume.require_mask(), result.volume.data - np.float32(gain) * volume.data,
                     np.float32(0))
    change = FieldMap(gain, field, volume.affine, low, f"of {backend.name}")
    return change, result.uncertainty


def apply_with_head(change: IntensityMap, volume: Volume, to_map: np.ndarray | None = None
                    ) -> Volume:
    """Apply a change to the brain, and its overall gain to the head around it.

    The gain is the ratio of the in-mask medians after and before, so that brain and head stay
    comparable and a background of zero stays zero.

    Parameters
    ----------
    change : IntensityMap
        Fitted in the world that `to_map` leads to.
    volume : Volume
        Image with a mask, on any grid.
    to_map : ndarray, shape (4, 4), optional
        World mm of `volume` -> world mm of the map. Default: they are the same.
    """
    after = change.apply(volume, to_map)
    gain = np.float32(_gain(volume, after))
    return after.with_data(np.where(after.require_mask(), after.data, gain * volume.data))


def _gain(before: Volume, after: Volume) -> float:
    """Return the ratio of the in-mask medians; 1 where one of them is not positive."""
    medians = [float(np.median(volume.in_mask())) for volume in (before, after)]
    return medians[1] / medians[0] if min(medians) > 0 else 1.0
