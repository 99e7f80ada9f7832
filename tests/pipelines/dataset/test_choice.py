"""Which images of a session are used, and how a filter file takes the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.choice import choose_images
from pipelines.dataset.index import collect
from pipelines.settings import Settings

ROOT = Path("/data")


def chosen(*names: str, named: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    images = [("T1w", ROOT / f"sub-01_{name}T1w.nii.gz") for name in names]
    found, findings = choose_images(images, {"t1w": named}, ROOT)
    return ([path.name.removeprefix("sub-01_").removesuffix("T1w.nii.gz") for _, path in found],
            [str(finding) for finding in findings])


@pytest.mark.parametrize(("names", "used"), [
    (["", "ce-gad_", "echo-1_", "echo-2_"], [""]),
    (["run-1_", "run-2_", "acq-a_", "rec-norm_"], ["run-1_", "run-2_", "acq-a_", "rec-norm_"]),
    (["run-1_", "ce-gad_run-2_"], ["run-1_"]),
    (["echo-10_", "echo-2_"], ["echo-2_"]),
    (["run-1_echo-1_", "run-1_echo-2_", "run-2_echo-1_"], ["run-1_echo-1_", "run-2_echo-1_"]),
    (["acq-me_echo-1_", "acq-me_echo-2_", "acq-rms_"], ["acq-rms_"]),
    (["", "part-mag_", "run-2_part-mag_"], ["", "run-2_part-mag_"]),
    (["ses-A_", "ses-B_ce-gad_"], ["ses-A_", "ses-B_ce-gad_"]),
    (["ce-gad_echo-1_", "ce-gad_echo-2_"], ["ce-gad_echo-1_"]),
])
def test_one_contrast_of_each_session_is_used(names: list[str], used: list[str]) -> None:
    found, messages = chosen(*names)
    assert found == used
    left = [name for name in names if name not in used]
    assert all(any(f"sub-01_{name}T1w" in text for text in messages) for name in left)


def test_images_with_contrast_agent_alone_are_used_with_a_warning() -> None:
    found, messages = chosen("ce-gad_")
    assert found == ["ce-gad_"] and len(messages) == 1 and '"ceagent": null' in messages[0]


@pytest.mark.parametrize(("named", "used"), [
    (("ceagent",), ["", "ce-gad_"]), (("echo",), ["", "echo-1_", "echo-2_"]),
    (("session",), [""]),
])
def test_a_filter_decides_about_the_entities_that_it_names(
    named: tuple[str, ...], used: list[str]
) -> None:
    assert chosen("", "ce-gad_", "echo-1_", "echo-2_", named=named)[0] == used


def test_the_filter_that_a_warning_shows_takes_the_images(make_tree: Any) -> None:
    names = [f"sub-01/anat/sub-01_{name}T1w.nii.gz"
             for name in ("", "ce-gad_", "echo-1_", "echo-2_")]
    root = make_tree(dict.fromkeys(names))
    options: dict[str, Any] = {"bids_dir": root, "output_dir": root.parent / "out",
                               "levels": ["participant"], "site": "A"}
    collection = collect(Settings(**options))
    assert [record.scan_id for record in collection.records] == ["sub-01_T1w"]
    shown = [finding.remedy for finding in collection.findings]
    assert len(shown) == 2
    for remedy, expected in zip(shown, (
            {"sub-01_T1w", "sub-01_ce-gad_T1w"},
            {"sub-01_T1w", "sub-01_echo-1_T1w", "sub-01_echo-2_T1w"})):
        query = json.loads(remedy[remedy.index("{"):].rstrip("."))
        (root.parent / "filter.json").write_text(json.dumps(query))
        found = collect(Settings(**options, bids_filter_file=root.parent / "filter.json"))
        assert {record.scan_id for record in found.records} == expected
