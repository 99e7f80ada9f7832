"""The whole app on a phantom: raw BIDS in, harmonized derivatives and reports out.

Quality on real images is not tested here (no data may be shipped); benchmarks/ measures it.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.app.running import command, results, run_app

SPACE = "space-MNI152NLin2009aSym_res-2"
SCANS = [f"sub-{p}_ses-{s}" for p in ("01", "02") for s in ("aspen", "birch")]


def anat(out: Path, stem: str) -> Path:
    return out.joinpath(*stem.split("_")[:2], "anat")


def raw_image(raw: Path, stem: str) -> Path:
    return anat(raw, stem) / f"{stem}_T1w.nii.gz"


def test_it_ends_well_and_says_what_it_did(full_run):
    assert full_run.answer.code == 0, full_run.answer.output
    for words in ("Preprocessed: 4 of 4 scans", "Harmonized (T1w): 4 of 4 scans to 'birch'",
                  "Anatomy guard: ", "group.html", "Exit code 0: all done."):
        assert words in full_run.answer.output
    assert "Traceback" not in full_run.answer.output


def test_every_file_and_no_other(full_run):
    expected = {".bidsignore", "README.md", "cohort.tsv", "dataset_description.json",
                "descriptions.tsv", "group_statistics.json", "group_statistics.tsv",
                "metrics.json", "metrics.tsv", "metrics_quantiles.json",
                "metrics_quantiles.tsv", "participants.json", "participants.tsv"}
    model = "models/histogram_matching/T1w/"
    expected |= {model + name for name in ("card.md", "cohort.json", "config.json", "history.tsv",
                                           "weights.safetensors", "targets/site-birch.safetensors")}
    for stem in SCANS:
        names = [f"{space}desc-{kind}" for space in ("", SPACE + "_")
                 for kind in ("preproc_T1w", "brain_mask", "harmonized_T1w")]
        folder = anat(Path(), stem).as_posix()
        expected |= {f"{folder}/{stem}_{n}{end}" for n in names for end in (".json", ".nii.gz")}
        expected |= {f"{folder}/{stem}_from-{a}_to-{b}_mode-image_xfm.txt" for a, b in (
            ("T1w", "MNI152NLin2009aSym"), ("MNI152NLin2009aSym", "T1w"))}
    found = {name for name in results(full_run.out) if "/figures/" not in name}
    assert found == expected
    assert {p.name for p in full_run.out.glob(
        "*.html")} == {"group.html", "sub-01.html", "sub-02.html"}
    assert not [p for p in full_run.out.rglob("*") if p.name.startswith(".tmp")]


def test_the_validator_finds_no_error(full_run):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([str(validator), "--json", str(full_run.out)],
                          capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert errors == [] and done.returncode == 0


def test_what_the_validator_does_not_check(full_run):
    content = json.loads((full_run.out / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "harmonizer"
    assert content["GeneratedBy"][0]["Version"]
    assert (full_run.out / content["DatasetLinks"]["raw"]).resolve() == full_run.raw.resolve()
    for path in full_run.out.glob("sub-*/*/anat/*.json"):
        for uri in json.loads(path.read_text())["Sources"]:
            root = full_run.raw if uri.startswith("bids:raw:") else full_run.out
            assert (root / uri.split(":", 2)[2]).is_file(), uri


@pytest.mark.parametrize("stem", SCANS)
def test_native_results_lie_on_the_source_grid_bit_for_bit(full_run, stem):
    source = nib.load(raw_image(full_run.raw, stem))
    for kind in ("preproc_T1w", "harmonized_T1w", "brain_mask"):
        image = nib.load(anat(full_run.out, stem) / f"{stem}_desc-{kind}.nii.gz")
        assert image.shape == source.shape
        np.testing.assert_array_equal(image.affine, source.affine)
        assert image.get_data_dtype() == (np.uint8 if kind == "brain_mask" else np.float32)


@pytest.mark.parametrize("stem", SCANS)
def test_harmonized_voxels_are_finite_positive_and_keep_head_and_zero(full_run, stem):
    folder = anat(full_run.out, stem)
    for space in ("", SPACE + "_"):
        before = nib.load(folder / f"{stem}_{space}desc-preproc_T1w.nii.gz").get_fdata()
        after = nib.load(folder / f"{stem}_{space}desc-harmonized_T1w.nii.gz").get_fdata()
        mask = nib.load(folder / f"{stem}_{space}desc-brain_mask.nii.gz").get_fdata() > 0
        assert np.isfinite(after).all()
        assert not ((after < 0) & (before >= 0)).any()
        np.testing.assert_array_equal(after[before == 0], 0)
        outside = ~mask & (before > 0)
        gains = after[outside] / before[outside]
        assert np.ptp(gains) < 1e-3 * gains.mean()
        assert len(np.unique(after[mask])) > 0.9 * len(np.unique(before[mask]))


def test_sites_come_closer(full_run):
    with open(full_run.out / "metrics.tsv", newline="") as stream:
        rows = [r for r in csv.DictReader(stream, delimiter="\t")
                if r["measure"] == "wasserstein_to_target" and r["scan"] != "n/a"
                and r["site"] == "aspen" and r["reference"] in ("brain", "n/a", "birch")]
    before = [float(r["value"]) for r in rows if r["stage"] == "before"]
    after = [float(r["value"]) for r in rows if r["stage"] == "after"]
    assert before and len(before) == len(after)
    assert np.mean(after) < 0.1 * np.mean(before)


def test_masks_cover_the_true_brain(full_run):
    for stem in SCANS:
        mask = nib.load(anat(full_run.out, stem) / f"{stem}_desc-brain_mask.nii.gz").get_fdata() > 0
        truth = nib.load(anat(full_run.truth, stem) / f"{stem}_desc-brainT1w_mask.nii.gz")
        truth = truth.get_fdata() > 0
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.88  # sloppy, 4 mm


def test_sidecar_says_where_from_and_how(full_run):
    path = anat(full_run.out, SCANS[0]) / f"{SCANS[0]}_{SPACE}_desc-harmonized_T1w.json"
    content = json.loads(path.read_text())
    assert content["HarmonizationMethod"] == "histogram_matching"
    assert (content["SourceSite"], content["Target"], content["TargetKind"]) == \
        ("aspen", "birch", "site")
    assert content["SkullStripped"] is False
    assert content["Manufacturer"] and content["MagneticFieldStrength"]
    assert len(content["IntensityMap"]["Before"]) == len(content["IntensityMap"]["After"]) > 50
    guard = content["AnatomyGuard"]
    assert guard["AnatomyHeld"] is (not guard["Reasons"]) and guard["LimitsFrom"]
    assert set(guard["Measures"]) >= {"ssim_structure", "gradient_agreement"}
    preproc = json.loads((path.parent / f"{SCANS[0]}_{SPACE}_desc-preproc_T1w.json").read_text())
    assert preproc["Site"] == "aspen" and "sessions.tsv" in preproc["SiteSource"]


def test_input_is_never_touched(full_run, study):
    assert not (study / "derivatives").exists()
    newest = max(p.stat().st_mtime for p in study.rglob("*"))
    assert newest < min(p.stat().st_mtime for p in full_run.out.rglob("*_mask.nii.gz"))


def test_second_run_reuses_everything(full_run, copy):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.nii.gz")}
    again = run_app(
    full_run.raw,
    copy,
    "participant",
    "--sloppy",
    "--nprocs",
    1,
    "-w",
    full_run.work,
    "--target",
    "birch",
     "--skip-bids-validation")
    assert again.code == 0, again.output
    assert "4 of 4 scans were preprocessed before" in again.output
    assert "4 of 4 scans were harmonized before" in again.output
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*.nii.gz")} == before


def test_group_works_from_the_output_alone(full_run, copy, tmp_path):
    model = (copy / "models/histogram_matching/T1w/config.json").read_bytes()
    again = run_app(tmp_path / "gone", copy, "group", "--sloppy", "-w", tmp_path / "work")
    assert again.code == 0, again.output
    assert (copy / "models/histogram_matching/T1w/config.json").read_bytes() == model
    assert "Group report" in again.output


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_bits_as_one_run(full_run, study, tmp_path):
    out, flags = tmp_path / "out", ("--sloppy", "--nprocs", 1, "--skip-bids-validation")
    jobs = [subprocess.Popen(command(study, out, "participant", "--stages", "preprocess",
                                     "--participant-label", p, "-w", tmp_path / p, *flags),
                             stderr=subprocess.PIPE, text=True) for p in ("01", "sub-02")]
    for job in jobs:
        _, output = job.communicate(timeout=600)
        assert job.returncode == 0, output
    for level, stage, *target in (
            ("group", "fit"), ("participant", "harmonize", "--target", "birch"),
            ("group", "evaluate")):
        answer = run_app(study, out, level, "--stages", stage, "-w", tmp_path / "w", *flags,
                         *target)
        assert answer.code == 0, answer.output
    assert "the target was site birch (2 scans)" in (out / "logs/CITATION.md").read_text()
    assert results(out) == {**results(full_run.out), "dataset_description.json":
                            results(out)["dataset_description.json"]}


def test_another_method_needs_another_desc(full_run, copy):
    shared = (
    full_run.raw,
    copy,
    "participant",
    "group",
    "--stages",
    "fit",
    "harmonize",
    "evaluate",
    "--sloppy",
    "--nprocs",
    1,
    "-w",
    full_run.work,
    "--target",
     "aspen")
    refused = run_app(*shared, "--backend", "moment_matching")
    assert refused.code == 2
    assert "made by histogram_matching to 'birch'" in refused.output and "--desc" in refused.output
    assert "Stage " not in refused.output  # before any work: the model is as it was
    allowed = run_app(*shared, "--backend", "tissue_matching", "--desc", "tissue", "--compare",
                      "--anatomy-change-maps", "all")
    assert allowed.code == 0, allowed.output
    for table in ("metrics.tsv", "group_statistics.tsv"):
        with open(copy / table, newline="") as stream:
            evaluated = {row["backend"] for row in csv.DictReader(stream, delimiter="\t")}
        assert {"tissue_matching", "histogram_matching"} <= evaluated
    assert len(list(copy.rglob("*desc-tissue_T1w.nii.gz"))) == 8
    assert len(list(copy.rglob("*desc-harmonized_T1w.nii.gz"))) == 8
    maps = sorted(copy.rglob("*_anatomychange.nii.gz"))
    assert [m.name.split("_desc-")[1] for m in maps].count("tissue_anatomychange.nii.gz") == 4
    notes = [Path(str(m).replace(".nii.gz", ".json")).read_text() for m in maps]
    assert len(notes) == 8 and all("averaged over 2.5 mm" in note for note in notes)
    assert 0 < np.abs(nib.load(maps[0]).get_fdata()).max() < 1
    assert "desc-tissue\t" in (copy / "descriptions.tsv").read_text()
    assert "birch: brighter or darker than aspen" in (copy / "group.html").read_text()


@pytest.mark.slow
def test_reference_image_as_target(full_run, copy):
    reference = raw_image(full_run.raw, SCANS[1])
    answer = run_app(
    full_run.raw,
    copy,
    "participant",
    "group",
    "--stages",
    "preprocess",
    "fit",
    "harmonize",
    "--sloppy",
    "--nprocs",
    1,
    "-w",
    full_run.work,
    "--target",
    reference,
    "--desc",
    "toRef",
    "--participant-label",
    "01",
     "--skip-bids-validation")
    assert answer.code == 0, answer.output
    path = anat(copy, SCANS[0]) / f"{SCANS[0]}_{SPACE}_desc-toRef_T1w"
    assert json.loads(path.with_suffix(".json").read_text())["TargetKind"] == "reference"
    folder = anat(copy, SCANS[1])
    mask = nib.load(folder / f"{SCANS[1]}_{SPACE}_desc-brain_mask.nii.gz").get_fdata() > 0
    wanted = nib.load(folder / f"{SCANS[1]}_{SPACE}_desc-preproc_T1w.nii.gz").get_fdata()[mask]
    got = nib.load(f"{path}.nii.gz").get_fdata()[
        nib.load(anat(copy, SCANS[0]) / f"{SCANS[0]}_{SPACE}_desc-brain_mask.nii.gz").get_fdata()
        > 0]
    np.testing.assert_allclose(np.quantile(got, [0.1, 0.5, 0.9]),
                               np.quantile(wanted, [0.1, 0.5, 0.9]), rtol=0.02)
    cards = list((copy / "models/histogram_matching/T1w/targets").glob("reference-*"))
    assert len(cards) == 1
    again = run_app(
    full_run.raw,
    copy,
    "participant",
    "--sloppy",
    "--nprocs",
    1,
    "-w",
    full_run.work,
    "--target",
    cards[0],
    "--desc",
    "toRef",
    "--stages",
     "harmonize")
    assert again.code == 0 and "4 of 4 scans to" in again.output, again.output


@pytest.mark.slow
def test_our_own_masks_are_reused(full_run, tmp_path):
    answer = run_app(full_run.raw, tmp_path / "out", "participant", "--stages", "preprocess",
                     "--sloppy", "--nprocs", 1, "-w", tmp_path / "w", "-d", f"ours={full_run.out}",
                     "--participant-label", "01", "--session-label", "birch",
                     "--skip-bids-validation")
    assert answer.code == 0, answer.output
    name = f"{SCANS[1]}_desc-brain_mask"
    made = anat(tmp_path / "out", SCANS[1]) / name
    given = anat(full_run.out, SCANS[1]) / name
    np.testing.assert_array_equal(nib.load(f"{made}.nii.gz").get_fdata(),
                                  nib.load(f"{given}.nii.gz").get_fdata())
    assert json.loads(made.with_suffix(".json").read_text())["QualityCheck"]["method"] \
        == "precomputed"
    links = json.loads((tmp_path / "out/dataset_description.json").read_text())["DatasetLinks"]
    assert "ours" in links


@pytest.mark.slow
def test_killed_run_leaves_nothing_broken_and_resumes(full_run, study, tmp_path):
    arguments = (study, tmp_path / "out", "participant", "--stages", "preprocess", "--sloppy",
                 "--nprocs", 1, "-w", tmp_path / "w", "--participant-label", "01",
                 "--skip-bids-validation")
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "w").rglob("affine.txt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        if not path.name.startswith(".tmp"):
            nib.load(path).get_fdata()
    again = run_app(*arguments)
    assert again.code == 0, again.output
    expected = {k: v for k, v in results(full_run.out).items()
                if k.startswith("sub-01/ses-") and "harmonized" not in k}
    found = {k: v for k, v in results(tmp_path / "out").items() if k.startswith("sub-01/ses-")}
    assert found == expected


def add_bad_person(raw: Path, label: str, data: np.ndarray | bytes) -> None:
    folder = raw / f"sub-{label}" / "ses-aspen" / "anat"
    folder.mkdir(parents=True)
    path = folder / f"sub-{label}_ses-aspen_T1w.nii.gz"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        nib.save(nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1])), path)
    shutil.copy(raw / "sub-01/sub-01_sessions.tsv", raw / f"sub-{label}/sub-{label}_sessions.tsv")


def test_bad_images_are_named_and_the_others_go_on(full_run, copy, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(full_run.raw, raw)
    noise = np.random.default_rng(0).normal(100, 10, (20, 20, 20)).astype(np.float32)
    nan = noise.copy()
    nan[3, 4, 5] = np.nan
    good = raw_image(raw, SCANS[0]).read_bytes()
    bad = {"nan": (nan, "1 NaN or infinite voxels"), "flat": (0 * noise + 7, "is constant"),
           "four": (np.stack([noise] * 3, -1), "4D"), "two": (noise[..., :1], "a slice"),
           "short": (good[:5000], "cannot be read"), "text": (b"hello", "cannot be opened"),
           "empty": (b"", "is an empty file")}
    for label, (data, _) in bad.items():
        add_bad_person(raw, label, data)
    answer = run_app(raw, copy, "participant", "group", "--stages", "preprocess", "fit",
                     "harmonize", "--sloppy", "--nprocs", 1, "-w", tmp_path / "w", "--target",
                     "birch", "--skip-bids-validation")
    assert answer.code == 1, answer.output
    assert "Traceback" not in answer.output
    last = answer.output.strip().splitlines()[-1]
    for label, (_, words) in bad.items():
        assert f"sub-{label}" in last
        lines = [line for line in answer.output.splitlines() if f"sub-{label}" in line]
        assert any(word in line for line in lines for word in words.split("|")), lines
        assert not list(copy.glob(f"sub-{label}/**/*.nii.gz"))
    assert "Harmonized (T1w): 4 of 4 scans" in answer.output


def test_one_site_only_is_explained(full_run, copy, tmp_path):
    answer = run_app(full_run.raw, copy, "participant", "group", "--sloppy", "--nprocs", 1, "-w",
                     tmp_path / "w", "--site", "lone", "--skip-bids-validation")
    assert answer.code == 65
    assert "all 4 T1w scans are of one site, 'lone'" in answer.output


def test_unknown_target_is_refused_before_any_work(full_run, tmp_path):
    answer = run_app(full_run.raw, tmp_path / "out", "participant", "group", "--sloppy", "--target",
                     "brich", "-w", tmp_path / "w", "--skip-bids-validation")
    assert answer.code == 2
    assert "Did you mean 'birch'?" in answer.output
    assert not (tmp_path / "w").exists() and not list((tmp_path / "out").glob("sub-*"))


def test_harmonize_without_a_model_is_69_when_asked_for(full_run, copy, tmp_path):
    shutil.rmtree(copy / "models")
    answer = run_app(full_run.raw, copy, "participant", "--stages", "harmonize", "--sloppy", "-w",
                     tmp_path / "w")
    assert answer.code == 69
    assert "No fitted histogram_matching model for T1w" in answer.output


def test_dry_run_writes_no_image(full_run, tmp_path):
    answer = run_app(full_run.raw, tmp_path / "out", "participant", "group", "--dry-run",
                     "--write-graph", "-w", tmp_path / "w", "--skip-bids-validation")
    assert answer.code == 0, answer.output
    assert "preprocess: 4 scans in" in answer.output
    assert not list(tmp_path.rglob("*.nii.gz"))
    assert "digraph" in (tmp_path / "out/logs/graph_preprocess.dot").read_text()
