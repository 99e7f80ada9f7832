"""Ratings of scans for ``--exclude``: a table with the columns scan_id, rating and comment.

The reports export this table. Scans with the rating ``exclude`` do not enter the model or the
statistics; ``keep`` and ``unsure`` change nothing.
"""

from __future__ import annotations

from pathlib import Path

from harmonizer.errors import InputError, did_you_mean

from .tables import is_missing, read_table

__all__ = ["RATINGS", "read_excluded"]

RATINGS = ("keep", "exclude", "unsure")
EXAMPLE = "scan_id, rating and, if wanted, comment, separated by tabs"


def read_excluded(path: Path) -> dict[str, str]:
    """Return scan_id -> comment of the scans that are rated ``exclude``, in the order of the table.

    Raises
    ------
    InputError
        If the table lacks a column, a row is incomplete or has an unknown rating, or a scan has
        two ratings.
    """
    rows, findings = read_table(path, "scan_id")
    problem = next((finding for finding in findings if "read as" not in finding.finding), None)
    if problem is not None:
        raise InputError(f"--exclude {problem} Expected the columns {EXAMPLE}, as the reports "
                         "export them.")
    if rows and "rating" not in rows[0]:
        raise InputError(f"--exclude {path}: expected a column 'rating', got "
                         f"{', '.join(rows[0])}. Expected the columns {EXAMPLE}.")
    found: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        scan, rating = row["scan_id"].removesuffix(".gz").removesuffix(".nii"), row["rating"]
        if rating not in RATINGS:
            raise InputError(f"--exclude {path}, row {number} ({scan}): unknown rating {rating!r}. "
                             f"{did_you_mean(rating, RATINGS)}")
        if scan in found and found[scan][0] != rating:
            raise InputError(f"--exclude {path}, row {number}: {scan} is rated {found[scan][0]!r} "
                             f"and {rating!r}. Keep one row for each scan.")
        comment = row.get("comment", "")
        found[scan] = rating, "" if is_missing(comment) else comment
    return {scan: comment for scan, (rating, comment) in found.items() if rating == "exclude"}
