"""Subject reports, assembled from logs and figures on disk after each participant stage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonizer.evaluation.questions.anatomy import GUARDED
from harmonizer.files import read_json
from harmonizer.preprocessing.brain import LIMITS
from harmonizer.reports.subject import Check, ScanReport, SubjectReport, render_subject_report

from ..outputs.collect import Preprocessed
from ..outputs.figures import load_figures, load_slices
from ..outputs.names import sidecar
from ..outputs.scanlog import ScanLog, failed_logs, read_log
from ..outputs.selection import Selection
from ..settings import Settings
from .citations import readable
from .methods_text import methods_text, software_versions

__all__ = ["anatomy_checks", "study_name", "write_subject_reports"]

PROVENANCE_LABELS = {
    "HarmonizationMethod": "method", "HarmonizationMethodVersion": "version of the method",
    "HarmonizationReference": "reference", "Target": "target", "TargetKind": "kind of target",
    "TargetScans": "scans of the target", "ModelSHA256": "model (SHA-256)",
    "TargetSHA256": "site card (SHA-256)", "RandomSeed": "random seed", "Device": "device",
    "Precision": "precision",
}
QUALITY_MEASURES = {  # key -> (name, unit)
    "volume_l": ("volume of the brain mask", "liters"),
    "overlap": ("overlap of the mask with the template's (Dice)", ""),
    "network_dice": ("agreement of the mask with the network's (Dice)", ""),
    "mutual_information": ("mutual information with the template", "nats"),
    "edge_fraction": ("fraction of the mask's border on an edge", ""),
    "cut_fraction": ("fraction of the mask's border at the edge of the image", ""),
}
LIMITS_UNKNOWN = "learned by the evaluation"  # of the anatomy guard, see evaluation.md


def write_subject_reports(settings: Settings, selection: Selection) -> tuple[Path, ...]:
    """Write ``OUT/sub-X.html`` for each selected subject; replace existing reports."""
    found = selection.find()
    subjects = {item.scan.subject for item in found} | {r.subject for r in selection.records}
    failed = [log for log in failed_logs(settings.output_dir, subjects)
              if selection.concerns(log.scan_id)]
    methods, software = readable(methods_text(settings, found)), software_versions()
    pages = []
    for subject in sorted(subjects):
        scans = [scan_report(settings, item) for item in found if item.scan.subject == subject]
        done = {scan.scan_id for scan in scans}
        scans += [_failed_report(log) for log in failed
                  if log.scan_id.startswith(f"sub-{subject}_") and log.scan_id not in done]
        if scans:
            pages.append(render_subject_report(
                settings.output_dir / f"sub-{subject}.html",
                SubjectReport(subject, tuple(scans), methods, software,
                              group_report="group.html", study=study_name(settings))))
    return tuple(pages)


def study_name(settings: Settings) -> str:
    """Return the name under which a browser stores ratings: it identifies OUTPUT_DIR."""
    return hashlib.sha256(os.fsencode(settings.output_dir)).hexdigest()[:12]


def scan_report(settings: Settings, item: Preprocessed) -> ScanReport:
    """Collect the content of one scan's section from its logs, sidecars and figures."""
    out, scan_id, stage = settings.output_dir, item.scan.scan_id, f"harmonize-{settings.desc}"
    log = read_log(out, scan_id, "preprocess") or ScanLog(scan_id, "preprocess", "done")
    after = read_log(out, scan_id, stage)
    checks = _quality_checks(log.facts.get("Quality", {}))
    warnings, provenance, error = list(log.warnings), {}, None
    if after is not None and after.status == "failed":
        error = after.message
    elif after is not None:
        content = _harmonized_sidecar(settings, item)
        checks += anatomy_checks(content.get("AnatomyGuard", {}), after.facts)
        provenance = {words: str(content[key]) for key, words in PROVENANCE_LABELS.items()
                      if key in content}
        warnings += [f"Anatomy guard: {reason}" for reason in
                     content.get("AnatomyGuard", {}).get("Reasons", ())]
    figures = load_figures(item.paths, "preprocess") + load_figures(item.paths, stage)
    return ScanReport(
        item.scan.scan_id, _facts(item, log.facts.get("Input", {})), figures, tuple(checks),
        tuple(warnings), provenance, log.seconds, error, slices=load_slices(item.paths, stage))


