"""Errors of the BIDS validator: which stop a run, and how they are reported."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harmonizer.errors import InputError
from pipelines.dataset import checks
from pipelines.dataset.records import ScanRecord

GOOD: dict[str, Any] = {
    "README": "A dataset for tests. " * 10,
    "participants.tsv": "participant_id\tsite\nsub-01\tNYU\n",
    "sub-01/anat/sub-01_T1w.nii.gz": None,
}
needs_validator = pytest.mark.skipif(
    checks.validator_path() is None, reason="bids-validator-deno is not installed"
)


IMAGE = "sub-01/anat/sub-01_T1w.nii.gz"


def looked_at(root: Path, *images: str, **options: Any) -> list[str]:
    """Warnings about a dataset of which these images and its participants.tsv are read."""
    paths = [root / name for name in images or (IMAGE,)]
    return [str(f) for f in checks.require_valid(root, paths, [root / "participants.tsv"],
                                                 **options)]


@needs_validator
def test_a_valid_dataset_passes(make_tree: Any) -> None:
    assert looked_at(make_tree(GOOD)) == []


@needs_validator
def test_a_selected_image_with_an_invalid_name_is_refused_with_the_reason(make_tree: Any) -> None:
    name = "sub-01/anat/sub-01_foo-1_T1w.nii.gz"
    root = make_tree({**GOOD, name: None})
    with pytest.raises(InputError, match=r"BIDS errors:(.|\n)*foo-1(.|\n)*--skip-bids-val"):
        looked_at(root, name)
    (warning,) = looked_at(root)  # the same dataset, the image not selected
    assert "in files that this run does not read" in warning and "foo-1" in warning


@needs_validator
def test_what_the_app_meets_by_itself_or_does_not_read_is_a_warning(make_tree: Any) -> None:
    bold = "sub-02/func/sub-02_task-rest_bold.nii.gz"
    root = make_tree({**GOOD, "sub-02/anat/sub-02_T1w.nii.gz": (4, 4, 4, 1),
                      "sub-03/anat/sub-03_T1w.nii.gz": b"", bold: (3, 3, 3, 4)})
    link = root / "sub-04/anat/sub-04_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/none.nii.gz")
    names = ["sub-02/anat/sub-02_T1w.nii.gz", "sub-03/anat/sub-03_T1w.nii.gz"]
    elsewhere, handled = looked_at(root, IMAGE, *names)
    assert "do not read" not in handled and "T1W_FILE_WITH_TOO_MANY_DIMENSIONS" in handled
    assert "EMPTY_FILE" in handled and "PARTICIPANT_ID_MISMATCH" in handled
    assert bold in elsewhere and "sub-04" in elsewhere


def test_errors_of_the_sidecars_of_selected_images_count(make_tree: Any,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(GOOD)
    for location, counts in (("/T1w.json", True), ("/sub-01/anat/sub-01_T1w.json", True),
                             ("/sub-02/anat/sub-02_T1w.json", False), ("/bold.json", False),
                             ("/participants.tsv", True), ("/sub-02/sub-02_scans.tsv", False),
                             ("/dataset_description.json", True), ("", True)):
        issue = checks.Issue("ODD", location, f"ODD: {location}")
        monkeypatch.setattr(checks, "validate_bids", lambda root, issue=issue: [issue])
        if counts:
            with pytest.raises(InputError, match="1 BIDS error:"):
                looked_at(root)
        else:
            assert len(looked_at(root)) == 1


def test_rows_of_sessions_are_no_error_where_they_are_read(make_tree: Any,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    issue = checks.Issue("TSV_INDEX_VALUE_NOT_UNIQUE", "/participants.tsv", "twice")
    monkeypatch.setattr(checks, "validate_bids", lambda root: [issue])
    root = make_tree(GOOD)
    assert len(looked_at(root, session_rows=True)) == 1
    with pytest.raises(InputError, match="twice"):
        looked_at(root)


def answer(stdout: str) -> Any:
    return lambda *args, **kwargs: subprocess.CompletedProcess(args, 16, stdout, "")


def test_many_errors_are_counted_and_few_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    issues = [{"code": f"E{n}", "location": "/participants.tsv", "severity": "error"}
              for n in range(9)]
    issues += [{"code": "W", "location": "/w", "severity": "warning"}]
    monkeypatch.setattr(checks, "validator_path", lambda: "/validator")
    monkeypatch.setattr(subprocess, "run", answer(json.dumps({"issues": {"issues": issues}})))
    with pytest.raises(InputError, match="9 BIDS errors") as caught:
        looked_at(Path("/data"))
    text = str(caught.value)
    assert [f"E{n}: /participants.tsv" in text for n in range(9)] == [True] * 5 + [False] * 4
    assert "and 4 more" in text and "W" not in text


def test_a_validator_without_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "validator_path", lambda: "/validator")
    monkeypatch.setattr(subprocess, "run", answer("Segmentation fault"))
    with pytest.raises(InputError, match="validator failed.*--skip-bids-validation"):
        checks.validate_bids(Path("/data"))
    (warning,) = looked_at(Path("/data"))
    assert "validator failed" in warning and "continues without validation" in warning


def test_without_a_validator_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "validator_path", lambda: None)
    assert checks.validate_bids(Path("/data")) == []


def test_images_that_differ_in_one_voxel_are_not_the_same_file(tmp_path: Path) -> None:
    size = 8 * checks.SAMPLE_BYTES  # an image without compression, air at its ends and its middle
    records = []
    for name in ("one", "two", "three"):
        content = bytearray(size)
        content[size // 4] = name == "two"
        path = tmp_path / f"{name}.nii"
        path.write_bytes(content)
        records.append(ScanRecord(name, name, name, None, "T1w", path, "A", "test"))
    found = [str(finding) for finding in checks.same_content(records)]
    assert len(found) == 1 and "one.nii: is the same file as three." in found[0]
