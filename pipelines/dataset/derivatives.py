"""Precomputed brain masks and preprocessed images of this app, fMRIPrep or sMRIPrep.

A file is used for an image only if its name has all entities of the image (sub, ses, acq, rec, run,
...) and no space entity (or `space-orig`), and if it lies on the voxel grid of the image. fMRIPrep
averages several T1w images of a subject and drops run and session from the name. Such a file is not
a scan of that session and is not used.

    <stem>_desc-brain_mask.nii.gz          -> 'mask' (this app, other modalities: desc-brainFLAIR)
    <stem>_desc-preproc_<modality>.nii.gz  -> 'preproc'

fMRIPrep also reorients to RAS. Axes that are only flipped or permuted are the same voxels, so such
files are used; the reader must reorient both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonizer.errors import InputError
from harmonizer.volume import affine_in_mm, load_nifti, same_grid

from .annex import FETCH_REMEDY, is_unfetched
from .records import Finding, entities_of

__all__ = ["check_derivatives", "find_precomputed", "same_voxels"]

EXTENSIONS = (".nii.gz", ".nii")


def find_precomputed(
    image: Path, stem: str, modality: str, folders: Mapping[str, Path]
) -> tuple[dict[str, Path], list[Finding]]:
    """Find usable files for a raw image: {'mask': path, 'preproc': path}, and warnings.

    The first folder with a usable file is used. A file with matching name on another grid is
    reported as a warning, and its step is computed.
    """
    found: dict[str, Path] = {}
    findings: list[Finding] = []
    for root in folders.values():
        for kind, tail in _tails(modality).items():
            path = None if kind in found else _existing(root, stem, tail)
            if path is None or not _is_of(path, kind, modality):
                continue
            if problem := _grid_problem(path, image):
                findings.append(problem)
            else:
                found[kind] = path
    return found, findings


def check_derivatives(folders: Mapping[str, Path]) -> list[Finding]:
    """Warn of folders given with ``--derivatives`` that are not derivative datasets."""
    findings = []
    for root in folders.values():
        path = root / "dataset_description.json"
        try:
            kind = json.loads(path.read_text(encoding="utf-8")).get("DatasetType")
        except (OSError, ValueError, AttributeError):
            findings.append(Finding(path, "is missing or broken", "Check the folder given to -d."))
            continue
        if kind != "derivative":
            finding = f"expected DatasetType 'derivative', got {kind!r}"
            findings.append(Finding(path, finding, "Check the folder given to -d."))
    return findings


def same_voxels(image: Any, other: Any) -> bool:
    """Return whether two nibabel images have the same voxels, up to flipped or permuted axes."""
    from nibabel import as_closest_canonical

    if len(image.shape) < 3 or len(other.shape) < 3:
        return False
    first, second = as_closest_canonical(image), as_closest_canonical(other)
    return same_grid(first.shape[:3], affine_in_mm(first), second.shape[:3], affine_in_mm(second))


def _tails(modality: str) -> dict[str, tuple[str, ...]]:
    names = {
        "mask": (f"desc-brain{modality}_mask", "desc-brain_mask"),
        "preproc": (f"desc-preproc_{modality}",),
    }
    return {kind: tuple(f"{space}{name}" for name in tails for space in ("", "space-orig_"))
            for kind, tails in names.items()}


def _existing(root: Path, stem: str, tails: tuple[str, ...]) -> Path | None:
    entities = entities_of(stem)
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    folder = root.joinpath(f"sub-{entities['sub']}", *session, "anat")
    paths = (folder / f"{stem}_{tail}{ext}" for tail in tails for ext in EXTENSIONS)
    return next((path for path in paths if path.is_file() or is_unfetched(path)), None)


def _is_of(path: Path, kind: str, modality: str) -> bool:
    """Return whether a file is of this modality, from its name or the Sources of its sidecar.

    A mask without Sources belongs to the T1w image, as in fMRIPrep. An equal grid is no evidence,
    because subjects move between a T1w and a T2w image.
    """
    if kind != "mask" or f"desc-brain{modality}_" in path.name:
        return True
    sources = _sources(path)
    named = {m for m in ("T1w", "T2w", "FLAIR", "PDw") if any(f"_{m}." in s for s in sources)}
    return modality in named if named else modality == "T1w"


def _sources(path: Path) -> list[str]:
    sidecar = path.parent / f"{path.name.partition('.')[0]}.json"
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        return [str(s) for key in ("Sources", "RawSources") for s in content.get(key, [])]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def _grid_problem(path: Path, image: Path) -> Finding | None:
    if is_unfetched(path):
        return Finding(path, "is not used: it was not fetched", FETCH_REMEDY)
    try:
        if same_voxels(load_nifti(path), load_nifti(image)):
            return None
    except InputError as error:
        return Finding(path, f"is not used: {error}", "Repair or remove it.")
    finding = f"is not used: its grid is not that of {image.name}"
    return Finding(path, finding, "Expected a file in the image's own (native) space.")
