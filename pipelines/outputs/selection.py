"""`Selection`: the scans that a run fits, harmonizes and evaluates.

A run that reads BIDS_DIR uses what it selected there. Other preprocessed scans of
OUTPUT_DIR are excluded and listed; ``--include-existing`` adds those whose image is no longer in
BIDS_DIR. If BIDS_DIR cannot be read, as on a cluster without the raw data, labels and filters
select among the scans of OUTPUT_DIR.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError
from harmonizer.files import read_json, write_json

from ..dataset.filters import fits_query, load_queries
from ..dataset.ratings import read_excluded
from ..dataset.records import ScanRecord, covariate_texts, entities_of, split_name
from ..settings import Settings
from . import sidecars
from .collect import Preprocessed, find_preprocessed, preprocessed_paths
from .names import ScanPaths, resolution_of, sidecar

__all__ = ["Selection", "SiteChange", "scan_of", "update_scan_facts"]

RAW_EXTENSIONS = (".nii.gz", ".nii")
MAX_LISTED_SCANS = 10


@dataclass(frozen=True)
class Selection:
    """The scans of one run.

    Attributes
    ----------
    settings : Settings
        Settings of the run.
    records : tuple of ScanRecord
        Images selected in BIDS_DIR; empty if it is not read.
    refused : frozenset of str
        scan_ids of selected images that cannot be used.
    reads_bids_dir : bool
        Whether BIDS_DIR was read; otherwise OUTPUT_DIR is searched.
    """

    settings: Settings
    records: tuple[ScanRecord, ...] = ()
    refused: frozenset[str] = frozenset()
    reads_bids_dir: bool = True

    @classmethod
    def of(cls, settings: Settings, records: Sequence[ScanRecord], refused: Iterable[str] = ()
           ) -> Selection:
        """Make the selection of a run; without records, OUTPUT_DIR is searched."""
        refused = frozenset(refused)
        return cls(settings, tuple(records), refused, bool(records or refused))

    def without(self, scan_ids: Collection[str]) -> Selection:
        """Return the selection without scans that failed."""
        return replace(self, refused=self.refused | set(scan_ids))

    @cached_property
    def selected_ids(self) -> frozenset[str]:
        """Return the scan_ids selected in BIDS_DIR that can be used."""
        return frozenset(record.scan_id for record in self.records) - self.refused

    def uses(self, paths: ScanPaths) -> bool:
        """Return whether the run uses a preprocessed scan of OUTPUT_DIR."""
        if paths.scan_id in self.refused:
            return False
        if not self.reads_bids_dir:
            return self._is_requested(paths.scan_id)
        return paths.scan_id in self.selected_ids or (
            self.settings.include_existing and not self._is_in_bids_dir(paths)
            and self._is_requested(paths.scan_id))

    @cached_property
    def excluded(self) -> dict[str, str]:
        """Return scan_id -> comment of scans that ``--exclude`` leaves out of fit and evaluation.

        Raises
        ------
        InputError
            If the table is invalid, or names a scan that neither BIDS_DIR nor OUTPUT_DIR has.
        """
        table = self.settings.exclude
        if table is None:
            return {}
        rated = read_excluded(table)
        for scan_id in rated:
            if scan_id not in self.selected_ids | self.refused and not self._exists(scan_id):
                near = difflib.get_close_matches(scan_id, self.selected_ids, 1, 0.5)
                guess = f"Did you mean {near[0]!r}? " if near else ""
                raise InputError(
                    f"--exclude {table}: no scan {scan_id!r} in {self.settings.bids_dir} or "
                    f"{self.settings.output_dir}. {guess}A scan_id is the name of the image "
                    "without its extension, such as sub-01_T1w.")
        return {scan_id: comment for scan_id, comment in rated.items() if self.concerns(scan_id)}

    def _exists(self, scan_id: str) -> bool:
        """Return whether BIDS_DIR or OUTPUT_DIR holds an image of this name."""
        stem, modality, _ = split_name(scan_id)
        entities = entities_of(stem)
        session = [f"ses-{entities['ses']}"] if "ses" in entities else []
        folder = Path(f"sub-{entities.get('sub', '')}", *session, "anat")
        paths = ScanPaths(self.settings.output_dir, folder, stem, modality,
                          resolution_of(self.settings.sloppy))
        return self._is_in_bids_dir(paths) or paths.image("preproc", template=True).is_file()

    def concerns(self, scan_id: str) -> bool:
        """Return whether this run includes a scan, which may have failed."""
        if not self.reads_bids_dir or self.settings.include_existing:
            return self._is_requested(scan_id)
        return scan_id in self.selected_ids or scan_id in self.refused

    def find(self, modalities: Collection[str] = (), region: str = "brain"
             ) -> tuple[Preprocessed, ...]:
        """Read the preprocessed scans of this run from OUTPUT_DIR; see `find_preprocessed`."""
        settings = self.settings
        return find_preprocessed(
            settings.output_dir, resolution_of(settings.sloppy),
            modalities or settings.modalities, region=region, wanted=self.uses)

    def find_included(self, modalities: Collection[str] = (), region: str = "brain"
                      ) -> tuple[Preprocessed, ...]:
        """Read the preprocessed scans of this run that ``--exclude`` does not leave out."""
        return tuple(item for item in self.find(modalities, region)
                     if item.scan_id not in self.excluded)

    def included_cohort(self, modality: str) -> Cohort:
        """Return `cohort` without the scans that ``--exclude`` leaves out."""
        return self.cohort(modality).where(lambda scan: scan.scan_id not in self.excluded)

    def cohort(self, modality: str) -> Cohort:
        """Return the scans of a modality as they will be when all of them are preprocessed.

        Images that are still to be preprocessed are listed by their raw file; nothing is read.
        """
        planned = [scan_of(record) for record in self.records
                   if record.modality == modality and record.scan_id in self.selected_ids]
        if not self.reads_bids_dir or self.settings.include_existing:
            planned += [item.scan for item in self.find((modality,))
                        if item.scan_id not in self.selected_ids]
        return Cohort(tuple(planned))

    def existing_ids(self) -> tuple[str, ...]:
        """Return the scans that only --include-existing brings in."""
        if not (self.reads_bids_dir and self.settings.include_existing):
            return ()
        return tuple(item.scan_id for item in self.find()
                     if item.scan_id not in self.selected_ids)

    def unselected(self) -> tuple[ScanPaths, ...]:
        """Return the scans in OUTPUT_DIR of the run's modalities that it does not use."""
        settings = self.settings
        return tuple(paths for paths in preprocessed_paths(
            settings.output_dir, resolution_of(settings.sloppy), settings.modalities)
            if not self.uses(paths) and paths.scan_id not in self.refused)

    def unselected_lines(self) -> tuple[str, ...]:
        """Describe which scans of OUTPUT_DIR are left out, and how to use or remove them."""
        unselected = self.unselected()
        present = [paths for paths in unselected if self._is_in_bids_dir(paths)]
        absent = [paths for paths in unselected if not self._is_in_bids_dir(paths)]
        lines = []
        if absent:
            some = _listed([paths.scan_id for paths in absent])
            lines.append(
                f"{_count(absent)} in {self.settings.output_dir} without an image in "
                f"{self.settings.bids_dir}, left out: {some}. To use them, add "
                f"--include-existing. To remove them, delete {self._files_of(absent)}.")
        if present:
            some = _listed([paths.scan_id for paths in present])
            lines.append(
                f"{_count(present)} in {self.settings.output_dir} that this command does not "
                f"select, left out: {some}. To use them, change the labels or the filter.")
        return tuple(lines)

    def _files_of(self, unselected: Sequence[ScanPaths]) -> str:
        """List the files of participants who left the dataset."""
        gone = sorted({f"sub-{paths.subject}" for paths in unselected
                       if not (self.settings.bids_dir / f"sub-{paths.subject}").is_dir()})
        return _listed([f"{name}, {name}.html and logs/scans/{name}_*" for name in gone]) \
            or "their files"

    def _is_in_bids_dir(self, paths: ScanPaths) -> bool:
        """Return whether the raw image exists, or a link whose content was not fetched."""
        folder = self.settings.bids_dir / paths.folder
        return any(os.path.lexists(folder / f"{paths.scan_id}{extension}")
                   for extension in RAW_EXTENSIONS)

    def _is_requested(self, scan_id: str) -> bool:
        """Return whether labels and filters select a scan, by its name."""
        settings = self.settings
        stem, modality, _ = split_name(scan_id)
        entities = entities_of(stem)
        return (
            modality in settings.modalities
            and (not settings.participant_label or entities.get("sub") in
                 settings.participant_label)
            and (not settings.session_label or entities.get("ses") in settings.session_label)
            and fits_query(self._queries.get(modality.lower(), {}), stem))

    @cached_property
    def _queries(self) -> dict[str, dict[str, Any]]:
        return load_queries(self.settings.bids_filter_file)


