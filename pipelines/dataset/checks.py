"""Checks of images and the dataset before any processing; only headers are read.

A `Finding` names the file, what was found and what to do. It excludes at most one scan; the other
scans are processed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harmonizer.errors import InputError
from harmonizer.files import sha256_of
from harmonizer.volume import affine_in_mm, load_nifti

from .annex import FETCH_REMEDY, is_unfetched
from .records import Finding, ScanRecord, entities_of, split_name
from .sidecars import applies_to

__all__ = [
    "Issue", "check_header", "check_name", "duplicate_names", "require_valid", "same_content",
    "validate_bids",
]

VALIDATOR = "bids-validator-deno"
VALIDATOR_TIMEOUT_S = 3600
MAX_LISTED_MESSAGES = 5
HANDLED_ISSUE_CODES = {  # validator errors that the app handles with messages of its own
    "EMPTY_FILE", "NIFTI_HEADER_UNREADABLE", "T1W_FILE_WITH_TOO_MANY_DIMENSIONS", "JSON_INVALID",
    "DUPLICATE_FILES", "SIDECAR_KEY_REQUIRED", "PARTICIPANT_ID_MISMATCH", "INVALID_FILE_ENCODING",
    "TSV_COLUMN_MISSING", "TSV_COLUMN_ORDER_INCORRECT", "TSV_EMPTY_LINE", "TSV_EQUAL_ROWS",
    "TSV_VALUE_INCORRECT_TYPE",
}
DESCRIPTION = "dataset_description.json"
NOT_RAW = ("desc", "space", "label", "from", "to")  # entities of derivatives
NOT_MAGNITUDE = ("phase", "real", "imag")
MIN_VOXELS = 2  # along each axis; fewer is a slice, not a volume
SAMPLE_BYTES = 1 << 20
ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colors of a terminal


def check_name(path: Path) -> str | None:
    """Return why an image is not a raw magnitude image, from its name; None if it is."""
    entities = entities_of(path.name)
    for name in NOT_RAW:
        if name in entities:
            return f"has the entity {name!r}, which belongs to derivatives"
    if entities.get("part") in NOT_MAGNITUDE:
        return f"is the {entities['part']} part, not a magnitude image"
    return None


def check_header(path: Path) -> Finding | None:
    """Check the header of an image; return the problem, or None.

    Refused are files that nibabel cannot open, RGB images, images that are not one 3D volume, and
    affines that cannot be inverted.
    """
    if is_unfetched(path):
        link = ": it is a link to a file that is not there" if path.is_symlink() else ""
        return Finding(path, f"was not fetched{link}", FETCH_REMEDY)
    if not path.is_file():
        return Finding(path, "is not a file but a folder, device or pipe", "Remove it.")
    if path.stat().st_size == 0:
        return Finding(path, "is an empty file", "Copy it again.")
    try:
        image = load_nifti(path)
    except InputError as error:
        return _as_finding(path, error)
    return _check_shape(path, image.shape) or _check_grid(path, image)


def _as_finding(path: Path, error: InputError) -> Finding:
    """Convert an error of an image to a finding; its last sentence is the remedy."""
    text = str(error).removeprefix(f"{path}: ").rstrip(".")
    finding, _, remedy = text.rpartition(". ")
    return Finding(path, finding or remedy, f"{remedy}." if finding else "Or exclude it.")


def _check_shape(path: Path, shape: tuple[int, ...]) -> Finding | None:
    extra = [n for n in shape[3:] if n != 1]
    if extra:
        finding = f"expected one 3D image, got {len(shape)}D with shape {shape}"
        return Finding(path, finding, "Split it into one file for each run (run-1, run-2).")
    if len(shape) < 3 or min(shape[:3]) < MIN_VOXELS:
        finding = f"expected a 3D image, got shape {shape}, a slice"
        return Finding(path, finding, "Exclude it with --bids-filter-file, or remove it.")
    return None


def _check_grid(path: Path, image: Any) -> Finding | None:
    try:
        affine = affine_in_mm(image)
    except InputError as error:
        return _as_finding(path, error)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        finding = "its header gives no position in space (the affine cannot be inverted)"
        return Finding(path, finding, "Convert it from DICOM again, or repair sform and qform.")
    if image.get_data_dtype().fields is not None:
        return Finding(path, "is a color image", "Expected one intensity for each voxel.")
    return None


def duplicate_names(paths: Iterable[Path]) -> dict[Path, Finding]:
    """Find images that differ only by extension (.nii and .nii.gz); none of them is used."""
    groups = defaultdict(list)
    for path in paths:
        stem, suffix, _ = split_name(path.name)
        groups[f"{stem}_{suffix}"].append(path)
    findings = {}
    for group in groups.values():
        for path in group if len(group) > 1 else []:
            others = ", ".join(str(other) for other in group if other != path)
            finding = f"has the same name as {others}"
            findings[path] = Finding(path, finding, "Keep one of the files.")
    return findings


def same_content(records: Iterable[ScanRecord]) -> list[Finding]:
    """Warn of scans of different subjects or sessions with identical files.

    Sizes are compared first, then some bytes, then all, so that large datasets cost little.
    """
    groups = [list(records)]
    for key in (lambda path: path.stat().st_size, _sampled_digest, sha256_of):
        groups = [alike for group in groups for alike in _alike(group, key)]
    return [
        Finding(group[0].path, "is the same file as " + ", ".join(r.scan_id for r in group[1:]),
                "Check the import; one scan under two names distorts every statistic.")
        for group in groups
    ]


def _alike(records: list[ScanRecord], key: Callable[[Path], Hashable]) -> list[list[ScanRecord]]:
    """Group records with equal keys; groups of one are dropped."""
    groups = defaultdict(list)
    for record in records:
        groups[key(record.path)].append(record)
    return [group for group in groups.values() if len(group) > 1]


def _sampled_digest(path: Path) -> str:
    """Hash the bytes at the beginning, in the middle and at the end."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as stream:
        for start in (0, size // 2, size - SAMPLE_BYTES):
            stream.seek(max(start, 0))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def validator_path() -> str | None:
    """Find the BIDS validator: beside this Python, or on the PATH; None if not installed."""
    beside = Path(sys.executable).parent / VALIDATOR
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(VALIDATOR)


@dataclass(frozen=True)
class Issue:
    """One error that the BIDS validator found."""

    code: str
    location: str
    """Path from the dataset's root, with a slash in front; '' for the dataset as a whole."""
    text: str
    """One line: code, place, reason."""


def validate_bids(root: Path) -> list[Issue]:
    """Run the BIDS validator on a dataset; return its errors.

    Raises
    ------
    InputError
        If the validator is installed but returns no readable output.
    """
    command, done = validator_path(), None
    if command is None:
        return []
    try:
        done = subprocess.run(
            [command, "--json", "--ignoreWarnings", str(root)],
            capture_output=True, text=True, timeout=VALIDATOR_TIMEOUT_S, check=False,
        )
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        messages = ANSI.sub("", done.stderr).strip().splitlines() if done else []
        reason = messages[0] if messages else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{root}: the BIDS validator failed ({reason}). Try --skip-bids-validation."
        ) from error
    return [_issue(issue) for issue in issues if issue.get("severity") == "error"]


