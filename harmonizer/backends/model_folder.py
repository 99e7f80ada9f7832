"""A model is a folder: plain files, nothing that runs when it is read.

``config.json`` (backend, version, config, modality, hashes), ``cohort.json`` (sites, counts,
covariate ranges, who was in it), ``weights.safetensors``, ``history.tsv`` and ``card.md``. The
config holds the hashes of weights and cohort; a folder whose hashes do not fit is refused.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cohort import Cohort
from ..errors import UnavailableError
from ..files import atomic_path, read_json, sha256_of, write_json, write_text

if TYPE_CHECKING:
    from .base import Backend

__all__ = ["describe_cohort", "write", "read", "model_hash", "is_model"]

FORMAT = 1
FILES = ("config.json", "cohort.json", "weights.safetensors")


def describe_cohort(cohort: Cohort) -> dict[str, Any]:
    """Sites with counts and covariate ranges, and who was in the fit; JSON types only."""
    sites = {}
    for site in cohort.sites:
        scans = cohort.of_site(site).scans
        ages = [scan.age for scan in scans if scan.age is not None]
        sexes = [scan.sex for scan in scans]
        sites[site] = {
            "Scans": len(scans),
            "Subjects": len({scan.subject for scan in scans}),
            "AgeRange": [min(ages), max(ages)] if ages else None,
            "Female": sexes.count("F"),
            "Male": sexes.count("M"),
        }
    return {"Sites": sites, "ScanIds": [scan.scan_id for scan in cohort]}


def write(folder: Path, backend: Backend, arrays: dict[str, np.ndarray]) -> Path:
    """Write a model folder; `config.json`, which makes it valid, comes last."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    contiguous = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file(contiguous, temporary)
    write_json(folder / "cohort.json", backend.cohort_)
    write_text(folder / "history.tsv", _history(backend))
    write_text(folder / "card.md", _card(backend))
    write_json(folder / "config.json", {
        "FormatVersion": FORMAT,
        "Backend": backend.name,
        "BackendVersion": backend.version,
        "Modality": backend.modality_,
        "Config": dataclasses.asdict(backend.config),
        "WeightsSHA256": sha256_of(folder / "weights.safetensors"),
        "CohortSHA256": sha256_of(folder / "cohort.json"),
    })
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(facts, arrays) of a model folder, hashes verified.

    Raises
    ------
    UnavailableError
        If a file is missing, a hash differs, or the format is not ours.
    """
    from safetensors.numpy import load_file

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UnavailableError(f"{folder}: is not a model folder, {', '.join(missing)} missing. "
                               "Expected a folder that the fit stage wrote.")
    facts = read_json(folder / "config.json")
    if not isinstance(facts, dict) or facts.get("FormatVersion") != FORMAT:
        raise UnavailableError(f"{folder}: model format is not {FORMAT}. Fit again.")
    for key, name in (("WeightsSHA256", FILES[2]), ("CohortSHA256", FILES[1])):
        if facts.get(key) != sha256_of(folder / name):
            raise UnavailableError(f"{folder}: {name} does not fit its hash in config.json; the "
                                   "folder was damaged or edited. Copy it again, or fit again.")
    lacking = [k for k in ("Backend", "BackendVersion", "Modality", "Config") if k not in facts]
    if lacking:
        raise UnavailableError(f"{folder}: config.json lacks {', '.join(lacking)}. Fit again.")
    facts["Cohort"] = read_json(folder / "cohort.json")
    return facts, load_file(folder / "weights.safetensors")


def model_hash(folder: Path) -> str:
    """SHA-256 of `config.json`, which holds the hashes of weights and cohort: names a model."""
    return sha256_of(Path(folder) / "config.json")


def is_model(folder: Path) -> bool:
    """Whether the folder looks like a whole model (it may still be refused by `read`)."""
    return all((Path(folder) / name).is_file() for name in FILES)


def _history(backend: Backend) -> str:
    """Training history; methods that need no training have a header alone."""
    rows = getattr(backend, "history_", ())
    stream = io.StringIO()
    columns = list(rows[0]) if rows else ["step"]
    writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _card(backend: Backend) -> str:
    """A model card: what it is, of whom it was made, what it is not for."""
    sites = "\n".join(
        f"| {label} | {s['Scans']} | {s['Subjects']} | {s['AgeRange'] or 'n/a'} |"
        for label, s in backend.cohort_["Sites"].items()
    )
    config = "\n".join(f"* `{k}`: {v}" for k, v in dataclasses.asdict(backend.config).items())
    return (
        f"# {backend.name} (version {backend.version}), {backend.modality_}\n\n"
        f"{backend.summary}\n\nMethod: {backend.reference}\n\n## Settings\n{config}\n\n"
        f"## Fitted on\n| site | scans | subjects | age range |\n|---|---|---|---|\n{sites}\n\n"
        "## Limits\nMade from the scans above alone; of people unlike them it knows nothing. It "
        "holds summary numbers and scan identifiers, no image. Not a medical device.\n"
    )
