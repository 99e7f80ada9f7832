"""Model folders: plain files; reading one executes no code.

``config.json`` (backend, version, config, modality, hashes), ``cohort.json`` (sites, counts,
covariate ranges, scan identifiers), ``weights.safetensors``, ``history.tsv`` and ``card.md``. The
config holds the hashes of weights and cohort; a folder whose hashes do not match is refused.

A folder of unknown origin may have matching hashes. Links out of the folder, facts of another type,
invalid site labels and weights that are not finite are therefore refused too.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..cohort import Cohort
from ..errors import InputError, UnavailableError
from ..files import atomic_path, read_json, sha256_of, write_json, write_text
from ..volume import load_nifti
from .target import LABEL, check_arrays

if TYPE_CHECKING:
    from .base import Backend

__all__ = ["describe_cohort", "describe_left_out", "write", "read", "model_hash", "is_model"]

FORMAT = 1
MAX_WEIGHTS_BYTES = 8 << 30
FILES = ("config.json", "cohort.json", "weights.safetensors")


def describe_cohort(cohort: Cohort) -> dict[str, Any]:
    """Describe a cohort as JSON types: sites with counts and covariate ranges, and its scans."""
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
    image = load_nifti(cohort.scans[0].image)
    return {"Sites": sites, "ScanIds": [scan.scan_id for scan in cohort],
            "Grid": {"Shape": [int(n) for n in image.shape[:3]],
                     "Affine": np.asarray(image.affine, np.float64).tolist()}}


def describe_left_out(backend: Backend) -> dict[str, Any]:
    """Describe the sites and scans that the selection of a fit left out; empty without any."""
    facts = {"SitesLeftOut": sorted(backend.left_out_sites_),
             "ScansLeftOut": dict(sorted(backend.left_out_scans_.items()))}
    return {name: value for name, value in facts.items() if value}


def write(folder: Path, backend: Backend, arrays: dict[str, np.ndarray]) -> Path:
    """Write a model folder; `config.json`, which makes it valid, is written last.

    Parameters
    ----------
    backend : Backend
        A fitted model.
    arrays : dict of str to ndarray
        Its state.

    Raises
    ------
    InputError
        If a site label cannot be part of a file name.
    """
    for label in backend.cohort_["Sites"]:
        if not re.fullmatch(LABEL, label):
            raise InputError(f"site {label!r:.80}: expected 1 to 120 letters, digits, spaces, . _ "
                             "+ -, because files are named after it. Rename the site.")
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
    """Read the facts and arrays of a model folder, and verify its hashes.

    Raises
    ------
    UnavailableError
        If a file is missing or invalid, a hash differs, or the format is unknown.
    """
    _check_files(folder)
    facts = _json_of(folder, "config.json")
    if not isinstance(facts, dict) or facts.get("FormatVersion") != FORMAT:
        raise UnavailableError(f"{folder}: model format is not {FORMAT}. Fit again.")
    for key, name in (("WeightsSHA256", FILES[2]), ("CohortSHA256", FILES[1])):
        if facts.get(key) != sha256_of(folder / name):
            raise UnavailableError(f"{folder}: {name} does not match its hash in config.json; the "
                                   "folder was damaged or edited. Copy it again, or fit again.")
    facts["Cohort"] = _json_of(folder, "cohort.json")
    _check_facts(folder, facts)
    return facts, _weights(folder)


def _check_files(folder: Path) -> None:
    """Check that the files exist, lie in the folder itself, and are not absurdly large."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UnavailableError(f"{folder}: is not a model folder, {', '.join(missing)} missing. "
                               "Expected a folder that the fit stage wrote.")
    for name in FILES:
        if (folder / name).resolve().parent != folder.resolve():
            raise UnavailableError(f"{folder}: {name} is a link that leads out of the folder. Copy "
                                   "the files themselves (cp -rL).")
    if (folder / FILES[2]).stat().st_size > MAX_WEIGHTS_BYTES:
        raise UnavailableError(f"{folder}: {FILES[2]} has more than {MAX_WEIGHTS_BYTES >> 30} GiB, "
                               "which no method needs. Check where the folder comes from.")


def _json_of(folder: Path, name: str) -> Any:
    try:
        return read_json(folder / name)
    except InputError as error:
        raise UnavailableError(f"{error} Or fit again.") from error