def _failed_report(log: ScanLog) -> ScanReport:
    return ScanReport(log.scan_id, {"site": log.site or "n/a", "stage": log.stage},
                      error=log.message)


def _facts(item: Preprocessed, given: Mapping[str, Any]) -> dict[str, str]:
    """Describe the input image, in the order of the report."""
    content = item.sidecar
    scanner = " ".join(str(content[k]) for k in ("Manufacturer", "ManufacturersModelName")
                       if k in content)
    strength = content.get("MagneticFieldStrength")
    size = " x ".join(f"{s:g}" for s in given.get("VoxelSize", ()))
    facts = {
        "site": f"{item.scan.site} (from {item.scan.site_source})",
        "scanner": scanner or "n/a",
        "field strength": f"{strength} T" if strength not in (None, "n/a") else "n/a",
        "voxel size": f"{size} mm" if size else "n/a",
        "grid": " x ".join(str(n) for n in given.get("Shape", ())) or "n/a",
        "stored axes": str(given.get("Axes", "n/a")),
        "stored as": str(given.get("DataType", "n/a")),
        "age": "n/a" if item.scan.age is None else f"{item.scan.age:g} years",
        "sex": item.scan.sex or "n/a",
        "input": "brain only" if content.get("SkullStripped") else "whole head",
    }
    return facts


def _quality_checks(quality: Mapping[str, Any]) -> list[Check]:
    """Return the measures of mask and registration with their limits."""
    checks = [_held(name, float(quality[key]), unit, *LIMITS[key])
              for key, (name, unit) in QUALITY_MEASURES.items() if key in quality]
    if quality.get("low_confidence"):
        checks.append(
    Check(
        "brain mask with low confidence (see the warnings)",
        None,
         flagged=True))
    return checks


def _held(name: str, value: float, unit: str, low: float | None, high: float | None) -> Check:
    """Compare a measure with its limits."""
    if low is not None and high is not None:
        words = f"{low:g} to {high:g}"
    else:
        words = f"at most {high:g}" if low is None else f"at least {low:g}"
    broken = (low is not None and value < low) or (high is not None and value > high)
    return Check(name, value, unit, words, broken)


def anatomy_checks(guard: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Check]:
    """Return the measures of anatomical change with the limits of the anatomy guard.

    Parameters
    ----------
    guard : mapping
        ``AnatomyGuard`` of the image's sidecar; empty before the evaluation, which learns the
        limits from rescans of the cohort.
    facts : mapping
        Facts of the harmonize stage, with ``SSIMStructure`` and ``GradientAgreement``.

    Returns
    -------
    list of Check
        One per measure; without limits before the evaluation.
    """
    if not guard.get("Limits"):
        measured = (("structure (SSIM)", facts.get("SSIMStructure")),
                    ("direction of edges", facts.get("GradientAgreement")))
        return [Check(name, value, "", LIMITS_UNKNOWN) for name, value in measured
                if value is not None]
    checks = []
    for key, (words, higher) in GUARDED.items():
        if key not in guard["Limits"] or key not in guard.get("Measures", {}):
            continue
        value, limit = guard["Measures"][key], guard["Limits"][key]
        broken = value is None or (value < limit if higher else value > limit)
        checks.append(Check(words, value, "", f"at {'least' if higher else 'most'} {limit:.3g}",
                            broken))
    return checks


def _harmonized_sidecar(settings: Settings, item: Preprocessed) -> dict[str, Any]:
    path = sidecar(item.paths.image(settings.desc, template=True))
    return read_json(path) if path.is_file() else {}
