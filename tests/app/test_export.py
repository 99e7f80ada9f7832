"""`--export raw`, `--reports-only` and `--boilerplate-only` on what one whole run has left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines.dataset.index import collect
from pipelines.outputs.raw_dataset import exported_name
from pipelines.outputs.selection import Selection
from pipelines.settings import Settings
from pipelines.stages.export import export
from pipelines.workflows.engine import WORK_FOLDERS
from tests.app.conftest import FullRun
from tests.app.running import QUICK, results, run_app

SCANS = [f"sub-{p}_ses-{s}_T1w" for p in ("01", "02") for s in ("aspen", "birch")]


def settings(full_run: FullRun, out: Path, **more: object) -> Settings:
    return Settings.from_dict({
        "bids_dir": str(full_run.raw), "output_dir": str(out), "levels": ["group"], "sloppy": True,
        "stages": ["export"], "export": "raw", "backend": QUICK, **more})


def selected(made: Settings) -> Selection:
    """What the run selects in BIDS_DIR."""
    return Selection.of(made, collect(made).records)


def names(folder: Path, pattern: str = "**/*.nii.gz") -> set[str]:
    return {path.name for path in folder.glob(pattern)}


def validator_errors(folder: Path) -> list[dict]:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([str(validator), "--json", str(folder)], capture_output=True, text=True)
    return [issue for issue in json.loads(done.stdout)["issues"]["issues"]
            if issue["severity"] == "error"]


@pytest.mark.parametrize("choice", ["rec", "original"])
def test_the_dataset_is_whole_and_valid(full_run: FullRun, copy: Path, choice: str) -> None:
    answer = run_app(full_run.raw, copy, "group", "--sloppy", "--stages", "export", "--export", "raw",
                     "--export-names", choice)
    assert answer.code == 0, answer.output
    assert "Exported: 4 of 4 scans" in answer.output
    folder = copy / "derivatives" / "raw-harmonized"
    assert validator_errors(folder) == []
    rec = "_rec-harmonized" if choice == "rec" else ""
    assert names(folder) == {scan.replace("_T1w", f"{rec}_T1w.nii.gz") for scan in SCANS}
    description = json.loads((folder / "dataset_description.json").read_text())
    assert description["DatasetType"] == "raw"
    roots = {"harmonizer": copy.resolve(), "raw": full_run.raw.resolve()}
    links = description["DatasetLinks"]
    assert (folder / links["harmonizer"]).resolve() == roots["harmonizer"]
    for image in folder.glob("sub-*/*/anat/*.nii.gz"):
        content = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
        assert content["EchoTime"] and content["ModelSHA256"] and content["Target"] == "birch"
        for uri in content["Sources"]:
            _, dataset, path = uri.split(":", 2)
            assert (roots[dataset] / path).is_file()
        source = roots["harmonizer"] / content["Sources"][0].split(":", 2)[2]
        assert image.read_bytes() == source.read_bytes()  # affine, type, scaling and voxels
        original = nib.load(roots["raw"] / content["Sources"][1].split(":", 2)[2])
        np.testing.assert_array_equal(nib.load(image).affine, original.affine)


def test_other_pipelines_find_the_images(full_run: FullRun, copy: Path) -> None:
    from bids import BIDSLayout

    made = settings(full_run, copy)
    failures, _ = export(made, selected(made))
    assert failures == ()
    layout = BIDSLayout(made.export_folder)  # validates names, as fMRIPrep does
    found = layout.get(suffix="T1w", extension=".nii.gz", reconstruction="harmonized")
    assert len(found) == 4 and sorted(layout.get_subjects()) == ["01", "02"]
    assert {f.get_metadata()["HarmonizationMethod"] for f in found} == {QUICK}


def test_again_copies_only_what_is_missing(full_run: FullRun, copy: Path) -> None:
    made = settings(full_run, copy)
    _, lines = export(made, selected(made))
    assert "(0 reused)" in lines[0]
    first, before = results(made.export_folder), {
        path: path.stat().st_mtime_ns for path in made.export_folder.glob("sub-*/*/anat/*")}
    broken = sorted(before)[-1]
    assert broken.name.endswith(".nii.gz")
    broken.write_bytes(broken.read_bytes()[:100])
    _, lines = export(made, selected(made))
    assert "(3 reused)" in lines[0]
    assert results(made.export_folder) == first
    pair = {broken, broken.with_name(broken.name.replace(".nii.gz", ".json"))}
    assert {p for p, when in before.items() if p.stat().st_mtime_ns != when} == pair
    assert not [path for path in made.export_folder.rglob(".tmp*")]


def test_a_scan_without_a_result_is_named_and_the_others_go_on(full_run: FullRun, copy: Path) -> None:
    for path in copy.glob("sub-02/ses-birch/anat/*desc-harmonized_T1w.*"):
        path.unlink()
    for path in copy.glob("sub-02/ses-aspen/anat/*_res-2_desc-preproc_T1w.json"):
        path.unlink()
    answer = run_app(full_run.raw, copy, "group", "--sloppy", "--stages", "export", "--export", "raw")
    assert answer.code == 1
    made = settings(full_run, copy)
    assert names(made.export_folder) == {
        exported_name(f"sub-01_ses-{s}", "T1w", "harmonized", "rec") for s in ("aspen", "birch")}
    assert validator_errors(made.export_folder) == []
    assert "sub-02_ses-birch_T1w failed in export: has no image desc-harmonized" in answer.output
    assert "sub-02_ses-aspen_T1w failed in export: is not preprocessed" in answer.output
    assert answer.output.splitlines()[-1].endswith("failed: sub-02.")
    table = (copy / "logs" / "export-harmonized.tsv").read_text().splitlines()
    assert len(table) == 5 and table[3].startswith("sub-02_ses-aspen_T1w\tn/a\tis not preprocessed")


def test_only_what_is_selected_is_exported(full_run: FullRun, copy: Path, tmp_path: Path) -> None:
    """A filter that excludes a scan which an earlier run harmonized keeps it out."""
    filters = tmp_path / "filter.json"
    filters.write_text('{"t1w": {"session": "aspen"}}')
    made = settings(full_run, copy, bids_filter_file=str(filters))
    export(made, selected(made))
    assert names(made.export_folder) == {
        f"sub-{p}_ses-aspen_rec-harmonized_T1w.nii.gz" for p in ("01", "02")}
    rows = (made.export_folder / "sub-01" / "sub-01_sessions.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["session_id", "ses-aspen"]


def test_without_the_raw_data_the_output_is_enough(full_run: FullRun, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "deep" / "down" / "out"
    out.parent.mkdir(parents=True)
    copy.rename(out)
    description = json.loads((out / "dataset_description.json").read_text())
    (out / "dataset_description.json").write_text(json.dumps(
        {**description, "DatasetLinks": {"raw": "../gone"}}))
    made = settings(full_run, out, bids_dir=str(tmp_path / "gone"))
    failures, _ = export(made, Selection.of(made, ()))
    assert failures == () and len(names(made.export_folder)) == 4
    assert validator_errors(made.export_folder) == []
    one = next(made.export_folder.glob("sub-01/*/anat/*.json"))
    assert json.loads(one.read_text())["Manufacturer"]


def test_a_flagged_image_is_named(full_run: FullRun, copy: Path) -> None:
    for path in copy.glob("sub-01/ses-aspen/anat/*desc-harmonized_T1w.json"):
        content = json.loads(path.read_text())
        guard = {**content["AnatomyGuard"], "AnatomyHeld": False}
        path.write_text(json.dumps({**content, "AnatomyGuard": guard}))
    made = settings(full_run, copy)
    _, lines = export(made, selected(made))
    flagged = [line for line in lines if "anatomy guard flags" in line]
    assert flagged and "sub-01_ses-aspen_T1w" in flagged[0]


@pytest.mark.parametrize("level", ["participant", "group"])
def test_reports_are_written_again(full_run: FullRun, copy: Path, level: str) -> None:
    for page in copy.glob("*.html"):
        page.unlink()
    before = results(copy)
    answer = run_app(full_run.raw, copy, level, "--sloppy", "--reports-only")
    assert answer.code == 0, answer.output
    pages = {path.name for path in copy.glob("*.html")}
    assert pages == {"sub-01.html", "sub-02.html"} | ({"group.html"} if level == "group" else set())
    assert results(copy) == before  # nothing else was touched
    for page in copy.glob("sub-*.html"):
        assert page.stat().st_size > 0.9 * (full_run.out / page.name).stat().st_size
    if level == "group":
        again = (copy / "group.html").read_text()
        for words in ("Is the site effect removed?", "birch", "sub-01_ses-aspen_T1w"):
            assert (words in again) == (words in (full_run.out / "group.html").read_text())


def test_the_methods_text_is_written_again(full_run: FullRun, copy: Path) -> None:
    path = copy / "logs" / "CITATION.md"
    before = path.read_text()
    path.unlink()
    answer = run_app(full_run.raw, copy, "participant", "group", "--sloppy", "--boilerplate-only")
    assert answer.code == 0 and path.read_text() == before
    empty = copy / "empty"
    empty.mkdir()
    assert run_app(full_run.raw, empty, "group", "--boilerplate-only").code == 65


def test_the_work_folder_holds_nothing_that_clean_workdir_would_leave(full_run: FullRun) -> None:
    found = {path.name for path in full_run.work.iterdir()}
    assert found and found <= set(WORK_FOLDERS)
