"""Precomputed files: taken where name and grid fit, left alone where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipelines.dataset.derivatives import check_derivatives, find_precomputed

RAW = "sub-01/ses-A/anat/sub-01_ses-A_run-1_T1w.nii.gz"
MASK = "sub-01/ses-A/anat/sub-01_ses-A_run-1_desc-brain_mask.nii.gz"
PREPROC = "sub-01/ses-A/anat/sub-01_ses-A_run-1_desc-preproc_T1w.nii.gz"
STEM = "sub-01_ses-A_run-1"


@pytest.fixture
def raw(make_tree: Any) -> Path:
    return make_tree({RAW: None}) / RAW


def search(raw: Path, *folders: Path, modality: str = "T1w") -> tuple[dict, list[str]]:
    found, findings = find_precomputed(raw, STEM, modality, {f.name: f for f in folders})
    assert not any(finding.fatal for finding in findings)
    return found, [str(finding) for finding in findings]


def test_files_in_the_images_own_space_are_found(make_tree: Any, raw: Path) -> None:
    fmriprep = make_tree({MASK: None, PREPROC: None}, "fmriprep", DatasetType="derivative")
    assert search(raw, fmriprep) == ({"mask": fmriprep / MASK, "preproc": fmriprep / PREPROC}, [])


@pytest.mark.parametrize("name", [
    "sub-01/ses-A/anat/sub-01_ses-A_run-1_space-orig_desc-brain_mask.nii.gz",
    "sub-01/ses-A/anat/sub-01_ses-A_run-1_desc-brain_mask.nii",
])
def test_other_names_of_a_mask(make_tree: Any, raw: Path, name: str) -> None:
    folder = make_tree({name: None}, "ours")
    assert search(raw, folder) == ({"mask": folder / name}, [])


@pytest.mark.parametrize("name", [
    "sub-01/anat/sub-01_desc-brain_mask.nii.gz",  # an average over sessions
    "sub-01/ses-A/anat/sub-01_ses-A_desc-brain_mask.nii.gz",  # an average over runs
    "sub-01/ses-A/anat/sub-01_ses-A_run-2_desc-brain_mask.nii.gz",
    "sub-01/ses-B/anat/sub-01_ses-B_run-1_desc-brain_mask.nii.gz",
    "sub-01/ses-A/anat/sub-01_ses-A_run-1_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz",
    "sub-01/ses-A/anat/sub-01_ses-A_acq-hi_run-1_desc-brain_mask.nii.gz",
])
def test_files_of_other_images_are_not(make_tree: Any, raw: Path, name: str) -> None:
    assert search(raw, make_tree({name: None}, "fmriprep")) == ({}, [])


@pytest.mark.parametrize(("shape", "affine"), [
    ((4, 5, 7), np.diag([2, 2, 2, 1.0])),
    ((4, 5, 6), np.diag([1, 1, 1, 1.0])),
    ((4, 5, 6), np.diag([2, 2, 2, 1.0]) + 0.5 * np.eye(4, k=3)),
])
def test_a_mask_on_another_grid_is_not_used(
    make_tree: Any, raw: Path, shape: tuple, affine: np.ndarray
) -> None:
    folder = make_tree({MASK: None}, "fmriprep")
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), affine), folder / MASK)
    found, findings = search(raw, folder)
    assert found == {}
    assert ["its grid is not that of" in text for text in findings] == [True]


@pytest.mark.parametrize("code", ["LPS", "PIR", "SAL"])
def test_reoriented_voxels_are_the_same_voxels(make_tree: Any, raw: Path, code: str) -> None:
    folder = make_tree({MASK: None}, "fmriprep")
    image = nib.load(raw)
    start = nib.io_orientation(image.affine)
    destination = nib.orientations.axcodes2ornt(code)
    turned = image.as_reoriented(nib.orientations.ornt_transform(start, destination))
    nib.save(turned, folder / MASK)
    assert nib.aff2axcodes(nib.load(folder / MASK).affine) == tuple(code)
    assert search(raw, folder) == ({"mask": folder / MASK}, [])


def test_a_mask_that_cannot_be_read_is_a_warning(make_tree: Any, raw: Path) -> None:
    found, findings = search(raw, make_tree({MASK: "text"}, "fmriprep"))
    assert found == {}
    assert ["is not used" in text and "cannot be opened" in text for text in findings] == [True]


def test_the_first_folder_wins(make_tree: Any, raw: Path) -> None:
    first = make_tree({MASK: None}, "first")
    second = make_tree({MASK: None, PREPROC: None}, "second")
    assert search(raw, first, second)[0] == {"mask": first / MASK, "preproc": second / PREPROC}
    assert search(raw, second, first)[0] == {"mask": second / MASK, "preproc": second / PREPROC}


@pytest.mark.parametrize(
    ("sources", "modality", "taken"),
    [
        (None, "T1w", True), (None, "FLAIR", False),
        (["bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"], "FLAIR", True),
        (["bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"], "T1w", False),
        (["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"], "T1w", True),
    ],
)
def test_a_mask_is_of_the_image_that_it_was_made_from(
    make_tree: Any, raw: Path, sources: list[str] | None, modality: str, taken: bool
) -> None:
    sidecar = {MASK.replace(".nii.gz", ".json"): {"Sources": sources}} if sources else {}
    found, _ = search(raw, make_tree({MASK: None, **sidecar}, "x"), modality=modality)
    assert ("mask" in found) is taken


def test_our_mask_of_another_modality_is_found_by_its_name(make_tree: Any, raw: Path) -> None:
    name = MASK.replace("desc-brain", "desc-brainFLAIR")
    ours = make_tree({MASK: None, name: None}, "ours")
    assert search(raw, ours, modality="FLAIR")[0] == {"mask": ours / name}
    assert search(raw, ours, modality="T1w")[0] == {"mask": ours / MASK}


def test_a_folder_that_is_no_derivative_is_doubted(make_tree: Any, tmp_path: Path) -> None:
    raw_data = make_tree({}, "raw_data")
    good = make_tree({}, "good", DatasetType="derivative")
    texts = [str(f) for f in check_derivatives({"a": raw_data, "b": good, "c": tmp_path / "none"})]
    assert ["got 'raw'" in texts[0], "is missing" in texts[1], len(texts)] == [True, True, 2]


def test_a_mask_in_mm_fits_an_image_in_micrometers(make_tree: Any, raw: Path) -> None:
    image = nib.load(raw)
    changed = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1e3, 1e3, 1e3, 1]) @ image.affine)
    changed.header.set_xyzt_units("micron", "sec")
    nib.save(changed, raw)
    folder = make_tree({MASK: None}, "fmriprep", DatasetType="derivative")
    assert search(raw, folder) == ({"mask": folder / MASK}, [])
