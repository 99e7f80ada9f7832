"""A raw-like BIDS dataset of harmonized images: names, sidecars, tables and description.

This module writes the parts of such a dataset; `pipelines.stages.export` selects the scans.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from harmonizer.errors import UsageError
from harmonizer.files import atomic_path, read_json, write_json, write_text

from ..dataset.records import entities_of
from ..dataset.tables import Row, Tables
from .dataset import BIDS_VERSION, dataset_link, generated_by

__all__ = ["exported_name", "exported_sidecar", "prepare_folder", "raw_folder",
           "write_description", "write_tables"]

AFTER_REC = ("dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "recording", "chunk")
"""Entities that follow ``rec`` in a name (BIDS specification, appendix on entities)."""
PROVENANCE_FIELDS = (
    "HarmonizationMethod", "HarmonizationMethodVersion", "HarmonizationReference", "SourceSite",
    "Target", "TargetKind", "TargetScans", "TargetSHA256", "ModelSHA256", "RandomSeed", "Detail",
    "Region", "AnatomyGuard", "PipelineVersion",
)
"""Fields of the sidecar of a harmonized image that are exported."""
FROM_SOURCE = ("License", "Authors", "Acknowledgements", "Funding", "EthicsApprovals",
               "ReferencesAndLinks", "HEDVersion")
"""Fields of the raw dataset description that are copied."""
README_TITLE = "# Harmonized images as a raw BIDS dataset"
README = f"""\
{README_TITLE}

Written by harmonizer (--export raw) as input for other pipelines. Every image is a harmonized one:
bias-corrected (N4) and brought to the contrast of one scanner, on the voxels of the original
image, which were not resampled. Its sidecar has the scanner's own facts, and the method, target
and model of the harmonization; `Sources` names the image that it is a copy of. Images of other
kinds (functional, diffusion, field maps) are not here. participants.tsv and sessions tables are
those of the original dataset, with the rows of the participants and sessions that are here.

