"""The report of one participant: what came in, what was decided, what was changed, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Figure
from .html import render

__all__ = ["Check", "ScanReport", "SubjectReport", "render_subject_report",
           "needs_a_look"]

CONVENTIONS = {
    "neurological": "The patient's left is on the left (neurological convention).",
    "radiological": "The patient's left is on the right (radiological convention).",
}


@dataclass(frozen=True)
class Check:
    """One number of a scan with the limits it is held to; ``flagged`` where it breaks them.

    ``limits`` is text such as "at least 0.90"; empty where the number is only reported.
    """

    name: str
    value: float | None
    unit: str = ""
    limits: str = ""
    flagged: bool = False


@dataclass(frozen=True)
class ScanReport:
    """Everything the report says about one scan. Plain values; all text is escaped on rendering.

    ``facts``: what came in (site, its provenance, scanner, field strength, voxel size,
    orientation), in the order to be shown. ``checks``: mask and registration quality and anatomy
    numbers. ``provenance``: backend, version, target, model hash, seed, device. ``timing``: seconds
    by step. ``error``: the message of the error that stopped this scan, with ``remedy``.
    """

    scan_id: str
    facts: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class SubjectReport:
    """One participant's scans with the method text and what was used to make them.

    ``participant``: label without "sub-". ``methods``: a small Markdown text. ``software``: version
    by name. ``settings``: value by name. ``group_report``: its relative path, linked where given.
    ``convention``: the one the figures were drawn in.
    """

    participant: str
    scans: tuple[ScanReport, ...]
    methods: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    group_report: str | None = None
    convention: str = "neurological"


def render_subject_report(path: Path, report: SubjectReport) -> Path:
    """Write ``report`` as one self-contained HTML file, atomically, and return its path."""
    return render("subject.html.j2", Path(path), {
        "title": f"sub-{report.participant}: harmonization report",
        "report": report,
        "convention": CONVENTIONS[report.convention],
        "failed": sum(scan.error is not None for scan in report.scans),
        "flagged": sum(needs_a_look(scan) for scan in report.scans),
    })


def needs_a_look(scan: ScanReport) -> bool:
    """Whether a scan has a warning, a number outside its limits, or an error."""
    return bool(scan.error or scan.warnings or any(check.flagged for check in scan.checks))
