"""Report of one subject: input, processing decisions, quality checks and figures on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Figure
from .html import render
from .slices import ScanSlices

__all__ = ["Check", "ScanReport", "SubjectReport", "render_subject_report",
           "needs_a_look"]

CONVENTIONS = {
    "neurological": "The patient's left is on the left (neurological convention).",
    "radiological": "The patient's left is on the right (radiological convention).",
}


@dataclass(frozen=True)
class Check:
    """Measure of a scan with its limits.

    Attributes
    ----------
    name : str
        Measure.
    value : float, optional
        Value.
    unit : str
        Unit.
    limits : str
        Text such as "at least 0.90"; empty if there is no limit.
    flagged : bool
        Whether the value is outside of its limits.
    """

    name: str
    value: float | None
    unit: str = ""
    limits: str = ""
    flagged: bool = False


@dataclass(frozen=True)
class ScanReport:
    """Content of the report on one scan; all text is escaped on rendering.

    Attributes
    ----------
    scan_id : str
        Scan.
    facts : mapping
        Input (site, source of the site label, scanner, field strength, voxel size, orientation), in
        the order of the page.
    figures : tuple of Figure
        Figures.
    checks : tuple of Check
        Mask, registration and anatomy measures.
    warnings : tuple of str
        Sentences.
    provenance : mapping
        Backend, version, target, model hash, seed, device.
    timing : mapping
        Step -> seconds.
    error, remedy : str, optional
        Message of the error that stopped this scan, and what to do.
    slices : ScanSlices, optional
        Slices before and after harmonization for the viewer.
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
    slices: ScanSlices | None = None


@dataclass(frozen=True)
class SubjectReport:
    """Content of the report of one subject.

    Attributes
    ----------
    participant : str
        Label without "sub-".
    scans : tuple of ScanReport
        Scans.
    methods : str
        Methods text in a small Markdown.
    software, settings : mapping
        Versions and settings by name.
    group_report : str, optional
        Relative path of the group report.
    study : str
        Name under which the browser stores the ratings of this study.
    convention : str
        Convention of the figures: "neurological" or "radiological".
    """

    participant: str
    scans: tuple[ScanReport, ...]
    methods: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    group_report: str | None = None
    study: str = ""
    convention: str = "neurological"


def render_subject_report(path: Path, report: SubjectReport) -> Path:
    """Write the report as one self-contained HTML file, atomically, and return its path."""
    return render("subject.html.j2", Path(path), {
        "title": f"sub-{report.participant}: harmonization report",
        "report": report,
        "convention": CONVENTIONS[report.convention],
        "failed": sum(scan.error is not None for scan in report.scans),
        "flagged": sum(needs_a_look(scan) for scan in report.scans),
    }, scripts=("rate.js", "viewer.js"))


def needs_a_look(scan: ScanReport) -> bool:
    """Return whether a scan has a warning, a measure outside its limits, or an error."""
    return bool(scan.error or scan.warnings or any(check.flagged for check in scan.checks))
