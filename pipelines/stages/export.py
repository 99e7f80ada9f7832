"""The stage `export`: harmonized images as a raw-like BIDS dataset for other pipelines.

fMRIPrep, sMRIPrep, FreeSurfer and CAT12 take raw images. Each exported image is a copy of the
native harmonized image, byte for byte, with the sidecar of the raw image and the provenance of the
harmonization. Finished copies are reused; the dataset description is written last.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonizer.errors import InputError
from harmonizer.files import atomic_path, read_json, sha256_of, write_json, write_text
from harmonizer.progress import progress_bar

from ..dataset.checks import validate_bids
from ..dataset.tables import Tables
from ..outputs import sidecars
from ..outputs.collect import Preprocessed
from ..outputs.names import LOGS, sidecar
from ..outputs.raw_dataset import (
    exported_name,
    exported_sidecar,
    prepare_folder,
    raw_folder,
    write_description,
    write_tables,
)
from ..outputs.selection import Selection
from ..settings import Settings
from ..workflows.engine import ScanFailure
from .evaluation import variants_of

__all__ = ["export"]

LOGGER = logging.getLogger("pipelines")
MAX_LISTED = 5  # scans or messages named in a summary line


@dataclass(frozen=True)
class ExportJob:
    """An image to be exported: its scan and its file name, relative to the exported dataset."""

    item: Preprocessed
    file: Path


def export(settings: Settings, selection: Selection
           ) -> tuple[tuple[ScanFailure, ...], list[str]]:
    """Export the selected harmonized images; return scans without one, and lines for the user.

    Raises
    ------
    InputError
        If no scan is harmonized, or the images come from several models.
    UsageError
        If the export folder holds other files.
    """
    folder = settings.export_folder
    found = selection.find()
    jobs = [ExportJob(item, item.paths.folder / exported_name(
        item.paths.stem, item.scan.modality, settings.desc, settings.export_names))
        for item in _harmonized(settings, found)]
    failures = _not_harmonized(settings, selection, found, {job.item.scan_id for job in jobs})
    if not jobs:
        raise InputError(
            f"{settings.output_dir}: none of the selected scans has an image "
            f"desc-{settings.desc}, so there is nothing to export. Run the harmonize stage, or "
            "name another result with --desc.")
    prepare_folder(folder, {job.file for job in jobs})
    raw = settings.bids_dir if selection.reads_bids_dir else raw_folder(settings.output_dir)
    metadata = {record.scan_id: dict(record.metadata) for record in selection.records}
    reused = 0
    with progress_bar(len(jobs), "export") as bar:
        for job in jobs:
            reused += _export_image(settings, job, metadata.get(job.item.scan_id))
            bar.update(1)
    _write_dataset(settings, jobs, raw)
    _write_list(settings, jobs, failures)
    lines = [f"Exported: {len(jobs)} of {len(jobs) + len(failures)} scans as a raw BIDS dataset "
             f"({reused} reused): {folder}"]
    return failures, [*lines, *_export_warnings(settings, jobs, folder)]


def _harmonized(settings: Settings, found: Sequence[Preprocessed]) -> list[Preprocessed]:
    """Return the scans with a native harmonized image, all of one modality from one model."""
    items: list[Preprocessed] = []
    for modality in settings.modalities:
        scans = [item for item in found if item.scan.modality == modality]
        variants = variants_of(settings, scans)  # refuses images of several models
        own = [item for variant in variants[:1] if variant.desc == settings.desc
               for item in variant.items]
        items += [item for item in own if _native(settings, item).is_file()
                  and sidecar(_native(settings, item)).is_file()]
    return items


def _native(settings: Settings, item: Preprocessed) -> Path:
    return item.paths.image(settings.desc)


def _not_harmonized(settings: Settings, selection: Selection,
                    found: Sequence[Preprocessed], done: set[str]) -> tuple[ScanFailure, ...]:
    """Return selected scans without a harmonized image, with the reason."""
    preprocessed = {item.scan_id for item in found}
    failures = []
    for scan_id in sorted(selection.selected_ids | preprocessed):
        if scan_id not in done:
            lacks = (f"has no image desc-{settings.desc}" if scan_id in preprocessed
                     else "is not preprocessed")
            failures.append(
    ScanFailure(
        scan_id,
        "export",
        f"{lacks}, so it is not exported. Run the "
        "participant level for it, then export again."))
    return tuple(failures)


def _export_image(settings: Settings, job: ExportJob, metadata: Mapping[str, Any] | None) -> bool:
    """Copy an image, then write its sidecar; return whether both existed already."""
    source, destination = _native(settings, job.item), settings.export_folder / job.file
    harmonized = read_json(sidecar(source))
    raw = _raw_sources(job.item)
    uris = [f"bids:harmonizer:{source.relative_to(settings.output_dir).as_posix()}", *raw]
    if metadata is None:
        metadata = sidecars.acquisition_metadata(harmonized)
    digest = sha256_of(source)
    content = exported_sidecar(metadata, harmonized, uris, digest)
    exists = destination.is_file() and sidecar(destination).is_file()
    if exists and read_json(sidecar(destination)) == content and sha256_of(destination) == digest:
        return True
    sidecar(destination).unlink(missing_ok=True)
    with atomic_path(destination) as temporary:
        shutil.copyfile(source, temporary)
    write_json(sidecar(destination), content)
    return False


def _raw_sources(item: Preprocessed) -> list[str]:
    """Return the BIDS URIs of the raw image from the sidecar of the native preprocessed image."""
    path = sidecar(item.paths.image("preproc"))
    sources = read_json(path).get("Sources", []) if path.is_file() else []
    return [uri for uri in sources if uri.startswith("bids:raw:")]


def _write_dataset(settings: Settings, jobs: Sequence[ExportJob], raw: Path | None) -> None:
    """Write the tables, then the dataset description."""
    folder = settings.export_folder
    sessions: dict[str, set[str]] = {}
    for job in jobs:
        labels = sessions.setdefault(job.item.scan.subject, set())
        labels |= {job.item.scan.session} if job.item.scan.session else set()
    tables = Tables(raw if raw is not None else settings.output_dir)
    without = write_tables(folder, tables, sessions)
    for finding in tables.findings:
        LOGGER.warning("%s", finding)
    if without:
        LOGGER.warning("%s: has no row for %s; the exported table has n/a there.",
                       tables.root / "participants.tsv",
                       ", ".join(f"sub-{label}" for label in without))
    write_description(folder, settings.output_dir, raw)


def _write_list(
    settings: Settings,
    jobs: Sequence[ExportJob],
     failures: Sequence[ScanFailure]) -> None:
    """Write ``logs/export-<desc>.tsv``: the exported file of each scan, or why there is none."""
    rows = [(job.item.scan_id, job.file.as_posix(), "n/a") for job in jobs]
    rows += [(failure.scan_id, "n/a", failure.message) for failure in failures]
    lines = ["\t".join(row) for row in [("scan_id", "file", "reason"), *sorted(rows)]]
    write_text(settings.output_dir / LOGS / f"export-{settings.desc}.tsv", "\n".join(lines) + "\n")


def _export_warnings(settings: Settings, jobs: Sequence[ExportJob], folder: Path) -> list[str]:
    """Return warnings about the exported dataset; log errors of the BIDS validator."""
    lines = []
    flagged = [job.item.scan_id for job in jobs if not read_json(
        sidecar(folder / job.file)).get("AnatomyGuard", {}).get("AnatomyHeld", True)]
    if flagged:
        more = ", ..." if len(flagged) > MAX_LISTED else ""
        lines.append(f"The anatomy guard flags {len(flagged)} of the exported images, check them "
                     f"before use: {', '.join(flagged[:MAX_LISTED])}{more}.")
    if settings.skip_bids_validation:
        return lines
    errors = validate_bids(folder)
    if errors:
        LOGGER.warning("%s: the BIDS validator finds %d errors: %s", folder, len(errors),
                       "; ".join(issue.text for issue in errors[:MAX_LISTED]))
    return lines
