"""What happened to a scan in a stage: ``logs/scans/<scan_id>_<stage>.json``.

Each file belongs to one scan and one stage, so jobs that share an output folder never write the
same one. Times, quality numbers, warnings and failures live here and not in the sidecars.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harmonizer.files import read_json, write_json

from .names import LOGS

__all__ = ["ScanLog", "log_path", "write_log", "read_log", "failed_logs"]


@dataclass(frozen=True)
class ScanLog:
    """One scan in one stage.

    Attributes
    ----------
    status : ``done`` or ``failed``
    message : of a failure: what was expected, what came, what to do
    warnings : what a person should look at
    seconds : duration by step
    facts : anything the reports show, JSON types
    """

    scan_id: str
    stage: str
    status: str
    site: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def log_path(out: Path, scan_id: str, stage: str) -> Path:
    """Where a scan's log of a stage lies."""
    return out / LOGS / "scans" / f"{scan_id}_{stage}.json"


def write_log(out: Path, log: ScanLog) -> Path:
    """Write a scan's log, replacing that of an earlier run of the stage."""
    path = log_path(out, log.scan_id, log.stage)
    return write_json(path, {**asdict(log), "warnings": list(log.warnings)})


def read_log(out: Path, scan_id: str, stage: str) -> ScanLog | None:
    """The log of a scan's stage, or None if it has not run."""
    path = log_path(out, scan_id, stage)
    return _load(path) if path.is_file() else None


def failed_logs(out: Path, subjects: Collection[str] = ()) -> tuple[ScanLog, ...]:
    """Every stage that ended in failure, by scan_id; empty `subjects` means all."""
    logs: Iterable[ScanLog] = map(_load, sorted((out / LOGS / "scans").glob("sub-*_*.json")))
    return tuple(log for log in logs if log.status == "failed" and _wanted(log, subjects))


def _wanted(log: ScanLog, subjects: Collection[str]) -> bool:
    return not subjects or log.scan_id.split("_")[0].removeprefix("sub-") in subjects


def _load(path: Path) -> ScanLog:
    content = read_json(path)
    content["warnings"] = tuple(content.get("warnings", ()))
    return ScanLog(**content)
