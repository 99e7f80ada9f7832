"""The BIDS validator as a door, and how its answer is told."""

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


@needs_validator
def test_a_valid_dataset_passes(make_tree: Any) -> None:
    checks.require_valid(make_tree(GOOD))


@needs_validator
def test_an_invalid_dataset_is_refused_with_the_reason(make_tree: Any) -> None:
    root = make_tree({**GOOD, "sub-01/anat/sub-01_T1weighted.nii.gz": None})
    with pytest.raises(InputError, match=r"BIDS errors:(.|\n)*T1weighted(.|\n)*--skip-bids-val"):
        checks.require_valid(root)


def answer(stdout: str) -> Any:
    return lambda *args, **kwargs: subprocess.CompletedProcess(args, 16, stdout, "")


def test_many_errors_are_counted_and_few_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    issues = [{"code": f"E{n}", "location": f"/f{n}", "severity": "error"} for n in range(9)]
    issues += [{"code": "W", "location": "/w", "severity": "warning"}]
    monkeypatch.setattr(checks, "validator_path", lambda: "/validator")
    monkeypatch.setattr(subprocess, "run", answer(json.dumps({"issues": {"issues": issues}})))
    with pytest.raises(InputError, match="9 BIDS errors") as caught:
        checks.require_valid(Path("/data"))
    text = str(caught.value)
    assert [f"E{n}: /f{n}" in text for n in range(9)] == [True] * 5 + [False] * 4
    assert "and 4 more" in text and "W" not in text


def test_a_validator_without_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "validator_path", lambda: "/validator")
    monkeypatch.setattr(subprocess, "run", answer("Segmentation fault"))
    with pytest.raises(InputError, match="gave no answer.*--skip-bids-validation"):
        checks.require_valid(Path("/data"))


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
