"""From what the user wrote after ``--target`` to a site card that every job can read.

A card is written for every kind of target, named by what it is, so that a job array of harmonize
jobs agrees on one file and a report can say what was aimed at.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from harmonizer.errors import InputError, UnavailableError, UsageError
from harmonizer.files import read_json, sha256_of
from harmonizer.methods import registry
from harmonizer.methods.base import SCANNER_FREE, Backend
from harmonizer.methods.model_folder import is_model
from harmonizer.methods.target import Target

from ..dataset.records import ScanRecord, split_name
from ..dataset.sites import clean_label
from ..outputs.collect import cohort_of, find_preprocessed
from ..outputs.names import MODELS, ScanPaths, resolution_of
from ..outputs.scanlog import read_log
from ..settings import MODALITIES, Settings

__all__ = ["Aim", "model_folder_of", "require_brains", "resolve_target", "target_bands"]

LOGGER = logging.getLogger("pipelines")


@dataclass(frozen=True)
class Aim:
    """A fitted model and what it aims at.

    Attributes
    ----------
    model : model folder
    card : site card of the target
    label, kind : of the target
    references : folder with the preprocessed reference images, if that is what it aims at
    """

    model: Path
    card: Path
    label: str
    kind: str
    references: Path | None = None


def require_brains(settings: Settings, region: str) -> None:
    """Guided results are made of the brain's tissues; UsageError where whole heads are changed."""
    if region != "brain" and settings.detail == "guided":
        raise UsageError(f"{settings.backend} is to harmonize whole heads (region={region}), and "
                         "--detail guided is made of the brain's tissues. Leave "
                         "them out, or take region=brain.")


def model_folder_of(settings: Settings, modality: str) -> Path | None:
    """The fitted model for a modality: that of ``--model``, else of OUT/models, else None.

    ``--model`` may name a model folder, or a folder with one model folder a modality.

    Raises
    ------
    UnavailableError
        If ``--model`` was given and holds no model of this modality.
    """
    own = settings.output_dir / MODELS / settings.backend / modality
    if settings.model is None:
        return own if is_model(own) else None
    for folder in (settings.model / modality, settings.model):
        if is_model(folder) and read_json(folder / "config.json").get("Modality") == modality:
            return folder
    raise UnavailableError(
        f"--model {settings.model}: holds no fitted model for {modality}. Expected a folder that "
        f"the fit stage wrote, such as OUT/models/{settings.backend}/{modality}."
    )


def resolve_target(settings: Settings, modality: str, model: Path) -> Aim:
    """Load the model, find the target, write its card."""
    backend = registry.get(settings.backend).load(model)
    _check_options(settings, backend, model)
    references = None
    if settings.target_kind == "images":
        references = preprocess_references(settings, modality)
        target = _enrolled(settings, modality, backend, references)
    else:
        target = _named(settings, backend)
    card = target.save(card_path(settings, modality, target.kind, target.label))
    return Aim(model, card, target.label, target.kind, references)


def card_path(settings: Settings, modality: str, kind: str, label: str) -> Path:
    """OUT/models/<backend>/<modality>/targets/<kind>-<label>.safetensors."""
    folder = settings.output_dir / MODELS / settings.backend / modality / "targets"
    return folder / f"{kind}-{label}.safetensors"


def _named(settings: Settings, backend: Backend) -> Target:
    """A target by name, by card, or the default: the site with most scans."""
    kind = settings.target_kind
    if kind == "card":
        return Target.load(settings.target[0])
    if kind == "default":
        if backend.capabilities.scanner_free and not backend.sites_:
            return backend.target(SCANNER_FREE)
        label = max(sorted(backend.sites_), key=lambda site: backend.sites_[site])
        LOGGER.info("No --target given: harmonizing %s to %r, the site with most scans (%d of %d).",
                    backend.modality_, label, backend.sites_[label], sum(backend.sites_.values()))
        return backend.target(label)
    try:
        return backend.target(site_label(settings.target[0], backend.sites_))
    except UsageError as error:
        raise UsageError(f"--target {settings.target[0]}, {backend.modality_}: {error}") from error


