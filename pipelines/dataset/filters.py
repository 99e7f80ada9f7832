"""BIDS filter files: which images, by their entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harmonizer.errors import InputError, UsageError
from harmonizer.files import read_json

from ..settings import MODALITIES

__all__ = ["load_filters"]

SHORT_NAMES = {  # as in file names -> as pybids says
    "sub": "subject",
    "ses": "session",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
}
NOT_ENTITIES = ("return_type", "target", "scope", "regex_search", "absolute_paths",
                "invalid_filters", "self")
QUERIES = tuple(modality.lower() for modality in MODALITIES)


def load_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Queries by lower-case modality from a BIDS filter file, with pybids' values.

    The file is that of fMRIPrep: `{"t1w": {"acquisition": "mprage", "reconstruction": null,
    "session": "*"}}`; null means that the entity is absent, "*" that it is there, and a list that
    it has one of the values or, with null in it, is absent. Queries for other data (bold, fmap,
    ...) are left out.

    Raises
    ------
    UsageError
        If the file is missing, is not JSON, is not a table of tables, or asks for what is no
        entity.
    """
    if path is None:
        return {}
    try:
        content = read_json(path)
    except InputError as error:
        raise UsageError(str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError(
            f'{path}: expected queries such as {{"t1w": {{"session": "A"}}}}, got other JSON.'
        )
    ours = {key.lower(): query for key, query in content.items() if key.lower() in QUERIES}
    for query in ours.values():
        _check_query(path, query)
    return {key: _pybids_query(query) for key, query in ours.items()}


def _check_query(path: Path, query: dict[str, Any]) -> None:
    """Refuse what pybids would take for an option of its own, and values that no index holds."""
    for name, value in query.items():
        if name in NOT_ENTITIES:
            raise UsageError(f"{path}: {name!r} is no entity. Give session, run or the like.")
        if not (_is_list(value) if isinstance(value, list) else value is None or _is_one(value)):
            raise UsageError(f"{path}: {name}: expected text, a number, null, or a list of texts "
                             f"or of numbers, got {value!r:.80}.")


def _is_one(value: Any) -> bool:
    """Text, or a number that an index holds; NaN is not below its limit."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str) or (number and abs(value) < 2**53)


def _is_list(values: list[Any]) -> bool:
    """Of texts or of numbers, which pybids compares as one kind, and perhaps null."""
    given = [value for value in values if value is not None]
    texts = [isinstance(value, str) for value in given]
    return all(map(_is_one, given)) and "*" not in given and len(set(texts)) == 1


def _pybids_query(query: dict[str, Any]) -> dict[str, Any]:
    return {SHORT_NAMES.get(name, name): _pybids_value(value) for name, value in query.items()}


def _pybids_value(value: Any) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_pybids_value(item) for item in value]
    return Query.NONE if value is None else Query.ANY if value == "*" else value