The scans are no longer those of the scanners that the sidecars name: their contrast is that of the
target. Do not take this dataset for the original one, and cite the harmonization method.
"""


def exported_name(stem: str, modality: str, desc: str, names: str) -> str:
    """Return the file name of an exported image.

    Parameters
    ----------
    stem : str
        Source name without suffix.
    modality : str
        BIDS suffix.
    desc : str
        Label of the harmonized images; the value of the entity ``rec``.
    names : str
        'rec', or 'original' for the name of the source.

    Examples
    --------
    An existing ``rec`` is kept in the value, so that names stay unique.

    >>> exported_name("sub-01_ses-A_run-1", "T1w", "harmonized", "rec")
    'sub-01_ses-A_rec-harmonized_run-1_T1w.nii.gz'
    >>> exported_name("sub-01_rec-norm", "T1w", "harmonized", "rec")
    'sub-01_rec-normharmonized_T1w.nii.gz'
    """
    entities = entities_of(f"{stem}_")
    if names == "rec":
        rec = entities.pop("rec", "") + desc
        before = {k: v for k, v in entities.items() if k not in AFTER_REC}
        after = {k: v for k, v in entities.items() if k in AFTER_REC}
        entities = {**before, "rec": rec, **after}
    parts = [f"{name}-{label}" for name, label in entities.items()]
    return "_".join([*parts, modality]) + ".nii.gz"


def exported_sidecar(
    metadata: Mapping[str, Any], harmonized: Mapping[str, Any], sources: Sequence[str], sha256: str
) -> dict[str, Any]:
    """Return the sidecar of an exported image.

    Parameters
    ----------
    metadata : mapping
        Sidecar fields of the raw image.
    harmonized : mapping
        Sidecar of the harmonized image.
    sources : sequence of str
        BIDS URIs of the harmonized and the raw image.
    sha256 : str
        Hash of the image.
    """
    target = f"{harmonized['HarmonizationMethod']} to {harmonized['Target']}"
    return {
        **metadata,
        "Description": f"Harmonized image ({target}), bias-corrected (N4), not resampled",
        "Sources": list(sources),
        "SkullStripped": bool(harmonized["SkullStripped"]),
        **{key: harmonized[key] for key in PROVENANCE_FIELDS if key in harmonized},
        "ImageSHA256": sha256,
    }


def prepare_folder(folder: Path, wanted: Collection[Path]) -> None:
    """Create the export folder; refuse one with other files.

    During an export the dataset has no description, so that it cannot be mistaken for complete.

    Raises
    ------
    UsageError
        If the folder holds another dataset, or images that are not among `wanted`.
    """
    readme = folder / "README.md"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"export folder {folder}: expected a folder, got a file. Give another "
                         "with --export-dir.")
    if folder.is_dir() and any(folder.iterdir()):
        ours = readme.is_file() and readme.read_text("utf-8", "replace").startswith(README_TITLE)
        if not ours:
            raise UsageError(f"export folder {folder}: holds files that no export wrote. Give an "
                             "empty folder with --export-dir.")
    here = {path.relative_to(folder) for path in folder.glob("sub-*/**/anat/*.nii.gz")
            if not path.name.startswith(".")}
    if extra := sorted(here - set(wanted)):
        names = ", ".join(path.name for path in extra[:5]) + (", ..." if len(extra) > 5 else "")
        raise UsageError(
            f"export folder {folder}: holds {len(extra)} images that this run does not export "
            f"({names}): of other participants or modalities, or under other names. Delete the "
            "folder to export again, select them as well, or give another with --export-dir."
        )
    (folder / "dataset_description.json").unlink(missing_ok=True)
    write_text(readme, README)


def write_tables(folder: Path, tables: Tables, sessions: Mapping[str, Collection[str]]
                 ) -> list[str]:
    """Write participants.tsv and the sessions tables; return subjects without a row.

    Parameters
    ----------
    folder : Path
        Root of the exported dataset.
    tables : Tables
        Tables of the raw dataset, or of the output folder without raw data.
    sessions : mapping of str to collection of str
        Exported subject -> labels of its exported sessions.
    """
    without, rows = [], []
    columns = dict.fromkeys(name for row in tables.participants.values() for name in row)
    for subject in sorted(sessions):
        row = tables.participants.get(subject, {})
        without += [] if row else [subject]
        rows.append({**row, "participant_id": f"sub-{subject}"})
    _write_rows(folder / "participants.tsv", "participant_id", list(columns), rows)
    _copy(tables.root / "participants.json", folder / "participants.json")
    _copy(tables.root / "sessions.json", folder / "sessions.json")
    for subject, labels in sorted(sessions.items()):
        found = tables.sessions(subject)
        rows = [{**found[label], "session_id": f"ses-{label}"} for label in sorted(labels)
                if label in found]
        if rows:
            path = folder / f"sub-{subject}" / tables.sessions_path(subject).name
            _write_rows(path, "session_id", list(rows[0]), rows)
            _copy(tables.sessions_path(subject).with_suffix(".json"), path.with_suffix(".json"))
    return without


def _write_rows(path: Path, key: str, columns: list[str], rows: Sequence[Row]) -> None:
    names = [key, *(name for name in columns if name != key)]
    lines = ["\t".join(names), *("\t".join(row.get(n) or "n/a" for n in names) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def _copy(source: Path, destination: Path) -> None:
    if source.is_file():
        with atomic_path(destination) as temporary:
            shutil.copyfile(source, temporary)


def write_description(folder: Path, out: Path, raw: Path | None) -> None:
    """Write dataset_description.json; call it last.

    Parameters
    ----------
    folder : Path
        Root of the exported dataset.
    out : Path
        Derivative dataset that the images are copied from.
    raw : Path or None
        Original dataset, if known.
    """
    source = read_json(raw / "dataset_description.json") if raw is not None and (
        raw / "dataset_description.json").is_file() else {}
    links = {"harmonizer": dataset_link(folder, out)}
    if raw is not None:
        links["raw"] = dataset_link(folder, raw)
        _copy(raw / "LICENSE", folder / "LICENSE")
    origin = source.get("Name") or out.name
    content = {
        "Name": f"Harmonized images of: {origin}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        **{key: source[key] for key in FROM_SOURCE if key in source},
        "GeneratedBy": [generated_by()],
        "SourceDatasets": [{"URL": links[name]} for name in sorted(links)],
        "DatasetLinks": links,
    }
    write_json(folder / "dataset_description.json", content)


def raw_folder(out: Path) -> Path | None:
    """Return the raw dataset that an output folder links to; None if it does not exist."""
    path = out / "dataset_description.json"
    link = read_json(path).get("DatasetLinks", {}).get("raw", "") if path.is_file() else ""
    if not link:
        return None
    folder = Path(unquote(urlsplit(link).path)) if link.startswith("file:") else out / link
    return folder.resolve() if folder.is_dir() else None
