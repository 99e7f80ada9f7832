"""Preprocessed scans of the output folder, as a `Cohort`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError
from harmonizer.files import read_json
from harmonizer.template import TEMPLATE

from ..dataset.records import covariate_texts
from .heads import mask_of
from .names import ScanPaths, node_name, sidecar

__all__ = ["Preprocessed", "find_preprocessed", "preprocessed_paths", "cohort_of"]

PREPROCESSED_NAME = re.compile(
    rf"(?P<stem>sub-.+)_space-{TEMPLATE}_res-\d_desc-preproc_(?P<suffix>[A-Za-z0-9]+)\.json"
)


@dataclass(frozen=True)
class Preprocessed:
    """A preprocessed scan of the output folder.

    Attributes
    ----------
    scan : Scan
        Row of the cohort.
    paths : ScanPaths
        Its files.
    sidecar : dict
        Sidecar of its image on the template grid.
    """

    scan: Scan
    paths: ScanPaths
    sidecar: dict[str, Any]

    @property
    def scan_id(self) -> str:
        """Return the scan_id."""
        return self.scan.scan_id

    @property
    def name(self) -> str:
        """Return the name of the scan's workflow: letters, digits and underscores."""
        return node_name(self.scan_id)


def find_preprocessed(
    out: Path,
    resolution: int,
    modalities: Collection[str],
    subjects: Collection[str] = (),
    sessions: Collection[str] = (),
    region: str = "brain",
    wanted: Callable[[ScanPaths], bool] | None = None,
) -> tuple[Preprocessed, ...]:
    """Read all finished scans of the output folder, sorted by scan_id.

    A scan is finished if the sidecar of its template-grid image exists, which is written last.

    Parameters
    ----------
    out : Path
        Root of the derivative dataset.
    resolution : int
        Voxel size of the template grid, mm.
    modalities : collection of str
        BIDS suffixes.
    subjects, sessions : collection of str
        Labels; empty means all.
    region : str
        Region of the masks, ``brain`` or ``head``; tissue probabilities are given for the brain.
    wanted : callable, optional
        Scans for which it returns False are not read.

    Raises
    ------
    InputError
        If a sidecar or an image is incomplete.
    """
    found = []
    for paths in preprocessed_paths(out, resolution, modalities):
        if subjects and paths.subject not in subjects:
            continue
        if sessions and paths.session not in sessions:
            continue
        if wanted is None or wanted(paths):
            found.append(_read(sidecar(paths.image("preproc", template=True)), paths, region))
    return tuple(sorted(found, key=lambda item: item.scan.scan_id))


def preprocessed_paths(out: Path, resolution: int, modalities: Collection[str]
                       ) -> Iterator[ScanPaths]:
    """Yield the paths of every finished scan in `out`, from file names alone."""
    for path in sorted(out.glob(f"sub-*/**/anat/*_res-{resolution}_desc-preproc_*.json")):
        match = PREPROCESSED_NAME.fullmatch(path.name)
        if match is not None and match["suffix"] in modalities:
            yield ScanPaths(out, path.parent.relative_to(out), match["stem"], match["suffix"],
                            resolution)


def cohort_of(found: Collection[Preprocessed]) -> Cohort:
    """Return the scans as a cohort."""
    return Cohort(tuple(item.scan for item in found))


def _read(path: Path, paths: ScanPaths, region: str) -> Preprocessed:
    content = read_json(path)
    try:
        covariates = dict(content["Covariates"])
        scan = Scan(
            paths.scan_id, paths.subject, paths.session, paths.modality, content["Site"],
            content["SiteSource"], paths.image("preproc", template=True),
            paths.mask(template=True), covariates.pop("age", None), covariates.pop("sex", None),
            covariate_texts(covariates), paths.probabilities_found(),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: lacks {error}. Delete it and preprocess this scan again.") \
            from error
    lacking = [p for p in (scan.image, scan.mask) if not p.is_file()]
    if lacking:
        raise InputError(f"{lacking[0]}: is missing while its sidecar is there. Delete "
                         f"{sidecar(scan.image).name} and preprocess this scan again.")
    if region != "brain":
        scan = replace(scan, mask=mask_of(paths, region, template=True), tissues={})
    return Preprocessed(scan, paths, content)
