"""BIDS filter files, which select images by their entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harmonizer.errors import InputError, UsageError, did_you_mean
from harmonizer.files import read_json

from ..settings import MODALITIES
from .records import entities_of

__all__ = ["fits_query", "load_filters", "load_queries"]

SHORT_NAMES = {  # as in file names -> as pybids says
    "sub": "subject",
    "ses": "session",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
    "dir": "direction",
    "mod": "modality",
}
LONG_NAMES = {long: short for short, long in SHORT_NAMES.items()}
INDICES = ("run", "echo", "flip", "inv")  # numbers: run-1 and run-01 are one
NOT_IN_NAMES = ("suffix", "datatype", "extension")
ENTITIES = {  # of BIDS 1.10, as pybids names them
    *LONG_NAMES, *NOT_IN_NAMES, "sample", "task", "tracksys", "nucleus", "volume", "staining",
    "tracer", "run", "proc", "echo", "flip", "inv", "mt", "part", "recording", "space", "chunk",
    "scans", "fmap",
}
NOT_ENTITIES = ("return_type", "target", "scope", "regex_search", "absolute_paths",
                "invalid_filters", "self")
QUERIES = tuple(modality.lower() for modality in MODALITIES)
OTHER_QUERIES = (  # of other BIDS Apps, so that one file serves several
    "anat", "asl", "beh", "bold", "dwi", "eeg", "fmap", "func", "ieeg", "lesion", "m0scan", "mask",
    "meg", "mp2rage", "perf", "pet", "roi", "sbref", "t1map", "t2map", "t2star", "t2starw", "unit1",
    "xfm",
)


def load_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a BIDS filter file as pybids queries by lower-case modality; see `load_queries`."""
    return {key: _pybids_query(query) for key, query in load_queries(path).items()}


def load_queries(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read the queries of a BIDS filter file by lower-case modality, with pybids' entity names.

    The format is that of fMRIPrep: `{"t1w": {"acquisition": "mprage", "reconstruction": null,
    "session": "*"}}`. null selects images without the entity, "*" images with any value. A list
    selects any of its values, and with null also images without the entity. Queries for other data
    (bold, fmap, ...) are ignored.

    Raises
    ------
    UsageError
        If the file is missing, is not JSON, is not a table of tables, or if a query or an entity
        is not known: a misspelled one would select everything.
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
    for key in content:
        if key.lower() not in (*QUERIES, *OTHER_QUERIES):
            raise UsageError(f"{path}: unknown query {key!r}. {did_you_mean(key, QUERIES)}")
    ours = {key.lower(): {SHORT_NAMES.get(name, name): value for name, value in query.items()}
            for key, query in content.items() if key.lower() in QUERIES}
    for query in ours.values():
        _check_query(path, query)
    return ours


def fits_query(query: dict[str, Any], stem: str) -> bool:
    """Return whether the entities of a BIDS name match a query of `load_queries`.

    Parameters
    ----------
    query : dict
        Entity -> text, number, list of them, None (absent) or "*" (present).
    stem : str
        BIDS name without suffix, such as 'sub-01_acq-mprage_run-1'.

    Examples
    --------
    >>> fits_query({"ceagent": None, "run": 1}, "sub-01_run-01")
    True
    """
    found = entities_of(stem)
    return all(_fits_value(value, found.get(LONG_NAMES.get(name, name)), name in INDICES)
               for name, value in query.items() if name not in NOT_IN_NAMES)


def _fits_value(wanted: Any, found: str | None, is_index: bool) -> bool:
    values = wanted if isinstance(wanted, list) else [wanted]
    if found is None:
        return None in values
    texts = [str(value) for value in values if value is not None]
    if is_index:
        found, texts = found.lstrip("0"), [text.lstrip("0") for text in texts]
    return "*" in texts or found in texts


def _check_query(path: Path, query: dict[str, Any]) -> None:
    """Refuse what pybids would take for an option of its own, and values that no index holds."""
    for name, value in query.items():
        if name in NOT_ENTITIES:
            raise UsageError(f"{path}: {name!r} is no entity. Give session, run or the like.")
        if name not in ENTITIES:
            raise UsageError(f"{path}: {name!r} is not a recognized entity. "
                             f"{did_you_mean(name, ENTITIES)}")
        if not (_is_list(value) if isinstance(value, list) else value is None or _is_one(value)):
            raise UsageError(f"{path}: {name}: expected text, a number, null, or a list of texts "
                             f"or of numbers, got {value!r:.80}.")


def _is_one(value: Any) -> bool:
    """Return whether a value is text or a number that an index can hold; NaN is not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str) or (number and abs(value) < 2**53)


def _is_list(values: list[Any]) -> bool:
    """Return whether all values are texts, or all numbers, except null."""
    given = [value for value in values if value is not None]
    texts = [isinstance(value, str) for value in given]
    return all(map(_is_one, given)) and "*" not in given and len(set(texts)) == 1


def _pybids_query(query: dict[str, Any]) -> dict[str, Any]:
    return {name: _pybids_value(value) for name, value in query.items()}


def _pybids_value(value: Any) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_pybids_value(item) for item in value]
    return Query.NONE if value is None else Query.ANY if value == "*" else value