def _check_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Check the types of the facts that the rest of the program relies on."""
    wrong = [key for key, kind in (("Backend", str), ("BackendVersion", str), ("Modality", str),
                                   ("Config", dict)) if not isinstance(facts.get(key), kind)]
    if wrong:
        raise UnavailableError(f"{folder}: config.json lacks {', '.join(wrong)}, or they have "
                               "another type. Fit again.")
    sites = facts["Cohort"].get("Sites") if isinstance(facts["Cohort"], dict) else None
    if not isinstance(sites, dict) or not all(map(_is_count_of_site, sites.items())):
        raise UnavailableError(f"{folder}: cohort.json does not list sites with their numbers of "
                               "scans. Fit again.")
    if not _are_further_facts(facts["Cohort"]):
        raise UnavailableError(f"{folder}: what cohort.json says of grid, covariates, or sites and "
                               "scans that were left out cannot be read. Fit again.")


def _are_further_facts(cohort: dict[str, Any]) -> bool:
    """Return whether the optional facts of a cohort.json have the right types."""
    sites, scans = cohort.get("SitesLeftOut", []), cohort.get("ScansLeftOut", {})
    rows, grid = cohort.get("Covariates", []), cohort.get("Grid")
    texts = isinstance(sites, list) and all(isinstance(site, str) for site in sites)
    reasons = isinstance(scans, dict) and all(isinstance(why, str) for why in scans.values())
    sentences = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("Summary"), str) for row in rows)
    return texts and reasons and sentences and (grid is None or _is_grid(grid))


def _is_grid(grid: Any) -> bool:
    if not isinstance(grid, dict) or not isinstance(grid.get("Shape"), list):
        return False
    rows: Any = grid.get("Affine")
    square = (isinstance(rows, list) and len(rows) == 4
              and all(isinstance(row, list) and len(row) == 4 for row in rows))
    return (square and all(type(n) is int for n in grid["Shape"])
            and all(type(x) in (int, float) and np.isfinite(x) for row in rows for x in row))


def _is_count_of_site(entry: tuple[str, Any]) -> bool:
    label, site = entry
    count = site.get("Scans") if isinstance(site, dict) else None
    return re.fullmatch(LABEL, label) is not None and type(count) is int and count > 0


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """Read arrays of finite numbers; safetensors checks that names, shapes and bytes agree."""
    path = folder / FILES[2]
    try:
        arrays = load_file(path)
        check_arrays(arrays)
    except Exception as error:  # safetensors and numpy raise their own types
        raise UnavailableError(f"{path}: cannot be used ({error}). Fit again.") from error
    return arrays


def model_hash(folder: Path) -> str:
    """Return the SHA-256 of `config.json`, which identifies a model by the hashes that it holds."""
    return sha256_of(Path(folder) / "config.json")


def is_model(folder: Path) -> bool:
    """Return whether the folder has all files of a model (`read` may still refuse it)."""
    return all((Path(folder) / name).is_file() for name in FILES)


def _history(backend: Backend) -> str:
    """Return the training history as text; only a header for methods without training."""
    rows = backend.training_history()
    stream = io.StringIO()
    columns = list(rows[0]) if rows else ["step"]
    writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _covariate_lines(cohort: dict[str, Any]) -> str:
    """Return the section of the card on covariates."""
    rows = cohort.get("Covariates", ())
    lines = "\n".join(f"* {row['Summary']}" for row in rows)
    return f"\n## Covariates\n{lines}\n" if rows else ""


def _left_out_lines(backend: Backend) -> str:
    """Return the section of the card on sites and scans that did not enter the fit."""
    lines = [f"* site {site}: the selection of the fit took none of its scans"
             for site in sorted(backend.left_out_sites_)]
    lines += [f"* {scan}: {why}" for scan, why in sorted(backend.left_out_scans_.items())]
    return "\n## Left out\n" + "\n".join(lines) + "\n" if lines else ""


def _card(backend: Backend) -> str:
    """Return the model card: method, settings, cohort, training and limits."""
    sites = "\n".join(
        f"| {label} | {s['Scans']} | {s['Subjects']} | {s['AgeRange'] or 'n/a'} |"
        for label, s in backend.cohort_["Sites"].items()
    )
    config = "\n".join(f"* `{k}`: {v}" for k, v in dataclasses.asdict(backend.config).items())
    lines = backend.training_facts()
    training = "\n## Training\n" + "\n".join(lines) + "\n" if lines else ""
    return (
        f"# {backend.name} (version {backend.version}), {backend.modality_}\n\n"
        f"{backend.summary}\n\nMethod: {backend.reference}\n\n## Settings\n{config}\n\n"
        f"## Fitted on\n| site | scans | subjects | age range |\n|---|---|---|---|\n{sites}\n"
        f"{_covariate_lines(backend.cohort_)}{_left_out_lines(backend)}{training}\n"
        "## Limits\nFitted on the scans above; results on other populations are unknown. It holds "
        "summary numbers and scan identifiers, but no image. Not a medical device.\n"
    )
