"""The group level's first stage: a model for each modality from all preprocessed scans."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError, UsageError, did_you_mean
from harmonizer.methods import registry
from harmonizer.methods.base import Backend, Progress
from harmonizer.progress import reporter

from ..outputs.collect import Preprocessed, cohort_of, find_preprocessed
from ..outputs.names import MODELS, resolution_of
from ..settings import Settings
from ..workflows.harmonization import device_of

if TYPE_CHECKING:
    from harmonizer.deep.training.settings import Resources

__all__ = ["fit", "fit_cohort", "chosen", "resources_of"]

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
        cohorts = {modality: fit_cohort(settings, modality) for modality in modalities}
        for modality, backend in _fitted(settings, backend_class, cohorts).items():
            if (
                not backend.saves_model
            ):  # one of the processes that a scheduler started, not the first
                continue
            cohort = cohorts[modality]
            folder = backend.save(settings.output_dir / MODELS / settings.backend / modality)
            lines.append(f"Model ({modality}, {len(cohort)} scans of {len(cohort.sites)} sites): "
                         f"{folder}")
    return tuple(lines)


def _together(settings: Settings, backend_class: type[Backend]) -> list[tuple[str, ...]]:
    """The modalities, in the groups in which they are fitted."""
    if backend_class.capabilities.modalities:
        return [settings.modalities]
    return [(modality,) for modality in settings.modalities]


def _fitted(settings: Settings, backend_class: type[Backend], cohorts: dict[str, Cohort]
            ) -> dict[str, Backend]:
    """A model for each modality of one group."""
    backends = {}
    for modality in cohorts:
        backend = backend_class(backend_class.config_from(settings.backend_options))
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
    from harmonizer.methods.learned.base import fit_together

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


def fit_cohort(settings: Settings, modality: str) -> Cohort:
    """The scans that a model is fitted on; also writes OUT/cohort.tsv."""
    resolution = resolution_of(settings.sloppy)
    everything = cohort_of(find_preprocessed(settings.output_dir, resolution, settings.modalities))
    everything.to_tsv(settings.output_dir / "cohort.tsv")
    cohort = chosen(everything.of_modality(modality), settings.fit_participants)
    if (region := region_of(settings)) != "brain":
        wanted = {scan.scan_id for scan in cohort}
        cohort = cohort_of([item for item in find_preprocessed(
            settings.output_dir, resolution, (modality,), region=region)
            if item.scan_id in wanted and not _is_brain_only(item)])
    if not len(cohort):
        raise InputError(
            f"{settings.output_dir}: holds no preprocessed {modality} image to fit on at "
            f"{resolution} mm. Run the preprocess stage first"
            f"{', and keep --sloppy the same' if settings.sloppy else ''}."
        )
    known = everything.of_modality(modality).sites
    if len(known) == 1 and settings.target_kind not in ("images", "card"):
        raise InputError(
            f"all {len(cohort)} {modality} scans are of one site, {next(iter(known))!r}: there is "
            "no other scanner to harmonize. Check --site-from and --site-column, or give reference "
            "images with --target."
        )
    return cohort


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


def chosen(cohort: Cohort, wanted: tuple[str, ...]) -> Cohort:
    """The scans of ``--fit-participants``: labels, or column=value (all such must hold).

    Raises
    ------
    UsageError
        If a label or a column is not there, or nobody is left.
    """
    conditions = [_condition(cohort, text) for text in wanted if "=" in text]
    labels = {text for text in wanted if "=" not in text}
    for label in sorted(labels - set(cohort.subjects)):
        raise UsageError(f"--fit-participants: no preprocessed participant {label!r}. "
                         f"{did_you_mean(label, cohort.subjects)}")
    kept = cohort.where(lambda s: (not labels or s.subject in labels)
                        and all(holds(s) for holds in conditions))
    if wanted and len(cohort) and not len(kept):
        raise UsageError(f"--fit-participants {' '.join(wanted)}: nobody fits. "
                         "Check the values in participants.tsv.")
    return kept


def _condition(cohort: Cohort, text: str) -> Callable[[Scan], bool]:
    """`column=value` as a test of one scan."""
    column, value = text.split("=", 1)
    columns = {"sex", "site", *(key for scan in cohort for key in scan.covariates)}
    if len(cohort) and column not in columns:
        raise UsageError(f"--fit-participants {text}: no column {column!r}. "
                         f"{did_you_mean(column, columns)}")
    return lambda scan: str(scan.covariates.get(column, getattr(scan, column, None))) == value
