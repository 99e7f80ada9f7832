"""Cohorts from any two folders of images, paired by file name, without BIDS."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..cohort import Cohort, Scan
from ..errors import InputError
from ..volume import read_volume, write_mask

__all__ = ["cohorts_of_folders", "images_of", "read_sites"]

SUFFIXES = (".nii.gz", ".nii")
UNKNOWN_SITE = "unknown"
MIN_BACKGROUND_FRACTION = 0.2  # of zeros in a brain-only image
_KNOWN = ("file", "subject", "participant_id", "session", "site", "age", "sex")


def images_of(folder: Path) -> dict[str, Path]:
    """Find all NIfTI images below a folder, except masks.

    Parameters
    ----------
    folder : Path
        Folder to search.

    Returns
    -------
    dict of str to Path
        By file name without extension.

    Raises
    ------
    InputError
        If the folder does not exist, holds no image, or two images have the same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give a folder of NIfTI images.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.nii*")):
        suffix = next((s for s in SUFFIXES if path.name.endswith(s)), "")
        name = path.name[:len(path.name) - len(suffix)]
        if not suffix or name.endswith("mask") or path.name.startswith("."):
            continue
        if name in found:
            raise InputError(f"{folder}: {found[name]} and {path} have the same name, which pairs "
                             "images. Rename one.")
        found[name] = path
    if not found:
        raise InputError(f"{folder}: holds no NIfTI image (.nii, .nii.gz).")
    return found


def read_sites(path: Path) -> dict[str, dict[str, str]]:
    """Read a table of sites.

    Parameters
    ----------
    path : Path
        TSV file with the columns file and site; optional: subject (or participant_id), session,
        age, sex and covariates.

    Returns
    -------
    dict of str to dict of str to str
        Row by file name without extension.

    Raises
    ------
    InputError
        If the table cannot be read or lacks a column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a tab-separated table, got: {error}.") from error
    lacking = [name for name in ("file", "site") if not rows or name not in rows[0]]
    if lacking:
        raise InputError(f"{path}: expected a tab-separated table with the columns file and site; "
                         f"{', '.join(lacking)} not there.")
    return {_stem(row["file"]): {k: (v or "").strip() for k, v in row.items() if k} for row in rows}


def _stem(name: str) -> str:
    name = Path(name).name
    suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
    return name[:len(name) - len(suffix)]


def cohorts_of_folders(
    before: Path,
    variants: Mapping[str, Path],
    scratch: Path,
    *,
    masks: Path | None = None,
    sites: Path | None = None,
) -> tuple[Cohort, dict[str, Cohort]]:
    """Pair the images of folders by file name.

    Names such as sub-01_ses-A_T1w.nii.gz give subject and session; else every file is a subject.

    Parameters
    ----------
    before : Path
        Folder of images before harmonization.
    variants : mapping of str to Path
        Folder of harmonized images by method.
    scratch : Path
        Folder for masks that are computed.
    masks : Path, optional
        Folder of masks named as the images, or with ``_mask`` added. Without it the images must be
        brain only, and nonzero voxels are the mask.
    sites : Path, optional
        See `read_sites`; without it all images are of one unknown site.

    Returns
    -------
    before : Cohort
        Images of `before`.
    variants : dict of str to Cohort
        Images of the same names, by method.

    Raises
    ------
    InputError
        If images, masks or names in the table are missing.
    """
    images = images_of(before)
    table = {} if sites is None else read_sites(sites)
    if table and not set(images) & set(table):
        raise InputError(f"{sites}: no file in it is an image of {before}. Expected names such as "
                         f"{next(iter(images))}.")
    given = None if masks is None else _masks_of(masks)
    scans = []
    for name, path in images.items():
        if table and name not in table:
            continue
        mask = _mask_of(name, path, given, scratch)
        scans.append(_scan(name, path, mask, table.get(name, {})))
    others = {backend: _variant(scans, images_of(folder), folder)
              for backend, folder in variants.items()}
    return Cohort(tuple(scans)), others


def _masks_of(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(Path(folder).rglob("*.nii*")):
        found[re.sub(r"(_desc-brain)?_mask$", "", _stem(path.name))] = path
    if not found:
        raise InputError(f"{folder}: holds no mask (.nii, .nii.gz). Give another folder "
                         "with --masks.")
    return found


def _mask_of(name: str, image: Path, given: Mapping[str, Path] | None, scratch: Path) -> Path:
    if given is not None:
        if name not in given:
            raise InputError(f"no mask for {name}: expected {name}.nii.gz or {name}_mask.nii.gz "
                             "in the folder of masks.")
        return given[name]
    volume = read_volume(image)
    inside = volume.data != 0
    if inside.mean() > 1 - MIN_BACKGROUND_FRACTION or not inside.any():
        raise InputError(f"{image}: {100 * inside.mean():.0f} % of its voxels are not zero, so "
                         "it is not brain-only. Give brain masks with --masks.")
    return write_mask(Path(scratch) / f"{name}_mask.nii.gz", inside, volume.affine)


def _scan(name: str, image: Path, mask: Path, row: Mapping[str, str]) -> Scan:
    labels = dict(re.findall(r"(sub|ses)-([a-zA-Z0-9+]+)", name))
    who = row.get("subject") or row.get("participant_id", "").removeprefix("sub-")
    modality = name.rsplit("_", 1)[-1] if "_" in name else "image"
    return Scan(
        name, who or labels.get("sub", name), row.get("session") or labels.get("ses"),
        modality if modality in ("T1w", "T2w", "FLAIR", "PDw") else "image",
        row.get("site") or UNKNOWN_SITE, "table" if row.get("site") else "none given", image, mask,
        _age(row.get("age", ""), name),
        row.get("sex") if row.get("sex") not in ("n/a", "") else None,
        {key: value for key, value in row.items() if key not in _KNOWN and value})


def _age(text: str, name: str) -> float | None:
    if text in ("", "n/a"):
        return None
    try:
        age = float(text)
    except ValueError:
        raise InputError(f"{name}: expected an age in years or n/a, got '{text}'.") from None
    return age if np.isfinite(age) else None


def _variant(scans: Sequence[Scan], images: Mapping[str, Path], folder: Path) -> Cohort:
    found = tuple(replace(scan, image=images[scan.scan_id]) for scan in scans
                  if scan.scan_id in images)
    if not found:
        raise InputError(f"{folder}: no image has the name of one that it is compared with, such "
                         f"as {scans[0].scan_id}.nii.gz.")
    return Cohort(found)