@dataclass(frozen=True)
class SiteChange:
    """A scan whose site differs between the tables and OUTPUT_DIR."""

    scan_id: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.scan_id} {self.before} -> {self.after} ({self.source})"


def update_scan_facts(selection: Selection) -> tuple[SiteChange, ...]:
    """Bring site and covariates in OUTPUT_DIR's sidecars up to date with BIDS_DIR.

    Returns
    -------
    tuple of SiteChange
        The scans whose site changed.
    """
    settings, changes = selection.settings, []
    for record in selection.records:
        paths = ScanPaths(settings.output_dir, record.folder, record.stem, record.modality,
                          resolution_of(settings.sloppy))
        path = sidecar(paths.image("preproc", template=True))
        if not path.is_file():
            continue
        content, facts = read_json(path), sidecars.scan_facts(record)
        if any(content.get(key) != value for key, value in facts.items()):
            write_json(path, {**content, **facts})
            if content.get("Site") != record.site:
                changes.append(SiteChange(record.scan_id, str(content.get("Site")), record.site,
                                          record.site_source))
    return tuple(changes)


def scan_of(record: ScanRecord) -> Scan:
    """Return a record as a row of the cohort; image and mask are the raw file, not read."""
    others = {k: v for k, v in record.covariates.items() if k not in ("age", "sex")}
    return Scan(record.scan_id, record.subject, record.session, record.modality, record.site,
                record.site_source, record.path, record.path, record.age, record.sex,
                covariate_texts(others))


def _count(scans: Sequence[ScanPaths]) -> str:
    return f"{len(scans)} preprocessed scan{'s' if len(scans) > 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_LISTED_SCANS
    return ", ".join(names[:MAX_LISTED_SCANS]) + (f" and {more} more" if more > 0 else "")
