"""A study on disk: valid BIDS, complete truth, one seed one set of bytes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonizer.errors import UsageError
from harmonizer.files import sha256_of
from harmonizer.phantom import Study, truth_folder, write_dataset
from harmonizer.phantom.__main__ import main

SMALL = {"subjects": 1, "scanners": 2, "voxel_mm": 4.0, "seed": 5}


@pytest.fixture(scope="module")
def traveling(tmp_path_factory) -> Study:
    return write_dataset(tmp_path_factory.mktemp("study") / "raw", **SMALL)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Study:
    return write_dataset(
        tmp_path_factory.mktemp("study") / "raw", subjects=1, scanners=["dogwood", "elm"],
        modalities=("T1w", "FLAIR"), voxel_mm=6.0, design="mixed", runs=2,
        ages={"dogwood": (20, 30), "elm": (70, 80)},
    )


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha256_of(p) for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("study", ["traveling", "mixed"])
def test_the_validator_finds_no_error(study, request):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    folder = request.getfixturevalue(study).folder
    done = subprocess.run(
        [validator, folder, "--format", "json"], capture_output=True, text=True, timeout=120
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
    assert done.returncode == 0


@pytest.mark.parametrize("study", ["traveling", "mixed"])
def test_the_truth_is_complete_and_on_the_grid_of_its_scan(study, request):
    study = request.getfixturevalue(study)
    rows = _table(study.truth / "truth.tsv")
    scans = sorted(str(p.relative_to(study.folder)) for p in study.folder.rglob("*.nii.gz"))
    expected = sorted((scan, s.name) for scan in scans for s in study.scanners)
    assert sorted((row["scan"], row["target_site"]) for row in rows) == expected
    for row in rows:
        scan = nib.load(study.folder / row["scan"])
        for key in ("image", "mask", "labels", "bias"):
            image = nib.load(study.truth / row[key])
            assert image.shape == scan.shape
            assert image.affine == pytest.approx(scan.affine, abs=1e-5)
    images = {row["image"] for row in rows}
    assert len(images) == len(rows), "every row has an image of its own"


def test_the_truth_explains_the_scan(traveling):
    """scan ~ bias x (image on its own scanner), up to noise; the foreign image fits less."""
    for row in _table(traveling.truth / "truth.tsv"):
        scan = nib.load(traveling.folder / row["scan"]).get_fdata()
        image, bias, mask = (
            nib.load(traveling.truth / row[key]).get_fdata() for key in ("image", "bias", "mask")
        )
        brain = mask > 0
        error = np.abs(scan - image * bias)[brain].mean() / scan[brain].mean()
        if row["source_site"] == row["target_site"]:
            assert 0.005 < error < 0.06
        else:
            assert error > 0.5, "gains differ between scanners"


def test_images_are_int16_with_a_slope_and_both_codes(traveling):
    for path in traveling.folder.rglob("*.nii.gz"):
        image = nib.load(path)
        assert image.get_data_dtype() == np.int16
        assert image.dataobj.slope > 0 and image.dataobj.slope != 1
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
        assert image.get_qform() == pytest.approx(image.get_sform(), abs=1e-4)
        assert np.asarray(image.dataobj).min() >= 0


def test_travelling_people_have_their_sites_in_sessions(traveling):
    assert [row["site"] for row in _table(traveling.folder / "participants.tsv")] == ["n/a"]
    rows = _table(traveling.folder / "sub-01" / "sub-01_sessions.tsv")
    assert rows == [{"session_id": "ses-aspen", "site": "aspen"},
                    {"session_id": "ses-birch", "site": "birch"}]
    sidecar = json.loads(
        next(traveling.folder.rglob("*ses-birch_T1w.json")).read_text(encoding="utf-8")
    )
    assert sidecar["MagneticFieldStrength"] == 1.5
    assert sidecar["Manufacturer"] == "Boreal Systems"
    assert sidecar["RepetitionTime"] == pytest.approx(0.011)
    assert sidecar["EchoTime"] == pytest.approx(0.0046)


def test_nested_people_have_their_site_in_participants_and_no_session(mixed):
    subjects = _table(mixed.folder / "participants.tsv")
    assert [row["site"] for row in subjects] == ["dogwood", "elm", "n/a"]
    ages = [float(row["age"]) for row in subjects]
    assert 20 <= ages[0] <= 30 and 70 <= ages[1] <= 80 and 20 <= ages[2] <= 80
    names = sorted(p.name for p in (mixed.folder / "sub-01" / "anat").glob("*.nii.gz"))
    assert names == [f"sub-01_run-{run}_{m}.nii.gz" for run in (1, 2) for m in ("FLAIR", "T1w")]
    assert (mixed.folder / "sub-03" / "ses-elm" / "anat").is_dir()


def test_the_seed_is_in_the_description(traveling):
    content = json.loads((traveling.folder / "dataset_description.json").read_text())
    assert content["GeneratedBy"][0]["Name"] == "harmonizer.phantom"
    assert "seed 5" in content["GeneratedBy"][0]["Description"]


def test_one_seed_writes_one_set_of_bytes(traveling, tmp_path):
    again = write_dataset(tmp_path / "raw", **SMALL)
    assert _files(again.folder) == _files(traveling.folder)
    assert _files(again.truth) == _files(traveling.truth)


def test_another_seed_writes_other_images(traveling, tmp_path):
    other = write_dataset(tmp_path / "raw", **{**SMALL, "seed": 6, "scanners": 1}, truth=False)
    name = "sub-01/ses-aspen/anat/sub-01_ses-aspen_T1w.nii.gz"
    assert sha256_of(other.folder / name) != sha256_of(traveling.folder / name)
    assert not other.truth.exists()


def test_brain_only_images_are_zero_outside_the_brain(tmp_path):
    study = write_dataset(tmp_path / "raw", **{**SMALL, "scanners": 1}, skull=False)
    row = _table(study.truth / "truth.tsv")[0]
    image = nib.load(study.folder / row["scan"]).get_fdata()
    mask = nib.load(study.truth / row["mask"]).get_fdata() > 0
    assert image[~mask].max() == 0
    assert np.median(image[mask]) > 0.4 * study.scanners[0].gain


def test_the_command_writes_and_says_where(tmp_path, capsys):
    out = tmp_path / "demo"
    words = [str(out), "--subjects", "1", "--scanners", "1", "--voxel-mm", "6", "--seed", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "sub-01" in printed and str(truth_folder(out)) in printed
    assert main(words) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(("wrong", "message"), [
    ({"subjects": 0}, "at least one subject"),
    ({"seed": -1}, "seed of 0 or more"),
    ({"scanners": 9}, "expected 1 to 4 preset scanners, got 9"),
    ({"scanners": ["oak"]}, "no scanner is called 'oak'"),
    ({"scanners": ["elm", "elm"]}, "a name of its own"),
    ({"scanners": []}, "at least one scanner"),
    ({"modalities": ("T1",)}, "modalities are T1w, T2w, FLAIR, PDw; got T1"),
    ({"modalities": ()}, "got none"),
    ({"design": "crossed"}, "'crossed' is unknown"),
    ({"design": "nested", "ages": {"aspen": (20, 30)}}, "age range was given for site 'birch'"),
])
def test_impossible_studies_are_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        write_dataset(tmp_path / "raw", **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_truth_that_is_there_already_is_not_overwritten(tmp_path):
    (tmp_path / "raw-truth").mkdir()
    (tmp_path / "raw-truth" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="raw-truth exists and is not an empty folder"):
        write_dataset(tmp_path / "raw", **SMALL)
    assert not (tmp_path / "raw").exists()


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match="is not a writable folder"):
        write_dataset(tmp_path / "file" / "raw", **SMALL)
