"""Reading the output folder back: which scans are preprocessed, as a `Cohort`."""

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

from .heads import mask_of
from .names import ScanPaths, node_name, sidecar

__all__ = ["Preprocessed", "find_preprocessed", "preprocessed_paths", "cohort_of"]

NAME = re.compile(
    rf"(?P<stem>sub-.+)_space-{TEMPLATE}_res-\d_desc-preproc_(?P<suffix>[A-Za-z0-9]+)\.json"
)


@dataclass(frozen=True)
class Preprocessed:
    """One preprocessed scan found in the output folder: its row, its files, its sidecar."""

    scan: Scan
    paths: ScanPaths
    sidecar: dict[str, Any]

    @property
    def scan_id(self) -> str:
        """The scan's."""
        return self.scan.scan_id

    @property
    def name(self) -> str:
        """Name of the scan's workflow: letters, digits and underscores."""
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
    """All finished scans in `out`, sorted by scan_id; empty `subjects` or `sessions` means all.

    `region` says whose masks the scans have, ``brain`` or ``head``; tissues are the brain's. Scans
    for which `wanted` is false are not read.

    A scan is finished when the sidecar of its template-grid image is there, which is written last.
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
        match = NAME.fullmatch(path.name)
        if match is not None and match["suffix"] in modalities:
            yield ScanPaths(out, path.parent.relative_to(out), match["stem"], match["suffix"],
                            resolution)


def cohort_of(found: Collection[Preprocessed]) -> Cohort:
    """The cohort of the scans that were found."""
    return Cohort(tuple(item.scan for item in found))


def _read(path: Path, paths: ScanPaths, region: str) -> Preprocessed:
    content = read_json(path)
    try:
        covariates = dict(content["Covariates"])
        scan = Scan(
            paths.scan_id, paths.subject, paths.session, paths.modality, content["Site"],
            content["SiteSource"], paths.image("preproc", template=True),
            paths.mask(template=True), covariates.pop("age", None), covariates.pop("sex", None),
            {k: str(v) for k, v in covariates.items()}, paths.shares_found(),
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
