"""Checks at the door: what can be known about an image or a dataset before any work is done.

A finding is a value. It names the file, says what was found and what to do, and takes at most one
scan out; the others go on. Only headers are read here; voxels are looked at when they are needed.
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

from .annex import FETCH, is_unfetched
from .records import Finding, ScanRecord, entities_of, split_name
from .sidecars import applies_to

__all__ = [
    "Issue", "check_header", "check_name", "duplicate_names", "require_valid", "same_content",
    "validate_bids",
]

VALIDATOR = "bids-validator-deno"
VALIDATOR_TIMEOUT_S = 3600
MAX_LISTED_MESSAGES = 5
HANDLED = {  # validator errors that the app meets by itself, with a message of its own
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
    """Why an image is not a raw magnitude image, from its name; None if it is."""
    entities = entities_of(path.name)
    for name in NOT_RAW:
        if name in entities:
            return f"has the entity {name!r}, which belongs to derivatives"
    if entities.get("part") in NOT_MAGNITUDE:
        return f"is the {entities['part']} part, not a magnitude image"
    return None


def check_header(path: Path) -> Finding | None:
    """What is wrong with an image's header, or None; reads no voxel.

    Refused: what nibabel cannot open, RGB, anything but one 3D volume, voxels without size.
    """
    if is_unfetched(path):
        link = ": it is a link to a file that is not there" if path.is_symlink() else ""
        return Finding(path, f"was not fetched{link}", FETCH)
    if not path.is_file():
        return Finding(path, "is not a file but a folder, device or pipe", "Remove it.")
    if path.stat().st_size == 0:
        return Finding(path, "is an empty file", "Copy it again.")
    try:
        image = load_nifti(path)
    except InputError as error:
        return _told(path, error)
    return _check_shape(path, image.shape) or _check_grid(path, image)


def _told(path: Path, error: InputError) -> Finding:
    """An explained error of an image as a finding; its last sentence is the remedy."""
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
        return _told(path, error)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        finding = "its header gives no position in space (the affine cannot be inverted)"
        return Finding(path, finding, "Convert it from DICOM again, or repair sform and qform.")
    if image.get_data_dtype().fields is not None:
        return Finding(path, "is a colour image", "Expected one intensity for each voxel.")
    return None


def duplicate_names(paths: Iterable[Path]) -> dict[Path, Finding]:
    """Images that differ only by extension (.nii and .nii.gz): none of them can be chosen."""
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
    """Scans of different people or sessions that are byte for byte one file (a warning).

    Sizes first, then some bytes, then all, so that large datasets cost little.
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
    """Those with equal keys, in groups of two and more."""
    groups = defaultdict(list)
    for record in records:
        groups[key(record.path)].append(record)
    return [group for group in groups.values() if len(group) > 1]


def _sampled_digest(path: Path) -> str:
    """Of the bytes at the beginning, in the middle and at the end."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as stream:
        for start in (0, size // 2, size - SAMPLE_BYTES):
            stream.seek(max(start, 0))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def validator_path() -> str | None:
    """The BIDS validator's command: beside this Python, or on the PATH; None if not installed."""
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
    """Run the BIDS validator on a dataset; returns the errors, [] if it finds none.

    Raises
    ------
    InputError
        If the validator is installed but gives no readable answer.
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
        said = ANSI.sub("", done.stderr).strip().splitlines() if done else []
        reason = said[0] if said else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{root}: the BIDS validator gave no answer ({reason}). Try --skip-bids-validation."
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
    """Refuse a dataset in whose files that are read the validator finds errors.

    Errors in other files, and those that the app meets by itself, are warnings, and so is a
    validator that gives no answer.

    Parameters
    ----------
    images : selected images; their sidecars are read as well
    tables : participants and sessions tables and their dictionaries
    session_rows : whether participants.tsv was read as a table with a row for each session

    Raises
    ------
    InputError
        With the first messages, and the flag that goes on all the same.
    """
    try:
        issues = validate_bids(root)
    except InputError as error:
        finding = str(error).removeprefix(f"{root}: ").split(". Try")[0]
        return [Finding(root, finding, "The run goes on without validation.")]
    handled = HANDLED | ({"TSV_INDEX_VALUE_NOT_UNIQUE"} if session_rows else set())
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
            f"{root}: {len(by_kind['counts'])} BIDS errors:\n  "
            f"{_listed([issue.text for issue in by_kind['counts']])}\n"
            "Repair the dataset, or go on with --skip-bids-validation."
        )
    warnings = (("elsewhere", "in files that this run does not read", "They do not stop the run."),
                ("handled", "that do not stop the run", "Other messages say what was done."))
    return [Finding(root, f"{len(by_kind[kind])} BIDS errors {where}: "
                    + _listed([f"{i.code} ({i.location})" for i in by_kind[kind]], "; "), remedy)
            for kind, where, remedy in warnings if by_kind[kind]]


def _listed(texts: list[str], separator: str = "\n  ") -> str:
    texts = list(dict.fromkeys(texts))
    more = len(texts) - MAX_LISTED_MESSAGES
    rest = [f"and {more} more"] if more > 0 else []
    return separator.join(texts[:MAX_LISTED_MESSAGES] + rest)
