"""The report of the whole cohort: is the scanner gone, and may the numbers be trusted?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.distribution import QuantileTable
from ..evaluation.table import Metrics


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
    ``methods``: a small Markdown text.
    """

    scans: tuple[ScanRow, ...]
    metrics: Metrics
    quantiles: QuantileTable
    backend: str
    target: str
    title: str = "Harmonization: group report"
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    methods: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)


def render_group_report(path: Path, report: GroupReport) -> Path:
    """Write ``report`` as one self-contained HTML file and return its path."""
    raise NotImplementedError
