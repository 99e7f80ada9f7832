"""The table of `--exclude`: what is read, and what its errors tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonizer.errors import InputError, UsageError
from pipelines.cli import check_environment, parse
from pipelines.dataset.ratings import read_excluded


def table(folder: Path, *lines: str) -> Path:
    path = folder / "ratings.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_only_excluded_scans_are_returned_with_their_comments(tmp_path):
    path = table(tmp_path, "scan_id\trating\tcomment", "sub-2_T1w\texclude\tmoved; très flou",
                 "sub-1_T1w\tkeep\tn/a", "sub-3_T1w.nii.gz\texclude\tn/a", "sub-4_T1w\tunsure\tx")
    assert read_excluded(path) == {"sub-2_T1w": "moved; très flou", "sub-3_T1w": ""}
    assert read_excluded(table(tmp_path, "scan_id\trating")) == {}


@pytest.mark.parametrize(("lines", "words"), [
    (("scan\trating", "a\tkeep"), "expected a column 'scan_id', got scan, rating"),
    (("scan_id,rating", "a,keep"), "separated by tabs"),
    (("scan_id\tgrade", "a\tkeep"), "expected a column 'rating', got scan_id, grade"),
    (("scan_id\trating", "a\texlude"), "row 2 .a.: unknown rating 'exlude'. Did you mean 'excl"),
    (("scan_id\trating", "a\t"), "unknown rating ''"),
    (("scan_id\trating", "a\tkeep", "a\texclude"), "row 3: a is rated 'keep' and 'exclude'"),
    (("scan_id\trating\tcomment", "a\tkeep"), "row 2 has 2 cells where the header has 3"),
    (("",), "expected a column 'scan_id', got an empty file"),
])
def test_a_wrong_table_is_explained(tmp_path, lines, words):
    with pytest.raises(InputError, match=words):
        read_excluded(table(tmp_path, *lines))


def test_an_absent_table_is_refused_at_once(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "out").mkdir()
    settings = parse([str(tmp_path / "raw"), str(tmp_path / "out"), "group", "--exclude",
                      str(tmp_path / "none.tsv")])
    with pytest.raises(UsageError, match="--exclude .*none.tsv: no such file"):
        check_environment(settings)
