"""Harmonize one preprocessed scan: from volumes in memory to volumes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..contrast.contrast_transfer import compute_residual, fit_contrast_transfer
from ..contrast.intensity_map import IntensityMap
from ..contrast.local_statistics import stack_probabilities
from ..errors import InputError, UsageError
from ..volume import Volume
from .base import Backend
from .native_grid import apply_with_head, change_with_uncertainty
from .statistical.tissue_matching import DEFAULT_SEGMENTER, segment_with
from .target import Target

__all__ = ["DETAILS", "HarmonizedScan", "harmonize_scan"]

DETAILS = ("direct", "guided")


@dataclass(frozen=True, eq=False)
class HarmonizedScan:
    """The result of `harmonize_scan`.

    Attributes
    ----------
    template : Volume
        Harmonized image on the template grid.
    native : Volume or None
        Harmonized image on the subject's own grid; None if no native volume was given.
    uncertainty : ndarray, shape (I, J, K), float32, optional
        Standard deviation over the samples that the method drew, on the template grid.
    facts : dict
        How the image was made, in JSON types: ``Detail``, ``IntensityMap`` and so on, and what
        the method states about its model and the target.
    """

    template: Volume
    native: Volume | None
    uncertainty: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def harmonize_scan(
    backend: Backend, target: Target, template: Volume, native: Volume | None = None,
    to_template: np.ndarray | None = None, *, source: str | None = None, seed: int = 0,
    covariates: Mapping[str, Any] | None = None,
    tissues: Mapping[str, np.ndarray] | None = None, detail: str = "direct",
    brain_only: bool = False, checkpoint_folder: Path | None = None,
) -> HarmonizedScan:
    """Harmonize a preprocessed scan on the template grid and on the subject's own grid.

    The change is fitted on the template grid and applied to the voxels of either image; no image is
    resampled. A method without intensity maps is applied to the native image by resampling the
    difference that it makes on the template grid.

    Parameters
    ----------
    backend : Backend
        Fitted method.
    target : Target
        Target of that method.
    template : Volume
        Bias-corrected image on the template grid; its mask is the backend's ``region``.
    native : Volume, optional
        The same image on the subject's own grid, with its mask.
    to_template : ndarray, shape (4, 4), optional
        World of `native` -> world of `template`, mm. Default: the same world.
    source : str, optional
        Site of the scan.
    seed : int
        Seed of whatever the method draws.
    covariates : mapping, optional
        Covariates of the subject.
    tissues : mapping of str to ndarray, shape (I, J, K), optional
        Tissue probabilities on the template grid. Default: the method segments the image if it
        needs to.
    detail : {"direct", "guided"}
        ``guided`` replaces the method's change by smooth maps of contrast for each tissue, so that
        structure that a network invents cannot enter.
    brain_only : bool
        Whether the image is skull-stripped.
    checkpoint_folder : Path, optional
        Folder in which a method that takes long keeps its progress.

    Returns
    -------
    HarmonizedScan

    Raises
    ------
    UsageError
        If `detail` is unknown.
    InputError
        If the image cannot be harmonized, or is brain only and the method changes whole heads.
    """
    if detail not in DETAILS:
        raise UsageError(f"detail must be one of {DETAILS}, got {detail!r}.")
    if backend.region == "head" and brain_only:
        raise InputError("the image is brain only, and this model was fitted on whole heads. "
                         "Harmonize it with a model with region=brain.")
    change, uncertainty = change_with_uncertainty(
        backend, template, target, source=source, seed=seed, covariates=covariates,
        tissues=tissues, checkpoint_folder=checkpoint_folder)
    facts: dict[str, Any] = {"Detail": detail, "IntensityMap": change.describe()}
    if detail == "guided":
        guided, summary = _guided(change, template, tissues or {})
        facts.update(DirectMinusGuided=summary, DirectMap=facts["IntensityMap"],
                     IntensityMap=guided.describe())
        change = guided
    if backend.region != "brain":
        facts["Region"] = backend.region
    return HarmonizedScan(
        template=apply_with_head(change, template),
        native=None if native is None else apply_with_head(change, native, to_template),
        uncertainty=uncertainty,
        facts={**backend.describe_model(), **backend.describe_target(target), **facts})


def _guided(direct: IntensityMap, volume: Volume, tissues: Mapping[str, np.ndarray]
            ) -> tuple[IntensityMap, dict[str, Any]]:
    """Return the change as local tissue maps, and a summary of what these leave out."""
    after = direct.apply(volume)
    probabilities = (stack_probabilities(tissues, volume) if tissues
                     else segment_with(DEFAULT_SEGMENTER, volume))
    change = fit_contrast_transfer(volume, after, probabilities)
    return change, compute_residual(after, change.apply(volume))[1]
