"""The report of the whole cohort: is the scanner gone, and may the numbers be trusted?"""

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
from .evidence import Evidence, evidence_of
from .figures import Figure
from .html import render
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

__all__ = ["ScanRow", "Failure", "GroupReport", "render_group_report", "target_curve"]


@dataclass(frozen=True)
class ScanRow:
    """One scan of the cohort as the group report needs it."""

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
    """A scan or participant that was not finished: where it stopped, why, and what to do."""

    name: str
    step: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class GroupReport:
    """Everything the group report says.

    ``scans``: the scans that were used. ``metrics``, ``quantiles``: as written by
    `harmonizer.evaluation`. ``links``: participant label -> relative path of the subject report.
    ``methods``: a small Markdown text. ``statistics``: the referee's tests, from which the four
    answers are told. ``targets``: modality -> what its images were harmonized to. ``verdicts``:
    method -> scan -> the anatomy guard's verdict. ``moved``: maps of where flagged images moved.
    ``explained``: maps of what each scanner did to each tissue. ``doubts``: sentences that a reader
    must see before any result, such as a covariate that is the site. ``named``: columns of the
    scans' covariates that are compared with the site. ``fit``: sentences on what the fit modelled
    and whom it left out.
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
    moved: tuple[Figure, ...] = ()
    explained: tuple[Figure, ...] = ()
    doubts: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()

    @property
    def aimed_at(self) -> dict[str, tuple[str, ...]]:
        """Target -> the modalities that aimed at it."""
        return {target: tuple(m for m, t in self.targets.items() if t == target)
                for target in dict.fromkeys(self.targets.values())}


@dataclass(frozen=True)
class ModalityView:
    """What one modality's part of the report shows."""

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


def render_group_report(path: Path, report: GroupReport) -> Path:
    """Write ``report`` as one self-contained HTML file, atomically, and return its path."""
    modalities = report.metrics.distinct("modality")
    others = {name: [scan.covariates.get(name) for scan in report.scans] for name in report.named}
    checks = check_confounding(*_people(report.scans), others=others)
    grave = [check.warning for check in checks if check.is_site]
    return render("group.html.j2", Path(path), {
        "title": report.title,
        "report": report,
        "checks": checks,
        "doubts": list(dict.fromkeys((*grave, *report.doubts))),
        "alarms": [check.warning for check in checks if check.warning],
        "variables": [check.variable for check in checks],
        "sites": _site_counts(report.scans, checks),
        "targets": _target_words(report),
        "people": len({scan.subject for scan in report.scans}),
        "views": [_view(report, modality) for modality in modalities],
        "site_features": SITE_FEATURES,
        "scan_rows": _scan_rows(report),
        "people_of": {scan.scan_id: scan.subject for scan in report.scans},
    }, script="sort.js")


@dataclass(frozen=True)
class ScanLine:
    """One scan in the list of all: its person, place, and how its anatomy was judged."""

    scan: ScanRow
    before: float | None
    after: float | None
    structure: float | None
    verdict: str


def _scan_rows(report: GroupReport) -> list[ScanLine]:
    """Every scan with its distance to the target before and after, structure, and verdict."""
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in report.metrics:
        if row.scan and row.tissue == "brain" and row.backend in ("", report.backend):
            found.setdefault((row.measure, row.stage), {})[row.scan] = row.value
    distance = [found.get(("wasserstein_to_target", stage), {}) for stage in ("before", "after")]
    structure = found.get(("ssim_structure", "change"), {})
    judged = report.verdicts.get(report.backend, {})
    return [ScanLine(scan, distance[0].get(scan.scan_id), distance[1].get(scan.scan_id),
                     structure.get(scan.scan_id),
                     "" if scan.scan_id not in judged else
                     "held" if judged[scan.scan_id].ok else "flagged")
            for scan in report.scans]


def _target_words(report: GroupReport) -> str:
    """The target, or each with its modalities where they are several."""
    aimed_at = report.aimed_at
    if len(aimed_at) < 2:
        return next(iter(aimed_at), "none")
    return "; ".join(f"{target} ({', '.join(modalities)})"
                     for target, modalities in aimed_at.items())


def _people(scans: Sequence[ScanRow]) -> tuple[list, list, list, list]:
    return ([scan.subject for scan in scans], [scan.site for scan in scans],
            [scan.age for scan in scans], [scan.sex for scan in scans])


def _site_counts(scans: Sequence[ScanRow], checks: Sequence[ConfoundingCheck]
                 ) -> list[tuple[str, int, int, list[str]]]:
    """Site, scans, people, and each variable in words, sites sorted."""
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
        _figures(metrics.select(tissue="brain"), quantiles, target),
        distance_rows(metrics), feature_rows(metrics), site_rows(metrics),
        outliers(metrics), _evidence(report, modality))


def _evidence(report: GroupReport, modality: str) -> Evidence:
    """The referee's cards and tables; nothing where nothing was tested."""
    if report.statistics is None:
        return Evidence()
    others = [name for name in report.verdicts if name != report.backend]
    return evidence_of(report.statistics, modality, [report.backend, *others], report.verdicts)


def _of_method(metrics: Metrics, backend: str) -> Metrics:
    """The rows of one method; all where no row names it (tables of another maker)."""
    own = metrics.select(backend=backend)
    return own if len(own) else metrics


def _figures(metrics: Metrics, quantiles: QuantileTable, target: str) -> tuple[Figure, ...]:
    """The modality's figures; those between sites only where there are two."""
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
    """What the images were aimed at, (200,): the target site's mean before, else all scans' after.

    A target that is no site of the cohort is shown by what the scans became.
    """
    of_target = quantiles.select(stage="before", site=target)
    return (of_target if len(of_target) else quantiles.select(stage="after")).matrix().mean(axis=0)
