"""BIDS filter files: which images, by their entities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harmonizer.errors import UsageError

__all__ = ["load_filters"]

SHORT_NAMES = {  # as in file names -> as pybids says
    "sub": "subject",
    "ses": "session",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
}


def load_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Queries by lower-case modality from a BIDS filter file, with pybids' values.

    The file is that of fMRIPrep: `{"t1w": {"acquisition": "mprage", "reconstruction": null,
    "session": "*"}}`; null means that the entity is absent, "*" that it is there. Queries for
    other data (bold, fmap, ...) are left alone.

    Raises
    ------
    UsageError
        If the file is missing, is not JSON, or is not a table of tables.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not valid JSON ({error}). Repair the filter file.") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError(
            f'{path}: expected queries such as {{"t1w": {{"session": "A"}}}}, got other JSON.'
        )
    return {key.lower(): _pybids_query(query) for key, query in content.items()}


def _pybids_query(query: dict[str, Any]) -> dict[str, Any]:
    return {SHORT_NAMES.get(name, name): _pybids_value(value) for name, value in query.items()}


def _pybids_value(value: Any) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_pybids_value(item) for item in value]
    return Query.NONE if value is None else Query.ANY if value == "*" else value
