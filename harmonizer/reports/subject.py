"""The report of one participant: what came in, what was decided, what was changed, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Figure


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
    """One participant's scans with the method text (a small Markdown) and software versions."""

    participant: str
    scans: tuple[ScanReport, ...]
    methods: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    group_report: str | None = None


def render_subject_report(path: Path, report: SubjectReport) -> Path:
    """Write ``report`` as one self-contained HTML file and return its path."""
    raise NotImplementedError
