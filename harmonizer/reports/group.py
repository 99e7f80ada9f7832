"""Report of the whole cohort: site effects, subjects, biology and anatomy before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..evaluation.metrics.distribution import QuantileTable, match_moments
from ..evaluation.questions.anatomy_limits import AnatomyCheck
from ..evaluation.statistics.confounding import ConfoundingCheck, check_confounding
from ..evaluation.statistics.resampling import Statistics
from ..evaluation.table import Metrics
from . import charts
from .diagnostics import diagnostic_figures
from .evidence import Evidence, evidence_of
from .explore import explore_data, scan_lines
from .figures import Figure
from .html import render
from .results import ModalityResults
from .summary import (
    SITE_FEATURES,
    DistanceRow,
    FeatureRow,
    Outlier,
    SiteRow,
    anatomy_sentence,
    distance_rows,
    feature_rows,
    headline,
    outliers,
    site_rows,
)
from .wall import Wall, WallSlice, make_wall

__all__ = ["ScanRow", "Failure", "GroupReport", "render_group_report", "target_curve"]


@dataclass(frozen=True)
class ScanRow:
    """Scan of the cohort as the group report needs it."""

    scan_id: str
    subject: str
    site: str
    modality: str = "T1w"
    age: float | None = None
    sex: str | None = None
    split: str = ""
    covariates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Scan or subject that was not finished: step, error message and remedy."""

    name: str
    step: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class GroupReport:
    """Content of the group report.

    Attributes
    ----------
    scans : tuple of ScanRow
        Scans that were used.
    metrics, quantiles : Metrics, QuantileTable
        Tables of `harmonizer.evaluation`.
    backend : str
        The run's own method.
    targets : mapping
        Modality -> target.
    title : str
        Heading of the page.
    failures, warnings : tuple
        Unfinished scans; sentences at the top of the page.
    links : mapping
        Subject label -> relative path of the subject report.
    methods : str
        Methods text in a small Markdown.
    software, provenance : mapping
        Versions; method and model.
    statistics : Statistics, optional
        Tests on which the verdicts are based.
    verdicts : mapping
        Method -> scan -> verdict of the anatomy guard.
    anatomy_changes : tuple of Figure
        Maps of the changes of flagged images.
    site_effects : tuple of Figure
        Maps of the effect of each site on each tissue.
    critical_warnings : tuple of str
        Sentences that must be read before any result, such as a covariate confounded with site.
    covariates : tuple of str
        Columns of the scans' covariates that are compared between sites.
    fit : tuple of str
        Sentences on the model of the fit and on the scans that it excluded.
    excluded : mapping
        Scan that was rated "exclude" -> comment; these scans are in no model and in no number.
    slices : mapping
        Scan -> slice before and after harmonization for the wall of brains.
    study : str
        Name under which the browser stores the ratings of this study.
    """

    scans: tuple[ScanRow, ...]
    metrics: Metrics
    quantiles: QuantileTable
    backend: str
    targets: Mapping[str, str]
    title: str = "Harmonization: group report"
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    methods: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics | None = None
    verdicts: Mapping[str, Mapping[str, AnatomyCheck]] = field(default_factory=dict)
    anatomy_changes: tuple[Figure, ...] = ()
    site_effects: tuple[Figure, ...] = ()
    critical_warnings: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, WallSlice] = field(default_factory=dict)
    study: str = ""

    @property
    def modalities_by_target(self) -> dict[str, tuple[str, ...]]:
        """Target -> modalities that are harmonized to it."""
        return {target: tuple(m for m, t in self.targets.items() if t == target)
                for target in dict.fromkeys(self.targets.values())}


@dataclass(frozen=True)
class ModalityView:
    """Content of one modality's part of the report."""

    modality: str
    target: str
    headline: str
    anatomy: str
    figures: tuple[Figure, ...]
    distances: list[DistanceRow]
    features: list[FeatureRow]
    sites: list[SiteRow]
    outliers: list[Outlier]
    evidence: Evidence
    wall: Wall | None


def render_group_report(path: Path, report: GroupReport) -> Path:
    """Write the report as one self-contained HTML file, atomically, and return its path."""
    modalities = report.metrics.distinct("modality")
    others = {name: [scan.covariates.get(name) for scan in report.scans]
              for name in report.covariates}
    checks = check_confounding(*_subject_columns(report.scans), others=others)
    severe = [check.warning for check in checks if check.is_site]
    lines = scan_lines(report.scans, report.metrics, report.backend, report.links,
                       {scan: verdict.ok for scan, verdict
                        in report.verdicts.get(report.backend, {}).items()})
    return render("group.html.j2", Path(path), {
        "title": report.title,
        "report": report,
        "checks": checks,
        "critical_warnings": list(dict.fromkeys((*severe, *report.critical_warnings))),
        "alarms": [check.warning for check in checks if check.warning],
        "variables": [check.variable for check in checks],
        "unknown": _unknown_subjects(report),
        "sites": _site_counts(report.scans, checks),
        "targets": _target_words(report),
        "n_subjects": len({scan.subject for scan in report.scans}),
        "views": [_view(report, modality) for modality in modalities],
        "site_features": SITE_FEATURES,
        "lines": lines,
        "link_of": {line.scan.scan_id: line.link for line in lines},
        "explore": explore_data(lines, report.metrics, report.backend),
    }, scripts=("sort.js", "rate.js", "explore.js"))


