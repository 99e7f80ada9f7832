"""Which of the scans in OUTPUT_DIR a run uses, and what is said about the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.volume import Volume, write_mask, write_volume
from pipelines.dataset.filters import fits_query
from pipelines.dataset.records import ScanRecord
from pipelines.outputs.names import ScanPaths, sidecar
from pipelines.outputs.selection import Selection, update_scan_facts
from pipelines.settings import Settings


class Study:
    """A raw dataset of four scans, all of them preprocessed in an output folder."""

    STEMS = ("sub-01", "sub-01_ce-gad", "sub-02", "sub-03")

    def __init__(self, root: Path) -> None:
        self.raw, self.out = root / "raw", root / "out"
        for stem in self.STEMS:
            path = self.raw / stem[:6] / "anat" / f"{stem}_T1w.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"an image")
            self.preprocess(stem)

    def paths(self, stem: str) -> ScanPaths:
        return ScanPaths(self.out, Path(stem[:6], "anat"), stem, "T1w", 1)

    def preprocess(self, stem: str) -> None:
        paths, volume = self.paths(stem), Volume(np.ones((3, 3, 3)), np.eye(4),
                                                 np.ones((3, 3, 3), bool))
        write_volume(paths.image("preproc", template=True), volume)
        write_mask(paths.mask(template=True), volume.mask, volume.affine)
        sidecar(paths.image("preproc", template=True)).write_text(json.dumps(
            {"Site": "A", "SiteSource": "test", "Covariates": {}, "ImageSHA256": "x"}))

    def record(self, stem: str, site: str = "A", **covariates: Any) -> ScanRecord:
        path = self.raw / stem[:6] / "anat" / f"{stem}_T1w.nii.gz"
        return ScanRecord(f"{stem}_T1w", stem, stem[4:6], None, "T1w", path, site, "participants",
                          covariates=covariates)

    def select(self, stems: Sequence[str], refused: Sequence[str] = (), **flags: Any) -> Selection:
        settings = Settings(self.raw, self.out, ["participant", "group"], **flags)
        return Selection.of(settings, [self.record(stem) for stem in stems], refused)

    def withdraw(self, stem: str) -> None:
        """The participant's folder leaves the raw dataset."""
        for path in sorted((self.raw / stem).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (self.raw / stem).rmdir()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def used(selection: Selection) -> list[str]:
    return [item.scan_id.removesuffix("_T1w") for item in selection.find()]


def test_a_scan_that_a_filter_excludes_is_left_out_although_it_is_preprocessed(study):
    selection = study.select(["sub-01", "sub-02", "sub-03"])
    assert used(selection) == ["sub-01", "sub-02", "sub-03"]
    assert selection.cohort("T1w").sites == {"A": 3}
    (line,) = selection.unselected_lines()
    assert "1 preprocessed scan in" in line and "sub-01_ce-gad_T1w" in line
    assert "does not select" in line and "change the labels or the filter" in line


def rate(study: Study, text: str) -> Path:
    path = study.raw.with_name("ratings.tsv")
    path.write_text(text)
    return path


def test_rated_scans_leave_model_and_statistics_and_nothing_else(study):
    table = rate(study, "scan_id\trating\tcomment\nsub-01_T1w\texclude\tmoved a lot\n"
                        "sub-02_T1w\tunsure\tn/a\nsub-03_T1w\texclude\tn/a\n")
    selection = study.select(["sub-01", "sub-02"], exclude=table)
    assert selection.excluded == {"sub-01_T1w": "moved a lot"}  # sub-03 is not of this run
    assert [item.scan_id for item in selection.find_included()] == ["sub-02_T1w"]
    assert selection.included_cohort("T1w").sites == {"A": 1}
    assert used(selection) == ["sub-01", "sub-02"]


def test_a_rated_scan_that_does_not_exist_is_named_with_a_similar_one(study):
    table = rate(study, "scan_id\trating\nsub-02_T1\texclude\n")
    with pytest.raises(InputError, match="no scan 'sub-02_T1'.*Did you mean 'sub-02_T1w'"):
        _ = study.select(["sub-01", "sub-02"], exclude=table).excluded


def test_a_withdrawn_participant_is_left_out_until_asked_for(study):
    study.withdraw("sub-03")
    stems = ["sub-01", "sub-01_ce-gad", "sub-02"]
    selection = study.select(stems)
    assert used(selection) == stems
    (line,) = selection.unselected_lines()
    assert "sub-03_T1w" in line and "--include-existing" in line
    assert "delete sub-03, sub-03.html and logs/scans/sub-03_*" in line
    assert not selection.concerns("sub-03_T1w")  # nor are its failures reported
    asked = study.select(stems, include_existing=True)
    assert used(asked) == [*stems, "sub-03"] and asked.unselected_lines() == ()
    assert asked.cohort("T1w").subjects == ("01", "02", "03")


def test_files_that_other_scans_share_a_folder_with_are_not_named_for_deletion(study):
    (study.raw / "sub-01/anat/sub-01_ce-gad_T1w.nii.gz").unlink()
    (line,) = study.select(["sub-01", "sub-02", "sub-03"]).unselected_lines()
    assert "sub-01_ce-gad_T1w" in line and "delete their files" in line


def test_what_is_asked_for_by_include_existing_still_fits_labels_and_filter(study, tmp_path):
    study.withdraw("sub-03")
    asked = {"include_existing": True}
    assert used(study.select(["sub-01"], participant_label=["01"], **asked)) == ["sub-01"]
    (tmp_path / "f.json").write_text('{"t1w": {"ceagent": "*"}}')
    assert used(study.select(["sub-01_ce-gad"], bids_filter_file=tmp_path / "f.json", **asked)) \
        == ["sub-01_ce-gad"]


def test_a_link_to_an_image_that_was_not_fetched_is_an_image(study):
    image = study.raw / "sub-03/anat/sub-03_T1w.nii.gz"
    image.unlink()
    image.symlink_to("../../.git/annex/objects/gone")
    (line,) = study.select(["sub-01", "sub-01_ce-gad", "sub-02"], include_existing=True) \
        .unselected_lines()
    assert "sub-03_T1w" in line and "does not select" in line


def test_a_refused_image_is_not_used_although_an_earlier_one_was_preprocessed(study):
    selection = study.select(["sub-01", "sub-02"], ["sub-03_T1w"])
    assert used(selection) == ["sub-01", "sub-02"] and selection.concerns("sub-03_T1w")
    assert not any("sub-03" in line for line in selection.unselected_lines())
    assert used(study.select([], ["sub-03_T1w"])) == []
    assert used(selection.without(["sub-02_T1w"])) == ["sub-01"]


def test_without_raw_data_labels_and_filter_choose_in_the_output_folder(study, tmp_path):
    assert used(study.select([])) == ["sub-01", "sub-01_ce-gad", "sub-02", "sub-03"]
    assert used(study.select([], participant_label=["02", "03"])) == ["sub-02", "sub-03"]
    (tmp_path / "f.json").write_text('{"t1w": {"ce": null}}')
    filtered = study.select([], bids_filter_file=tmp_path / "f.json")
    assert used(filtered) == ["sub-01", "sub-02", "sub-03"]
    assert [p.scan_id for p in filtered.unselected()] == ["sub-01_ce-gad_T1w"]


@pytest.mark.parametrize(("query", "stem", "fits"), [
    ({}, "sub-01", True), ({"session": "A"}, "sub-01_ses-A", True),
    ({"session": "A"}, "sub-01", False), ({"session": None}, "sub-01_ses-A", False),
    ({"session": "*"}, "sub-01_ses-B", True), ({"session": "*"}, "sub-01", False),
    ({"run": 1}, "sub-01_run-01", True), ({"run": [2, 3]}, "sub-01_run-1", False),
    ({"subject": "1"}, "sub-01", False), ({"acquisition": ["a", "b"]}, "sub-01_acq-b", True),
    ({"suffix": "T1w", "ceagent": None}, "sub-01", True),
    ({"acquisition": [None, "b"]}, "sub-01", True),
    ({"acquisition": [None, "b"]}, "sub-01_acq-b", True),
    ({"acquisition": [None, "b"]}, "sub-01_acq-c", False),
])
def test_a_query_is_answered_by_the_name_as_pybids_answers_it(query, stem, fits):
    assert fits_query(query, stem) is fits


def test_sites_and_covariates_are_brought_up_to_date(study):
    records = [study.record("sub-01"), study.record("sub-02", "B"), study.record("sub-03", age=7.0)]
    settings = Settings(study.raw, study.out, ["group"])
    (change,) = update_scan_facts(Selection.of(settings, records))
    assert str(change) == "sub-02_T1w A -> B (participants)"
    scans = {item.scan.subject: item.scan for item in Selection.of(settings, records).find()}
    assert (scans["02"].site, scans["03"].age) == ("B", 7.0)
    assert update_scan_facts(Selection.of(settings, records)) == ()
