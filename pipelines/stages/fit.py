"""The group level's first stage: a model for each modality from all preprocessed scans."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError
from harmonizer.methods import registry
from harmonizer.methods.base import Backend, Progress
from harmonizer.progress import reporter

from ..outputs.collect import Preprocessed, cohort_of, find_preprocessed
from ..outputs.names import MODELS, resolution_of
from ..settings import Settings
from ..workflows.harmonization import device_of
from .selection import Selection, select

if TYPE_CHECKING:
    from harmonizer.deep.training.settings import Resources

__all__ = ["fit", "fit_selection", "resources_of"]

LOGGER = logging.getLogger("pipelines")


def fit(settings: Settings) -> tuple[str, ...]:
    """Fit and save a model for each modality; returns lines for the user.

    A method that can be trained on several modalities at once is: its models share their networks.

    Raises
    ------
    InputError
        If nothing is preprocessed, or all scans come from one site and no reference is given.
    """
    backend_class, lines = registry.get(settings.backend), []
    for modalities in _together(settings, backend_class):
        selections = {modality: fit_selection(settings, modality) for modality in modalities}
        for modality, backend in _fitted(settings, backend_class, selections).items():
            if not backend.writes:  # one of the processes that a scheduler started, not the first
                continue
            cohort = selections[modality].cohort
            _log_covariates(modality, backend)
            folder = backend.save(settings.output_dir / MODELS / settings.backend / modality)
            lines.append(f"Model ({modality}, {len(cohort)} scans of {len(cohort.sites)} sites): "
                         f"{folder}")
    return tuple(lines)


def _together(settings: Settings, backend_class: type[Backend]) -> list[tuple[str, ...]]:
    """The modalities, in the groups in which they are fitted."""
    if backend_class.capabilities.modalities:
        return [settings.modalities]
    return [(modality,) for modality in settings.modalities]


def _log_covariates(modality: str, backend: Backend) -> None:
    """Say what was modelled, and what was not and why."""
    for row in backend.cohort_.get("Covariates", ()):
        LOGGER.log(logging.INFO if row["Modelled"] else logging.WARNING, "Covariate of %s: %s.",
                   modality, row["InWords"])


def _fitted(settings: Settings, backend_class: type[Backend], selections: dict[str, Selection]
            ) -> dict[str, Backend]:
    """A model for each modality of one group."""
    backends = {}
    cohorts = {modality: selection.cohort for modality, selection in selections.items()}
    for modality, selection in selections.items():
        backend = backend_class(backend_class.config_from(settings.backend_options))
        backend.left_out_sites_, backend.left_out_scans_ = selection.sites, selection.scans
        if backend_class.capabilities.trained:
            backend.resources = resources_of(settings, "+".join(cohorts))  # type: ignore
        backends[modality] = backend
    bar, report = reporter(f"fit {' + '.join(cohorts)}")
    with bar:
        if len(cohorts) > 1:
            _fit_together(backends, cohorts, settings.random_seed, report)
        else:
            [(modality, cohort)] = cohorts.items()
            backends[modality].fit(cohort, seed=settings.random_seed, progress=report)
    return backends


def _fit_together(backends: Any, cohorts: dict[str, Cohort], seed: int, report: Progress) -> None:
    from harmonizer.methods.learned.fit import fit_together

    scans = tuple(scan for cohort in cohorts.values() for scan in cohort)
    fit_together(backends, Cohort(scans), seed=seed, progress=report)


def resources_of(settings: Settings, name: str) -> Resources:
    """Where a training runs; its checkpoints lie in a work folder of this name, so it resumes."""
    from harmonizer.deep.training.settings import Resources

    device = device_of(settings)
    return Resources(
        folder=settings.work_dir / "training" / settings.backend / name,
        device=device, devices=settings.devices, num_nodes=settings.num_nodes,
        precision=settings.precision,  # type: ignore[arg-type]
        max_minutes=settings.max_minutes,
        threads=max(1, settings.nprocs // settings.devices) if device == "cpu" else None)


def fit_selection(settings: Settings, modality: str) -> Selection:
    """The scans that a model is fitted on; also writes OUT/cohort.tsv."""
    resolution = resolution_of(settings.sloppy)
    found = find_preprocessed(settings.output_dir, resolution, settings.modalities)
    cohort_of(found).to_tsv(settings.output_dir / "cohort.tsv")
    found = tuple(item for item in found if item.scan.modality == modality)
    selection = select(settings, found)
    if (region := region_of(settings)) != "brain":
        wanted = {scan.scan_id for scan in selection.cohort}
        selection = replace(selection, cohort=cohort_of([item for item in find_preprocessed(
            settings.output_dir, resolution, (modality,), region=region)
            if item.scan_id in wanted and not _is_brain_only(item)]))
    cohort = selection.cohort
    if not len(cohort):
        raise InputError(
            f"{settings.output_dir}: holds no preprocessed {modality} image to fit on at "
            f"{resolution} mm. Run the preprocess stage first"
            f"{', and keep --sloppy the same' if settings.sloppy else ''}."
        )
    known = cohort_of(found).sites
    if len(known) == 1 and settings.target_kind not in ("images", "card"):
        raise InputError(
            f"all {len(cohort)} {modality} scans are of one site, {next(iter(known))!r}: there is "
            "no other scanner to harmonize. Check --site-from and --site-column, or give reference "
            "images with --target."
        )
    return selection


def _is_brain_only(item: Preprocessed) -> bool:
    """Said in the log: a method of whole heads learns nothing good from it."""
    stripped = bool(item.sidecar["SkullStripped"])
    if stripped:
        LOGGER.warning("%s is brain only and left out of a fit on whole heads.", item.scan_id)
    return stripped


def region_of(settings: Settings) -> str:
    """What the method changes by its options: ``brain`` or ``head``."""
    kind = registry.get(settings.backend)
    return kind(kind.config_from(settings.backend_options)).region