def _target_words(report: GroupReport) -> str:
    """Return the target, or several targets with their modalities."""
    modalities_by_target = report.modalities_by_target
    if len(modalities_by_target) < 2:
        return next(iter(modalities_by_target), "none")
    return "; ".join(f"{target} ({', '.join(modalities)})"
                     for target, modalities in modalities_by_target.items())


def _subject_columns(scans: Sequence[ScanRow]) -> tuple[list, list, list, list]:
    return ([scan.subject for scan in scans], [scan.site for scan in scans],
            [scan.age for scan in scans], [scan.sex for scan in scans])


def _unknown_subjects(report: GroupReport) -> dict[str, int]:
    """Count the subjects without a value of each variable that is compared between sites."""
    known = {"age": {scan.subject for scan in report.scans if scan.age is not None},
             "sex": {scan.subject for scan in report.scans
                     if (scan.sex or "").strip()[:1].upper() in ("M", "F")}}
    known |= {name: {scan.subject for scan in report.scans
                     if scan.covariates.get(name) not in (None, "", "n/a")}
              for name in report.covariates}
    subjects = {scan.subject for scan in report.scans}
    return {name: len(subjects - with_value) for name, with_value in known.items()}


def _site_counts(scans: Sequence[ScanRow], checks: Sequence[ConfoundingCheck]
                 ) -> list[tuple[str, int, int, list[str]]]:
    """Return site, scans, subjects, and each variable in words, sorted by site."""
    rows = []
    for site in sorted({scan.site for scan in scans}):
        here = [scan for scan in scans if scan.site == site]
        words = [check.by_site.get(site, "unknown") for check in checks]
        rows.append((site, len(here), len({scan.subject for scan in here}), words))
    return rows


def _view(report: GroupReport, modality: str) -> ModalityView:
    metrics = _of_method(report.metrics.select(modality=modality), report.backend)
    quantiles = report.quantiles.select(modality=modality, tissue="brain")
    target = report.targets.get(modality, "none")
    return ModalityView(
        modality, target, headline(metrics, report.backend, target), anatomy_sentence(metrics),
        _figures(metrics.select(tissue="brain"), quantiles, target)
        + _diagnostics(report, modality),
        distance_rows(metrics), feature_rows(metrics), site_rows(metrics),
        outliers(metrics), _evidence(report, modality), _wall(report, quantiles, target))


def _wall(report: GroupReport, quantiles: QuantileTable, target: str) -> Wall | None:
    """Return the wall of a modality's scans, or None without slices or harmonized images."""
    if not report.slices or not len(quantiles.select(stage="after")):
        return None
    return make_wall(report.slices, quantiles, target_curve(quantiles, target))


def _evidence(report: GroupReport, modality: str) -> Evidence:
    """Return cards and tables, or nothing if no test was made."""
    if report.statistics is None:
        return Evidence()
    others = [name for name in report.verdicts if name != report.backend]
    return evidence_of(report.statistics, modality, [report.backend, *others], report.verdicts)


def _diagnostics(report: GroupReport, modality: str) -> tuple[Figure, ...]:
    """Draw the site effect on features, or nothing if no test was made."""
    if report.statistics is None:
        return ()
    results = ModalityResults(report.statistics.select(modality=modality), (report.backend,), {},
                              modality)
    return diagnostic_figures(results, report.metrics.select(modality=modality),
                              {scan.scan_id: scan.age for scan in report.scans})


def _of_method(metrics: Metrics, backend: str) -> Metrics:
    """Return the rows of one method; all rows if none names it.

    Values of the scans before harmonization may belong to no method (noise and blur are measured
    once for all methods); they are added where the method has none.
    """
    own = metrics.select(backend=backend)
    if not len(own):
        return metrics
    known = {(row.measure, row.reference) for row in own.select(stage="before")}
    shared = (row for row in metrics.select(backend="", stage="before")
              if (row.measure, row.reference) not in known)
    return own + Metrics(tuple(shared))


def _figures(metrics: Metrics, quantiles: QuantileTable, target: str) -> tuple[Figure, ...]:
    """Draw the modality's figures; those between sites need two sites."""
    before, after = quantiles.select(stage="before"), quantiles.select(stage="after")
    figures: list[Figure] = []
    if len(after):
        ruler = target_curve(quantiles, target)
        figures += _histograms(before, after, ruler, target)
    if len(metrics.select(measure="wasserstein_between_sites")):
        figures.append(charts.heatmaps_figure(metrics))
    if len(metrics.select(measure="wasserstein_to_target")):
        figures.append(charts.scans_figure(metrics))
    return tuple(figures)


def _histograms(before: QuantileTable, after: QuantileTable, ruler: np.ndarray, target: str
                ) -> list[Figure]:
    done = set(after.column("scan"))
    same = QuantileTable(tuple(row for row in before.rows if row.scan in done))
    stages = {"before": same.matrix(), "only rescaled": match_moments(same.matrix(), ruler),
              "after": after.matrix()}
    order = same.column("site")
    if after.column("scan") != same.column("scan"):
        ranked = {row.scan: row for row in after.rows}
        stages["after"] = np.stack([ranked[row.scan].quantiles for row in same.rows])
    return [charts.histograms_figure(stages, order, ruler, target),
            charts.sites_figure(before, after, ruler)]


def target_curve(quantiles: QuantileTable, target: str) -> np.ndarray:
    """Return the quantile function (200,) of the target.

    It is the mean of the target site before harmonization. If the target is not a site of the
    cohort, it is the mean of all harmonized scans.
    """
    of_target = quantiles.select(stage="before", site=target)
    return (of_target if len(of_target) else quantiles.select(stage="after")).matrix().mean(axis=0)
