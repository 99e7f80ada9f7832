"""The patterns of .bidsignore, which are those of .gitignore."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dataset.ignore import BidsIgnore

SCOUT = "sub-01/anat/sub-01_acq-scout_T1w.nii.gz"


@pytest.mark.parametrize(("text", "ignored"), [
    ("*_acq-scout_T1w.nii.gz", True), ("sub-01/", True), ("/sub-01", True), ("anat/", True),
    ("**/anat/*scout*", True), ("sub-01/**", True), ("sub-*/anat/*.nii.gz", True),
    ("sub-01/anat/sub-0[1-3]_acq-scout_T1w.nii.g?", True), ("sub-[!0]1", False),
    ("sub-0[!2]", True), ("# comment\n\n*scout*", True), ("*scout*\r\n", True),
    ("*scout*\n!sub-01_*", False), ("sub-01/\n!*scout*", True),
    ("*.nii", False), ("sub-02/", False), ("/anat", False), ("sub-01/*.nii.gz", False),
    ("acq-scout", False), ("T1w.nii.gz/", False), ("", False), ("!", False), ("[z-a]", False),
])
def test_patterns(tmp_path: Path, text: str, ignored: bool) -> None:
    path = tmp_path / SCOUT
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    (tmp_path / ".bidsignore").write_bytes(text.encode())
    assert BidsIgnore(tmp_path).ignores(path) is ignored


def test_without_the_file_nothing_is_ignored(tmp_path: Path) -> None:
    assert not BidsIgnore(tmp_path).ignores(tmp_path / SCOUT)
