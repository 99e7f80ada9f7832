"""Files of DataLad and Git LFS datasets whose content was not fetched."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FETCH_REMEDY", "is_unfetched"]

FETCH_REMEDY = "Fetch it with: datalad get FILE (git annex get, git lfs pull)."
POINTER_MARKS = (b"/annex/objects/", b"version https://git-lfs")
MAX_POINTER_BYTES = 2048


def is_unfetched(path: Path) -> bool:
    """Return whether the content of a file was not fetched: a broken link or a pointer file.

    git-annex stores locked files as links into ``.git/annex/objects``, and unlocked files as a line
    of text until they are fetched; Git LFS does the latter.
    """
    if not path.is_file():
        return path.is_symlink() and not path.exists()
    if path.stat().st_size > MAX_POINTER_BYTES:
        return False
    with open(path, "rb") as stream:
        return stream.read(max(map(len, POINTER_MARKS))).startswith(POINTER_MARKS)
