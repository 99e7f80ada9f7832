"""Cache of numbers in a folder, by the files and settings they were computed from.

The cache may be deleted at any time. Its files are JSON and can be read.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path, read_json, write_json
from ..segmentation.segmentations import Segment, Summary, name_of, summary_of
from ..tissues import TISSUES
from ..volume import Volume

__all__ = ["CACHE_VERSION", "array_key", "cached", "cached_summary", "file_key", "with_nan",
           "without_nan"]

CACHE_VERSION = 9  # raised when a measure changes, so that older results are not used


def cached(folder: Path | None, key: str, compute: Callable[[], Any]) -> Any:
    """Return the cached result of a computation, or compute it and add it to the cache.

    Parameters
    ----------
    folder : Path or None
        Folder of the cache; None computes without a cache.
    key : str
        Name of the result, see `file_key`.
    compute : callable
        Takes no argument and returns JSON values; NaN is allowed.

    Returns
    -------
    object
        The result; None where the computation returned a number that is not finite reads as NaN.
    """
    if folder is None:
        return compute()
    path = Path(folder) / f"{key}.json"
    if path.is_file():
        return with_nan(read_json(path))
    found = compute()
    write_json(path, without_nan(found))
    return found


def cached_summary(folder: Path | None, volume: Volume, paths: Iterable[Path],
                   segment: Segment | None) -> Summary | None:
    """Segment an image once and keep the labels.

    Parameters
    ----------
    folder : Path or None
        Folder of the cache; None segments without a cache.
    volume : Volume
        Image with a brain mask.
    paths : iterable of Path
        Files that the volume was read from, see `file_key`.
    segment : callable or None
        Segmenter.

    Returns
    -------
    Summary or None
        As `segmentations.summary_of`.
    """
    if folder is None or segment is None:
        return summary_of(volume, segment)
    path = Path(folder) / f"{file_key(paths, 'segmentation', name_of(segment))}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return Summary(stored["labels"], dict(zip(TISSUES, stored["ratios"].tolist())))
    found = summary_of(volume, segment)
    if found is not None:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, labels=found.labels,
                                ratios=np.array([found.ratios[name] for name in TISSUES]))
    return found


def without_nan(value: Any) -> Any:
    """Replace every number that is not finite by None, so that the value can be written as JSON.

    Parameters
    ----------
    value : object
        JSON values, nested in mappings and sequences.

    Returns
    -------
    object
        A copy with dicts and lists.
    """
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """Replace every None by NaN, the inverse of `without_nan`.

    Parameters
    ----------
    value : object
        JSON values, nested in dicts and lists.

    Returns
    -------
    object
        A copy.
    """
    if isinstance(value, dict):
        return {name: with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def file_key(paths: Iterable[Path], *settings: Any) -> str:
    """Return the cache key of numbers computed from files with settings.

    Files are identified by path, size and modification time: hashing their content would cost as
    much as computing the numbers again.

    Parameters
    ----------
    paths : iterable of Path
        Files; a missing file is allowed.
    *settings
        JSON values, or objects with a unique text.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    parts: list[Any] = [CACHE_VERSION, *settings]
    for path in paths:
        state = Path(path).stat() if Path(path).exists() else None
        parts.append((str(path), state and (state.st_size, state.st_mtime_ns)))
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def array_key(array: np.ndarray | None) -> int | None:
    """Return a checksum of the content of an array for a cache key.

    Parameters
    ----------
    array : ndarray or None
        Any array.

    Returns
    -------
    int or None
        CRC-32, or None for None.
    """
    return None if array is None else zlib.crc32(np.ascontiguousarray(array).data)
