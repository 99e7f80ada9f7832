"""Find the images of a dataset and make their records: `collect`.

pybids lists the files; only ``sub-*/[ses-*/]anat`` is indexed. Without a database only requested
participants are indexed; a database holds all, so that many jobs can share it. It is built in a
temporary folder and renamed, opened without reset, and stores the pybids version that wrote it
(other versions cannot read it, see nipreps/fmriprep#2525).
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonizer.errors import InputError, UsageError
from harmonizer.files import write_json

from ..settings import Settings
from .annex import FETCH_REMEDY, is_unfetched
from .checks import check_header, check_name, duplicate_names, same_content
from .choice import choose_images
from .derivatives import check_derivatives, find_precomputed
from .filters import load_filters
from .ignore import BidsIgnore
from .labels import subject_labels
from .participants import check_participants
from .records import Finding, ScanRecord, entities_of, split_name
from .sidecars import applicable_sidecars, merged_metadata
from .sites import SiteFinder, site_warnings
from .tables import Tables

if TYPE_CHECKING:
    from bids import BIDSLayout

__all__ = ["Collection", "collect", "find_images", "open_layout"]

LOGGER = logging.getLogger("harmonizer")
EXTENSIONS = (".nii", ".nii.gz")
DATABASE_FILE = "layout_index.sqlite"
DATABASE_NOTE = "harmonizer_index.json"
NOT_SUBJECTS = re.compile(r"^/(?!sub-)")
NOT_ANAT = re.compile(r"^/sub-[^/]+/(?:ses-[^/]+/)?(?!ses-|anat(?:/|$))[^/]+")
MAX_LISTED = 5
UNIT1_REMEDY = (
    "Their background is noise and their contrast another one: remove the background (for example "
    "with 3dMPRAGEise of AFNI, or the scanner's denoised reconstruction) and add the result to the "
    "dataset as sub-X_acq-mp2rage_T1w.nii.gz.")
HIDDEN_FOLDER_PATTERN = re.compile(r"/\.")


@dataclass(frozen=True)
class Collection:
    """Usable scans of a dataset, and findings about it."""

    records: tuple[ScanRecord, ...]
    """Usable scans, sorted by scan_id."""
    findings: tuple[Finding, ...]
    """Fatal findings name the scan that is excluded; the others are warnings."""
    images: tuple[Path, ...] = ()
    """All selected images, usable or not."""
    tables: tuple[Path, ...] = ()
    """Paths of participants and sessions tables and their dictionaries, which may not exist."""
    session_rows: bool = False
    """Whether participants.tsv has a row for each session."""


def collect(settings: Settings) -> Collection:
    """Collect the requested scans with site, covariates and precomputed files.

    Raises
    ------
    InputError
        If no image matches the request, participants.tsv matches no participant, or the pybids
        database cannot be used.
    UsageError
        If the filter file is wrong.
    """
    found = find_images(open_layout(settings), settings)
    ignore = BidsIgnore(settings.bids_dir)
    listed = [image for image in found if not ignore.ignores(image[1])]
    filters = load_filters(settings.bids_filter_file)
    images, notes = choose_images(listed, filters, settings.bids_dir)
    notes += _ignored([path for _, path in found if ignore.ignores(path)], settings)
    lacking = _without_images(images, ignore, settings)
    if not images:
        raise InputError(" ".join([_nothing_found(settings), *map(_sentence, notes + lacking)]))
    tables = Tables(settings.bids_dir)
    finder = SiteFinder(tables, settings.site_from, settings.site_column, settings.site)
    notes += lacking + check_participants(tables, subject_labels(settings.bids_dir),
                                          _scans(images), settings)
    made = list(_records(images, finder, settings))
    records = tuple(item for item in made if isinstance(item, ScanRecord))
    findings = dict.fromkeys([*notes, *_findings(made, records, images, finder, settings)])
    return Collection(records, tuple(findings), tuple(path for _, path in images),
                      _tables_of(tables, images), tables.has_session_rows)


def _scans(images: list[tuple[str, Path]]) -> set[tuple[str, str | None]]:
    """Return participant and session of images."""
    entities = (entities_of(path.name) for _, path in images)
    return {(one["sub"], one.get("ses")) for one in entities}


def _tables_of(tables: Tables, images: list[tuple[str, Path]]) -> tuple[Path, ...]:
    paths = [tables.participants_path]
    paths += [tables.sessions_path(subject) for subject in sorted({s for s, _ in _scans(images)})]
    return tuple(path.with_suffix(suffix) for path in paths for suffix in (".tsv", ".json"))


def _ignored(paths: list[Path], settings: Settings) -> list[Finding]:
    """Warn of images that .bidsignore excludes."""
    if not paths:
        return []
    shown = ", ".join(path.name for path in paths[:MAX_LISTED])
    more = f" and {len(paths) - MAX_LISTED} more" if len(paths) > MAX_LISTED else ""
    return [Finding(settings.bids_dir / ".bidsignore", f"{len(paths)} images are not used, because "
                    f"they are listed here: {shown}{more}", "Remove their lines to use them.")]


def _without_images(
    images: list[tuple[str, Path]], ignore: BidsIgnore, settings: Settings
) -> list[Finding]:
    """Warn of participants with MP2RAGE (UNIT1) images and no T1w."""
    if "T1w" not in settings.modalities or settings.session_label:
        return []
    root, chosen = settings.bids_dir, {s for s, _ in _scans(images)}
    requested = settings.participant_label or subject_labels(root)
    folders = (root / f"sub-{label}" for label in sorted(set(requested) - chosen))
    paths = [path for folder in folders for pattern in ("anat", "ses-*/anat")
             for path in folder.glob(f"{pattern}/*_UNIT1.nii*") if not ignore.ignores(path)]
    if not paths:
        return []
    labels = sorted({entities_of(path.name).get("sub", "?") for path in paths})
    more = f" and {len(labels) - MAX_LISTED} more" if len(labels) > MAX_LISTED else ""
    return [
    Finding(
        root,
        f"{len(labels)} participants have MP2RAGE images (UNIT1), which are not "
        f"supported, and no T1w that is used: "
        f"{', '.join(f'sub-{label}' for label in labels[:MAX_LISTED])}{more}",
         UNIT1_REMEDY)]


def _sentence(finding: Finding) -> str:
    """Format a finding without its path."""
    return f"{finding.finding[0].upper()}{finding.finding[1:]}. {finding.remedy}"


def _findings(
    made: list[ScanRecord | Finding],
    records: tuple[ScanRecord, ...],
    images: list[tuple[str, Path]],
    finder: SiteFinder,
    settings: Settings,
) -> Iterator[Finding]:
    yield from (item for item in made if isinstance(item, Finding))
    yield from finder.tables.findings
    yield from check_derivatives(settings.derivatives)
    yield from same_content(records) if _reads_images(settings) else ()
    yield from site_warnings(records, finder)
    seen = {entities_of(path.name).get("sub") for _, path in images}
    for label in settings.participant_label:
        if label not in seen:
            path = settings.bids_dir / f"sub-{label}"
            finding = f"was requested and has no matching {' or '.join(settings.modalities)} image"
            yield Finding(path, finding, "Check the folder and the filters.", f"sub-{label}", True)


def _records(
    images: list[tuple[str, Path]], finder: SiteFinder, settings: Settings
) -> Iterator[ScanRecord | Finding]:
    """Yield a record or a fatal finding for each image, and warnings."""
    twins = duplicate_names(path for _, path in images)
    for modality, path in images:
        problem = twins.get(path) or (check_header(path) if _reads_images(settings) else None)
        if problem:
            yield _fatal(problem, path)
        else:
            yield from _record(modality, path, finder, settings)


def _record(
    modality: str, path: Path, finder: SiteFinder, settings: Settings
) -> Iterator[ScanRecord | Finding]:
    stem, suffix, _ = split_name(path.name)
    entities = entities_of(path.name)
    subject, session = entities["sub"], entities.get("ses")
    if broken := _sessions_problem(path, subject, session, finder, settings):
        yield _fatal(broken, path)
        return
    try:
        metadata = merged_metadata(path, settings.bids_dir)
    except InputError as error:
        yield _fatal(_sidecar_problem(path, error, settings), path)
        return
    site = finder.find(subject, session, metadata)
    if site is None:
        finding = f"its site is not known (--site-from {settings.site_from})"
        yield _fatal(Finding(path, finding, finder.remedy(subject, session)), path)
        return
    covariates, notes = finder.tables.covariates(subject, session, settings.site_column)
    derivatives = settings.derivatives if _reads_images(settings) else {}
    precomputed, problems = find_precomputed(path, stem, modality, derivatives)
    yield from notes + problems
    yield ScanRecord(
        scan_id=f"{stem}_{suffix}", stem=stem, subject=subject, session=session,
        modality=modality, path=path, site=site.label, site_source=site.source,
        metadata=metadata, covariates=covariates, precomputed=precomputed,
    )


def _sidecar_problem(path: Path, error: InputError, settings: Settings) -> Finding:
    """Describe why the sidecars of an image cannot be read."""
    absent = [s for s in applicable_sidecars(path, settings.bids_dir) if is_unfetched(s)]
    if absent:
        return Finding(path, f"its sidecar {absent[0]} was not fetched", FETCH_REMEDY)
    return Finding(path, f"its sidecar is broken ({error})", "Repair the sidecar.")


def _sessions_problem(
    path: Path, subject: str, session: str | None, finder: SiteFinder, settings: Settings
) -> Finding | None:
    """Refuse an image whose sessions table is broken: another source may name another site."""
    table = finder.tables.sessions_path(subject)
    needed = session and not settings.site and settings.site_from in ("auto", "sessions")
    if not needed or finder.tables.sessions(subject) or not finder.tables.is_broken(table):
        return None
    broken = next(f for f in finder.tables.findings if f.path == table)
    return Finding(path, f"its sessions table {table} {broken.finding}", broken.remedy)


def _reads_images(settings: Settings) -> bool:
    """Return whether the run reads raw images; otherwise their content may be missing."""
    return "preprocess" in settings.planned_stages


def _fatal(finding: Finding, path: Path) -> Finding:
    stem, suffix, _ = split_name(path.name)
    return Finding(finding.path, finding.finding, finding.remedy, f"{stem}_{suffix}", True)


def _nothing_found(settings: Settings) -> str:
    request = [f"{' or '.join(settings.modalities)} images (*_T1w.nii.gz and the like)"]
    for word, labels in (("participants", settings.participant_label),
                         ("sessions", settings.session_label)):
        request += [f"{word} {', '.join(labels)}"] if labels else []
    request += [f"the filters in {settings.bids_filter_file}"] if settings.bids_filter_file else []
    return (
        f"{settings.bids_dir}: no image matches {'; '.join(request)}. Expected files such as "
        "sub-01/anat/sub-01_T1w.nii.gz; check the folder, --modalities and the filters."
    )


# Queries of pybids.


def find_images(layout: BIDSLayout, settings: Settings) -> list[tuple[str, Path]]:
    """Return modality and path of all requested raw images, sorted by path."""
    filters = load_filters(settings.bids_filter_file)
    found = set()
    for modality in settings.modalities:
        query = _query(modality, filters.get(modality.lower(), {}), settings)
        try:
            paths = layout.get(return_type="filename", **query)
        except ValueError as error:  # an entity that BIDS does not know
            raise UsageError(f"{settings.bids_filter_file}: {error}") from error
        found |= {(modality, Path(path)) for path in paths}
    return sorted((item for item in found if _is_raw(item[1])), key=lambda item: str(item[1]))


def _is_raw(path: Path) -> bool:
    reason = check_name(path)
    if reason:
        LOGGER.info("%s is not used: it %s.", path, reason)
    return reason is None


def _query(modality: str, wanted: dict[str, Any], settings: Settings) -> dict[str, Any]:
    query: dict[str, Any] = {"datatype": "anat", **wanted}
    for entity, labels, flag in (
        ("subject", settings.participant_label, "--participant-label"),
        ("session", settings.session_label, "--session-label"),
    ):
        if labels and entity in wanted:
            raise UsageError(f"both {flag} and the filter file choose the {entity}. Drop one.")
        query |= {entity: list(labels)} if labels else {}
    return {**query, "suffix": modality, "extension": list(EXTENSIONS)}


# The index.


def open_layout(settings: Settings) -> BIDSLayout:
    """Open a pybids layout of the raw anatomical images, from the database if one is given.

    Raises
    ------
    InputError
        If the database was written by another pybids version, for another dataset, or cannot be
        opened.
    UsageError
        If a database would have to be written into the input folder.
    """
    folder = settings.bids_database_dir
    if folder is None:
        return _index(settings.bids_dir, settings.participant_label, settings.session_label)
    if not (folder / DATABASE_FILE).exists():
        _build_database(settings.bids_dir, folder)
    return _open_database(settings.bids_dir, folder, settings.participant_label)


def _index(
    root: Path,
    subjects: tuple[str, ...] = (),
    sessions: tuple[str, ...] = (),
    database: Path | None = None,
) -> BIDSLayout:
    from bids import BIDSLayout
    from bids.layout import BIDSLayoutIndexer

    ignore = [NOT_SUBJECTS, NOT_ANAT, HIDDEN_FOLDER_PATTERN]
    ignore += [_all_but("sub", subjects)] if subjects else []
    ignore += [_all_but("ses", sessions)] if sessions else []
    indexer = BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False)
    return BIDSLayout(root, validate=False, database_path=database, indexer=indexer)


def _all_but(entity: str, labels: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of folders of other labels, such as /sub-02 if only 01 is requested."""
    wanted = "|".join(re.escape(label) for label in labels)
    return re.compile(rf"/{entity}-(?!(?:{wanted})(?:[/_]|$))[^/]*")


