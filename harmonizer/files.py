"""Atomic writing of files: write to a temporary name in the same folder, then rename.

A killed process leaves at most a hidden temporary file, never a partial output. Renaming within a
folder is atomic on POSIX file systems, so several jobs may write the same file with equal content.
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
MAX_JSON_BYTES = 64 << 20  # a sidecar has a few kB; the limit protects the memory


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` on success, remove it on failure.

    The temporary name is hidden and keeps all suffixes (`.nii.gz`), because writers choose the
    format by them. Missing parent folders are created.

    Parameters
    ----------
    path : path-like
        The final path.

    Yields
    ------
    Path
        Temporary path in the same folder.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{final.name}")
    try:
        yield temporary
        os.replace(temporary, final)
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
    """Write JSON atomically, with two spaces of indentation and UTF-8.

    Parameters
    ----------
    path : path-like
        The file.
    content : mapping or list
        JSON types only; NaN is refused.

    Returns
    -------
    Path
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Content that Python accepts but JSON does not, such as NaN, numbers beyond float64 and lone
    surrogates, is refused, because `write_json` could not write it again.

    Parameters
    ----------
    path : path-like
        The file, at most 64 MiB.

    Returns
    -------
    object

    Raises
    ------
    InputError
        If the file is missing or is not valid JSON; the message names it.
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
    """Return the SHA-256 digest of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
