"""Log of one scan in one stage: ``logs/scans/<scan_id>_<stage>.json``.

Each file belongs to one scan and one stage, so jobs that share an output folder never write the
same file. Times, quality measures, warnings and failures are stored here, not in the sidecars.
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
    """Result of one scan in one stage.

    Attributes
    ----------
    scan_id, stage, site : str
        Scan, stage, and site of the scan.
    status : str
        ``done`` or ``failed``.
    message : str
        Error message of a failure.
    warnings : tuple of str
        Warnings that the subject report shows.
    seconds : dict of str to float
        Duration of each step.
    facts : dict
        Values for the reports, of JSON types.
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
    """Return the path of a scan's log of a stage."""
    return out / LOGS / "scans" / f"{scan_id}_{stage}.json"


def write_log(out: Path, log: ScanLog) -> Path:
    """Write a scan's log; replaces the log of an earlier run of the stage."""
    path = log_path(out, log.scan_id, log.stage)
    return write_json(path, {**asdict(log), "warnings": list(log.warnings)})


def read_log(out: Path, scan_id: str, stage: str) -> ScanLog | None:
    """Read the log of a scan's stage; None if there is none."""
    path = log_path(out, scan_id, stage)
    return _load(path) if path.is_file() else None


def failed_logs(out: Path, subjects: Collection[str] = ()) -> tuple[ScanLog, ...]:
    """Read the logs of failed stages, sorted by scan; empty `subjects` means all."""
    logs: Iterable[ScanLog] = map(_load, sorted((out / LOGS / "scans").glob("sub-*_*.json")))
    return tuple(log for log in logs if log.status == "failed" and _wanted(log, subjects))


def _wanted(log: ScanLog, subjects: Collection[str]) -> bool:
    return not subjects or log.scan_id.split("_")[0].removeprefix("sub-") in subjects


def _load(path: Path) -> ScanLog:
    content = read_json(path)
    content["warnings"] = tuple(content.get("warnings", ()))
    return ScanLog(**content)