def _pybids_version() -> str:
    import bids

    return str(bids.__version__)


def _build_database(root: Path, folder: Path) -> None:
    """Write the index of all participants; two jobs may do this at the same time."""
    if root == folder or root in folder.parents:
        raise UsageError(
            f"--bids-database-dir {folder} does not exist and lies inside the input folder, which "
            "is never written. Give a folder elsewhere."
        )
    LOGGER.info("Indexing %s into %s.", root, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
        layout = _index(root, database=Path(temporary))
        layout.connection_manager.session.close()
        write_json(folder / DATABASE_NOTE, {"pybids": _pybids_version(), "root": str(root)})
        os.replace(Path(temporary) / DATABASE_FILE, folder / DATABASE_FILE)


def _open_database(root: Path, folder: Path, subjects: tuple[str, ...]) -> BIDSLayout:
    from bids import BIDSLayout

    remedy = f"Delete {folder} and build it again (it is made when it is absent)."
    _check_database_note(folder, remedy)
    try:
        layout = BIDSLayout(database_path=folder, validate=False, reset_database=False)
        known = set(layout.get_subjects())
    except Exception as error:  # SQLAlchemy, SQLite and pybids raise kinds of their own
        raise InputError(
            f"{folder}: the pybids database cannot be opened ({type(error).__name__}). {remedy}"
        ) from error
    if Path(str(layout.root)).resolve() != root.resolve():
        raise InputError(
            f"{folder}: the pybids database is of {layout.root}, the input is {root}. "
            "Give the database of this dataset, under the path where it was indexed."
        )
    absent = [label for label in subjects if label not in known]
    if absent:
        raise InputError(
            f"{folder}: the pybids database does not know sub-{', sub-'.join(absent)}; it is "
            f"older than the dataset, or they have no anatomical image. {remedy}"
        )
    return layout


def _check_database_note(folder: Path, remedy: str) -> None:
    """Compare the pybids version of the database; one built by another tool states none."""
    try:
        wrote = json.loads((folder / DATABASE_NOTE).read_text(encoding="utf-8")).get("pybids")
    except (OSError, ValueError, AttributeError):
        return
    if wrote != _pybids_version():
        raise InputError(
            f"{folder}: the database was written by pybids {wrote}, and this is pybids "
            f"{_pybids_version()}, which cannot read it. {remedy}"
        )
