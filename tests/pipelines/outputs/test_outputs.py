"""Names, dataset files and logs; and reading them back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.volume import Volume, write_mask, write_volume
from pipelines.outputs.collect import cohort_of, find_preprocessed
from pipelines.outputs.dataset import write_dataset_files
from pipelines.outputs.names import ScanPaths, node_name, sidecar
from pipelines.outputs.scanlog import ScanLog, failed_logs, read_log, write_log
from pipelines.outputs.sidecars import relative_uri
from pipelines.settings import MODALITIES


def paths(out: Path, subject: str = "01", modality: str = "T1w") -> ScanPaths:
    return ScanPaths(out, Path(f"sub-{subject}/ses-A/anat"), f"sub-{subject}_ses-A_run-1",
                     modality, 1)


def finish(scan: ScanPaths, site: str = "NYU") -> None:
    """Write what `find_preprocessed` looks for."""
    volume = Volume(np.ones((3, 3, 3)), np.eye(4), np.ones((3, 3, 3), bool))
    write_volume(scan.image("preproc", template=True), volume)
    write_mask(scan.mask(template=True), volume.mask, volume.affine)
    sidecar(scan.image("preproc", template=True)).write_text(json.dumps(
        {"Site": site, "SiteSource": "flag", "Covariates": {"age": 30, "group": "HC"}}))


def test_names_are_the_fields(tmp_path):
    scan, flair = paths(tmp_path), paths(tmp_path, modality="FLAIR")
    assert scan.image("preproc").relative_to(tmp_path).as_posix() == \
        "sub-01/ses-A/anat/sub-01_ses-A_run-1_desc-preproc_T1w.nii.gz"
    assert scan.mask(template=True).name == \
        "sub-01_ses-A_run-1_space-MNI152NLin2009aSym_res-1_desc-brain_mask.nii.gz"
    assert flair.mask().name != scan.mask().name  # two images of one session, two masks
    assert (scan.subject, scan.session, scan.scan_id) == ("01", "A", "sub-01_ses-A_run-1_T1w")
    assert scan.uri(scan.mask()) == f"bids::sub-01/ses-A/anat/{scan.mask().name}"


def test_finished_scans_are_found_and_filtered(tmp_path):
    for subject, site in (("01", "NYU"), ("02", "KKI"), ("1", "KKI")):
        finish(paths(tmp_path, subject), site)
    finish(paths(tmp_path, "01", "T2w"))
    found = find_preprocessed(tmp_path, 1, ("T1w",))
    assert cohort_of(found).sites == {"KKI": 2, "NYU": 1}
    assert found[0].scan.age == 30 and found[0].scan.covariates == {"group": "HC"}
    assert [i.scan.subject for i in find_preprocessed(tmp_path, 1, ("T1w",), ("1",))] == ["1"]
    assert find_preprocessed(tmp_path, 1, ("T1w",), (), ("B",)) == ()
    assert find_preprocessed(tmp_path, 2, ("T1w",)) == ()
    assert len(find_preprocessed(tmp_path, 1, ("T1w", "T2w"))) == 4


def test_a_heads_mask_is_made_when_it_is_asked_for(tmp_path):
    scan = paths(tmp_path)
    finish(scan)
    data, brain = np.zeros((20, 20, 20), np.float32), np.zeros((20, 20, 20), bool)
    data[2:16, 2:16, 2:16] = 100  # a head,
    data[5:8, 5:8, 2:8] = 0  # with a sinus that is open below,
    data[18:, 18:, 18:] = 100  # and something beside it
    brain[6:12, 6:12, 6:12] = True
    write_volume(scan.image("preproc", template=True), Volume(data, np.eye(4), brain))
    write_mask(scan.mask(template=True), brain, np.eye(4))
    for tissue in ("CSF", "GM", "WM"):
        write_volume(scan.probability(tissue, template=True), Volume(data / 100, np.eye(4)))
    (plain,) = find_preprocessed(tmp_path, 1, ("T1w",))
    assert not scan.mask(template=True, region="head").exists() and len(plain.scan.tissues) == 3
    (item,) = find_preprocessed(tmp_path, 1, ("T1w",), region="head")
    assert item.scan.mask == scan.mask(template=True, region="head") and not item.scan.tissues
    head = item.scan.read().mask
    assert head[2:16, 2:16, 2:16].all() and head.sum() == 14 ** 3
    made = item.scan.mask.stat().st_mtime_ns
    find_preprocessed(tmp_path, 1, ("T1w",), region="head")
    assert item.scan.mask.stat().st_mtime_ns == made


def test_half_of_a_scan_is_named(tmp_path):
    finish(paths(tmp_path))
    paths(tmp_path).mask(template=True).unlink()
    with pytest.raises(InputError, match="desc-brain_mask.nii.gz: is missing while its sidecar"):
        find_preprocessed(tmp_path, 1, ("T1w",))


def test_dataset_files_are_the_same_whoever_writes_them(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "Study", "License": "CC0"}')
    (raw / "participants.tsv").write_text("participant_id\nsub-01\n")
    given = {"fmriprep": tmp_path / "fmriprep"}
    write_dataset_files(out, raw, given, {"harmonized": "text"})
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    write_dataset_files(out, raw, given, {"harmonized": "text"})
    assert {p.name: p.read_bytes() for p in out.iterdir()} == first
    content = json.loads(first["dataset_description.json"])
    assert content["Name"] == "Harmonized MRI of: Study" and content["License"] == "CC0"
    assert content["DatasetLinks"] == {"fmriprep": "../fmriprep", "raw": "../raw"}
    write_dataset_files(out, None, {}, {})  # a group job without raw data
    again = json.loads((out / "dataset_description.json").read_text())
    assert again == content
    assert "desc-harmonized\ttext" in (out / "descriptions.tsv").read_text()


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_desc_of_a_name_is_described(tmp_path, modality):
    write_dataset_files(tmp_path, None, {}, {})
    lines = (tmp_path / "descriptions.tsv").read_text(encoding="utf-8").splitlines()
    described = {line.split("\t")[0] for line in lines}
    scan = paths(tmp_path, modality=modality)
    for file in (scan.image("preproc"), scan.mask(), scan.mask(region="head"), scan.probability("GM")):
        assert {part for part in file.name.split("_") if part.startswith("desc-")} <= described


def test_container_is_named_where_the_image_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMONIZER_CONTAINER", "docker")
    monkeypatch.setenv("HARMONIZER_CONTAINER_TAG", "harmonizer:0.1.0")
    write_dataset_files(tmp_path, None, {}, {})
    content = json.loads((tmp_path / "dataset_description.json").read_text())
    assert content["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": "harmonizer:0.1.0"}


def test_logs_come_back_and_failures_are_found(tmp_path):
    good = ScanLog("sub-01_T1w", "preprocess", "done", "A", warnings=("look",), seconds={"a": 1.0})
    write_log(tmp_path, good)
    write_log(tmp_path, ScanLog("sub-02_T1w", "preprocess", "failed", "B", "why"))
    write_log(tmp_path, ScanLog("sub-2_T1w", "preprocess", "failed", "B", "why"))
    assert read_log(tmp_path, "sub-01_T1w", "preprocess") == good
    assert read_log(tmp_path, "sub-01_T1w", "harmonize") is None
    assert [log.scan_id for log in failed_logs(tmp_path)] == ["sub-02_T1w", "sub-2_T1w"]
    assert [log.scan_id for log in failed_logs(tmp_path, ("2",))] == ["sub-2_T1w"]


def test_source_uri_inside_and_outside_of_the_dataset(tmp_path):
    assert relative_uri(tmp_path, tmp_path / "sub-01" / "x.nii.gz") == "bids:raw:sub-01/x.nii.gz"
    assert relative_uri(tmp_path / "raw", tmp_path / "x.nii.gz") == "x.nii.gz"


def test_source_uri_of_an_annexed_file_is_its_bids_path(tmp_path):
    raw = tmp_path / "raw"
    stored = raw / ".git" / "annex" / "objects" / "a.nii.gz"
    link = raw / "sub-01" / "sub-01_T1w.nii.gz"
    for folder in (stored.parent, link.parent):
        folder.mkdir(parents=True)
    stored.write_bytes(b"x")
    link.symlink_to(stored)
    (tmp_path / "other").symlink_to(raw)  # the same dataset under another name
    for root in (raw, tmp_path / "other"):
        assert relative_uri(root, link) == "bids:raw:sub-01/sub-01_T1w.nii.gz"


def test_every_legal_label_makes_a_node_name():
    from nipype import Workflow

    labels = ("sub-01_acq-a+b_T1w", "sub-01_acq-ab_T1w", "sub-01_acq-a_rec-b_T1w", "sub-+_T1w")
    names = {Workflow(node_name(label)).name for label in labels}
    assert len(names) == len(labels)
    assert all(re.fullmatch(r"\w+", name) for name in names)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_the_participants_table_is_copied_as_utf8(tmp_path, encoding):
    raw, text = tmp_path / "raw", "participant_id\tsite\nsub-01\tKöln\n"
    raw.mkdir()
    (raw / "participants.tsv").write_bytes(text.encode(encoding))
    write_dataset_files(tmp_path / "out", raw, {}, {})
    copied = (tmp_path / "out" / "participants.tsv").read_bytes()
    assert copied.decode("utf-8-sig") == text
