"""Files that are either whole or absent: write beside the goal, then rename.

A killed process leaves at most a hidden temporary file, never half an output. Renaming within a
folder is atomic on POSIX file systems, so several jobs may write the same idempotent file.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = [
    "atomic_path", "decode_text", "read_json", "sha256_of", "write_json", "write_text",
]

BYTE_ORDER_MARKS = {  # UTF-32 first, whose mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}
MAX_JSON_BYTES = 64 << 20  # a sidecar has a few kB; more would only fill the memory


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name is hidden and keeps every suffix of the goal (`.nii.gz`), because writers
    choose the format by it. Missing parent folders are made.
    """
    goal = Path(path)
    goal.parent.mkdir(parents=True, exist_ok=True)
    temporary = goal.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{goal.name}")
    try:
        yield temporary
        os.replace(temporary, goal)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically and return the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def decode_text(content: bytes) -> tuple[str, str]:
    """Text of a file as spreadsheets save it, and its encoding: ``utf-8`` or another one's name.

    A byte order mark decides; else NUL bytes mean UTF-16, and what is not UTF-8 is Windows-1252,
    the superset of Latin-1 of Western spreadsheets.

    Raises
    ------
    UnicodeDecodeError
        If the text is in none of these.
    """
    marked = (name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = next(marked, "")
    if not encoding and b"\0" in content:
        encoding = "utf-16-le" if content.index(b"\0") % 2 else "utf-16-be"
    if encoding:
        return content.decode(encoding), encoding.removesuffix("-sig")
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return content.decode("cp1252"), "windows-1252"


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any] | list[Any]) -> Path:
    """Write JSON atomically: two spaces, UTF-8, a final newline; NaN is refused by the encoder."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON; a file that is missing or broken is an `InputError` that names it.

    What Python reads and JSON does not allow, and `write_json` could not write again, is broken
    too: NaN, numbers beyond a float, and halves of characters.
    """
    try:
        if Path(path).stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES >> 20} MiB")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        return content
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}). Repair or remove it.") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
