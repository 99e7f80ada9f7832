"""A run: the planned stages in order, each resuming at what the one before left on disk.

    preprocess (scans) -> fit (cohort) -> harmonize (scans) -> evaluate (cohort)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from harmonizer.errors import InputError, UsageError, did_you_mean
from harmonizer.files import write_text
from harmonizer.methods import registry

from ..dataset.records import ScanRecord
from ..outputs.collect import find_preprocessed
from ..outputs.dataset import write_dataset_files
from ..outputs.names import resolution_of
from ..settings import Settings
from ..workflows.engine import Failure, RunResult, count_steps
from .methods_text import methods_text
from .targets import require_brains, site_label

__all__ = ["run", "Failure", "RunResult"]

LOGGER = logging.getLogger("pipelines")


def run(settings: Settings, records: tuple[ScanRecord, ...]) -> RunResult:
    """Carry out the planned stages; failed scans are collected and the others go on.

    Parameters
    ----------
    records : scans of the participant level; may be empty where only OUT is used

    Raises
    ------
    HarmonizerError
        What stops the whole run: a wrong target, no usable input, a missing model.
    """
    check_target(settings, records)
    if settings.dry_run:
        return RunResult(summary_lines=_plan(settings, records))
    _write_dataset_files(settings)
    failures: dict[str, Failure] = {}
    lines: list[str] = []
    for stage in settings.planned_stages:
        LOGGER.info("Stage %s", stage)
        missed, said = STAGES[stage](settings, records)
        failures.update({failure.scan_id: failure for failure in missed})
        lines += said
        _write_methods(settings)
    return RunResult(tuple(failures.values()), tuple(lines))


def check_target(settings: Settings, records: Sequence[ScanRecord]) -> None:
    """Before hours of work: is the target one that this run can reach?

    Raises
    ------
    UsageError
        If the site is not among the records' (and no fitted model brings it), or the backend
        has no such option or cannot do what was asked.
    InputError
        If a file that the backend's options name is not what it should be.
    """
    backend = registry.get(settings.backend)
    config = backend.config_from(settings.backend_options)
    if "fit" in settings.planned_stages:
        to_fit = backend(config)
        require_brains(settings, to_fit.region)
        to_fit.check_settings_files()
    can = backend.capabilities
    if settings.target_kind in ("images", "card") and not can.reference_target:
        raise UsageError(f"{settings.backend} cannot aim at reference images. Name a site.")
    if settings.target_kind == "scanner-free" and not can.scanner_free:
        raise UsageError(f"{settings.backend} has no scanner-free target. Name a site.")
    everybody = not settings.participant_label and not settings.session_label
    if settings.target_kind == "site" and "fit" in settings.planned_stages and everybody:
        _check_site(settings, records)


def _check_site(settings: Settings, records: Sequence[ScanRecord]) -> None:
    """The site is the target of each modality, so each must have been taken there."""
    target, modalities = settings.target[0], {record.modality for record in records}
    for modality in sorted(modalities):
        sites = {record.site for record in records if record.modality == modality}
        if site_label(target, sites) not in sites:
            alone = "" if len(modalities) == 1 else \
                f" A run for {modality} alone (--modalities) may aim at another."
            raise UsageError(f"--target {target}: no {modality} scan is of that site. "
                             f"{did_you_mean(target, sites)}{alone}")


def _write_dataset_files(settings: Settings) -> None:
    raw = settings.bids_dir if settings.bids_dir.is_dir() else None
    descs = {settings.desc: "intensities harmonized between scanners; the sidecars name method, "
                            "target and model"} if _harmonizes(settings) else {}
    write_dataset_files(settings.output_dir, raw, settings.derivatives, descs)


def _write_methods(settings: Settings) -> None:
    """Of the participants that this run looks at, so that many jobs read little each."""
    found = find_preprocessed(settings.output_dir, resolution_of(settings.sloppy),
                              settings.modalities, settings.participant_label,
                              settings.session_label)
    write_text(settings.output_dir / "logs" / "CITATION.md", methods_text(settings, found))


def _harmonizes(settings: Settings) -> bool:
    return "harmonize" in settings.planned_stages


def _plan(settings: Settings, records: Sequence[ScanRecord]) -> tuple[str, ...]:
    """What a run would do, after building its workflows."""
    from ..workflows.preprocessing import init_preprocessing_wf, plan, write_graph

    lines = [f"Dry run: stages {', '.join(settings.planned_stages)}; backend {settings.backend}; "
             f"target {' '.join(settings.target) or 'the site with most scans'}."]
    if "preprocess" in settings.planned_stages:
        jobs, failures, reused = plan(settings, records, settings.output_dir)
        workflow = init_preprocessing_wf(settings, jobs)
        lines.append(f"preprocess: {len(jobs)} scans to do in {count_steps(workflow)} steps, "
                     f"{reused} reused, {len(failures)} not usable.")
        lines += [f"not usable: {failure.message}" for failure in failures]
        if settings.write_graph:
            write_graph(workflow, settings.output_dir, "preprocess")
    return tuple(lines)


def _preprocess(settings: Settings, records: tuple[ScanRecord, ...]):
    from ..workflows.preprocessing import preprocess
    from .reports import subjects_of, write_subject_reports

    failures, reused = preprocess(settings, records)
    if len(failures) == len(records):
        first = failures[0]
        raise InputError(f"none of the {len(records)} images could be preprocessed; the first: "
                         f"{first.scan_id}: {first.message}")
    if not _harmonizes(settings):
        write_subject_reports(settings, subjects_of(settings, records))
    done = len(records) - len(failures)
    return failures, [f"Preprocessed: {done} of {len(records)} scans ({reused} reused)."]


def _fit(settings: Settings, records: tuple[ScanRecord, ...]):
    from .fit import fit

    return (), fit(settings)


def _harmonize(settings: Settings, records: tuple[ScanRecord, ...]):
    from ..workflows.harmonization import harmonize
    from .reports import subjects_of, write_subject_reports

    failures, lines = harmonize(settings)
    pages = write_subject_reports(settings, subjects_of(settings, records))
    return failures, [*lines, f"Subject reports: {len(pages)} in {settings.output_dir}"]


def _evaluate(settings: Settings, records: tuple[ScanRecord, ...]):
    from .evaluation import evaluate

    return (), evaluate(settings)


STAGES = {"preprocess": _preprocess, "fit": _fit, "harmonize": _harmonize, "evaluate": _evaluate}
