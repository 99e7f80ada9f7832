"""Evaluate images before and after harmonization with one call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..cohort import Cohort, Scan
from ..errors import InputError
from ..volume import read_volume, write_mask
from .images import Image, table_columns

__all__ = ["evaluate"]

MAX_BRAIN_ONLY_FRACTION = 0.8  # of voxels that are not zero in an image without its mask


def evaluate(before: Sequence[Image], after: Sequence[Image], sites: Sequence[str], *,
             subjects: Sequence[str] | None = None, covariates: Any = None,
             masks: Sequence[Image] | None = None, target: str = "", method: str = "harmonized",
             modality: str = "T1w", segment: bool = False, permutations: int = 200, seed: int = 0,
             workers: int = 1) -> Any:
    """Measure site effect, subject identity, biology and anatomy before and after harmonization.

    Parameters
    ----------
    before, after : sequence of paths or nibabel images
        The same scans in the same order, all on one grid.
    sites : sequence of str
        Site of each scan.
    subjects : sequence of str, optional
        Subject of each scan. Default: every scan is of another subject.
    covariates : DataFrame or mapping of columns, optional
        ``age`` (years), ``sex`` (M or F) and others, one row per scan.
    masks : sequence of paths or nibabel images, optional
        Brain masks. Default: the voxels of `before` that are not zero.
    target : str
        Site that was harmonized to.
    method, modality : str
        Labels in the tables.
    segment : bool
        Segment every image, for tissue volumes.
    permutations : int
        Permutations for chance levels.
    seed : int
        Seed of folds, permutations and bootstraps.
    workers : int
        Number of processes.

    Returns
    -------
    EvaluationResult
        Tables ``metrics`` and ``statistics``; see docs/concepts/evaluation.md.

    Raises
    ------
    InputError
        If the lists differ in length, or images are not on one grid.
    """
    from ..evaluation.run import evaluate as evaluate_cohorts
    from ..segmentation.predict import NetworkSegmenter

    count = len(before)
    subjects = [str(n) for n in range(count)] if subjects is None else list(subjects)
    masks = [None] * count if masks is None else list(masks)
    for name, given in (("after", after), ("sites", sites), ("subjects", subjects),
                        ("masks", masks)):
        if len(given) != count:
            raise InputError(f"expected one of {name} per image, got {len(given)} for {count} "
                             "images.")
    rows = table_columns(covariates, count)
    with tempfile.TemporaryDirectory(prefix="harmonizer-") as name:
        folder = Path(name)
        cohorts = []
        for stage, images in (("before", before), ("after", after)):
            paths = [_path_of(image, folder / f"{stage}-{n:05d}.nii")
                     for n, image in enumerate(images)]
            cohorts.append(paths)
        scans = []
        for n, (image, site, subject, row) in enumerate(zip(cohorts[0], sites, subjects, rows)):
            age, sex = row.pop("age", None), row.pop("sex", None)
            scans.append(Scan(
                f"scan-{n:05d}", str(subject), None, modality, str(site), "given", image,
                _mask_of(masks[n], image, folder / f"mask-{n:05d}.nii"),
                None if age is None else float(age), None if sex is None else str(sex),
                {key: str(value) for key, value in row.items()}))
        others = tuple(Scan(**{**_fields(scan), "image": image})
                       for scan, image in zip(scans, cohorts[1]))
        return evaluate_cohorts(Cohort(tuple(scans)), {method: Cohort(others)}, target,
                       segment=NetworkSegmenter(quick=True) if segment else None,
                       permutations=permutations, seed=seed, workers=workers)


def _fields(scan: Scan) -> dict[str, Any]:
    return {name: getattr(scan, name) for name in scan.__dataclass_fields__}


def _path_of(image: Image, path: Path) -> Path:
    """Return the file of an image; write it to `path` if it is in memory only."""
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    nib.save(image, path)
    return path


def _mask_of(mask: Image | None, image: Path, path: Path) -> Path:
    """Return the file of a mask; without one, the voxels that are not zero."""
    if mask is not None:
        return _path_of(mask, path)
    volume = read_volume(image)
    inside = volume.data != 0
    fraction = float(np.mean(inside))
    if not 0 < fraction <= MAX_BRAIN_ONLY_FRACTION:
        raise InputError(f"{image}: {fraction:.0%} of its voxels are not zero, so it is not brain "
                         "only. Give brain masks.")
    return write_mask(path, inside, volume.affine)
