"""The stage `fit` of the group level: a model for each modality from all preprocessed scans."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError
from harmonizer.methods import registry
from harmonizer.methods.base import Backend, Progress
from harmonizer.progress import reporter

from ..outputs.collect import Preprocessed, cohort_of
from ..outputs.names import MODELS, resolution_of
from ..outputs.selection import Selection
from ..settings import Settings
from ..workflows.harmonization import device_of
from .fit_selection import FitSelection, chosen, rating_words, select_fit_scans
from .targets import require_fit_target

if TYPE_CHECKING:
    from harmonizer.deep.training.settings import Resources

__all__ = ["check_fit", "fit", "resources_of", "select_scans_to_fit"]

LOGGER = logging.getLogger("pipelines")


def check_fit(settings: Settings, selection: Selection) -> None:
    """Check before hours of preprocessing that a model can be fitted on the selected scans.

    Raises
    ------
    UsageError
        If --fit-participants selects no scan, or the target is not a site of the scans.
    InputError
        If all scans are of one site and no reference is given, or all are excluded.
    """
    for modality in settings.modalities:
        everything, included = selection.cohort(modality), selection.included_cohort(modality)
        if len(everything) and not len(included):
            raise InputError(f"--exclude {settings.exclude}: all {len(everything)} {modality} "
                             "scans are rated 'exclude'. Keep some, or drop the flag.")
        if len(everything):
            _check_cohort(settings, modality, included)


def _check_cohort(settings: Settings, modality: str, everything: Cohort) -> Cohort:
    """Return the scans of one modality to fit on; errors as in `check_fit`."""
    cohort, sites = chosen(everything, settings.fit_participants), everything.sites
    if len(sites) == 1 and settings.target_kind not in ("images", "card"):
        raise InputError(
    f"all {len(everything)} {modality} scans are of one site, {next(iter(sites))!r}: there "
    "is no other scanner to harmonize with. Check --site-from and --site-column, give reference "
    "images with --target, or run the participant level alone to preprocess." )
    if "harmonize" in settings.planned_stages and len(cohort):
        require_fit_target(settings, modality, cohort)
    return cohort


def fit(settings: Settings, selection: Selection) -> tuple[str, ...]:
    """Fit and save a model for each modality; return lines for the user.

    A method that can be trained on several modalities together shares networks between models.

    Raises
    ------
    InputError
        If nothing is preprocessed, or all scans come from one site and no reference is given.
    """
    backend_class, lines = registry.get(settings.backend), []
    selections = {modality: select_scans_to_fit(settings, selection, modality)
                  for modality in settings.modalities}  # all, before a model is replaced
    for modalities in _together(settings, backend_class):
        together = {modality: selections[modality] for modality in modalities}
        for modality, backend in _fitted(settings, backend_class, together).items():
            if not backend.saves_model:  # not the first of a scheduler's processes
                continue
            cohort = selections[modality].cohort
            _log_covariates(modality, backend)
            folder = backend.save(settings.output_dir / MODELS / settings.backend / modality)
            lines.append(f"Model ({modality}, {len(cohort)} scans of {len(cohort.sites)} sites): "
                         f"{folder}")
    return tuple(lines)


def _together(settings: Settings, backend_class: type[Backend]) -> list[tuple[str, ...]]:
    """Group the modalities that are fitted together."""
    if backend_class.capabilities.modalities:
        return [settings.modalities]
    return [(modality,) for modality in settings.modalities]


def _log_covariates(modality: str, backend: Backend) -> None:
    """Log which covariates were modeled, and why others were not."""
    for row in backend.cohort_.get("Covariates", ()):
        LOGGER.log(logging.INFO if row["Modeled"] else logging.WARNING, "%s, covariate %s.",
                   modality, row["Summary"])


def _fitted(settings: Settings, backend_class: type[Backend], selections: dict[str, FitSelection]
            ) -> dict[str, Backend]:
    """Fit a model for each modality of one group."""
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
    from harmonizer.methods.learned.base import fit_together

    scans = tuple(scan for cohort in cohorts.values() for scan in cohort)
    fit_together(backends, Cohort(scans), seed=seed, progress=report)


def resources_of(settings: Settings, name: str) -> Resources:
    """Return devices and checkpoint folder of a training; `name` is part of the folder."""
    from harmonizer.deep.training.settings import Resources

    device, processors = device_of(settings), max(1, settings.nprocs // settings.devices)
    return Resources(
        folder=settings.work_dir / "training" / settings.backend / name,
        device=device, devices=settings.devices, num_nodes=settings.num_nodes,
        precision=settings.precision,  # type: ignore[arg-type]
        max_minutes=settings.max_minutes,
        threads=processors if device == "cpu" else None,
        workers=0 if device == "cpu" else max(1, processors - 1))


def select_scans_to_fit(settings: Settings, selection: Selection, modality: str) -> FitSelection:
    """Select the scans to fit on; also write OUT/cohort.tsv."""
    cohort_of(selection.find_included()).to_tsv(settings.output_dir / "cohort.tsv")
    found = selection.find((modality,))
    included = tuple(item for item in found if item.scan_id not in selection.excluded)
    _check_cohort(settings, modality, cohort_of(included))
    selected = select_fit_scans(settings, included)
    rated = {item.scan_id: rating_words(selection.excluded[item.scan_id]) for item in found
             if item.scan_id in selection.excluded}
    lost = [site for site in cohort_of(found).sites if site not in cohort_of(included).sites]
    selected = replace(selected, sites=tuple(dict.fromkeys((*selected.sites, *lost))),
                       scans={**selected.scans, **rated})
    if (region := region_of(settings)) != "brain":
        wanted = {scan.scan_id for scan in selected.cohort}
        selected = replace(selected, cohort=cohort_of(
            [item for item in selection.find((modality,), region=region)
             if item.scan_id in wanted and not _is_brain_only(item)]))
    cohort = selected.cohort
    if not len(cohort):
        raise InputError(
            f"{settings.output_dir}: holds no preprocessed {modality} image to fit on at "
            f"{resolution_of(settings.sloppy)} mm. Run the preprocess stage first"
            f"{', and keep --sloppy the same' if settings.sloppy else ''}."
        )
    return selected


def _is_brain_only(item: Preprocessed) -> bool:
    """Return whether a scan is brain only; methods of whole heads cannot use it."""
    stripped = bool(item.sidecar["SkullStripped"])
    if stripped:
        LOGGER.warning("%s is brain only and excluded from a fit on whole heads.", item.scan_id)
    return stripped


def region_of(settings: Settings) -> str:
    """Return the region that the method harmonizes: ``brain`` or ``head``."""
    kind = registry.get(settings.backend)
    return kind(kind.config_from(settings.backend_options)).region
