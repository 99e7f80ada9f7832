"""The exported dataset: names, sidecars, tables, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonizer.errors import UsageError
from harmonizer.files import read_json, write_json
from pipelines.dataset.tables import Tables
from pipelines.outputs.raw_dataset import (
    exported_name,
    exported_sidecar,
    prepare_folder,
    raw_folder,
    write_description,
    write_tables,
)


@pytest.mark.parametrize(("stem", "names", "expected"), [
    ("sub-01", "rec", "sub-01_rec-toA_T1w.nii.gz"),
    ("sub-01", "original", "sub-01_T1w.nii.gz"),
    ("sub-01_ses-2_acq-highres_ce-gd_run-02", "rec",
     "sub-01_ses-2_acq-highres_ce-gd_rec-toA_run-02_T1w.nii.gz"),
    ("sub-01_rec-norm_run-1", "rec", "sub-01_rec-normtoA_run-1_T1w.nii.gz"),
    ("sub-01_rec-norm_run-1", "original", "sub-01_rec-norm_run-1_T1w.nii.gz"),
    ("sub-01_echo-1_part-mag", "rec", "sub-01_rec-toA_echo-1_part-mag_T1w.nii.gz"),
    ("sub-a+b", "rec", "sub-a+b_rec-toA_T1w.nii.gz"),
])
def test_names_keep_the_order_of_entities(stem: str, names: str, expected: str) -> None:
    assert exported_name(stem, "T1w", "toA", names) == expected


def test_the_sidecar_has_the_scan_and_the_harmonization() -> None:
    harmonized = {
        "HarmonizationMethod": "tissue_matching", "Target": "NYU", "ModelSHA256": "ab",
        "SkullStripped": True, "IntensityMap": {"Type": "x"}, "SpatialReference": "y",
        "AnatomyGuard": {"AnatomyHeld": False},
    }
    made = exported_sidecar({"EchoTime": 0.003, "Description": "a scan"}, harmonized,
                            ["bids:harmonizer:a"], "cd")
    assert made["EchoTime"] == 0.003 and made["SkullStripped"] is True
    assert made["Description"].startswith("Harmonized image (tissue_matching to NYU)")
    assert (made["ModelSHA256"], made["ImageSHA256"]) == ("ab", "cd")
    assert made["AnatomyGuard"] == {"AnatomyHeld": False}
    assert made["Sources"] == ["bids:harmonizer:a"]
    assert not {"IntensityMap", "SpatialReference"} & set(made)


IMAGE = Path("sub-01/anat/sub-01_rec-toA_T1w.nii.gz")


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UsageError, match="holds files that no export wrote"):
        prepare_folder(tmp_path, [IMAGE])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]
    with pytest.raises(UsageError, match="expected a folder, got a file"):
        prepare_folder(tmp_path / "thesis.doc", [IMAGE])


def test_a_participant_who_withdrew_does_not_stay_unseen(tmp_path: Path) -> None:
    prepare_folder(tmp_path, [IMAGE])
    for name in ("01", "02"):
        path = tmp_path / str(IMAGE).replace("01", name)
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "dataset_description.json").touch()
    with pytest.raises(UsageError, match=r"1 images that this run does not export.*sub-02_rec"):
        prepare_folder(tmp_path, [IMAGE])
    assert (tmp_path / "dataset_description.json").is_file()


def test_an_export_under_way_is_no_dataset(tmp_path: Path) -> None:
    prepare_folder(tmp_path, [IMAGE])
    write_description(tmp_path, tmp_path / "out", None)
    assert read_json(tmp_path / "dataset_description.json")["DatasetType"] == "raw"
    prepare_folder(tmp_path, [IMAGE])
    assert not (tmp_path / "dataset_description.json").exists()


def test_tables_have_the_rows_of_what_is_exported(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "exported"
    (raw / "sub-02").mkdir(parents=True)
    (raw / "participants.tsv").write_text(
        "age\tparticipant_id\tsite\n30\tsub-01\tNYU\n\tsub-02\tKKI\n50\tsub-03\tKKI\n")
    (raw / "participants.json").write_text("{}\n")
    (raw / "sub-02" / "sub-02_sessions.tsv").write_text(
        "session_id\tage\nses-A\t40\nses-B\t41\nses-C\t\n")
    without = write_tables(out, Tables(raw), {"02": {"A", "C"}, "03": set(), "04": set()})
    assert without == ["04"]
    assert (out / "participants.tsv").read_text() == (
        "participant_id\tage\tsite\nsub-02\tn/a\tKKI\nsub-03\t50\tKKI\nsub-04\tn/a\tn/a\n")
    assert (out / "sub-02" / "sub-02_sessions.tsv").read_text() == (
        "session_id\tage\nses-A\t40\nses-C\tn/a\n")
    assert (out / "participants.json").read_text() == "{}\n"


def test_the_raw_dataset_is_found_from_the_output(tmp_path: Path) -> None:
    out, raw = tmp_path / "out", tmp_path / "my raw"
    assert raw_folder(out) is None
    for link in ("../my raw", raw.as_uri()):
        write_json(out / "dataset_description.json", {"DatasetLinks": {"raw": link}})
        raw.mkdir(exist_ok=True)
        assert raw_folder(out) == raw
    raw.rmdir()
    assert raw_folder(out) is None
