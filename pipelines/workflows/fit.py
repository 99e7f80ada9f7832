"""The group level's first stage: a model for each modality from all preprocessed scans."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from harmonizer.backends import registry
from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError, UsageError, did_you_mean
from harmonizer.progress import reporter

from ..outputs.collect import cohort_of, find_preprocessed
from ..outputs.names import MODELS, resolution_of
from ..settings import Settings
from .harmonization import device_of

if TYPE_CHECKING:
    from harmonizer.training.settings import Resources

__all__ = ["fit", "fit_cohort", "chosen", "resources_of"]

LOGGER = logging.getLogger("pipelines")


def fit(settings: Settings) -> tuple[str, ...]:
    """Fit and save a model for each modality; returns lines for the user.

    Raises
    ------
    InputError
        If nothing is preprocessed, or all scans come from one site and no reference is given.
    """
    lines = []
    for modality in settings.modalities:
        cohort = fit_cohort(settings, modality)
        backend_class = registry.get(settings.backend)
        backend = backend_class(backend_class.config_from(settings.backend_options))
        if backend_class.capabilities.trained:
            backend.resources = resources_of(settings, modality)
        bar, report = reporter(f"fit {modality}")
        with bar:
            backend.fit(cohort, seed=settings.random_seed, progress=report)
        if not backend.writes:  # one of the processes that a scheduler started, not the first
            continue
        folder = backend.save(settings.output_dir / MODELS / settings.backend / modality)
        lines.append(f"Model ({modality}, {len(cohort)} scans of {len(cohort.sites)} sites): "
                     f"{folder}")
    return tuple(lines)


def resources_of(settings: Settings, modality: str) -> Resources:
    """Where a training runs; its checkpoints lie in the work folder, so that it resumes."""
    from harmonizer.training.settings import Resources

    device = device_of(settings)
    return Resources(
        folder=settings.work_dir / "training" / settings.backend / modality,
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
