"""Comparison of participants.tsv with the folders of a dataset."""

from __future__ import annotations

from collections.abc import Collection

from harmonizer.errors import InputError

from ..settings import Settings
from .records import Finding
from .tables import Tables

__all__ = ["check_participants"]

MAX_LISTED = 8


def check_participants(
    tables: Tables, folders: Collection[str], scans: Collection[tuple[str, str | None]],
    settings: Settings,
) -> list[Finding]:
    """Warn about folders without a row and rows without a folder.

    Parameters
    ----------
    tables : Tables
        Tables of the dataset.
    folders : collection of str
        Labels of all folders of the dataset.
    scans : collection of (str, str or None)
        Participant and session of the images that are used.
    settings : Settings
        Settings of the run.

    Raises
    ------
    InputError
        If participants.tsv exists and matches no folder. Sites, ages and sexes would be lost, so
        this is an error unless another site source is given.
    """
    path, rows = tables.participants_path, set(tables.participants)
    if not (path.exists() or path.is_symlink()):
        return []
    if not rows & set(folders) and (rows or tables.is_broken(path)):
        finding = Finding(path, *_mismatch(tables, rows, folders))
        if settings.site is None and settings.site_from in ("auto", "participants"):
            raise InputError(f"{finding} Or continue without the table, ages and sexes, with "
                             "--site-from sidecar.")
        return [finding]
    findings, selected = [], {subject for subject, _ in scans}
    if without := sorted(selected - rows):
        findings.append(Finding(
            path, f"{len(without)} of {len(selected)} participants with images have no row: "
            f"{_labels(without)}", "Add their rows; their age and sex are not known."))
    lacking = {f"{subject}_ses-{session}" for subject, session in scans
               if subject in rows and not tables.has_row(subject, session)}
    if lacking:
        findings.append(Finding(
            path, f"{len(lacking)} sessions have no row, where others have: {_labels(lacking)}",
            "Add their rows; their session-specific values are not known."))
    if not settings.participant_label and (orphans := sorted(rows - set(folders))):
        findings.append(Finding(
            path, f"{len(orphans)} of {len(rows)} participants have a row and no folder: "
            f"{_labels(orphans)}", "Check their labels; the rows are not used."))
    return findings


def _mismatch(tables: Tables, rows: set[str], folders: Collection[str]) -> tuple[str, str]:
    """Return finding and remedy for a table that matches no folder."""
    path = tables.participants_path
    if not rows:
        broken = next(f for f in tables.findings if f.path == path)
        return broken.finding, broken.remedy
    finding = (f"none of its {len(rows)} participants has a folder: it names {_labels(rows)}, the "
               f"folders are {_labels(folders)}")
    bare = {label.lower().lstrip("0"): label for label in folders}
    near = next(((row, bare[key]) for row in sorted(rows)
                 if (key := row.lower().lstrip("0")) in bare), None)
    if near is None:
        return finding, "Correct the column participant_id."
    return finding, (f"Write sub-{near[1]} where it has {near[0]!r} (spreadsheets drop leading "
                     "zeros).")


def _labels(labels: Collection[str]) -> str:
    more = f" and {len(labels) - MAX_LISTED} more" if len(labels) > MAX_LISTED else ""
    return ", ".join(f"sub-{label}" for label in sorted(labels)[:MAX_LISTED]) + more
