"""Data of the linked plots of the group report: every number of every scan, by measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..evaluation.table import Metrics

if TYPE_CHECKING:
    from .group import ScanRow

__all__ = ["ScanLine", "explore_data", "scan_anchor", "scan_lines"]

STAGES = ("before", "rescaled", "after", "change")
SIGNIFICANT_DIGITS = 4
FIRST_MEASURES = ("wasserstein_to_target", "gm_wm_ratio", "csf_wm_ratio", "ssim_structure",
                  "gradient_agreement")
"""Measures at the top of the menus; the others follow in the order of the table."""
NAMES = {"wasserstein_to_target": "distance to target", "gm_wm_ratio": "GM/WM ratio",
         "csf_wm_ratio": "CSF/WM ratio", "ssim_structure": "structure (SSIM)"}


@dataclass(frozen=True)
class ScanLine:
    """Row of the table of scans: the scan, its link, its numbers and its anatomy verdict."""

    scan: ScanRow
    link: str
    before: float | None
    after: float | None
    structure: float | None
    verdict: str


def scan_anchor(page: str, scan_id: str) -> str:
    """Return the address of a scan's section on the page of its subject; "" without a page."""
    from .html import anchor, relative_link

    return f"{relative_link(page)}#{anchor(scan_id)}" if page else ""


def scan_lines(scans: Sequence[ScanRow], metrics: Metrics, backend: str,
               links: Mapping[str, str], verdicts: Mapping[str, bool]) -> list[ScanLine]:
    """Return every scan with its distances to the target, structure measure and verdict.

    Parameters
    ----------
    scans : sequence of ScanRow
        Scans.
    metrics : Metrics
        Rows of all methods.
    backend : str
        Method whose images are shown.
    links : mapping
        Subject -> relative path of its report.
    verdicts : mapping
        Scan -> whether it is within the limits of the anatomy guard.
    """
    values = _values(metrics, backend)
    distance = values.get(("wasserstein_to_target", "brain"), {})
    structure = values.get(("ssim_structure", "brain"), {}).get("change", {})
    words = {True: "within limits", False: "flagged"}
    return [ScanLine(scan, scan_anchor(links.get(scan.subject, ""), scan.scan_id),
                     distance.get("before", {}).get(scan.scan_id),
                     distance.get("after", {}).get(scan.scan_id),
                     structure.get(scan.scan_id),
                     words[verdicts[scan.scan_id]] if scan.scan_id in verdicts else "")
            for scan in scans]


def explore_data(lines: Sequence[ScanLine], metrics: Metrics, backend: str) -> dict[str, Any]:
    """Return plain lists for the script of the page, one entry for each scan.

    The measures of the whole brain and of tissues that have a number for at least one scan become
    columns with one list for each stage.
    """
    scans = [line.scan for line in lines]
    order = [scan.scan_id for scan in scans]
    values = _values(metrics, backend)
    units = {row.measure: row.unit for row in metrics}
    keys = sorted(values, key=lambda key: (FIRST_MEASURES.index(key[0]) if key[0] in FIRST_MEASURES
                                           and key[1] == "brain" else len(FIRST_MEASURES)))
    columns: list[dict[str, Any]] = [
        {"name": "age", "unit": "years", "stages": {"": [scan.age for scan in scans]}}]
    for measure, tissue in keys:
        stages = {stage: [_rounded(found.get(scan)) for scan in order]
                  for stage, found in values[measure, tissue].items()}
        name = NAMES.get(measure, measure.replace("_", " "))
        columns.append({"name": name if tissue in ("", "brain") else f"{name}, {tissue}",
                        "unit": "" if units[measure] == "1" else units[measure],
                        "stages": {stage: stages[stage] for stage in STAGES if stage in stages}})
    return {
        "scans": order, "links": [line.link for line in lines],
        "sites": [scan.site for scan in scans], "modalities": [scan.modality for scan in scans],
        "flags": [line.verdict or "n/a" for line in lines],
        "columns": [column for column in columns
                    if any(v is not None for found in column["stages"].values() for v in found)]}


def _values(metrics: Metrics, backend: str
            ) -> dict[tuple[str, str], dict[str, dict[str, float | None]]]:
    """Return (measure, tissue) -> stage -> scan -> value.

    Rows of pairs of images, of which a scan has several, are left out.
    """
    found: dict[tuple[str, str], dict[str, dict[str, float | None]]] = {}
    pairs = set()
    for row in metrics:
        if not row.scan or row.stage not in STAGES or row.backend not in ("", backend):
            continue
        key = row.measure, row.tissue
        known = found.setdefault(key, {}).setdefault(row.stage, {})
        if row.scan in known:
            pairs.add(key)
        known[row.scan] = row.value
    return {key: value for key, value in found.items() if key not in pairs}


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
