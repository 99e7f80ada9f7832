"""The order of a run: what is checked, said and brought up to date before its first stage."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from harmonizer.errors import UsageError
from pipelines.outputs.names import sidecar
from pipelines.outputs.scanlog import ScanLog, write_log
from pipelines.outputs.selection import Selection
from pipelines.settings import Settings
from pipelines.stages import run as module
from pipelines.stages.fit import fit
from tests.pipelines.outputs.test_selection import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Stage -> the scans that it was given; the stages themselves do nothing."""
    seen: dict[str, list[str]] = {}

    def stand_in(name: str):
        def stage(settings: Settings, selection: Selection):
            seen[name] = sorted(selection.selected_ids)
            return (), [f"{name} done"]

        return stage

    monkeypatch.setattr(module, "STAGES", {name: stand_in(name) for name in module.STAGES})
    monkeypatch.setattr(module, "_write_methods", lambda settings, selection: None)
    return seen


def group(study: Study, **flags) -> Settings:
    return Settings(study.raw, study.out, ["group"], backend="histogram_matching", **flags)


def site_in_output(study: Study, stem: str) -> str:
    path = sidecar(study.paths(stem).image("preproc", template=True))
    return json.loads(path.read_text())["Site"]


def test_group_alone_runs_its_stages_on_the_selection_with_todays_sites(study, used, caplog):
    records = (study.record("sub-01"), study.record("sub-02", "B"))
    with caplog.at_level(logging.WARNING):
        result = module.run(group(study), records)
    assert list(used) == ["fit", "harmonize", "evaluate"] and result.exit_code == 0
    assert used["fit"] == ["sub-01_T1w", "sub-02_T1w"]
    assert site_in_output(study, "sub-02") == "B"
    assert "sub-02_T1w A -> B (participants)" in caplog.text
    assert "sub-01_ce-gad_T1w, sub-03_T1w" in caplog.text


def test_a_dry_run_changes_nothing(study, used):
    records = (study.record("sub-01"), study.record("sub-02", "B"))
    before = {p: p.read_bytes() for p in study.out.rglob("*") if p.is_file()}
    result = module.run(group(study, dry_run=True), records)
    assert used == {} and "2 scans of 2 participants" in "\n".join(result.summary_lines)
    assert {p: p.read_bytes() for p in study.out.rglob("*") if p.is_file()} == before


def test_group_leaves_out_and_names_scans_that_failed_or_were_never_preprocessed(
        study, used, caplog):
    for stem in ("sub-03", "sub-02"):
        sidecar(study.paths(stem).image("preproc", template=True)).unlink()
    write_log(study.out, ScanLog("sub-03_T1w", "preprocess", "failed", message="holds NaN"))
    write_log(study.out, ScanLog("sub-01_ce-gad_T1w", "preprocess", "failed", message="old"))
    records = (study.record("sub-01"), study.record("sub-02", "B"), study.record("sub-03"))
    with caplog.at_level(logging.WARNING):
        result = module.run(group(study), records)
    assert [(f.scan_id, f.message) for f in result.failures] == [("sub-03_T1w", "holds NaN")]
    assert result.exit_code == 1
    assert "1 selected scans are not preprocessed and are left out: sub-02_T1w" in caplog.text
    assert used["evaluate"] == ["sub-01_T1w", "sub-02_T1w"]


def test_a_job_of_one_participant_says_nothing_of_the_others(study, used, caplog):
    given = Settings(study.raw, study.out, ["participant"], participant_label=["01"])
    with caplog.at_level(logging.INFO):
        module.run(given, (study.record("sub-01"),))
    assert "left out" not in caplog.text


def test_a_model_is_not_overwritten_by_one_that_does_not_know_the_target(study):
    """The scans of the target failed in the preprocess stage of this very run."""
    study_records = [study.record("sub-01"), study.record("sub-02", "B"),
                     study.record("sub-03", "C")]
    selection = Selection.of(group(study, target=["B"]), study_records)
    module.update_scan_facts(selection)
    folder = study.out / "models/histogram_matching/T1w"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("the model so far")
    with pytest.raises(UsageError, match="--target B: no T1w scan is from that site"):
        fit(selection.settings, selection.without(["sub-02_T1w"]))
    assert (folder / "config.json").read_text() == "the model so far"
