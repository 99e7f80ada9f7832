"""Participants and sessions of a dataset, from the names of its folders."""

from __future__ import annotations

import difflib
from pathlib import Path

from harmonizer.errors import UsageError

__all__ = ["has_subjects", "require_labels", "session_labels", "subject_labels"]

MAX_LISTED = 8


def has_subjects(root: Path) -> bool:
    """Return whether a folder exists and holds at least one sub-* folder."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def subject_labels(root: Path) -> tuple[str, ...]:
    """Return the labels of the sub-* folders of a dataset, sorted, without 'sub-'."""
    return tuple(sorted(p.name.removeprefix("sub-") for p in root.glob("sub-*") if p.is_dir()))


def session_labels(root: Path, subjects: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the labels of the ses-* folders of these participants (default: all), sorted."""
    folders = [root / f"sub-{label}" for label in subjects or subject_labels(root)]
    names = {p.name for folder in folders for p in folder.glob("ses-*") if p.is_dir()}
    return tuple(sorted(name.removeprefix("ses-") for name in names))


def require_labels(
    flag: str, prefix: str, asked: tuple[str, ...], known: tuple[str, ...]
) -> None:
    """Refuse labels that a dataset does not have.

    Raises
    ------
    UsageError
        Names the absent labels, and similar ones or the first known labels.
    """
    absent = [label for label in asked if label not in known]
    if not absent:
        return
    near = {n: None for label in absent for n in difflib.get_close_matches(label, known, 3, 0.5)}
    guess = f"Did you mean {', '.join(near)}?" if near else _overview(known)
    names = ", ".join(prefix + label for label in absent)
    raise UsageError(f"{flag}: {names} not in the dataset. {guess}")


def _overview(known: tuple[str, ...]) -> str:
    rest = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"It has {', '.join(known[:MAX_LISTED]) or 'none'}{rest}."