def _issue(issue: dict[str, Any]) -> Issue:
    code, location = str(issue.get("code") or ""), str(issue.get("location") or "")
    reason = str(issue.get("issueMessage") or "").strip().splitlines()[:1]
    parts = [code, issue.get("subCode"), location, *reason]
    return Issue(code, location, ": ".join(str(part) for part in parts if part))


def require_valid(
    root: Path, images: Collection[Path], tables: Collection[Path], *, session_rows: bool = False
) -> list[Finding]:
    """Refuse a dataset if the validator finds errors in files that the run reads.

    Errors in other files, errors that the app handles itself, and a failure of the validator are
    warnings.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    images : collection of Path
        Selected images; their sidecars are read as well.
    tables : collection of Path
        Participants and sessions tables and their dictionaries.
    session_rows : bool
        Whether participants.tsv has a row for each session.

    Raises
    ------
    InputError
        With the first messages, and the flag that ignores them.
    """
    try:
        issues = validate_bids(root)
    except InputError as error:
        finding = str(error).removeprefix(f"{root}: ").split(". Try")[0]
        return [Finding(root, finding, "The run continues without validation.")]
    handled = HANDLED_ISSUE_CODES | ({"TSV_INDEX_VALUE_NOT_UNIQUE"} if session_rows else set())
    by_kind: dict[str, list[Issue]] = {"elsewhere": [], "handled": [], "counts": []}
    read = {*images, *tables, root / DESCRIPTION, root}
    for issue in issues:
        path = root / issue.location.lstrip("/")
        is_read = path in read or (path.suffix == ".json" and any(
            applies_to(path, image, root) for image in images))
        by_kind["elsewhere" if not is_read else "handled" if issue.code in handled
                else "counts"].append(issue)
    if by_kind["counts"]:
        raise InputError(
            f"{root}: {_errors(by_kind['counts'])}:\n  "
            f"{_listed([issue.text for issue in by_kind['counts']])}\n"
            "Repair the dataset, or continue with --skip-bids-validation."
        )
    warnings = (("elsewhere", "in files that this run does not read", "The run continues."),
                ("handled", "handled by this app", "Other messages state what is done."))
    return [Finding(root, f"{_errors(by_kind[kind])} {where}: "
                    + _listed([f"{i.code} ({i.location})" for i in by_kind[kind]], "; "), remedy)
            for kind, where, remedy in warnings if by_kind[kind]]


def _errors(issues: Collection[Issue]) -> str:
    return "1 BIDS error" if len(issues) == 1 else f"{len(issues)} BIDS errors"


def _listed(texts: list[str], separator: str = "\n  ") -> str:
    texts = list(dict.fromkeys(texts))
    more = len(texts) - MAX_LISTED_MESSAGES
    rest = [f"and {more} more"] if more > 0 else []
    return separator.join(texts[:MAX_LISTED_MESSAGES] + rest)
