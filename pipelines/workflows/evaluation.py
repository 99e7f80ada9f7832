"""The group level's second stage: is the scanner gone? From the output folder alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError
from harmonizer.evaluation.distribution import QuantileTable
from harmonizer.evaluation.evaluate import Evaluation, evaluate_cohort
from harmonizer.evaluation.table import Metrics
from harmonizer.files import read_json
from harmonizer.reports.group import Failure as FailureRow
from harmonizer.reports.group import GroupReport, ScanRow, render_group_report
from harmonizer.template import tissue_priors

from ..outputs.collect import Preprocessed, cohort_of, find_preprocessed
from ..outputs.names import resolution_of, sidecar
from ..outputs.scanlog import failed_logs
from ..settings import Settings
from .methods import methods_text, software_versions

__all__ = ["evaluate"]

LOGGER = logging.getLogger("pipelines")


def evaluate(settings: Settings) -> tuple[str, ...]:
    """Write metrics.tsv, metrics_quantiles.tsv, cohort.tsv and group.html; returns lines.

    Raises
    ------
    InputError
        If nothing is preprocessed, or the harmonized images come from different runs.
    """
    out = settings.output_dir
    found = find_preprocessed(out, resolution_of(settings.sloppy), settings.modalities)
    if not found:
        raise InputError(f"{out}: holds no preprocessed scan. Run the participant level first.")
    cohort_of(found).to_tsv(out / "cohort.tsv")
    harmonized = [item for item in found if _sidecar_of(item, settings) is not None]
    if not harmonized:
        return ("Nothing to evaluate yet: no scan is harmonized. Run the participant level again "
                "now that a model is fitted.",)
    evaluation = _evaluate(settings, found, harmonized)
    evaluation.metrics.to_tsv(out / "metrics.tsv")
    evaluation.quantiles.to_tsv(out / "metrics_quantiles.tsv")
    path = render_group_report(out / "group.html",
                               _group_report(settings, found, harmonized, evaluation))
    return (f"Metrics: {out / 'metrics.tsv'}", f"Group report: {path}")


def _sidecar_of(item: Preprocessed, settings: Settings) -> dict[str, Any] | None:
    """Sidecar of the harmonized image on the template grid, or None where there is none."""
    image = item.paths.image(settings.desc, template=True)
    return read_json(sidecar(image)) if image.is_file() and sidecar(image).is_file() else None


def _evaluate(
    settings: Settings, found: Sequence[Preprocessed], harmonized: Sequence[Preprocessed]
) -> Evaluation:
    """All modalities, each within itself and against its own target."""
    metrics, table, missing = Metrics(), QuantileTable(), ()
    for modality in settings.modalities:
        before = cohort_of([i for i in found if i.scan.modality == modality])
        items = [i for i in harmonized if i.scan.modality == modality]
        if not items:
            continue
        target, backend = _one_choice(settings, items)
        after = Cohort(tuple(replace(i.scan, image=i.paths.image(settings.desc, template=True))
                             for i in items))
        ruler = None if target in before.sites else {modality: _ruler(settings, items)}
        part = evaluate_cohort(before, after, target, backend=backend,
                               priors=tissue_priors(resolution_of(settings.sloppy)),
                               target_quantiles=ruler)
        metrics, missing = metrics + part.metrics, missing + part.missing
        table = QuantileTable(table.rows + part.quantiles.rows)
    return Evaluation(metrics, table, missing)


def _one_choice(settings: Settings, items: Sequence[Preprocessed]) -> tuple[str, str]:
    """(target, backend) that all harmonized images share."""
    made = {}
    for item in items:
        content = _sidecar_of(item, settings) or {}
        made.setdefault((content["Target"], content["HarmonizationMethod"], content["ModelSHA256"]),
                        []).append(item.scan.scan_id)
    if len(made) > 1:
        kinds = "; ".join(f"{len(ids)} by {key[1]} to {key[0]} (model {key[2][:8]}), such as "
                          f"{ids[0]}" for key, ids in made.items())
        raise InputError(f"the images desc-{settings.desc} come from different runs: {kinds}. "
                         "Run the harmonize stage again for all participants.")
    target, backend, _ = next(iter(made))
    return target, backend


def _ruler(settings: Settings, items: Sequence[Preprocessed]) -> np.ndarray:
    """Quantile function of a target that is no site of the cohort: that of its reference images,
    or, for a foreign site card, the mean of what was made of it."""
    from harmonizer.evaluation.distribution import quantile_function

    folder = settings.output_dir / "models" / settings.backend / items[0].scan.modality
    references = find_preprocessed(folder / "references", resolution_of(settings.sloppy),
                                   (items[0].scan.modality,))
    if references and settings.target_kind == "images":
        return np.mean([quantile_function(r.scan.read().in_mask()) for r in references], axis=0)
    images = [replace(i.scan, image=i.paths.image(settings.desc, template=True)) for i in items]
    return np.mean([quantile_function(scan.read().in_mask()) for scan in images], axis=0)


def _group_report(
    settings: Settings, found: Sequence[Preprocessed], harmonized: Sequence[Preprocessed],
    evaluation: Evaluation,
) -> GroupReport:
    out = settings.output_dir
    first = _sidecar_of(harmonized[0], settings) or {}
    failures = tuple(FailureRow(log.scan_id, log.stage, log.message) for log in failed_logs(out))
    warnings = tuple(f"{scan_id} was preprocessed but not harmonized."
                     for scan_id in evaluation.missing)
    if settings.sloppy:
        warnings += ("This was a sloppy run, for tests only: do not use it for science.",)
    rows = tuple(ScanRow(i.scan.scan_id, i.scan.subject, i.scan.site, i.scan.modality, i.scan.age,
                         i.scan.sex) for i in found)
    links = {subject: f"sub-{subject}.html" for subject in cohort_of(found).subjects
             if (out / f"sub-{subject}.html").is_file()}
    return GroupReport(
        rows, evaluation.metrics, evaluation.quantiles,
        backend=str(first.get("HarmonizationMethod")), target=str(first.get("Target")),
        failures=failures, warnings=warnings, links=links, methods=methods_text(settings),
        software=software_versions(),
        provenance={"model (SHA-256)": str(first.get("ModelSHA256")),
                    "random seed": str(first.get("RandomSeed")), "output": str(out)},
    )