def site_label(text: str, sites: Collection[str]) -> str:
    """The label of the site that a user named: as it stands, or as tables' names are cleaned."""
    return text if text in sites else clean_label(text)


def _check_options(settings: Settings, backend: Backend, model: Path) -> None:
    """Options belong to the fit: a model that was fitted with others is refused.

    Raises
    ------
    UsageError
        If ``--backend-option`` says something else than the model.
    """
    wanted = backend.config_from(settings.backend_options)
    for name in settings.backend_options:
        if getattr(wanted, name) != getattr(backend.config, name):
            raise UsageError(
                f"--backend-option {name}={getattr(wanted, name)}: the model {model} was fitted "
                f"with {name}={getattr(backend.config, name)}. Run the fit stage with this option."
            )


def reference_records(settings: Settings) -> tuple[ScanRecord, ...]:
    """The reference images as records of people that belong to no site."""
    records = []
    for text in settings.target:
        path = Path(text)
        if not path.is_file():
            raise UsageError(f"--target {path}: no such file. Give NIfTI images, or a site label.")
        name = "".join(c for c in path.name.split(".")[0] if c.isalnum())
        stem = f"sub-ref{sha256_of(path)[:8]}{name}"[:60]
        modality = modality_of(path, settings)
        records.append(ScanRecord(f"{stem}_{modality}", stem, stem.removeprefix("sub-"), None,
                                  modality, path, "reference", f"--target {path.name}"))
    return tuple(records)


def modality_of(path: Path, settings: Settings) -> str:
    """Modality of a reference image: its BIDS suffix, else the only one of the run."""
    suffix = split_name(path.name)[1]
    if suffix in MODALITIES:
        return suffix
    if len(settings.modalities) == 1:
        return settings.modalities[0]
    raise UsageError(f"--target {path}: its modality is not known among "
                     f"{', '.join(settings.modalities)}. Name it such as ref_T1w.nii.gz.")


def preprocess_references(settings: Settings, modality: str) -> Path:
    """Preprocess the reference images like any scan, into the models folder; returns the folder."""
    from ..workflows.preprocessing import preprocess

    folder = settings.output_dir / MODELS / settings.backend / modality / "references"
    records = [r for r in reference_records(settings) if r.modality == modality]
    if not records:
        raise UsageError(f"--target: none of the reference images is {modality}. Give at least "
                         "one for each modality.")
    failures, _ = preprocess(replace(settings, write_graph=False), records, folder)
    if failures:
        raise InputError(f"reference image {failures[0].scan_id}: {failures[0].message}")
    return folder


def _enrolled(settings: Settings, modality: str, backend: Backend, folder: Path) -> Target:
    wanted = [r.subject for r in reference_records(settings) if r.modality == modality]
    found = find_preprocessed(folder, resolution_of(settings.sloppy), (modality,), wanted,
                              region=backend.region)
    label = "references" if len(wanted) > 1 else Path(settings.target[0]).name.split(".")[0]
    return backend.enroll(cohort_of(found).scans, "".join(c for c in label if c.isalnum()))


def target_bands(settings: Settings, modality: str, aim: Aim) -> dict[str, list[list[float]]]:
    """Tissue -> quantile functions of the target's scans, as the preprocess stage logged them."""
    out = aim.references or settings.output_dir
    found = find_preprocessed(out, resolution_of(settings.sloppy), (modality,))
    site = "reference" if aim.references else aim.label
    bands: dict[str, list[list[float]]] = {}
    if aim.kind == "reference" and aim.references is None:
        return bands
    for item in found:
        if item.scan.site == site:
            for tissue, quantiles in quantiles_of(item.paths).items():
                bands.setdefault(tissue, []).append(quantiles)
    return bands


def quantiles_of(paths: ScanPaths) -> dict[str, list[float]]:
    """A scan's quantile functions by tissue, from its log; empty without one."""
    log = read_log(paths.out, paths.scan_id, "preprocess")
    return dict(log.facts.get("Quantiles", {})) if log else {}
