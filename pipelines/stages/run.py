"""A run: the planned stages in order; each reads what earlier stages wrote.

preprocess (scans) -> fit (cohort) -> harmonize (scans) -> evaluate (cohort) [-> export]
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from harmonizer.errors import InputError, UsageError
from harmonizer.files import read_json, write_text
from harmonizer.methods import registry
from harmonizer.preprocessing.conform import check_image

from ..dataset.records import ScanRecord
from ..outputs.dataset import write_dataset_files
from ..outputs.scanlog import failed_logs
from ..outputs.selection import Selection, update_scan_facts
from ..settings import Settings
from ..workflows.engine import RunResult, ScanFailure
from .citations import bibliography
from .design_warnings import warn_before_work
from .fit import check_fit
from .methods_text import methods_text
from .plan import describe_plan
from .targets import model_folder_of, planned_target, reference_records, require_brains

__all__ = ["check_request", "run", "RunResult"]

LOGGER = logging.getLogger("pipelines")
MAX_LISTED_SITES = 10
MAX_LISTED_SCANS = 10
StageResult = tuple[Iterable[ScanFailure], Iterable[str]]  # failures, and lines for the user


def run(settings: Settings, records: tuple[ScanRecord, ...], refused: Collection[str] = ()
        ) -> RunResult:
    """Run the planned stages; a failed scan does not stop the others.

    Parameters
    ----------
    settings : Settings
        Options of the run.
    records : tuple of ScanRecord
        Images selected in BIDS_DIR; empty if only OUTPUT_DIR is used.
    refused : collection of str
        scan_ids of selected images that cannot be used.

    Raises
    ------
    HarmonizerError
        If the whole run is impossible: a wrong target, no usable input, a missing model.
    """
    selection = Selection.of(settings, records, refused)
    if settings.reports_only or settings.boilerplate_only:
        return RunResult(summary_lines=_from_output(settings, selection))
    for line in selection.unselected_lines() if _needs_cohort(settings) else ():
        LOGGER.warning("%s", line)
    check_request(settings, selection)
    for line in _excluded_lines(selection):
        LOGGER.warning("%s", line)
    warn_before_work(settings, [record for record in records
                                if record.scan_id not in selection.excluded])
    if existing := selection.existing_ids():
        LOGGER.info("--include-existing: %d scans whose image is not in BIDS_DIR are used.",
                    len(existing))
    if not settings.dry_run:
        _write_dataset_files(settings, selection)
        _update_facts(settings, selection)
    if settings.dry_run:
        return RunResult(summary_lines=describe_plan(settings, selection))
    failures = {failure.scan_id: failure for failure in _unfinished(settings, selection)}
    lines: list[str] = []
    for stage in settings.planned_stages:
        LOGGER.info("Stage %s", stage)
        stage_failures, stage_lines = STAGES[stage](settings, selection.without(failures))
        failures.update({failure.scan_id: failure for failure in stage_failures})
        lines += stage_lines
        _write_methods(settings, selection.without(failures))
    return RunResult(tuple(failures.values()), tuple(lines))


def _from_output(settings: Settings, selection: Selection) -> tuple[str, ...]:
    """Write reports or methods text again from the output folder; return lines for the user.

    Raises
    ------
    InputError
        If it holds no preprocessed scan, or the tables of an evaluation are missing.
    """
    from .evaluation import rewrite_group_report
    from .reports import write_subject_reports

    if not selection.find():
        raise InputError(f"{settings.output_dir}: holds no preprocessed scan of these participants "
                         "and modalities. Run the participant level first.")
    lines = [f"Methods text: {_write_methods(settings, selection)}"]
    if settings.reports_only:
        pages = write_subject_reports(settings, selection)
        lines.append(f"Subject reports: {len(pages)} in {settings.output_dir}")
    if settings.reports_only and "group" in settings.levels:
        lines.append(f"Group report: {rewrite_group_report(settings, selection)}")
    return tuple(lines)


def check_request(settings: Settings, selection: Selection) -> None:
    """Check before hours of processing whether the request is possible.

    Raises
    ------
    UsageError
        If the backend has no such option or target, the target is not a site of the scans, or
        OUTPUT_DIR holds images of this desc with another target.
    InputError
        If a file of the backend's options or a reference image cannot be used, or all scans are
        of one site.
    """
    backend = registry.get(settings.backend)
    config = backend.config_from(settings.backend_options)
    if "fit" in settings.planned_stages:
        to_fit = backend(config)
        require_brains(settings, to_fit.region)
        to_fit.check_settings_files()
    can = backend.capabilities
    if settings.target_kind in ("images", "card") and not can.reference_target:
        raise UsageError(f"{settings.backend} does not support reference images. Name a site.")
    if settings.target_kind == "scanner-free" and not can.scanner_free:
        raise UsageError(f"{settings.backend} has no scanner-free target. Name a site.")
    if settings.target_kind == "images":
        for record in reference_records(settings):
            check_image(record.path)
    if "fit" in settings.planned_stages:
        check_fit(settings, selection)
    elif "harmonize" in settings.planned_stages:
        _check_model_target(settings)


def _check_model_target(settings: Settings) -> None:
    """Check the target of a run that applies a fitted model."""
    for modality in settings.modalities:
        folder = model_folder_of(settings, modality)
        if folder is not None:
            sites = read_json(folder / "cohort.json").get("Sites", {})
            planned_target(settings, modality, {s: facts["Scans"] for s, facts in sites.items()})


def _excluded_lines(selection: Selection) -> tuple[str, ...]:
    """Name the scans that ``--exclude`` leaves out of the model and the statistics."""
    excluded = selection.excluded
    if not excluded:
        return ()
    some = [f"{scan} ({comment})" if comment else scan for scan, comment in excluded.items()]
    more = len(some) - MAX_LISTED_SCANS
    count = f"{len(some)} scan{'s are' if len(some) > 1 else ' is'}"
    return (f"--exclude: {count} rated 'exclude' and left out of the model and the statistics: "
            f"{', '.join(some[:MAX_LISTED_SCANS])}{f' and {more} more' if more > 0 else ''}.",)


def _needs_cohort(settings: Settings) -> bool:
    """Return whether a stage processes all selected scans together."""
    return bool({"fit", "evaluate", "export"} & set(settings.planned_stages))


def _update_facts(settings: Settings, selection: Selection) -> None:
    """Update sites and covariates in OUTPUT_DIR; warn of sites that changed."""
    changes = update_scan_facts(selection)
    if changes:
        some = "; ".join(map(str, changes[:MAX_LISTED_SITES]))
        more = len(changes) - MAX_LISTED_SITES
        LOGGER.warning(
            "The site of %d preprocessed scans changed: %s%s. If this is not intended, give the "
            "same --site-from, --site-column and --site as before.", len(changes), some,
            f"; and {more} more" if more > 0 else "")


def _unfinished(settings: Settings, selection: Selection) -> list[ScanFailure]:
    """Return the selected scans whose preprocessing failed in an earlier run.

    Warns of scans that were never preprocessed.
    """
    if "preprocess" in settings.planned_stages or not _needs_cohort(settings):
        return []
    failed = [ScanFailure(log.scan_id, log.stage, log.message)
              for log in failed_logs(settings.output_dir)
              if log.stage == "preprocess" and log.scan_id in selection.selected_ids]
    there = {item.scan_id for item in selection.find()} | {failure.scan_id for failure in failed}
    lacking = sorted(selection.selected_ids - there)
    if lacking:
        more = len(lacking) - MAX_LISTED_SCANS
        LOGGER.warning(
            "%d selected scans are not preprocessed and are left out: %s%s. Run the participant "
            "level for them.", len(lacking), ", ".join(lacking[:MAX_LISTED_SCANS]),
            f" and {more} more" if more > 0 else "")
    return failed


def _write_dataset_files(settings: Settings, selection: Selection) -> None:
    raw = settings.bids_dir if selection.reads_bids_dir else None
    descs = {settings.desc: "intensities harmonized between scanners; the sidecars name method, "
                            "target and model"} if _harmonizes(settings) else {}
    write_dataset_files(settings.output_dir, raw, settings.derivatives, descs)


def _write_methods(settings: Settings, selection: Selection) -> Path:
    """Write the methods text of the scans of this run, so that each job reads few files."""
    text = methods_text(settings, selection.find())
    write_text(settings.output_dir / "logs" / "CITATION.bib", bibliography(text))
    return write_text(settings.output_dir / "logs" / "CITATION.md",
                      f"---\nbibliography: CITATION.bib\n---\n\n{text}")


def _harmonizes(settings: Settings) -> bool:
    return "harmonize" in settings.planned_stages


def _preprocess(settings: Settings, selection: Selection) -> StageResult:
    from ..workflows.preprocessing import preprocess
    from .reports import write_subject_reports

    records = selection.records
    failures, reused = preprocess(settings, records)
    if len(failures) == len(records):
        first = failures[0]
        raise InputError(f"none of the {len(records)} images could be preprocessed; the first: "
                         f"{first.scan_id}: {first.message}")
    if not _harmonizes(settings):
        write_subject_reports(settings, selection.without({f.scan_id for f in failures}))
    done = len(records) - len(failures)
    return failures, [f"Preprocessed: {done} of {len(records)} scans ({reused} reused)."]


def _fit(settings: Settings, selection: Selection) -> StageResult:
    from .fit import fit

    return (), fit(settings, selection)


def _harmonize(settings: Settings, selection: Selection) -> StageResult:
    from ..workflows.harmonization import harmonize
    from .reports import write_subject_reports

    failures, lines = harmonize(settings, selection)
    pages = write_subject_reports(settings, selection)
    return failures, [*lines, f"Subject reports: {len(pages)} in {settings.output_dir}"]


def _evaluate(settings: Settings, selection: Selection) -> StageResult:
    from .evaluation import evaluate

    return (), evaluate(settings, selection)


def _export(settings: Settings, selection: Selection) -> StageResult:
    from .export import export

    return export(settings, selection)


STAGES: dict[str, Callable[[Settings, Selection], StageResult]] = {
    "preprocess": _preprocess, "fit": _fit, "harmonize": _harmonize, "evaluate": _evaluate,
    "export": _export}
