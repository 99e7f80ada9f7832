"""Numbers kept in a folder by what they were taken from, so that asking again opens no image.

The folder may be deleted at any time; what is in it is JSON and can be read.
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

from ..files import read_json, write_json

__all__ = ["VERSION", "kept", "file_key", "array_key", "with_nan", "without_nan"]

VERSION = 7  # raise when a measure changes: what was kept is then not used


def kept(folder: Path | None, key: str, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns (JSON values; NaN allowed), from the folder if it is kept there."""
    if folder is None:
        return compute()
    path = Path(folder) / f"{key}.json"
    if path.is_file():
        return with_nan(read_json(path))
    found = compute()
    write_json(path, without_nan(found))
    return found


def without_nan(value: Any) -> Any:
    """The value with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """The value with NaN for every None."""
    if isinstance(value, dict):
        return {name: with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def file_key(paths: Iterable[Path], *settings: Any) -> str:
    """A name for numbers taken from these files with these settings.

    Files are known by path, size and time of last change: reading them all to see whether they
    must be read would save nothing.
    """
    parts: list[Any] = [VERSION, *settings]
    for path in paths:
        state = Path(path).stat() if Path(path).exists() else None
        parts.append((str(path), state and (state.st_size, state.st_mtime_ns)))
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def array_key(array: np.ndarray | None) -> int | None:
    """A number that stands for an array's content in a key; None for none."""
    return None if array is None else zlib.crc32(np.ascontiguousarray(array).data)
