"""Resolve ``--target`` to a site card that all jobs read.

A card is written for every kind of target. Its name is derived from the target, so that all jobs of
an array use the same file and reports can state the target.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError, UnavailableError, UsageError, did_you_mean
from harmonizer.files import read_json, sha256_of
from harmonizer.methods import registry
from harmonizer.methods.base import SCANNER_FREE, Backend
from harmonizer.methods.model_folder import is_model
from harmonizer.methods.target import Target

from ..dataset.records import ScanRecord, split_name
from ..dataset.sites import clean_label
from ..outputs.collect import cohort_of, find_preprocessed
from ..outputs.names import MODELS, ScanPaths, resolution_of, sidecar
from ..outputs.scanlog import read_log
from ..settings import MODALITIES, Settings

__all__ = [
    "ResolvedTarget",
    "ExistingTarget",
    "existing_target",
    "model_folder_of",
    "planned_target",
    "reason_of_default",
    "require_brains",
    "require_fit_target",
    "resolve_target",
     "target_bands"]

LOGGER = logging.getLogger("pipelines")


@dataclass(frozen=True)
class ResolvedTarget:
    """A fitted model and its target.

    Attributes
    ----------
    model : Path
        Model folder.
    card : Path
        Site card of the target.
    label, kind : str
        Label and kind of the target.
    references : Path, optional
        Folder of the preprocessed reference images, for a target of that kind.
    """

    model: Path
    card: Path
    label: str
    kind: str
    references: Path | None = None


@dataclass(frozen=True)
class ExistingTarget:
    """Method and target of the existing images of a desc in OUTPUT_DIR.

    Attributes
    ----------
    backend : str
        Method.
    kind, label : str
        Kind and label of the target, as in the sidecars.
    """

    backend: str
    kind: str
    label: str

    def __str__(self) -> str:
        return f"{self.backend} to {self.label!r}"


def existing_target(settings: Settings, modality: str) -> ExistingTarget | None:
    """Return method and target of the images of the run's desc in OUTPUT_DIR; None without any.

    Raises
    ------
    UsageError
        If they were made by several methods or to several targets.
    """
    found: Counter[ExistingTarget] = Counter()
    name = ScanPaths(settings.output_dir, Path(), "*", modality, resolution_of(settings.sloppy))
    pattern = sidecar(name.image(settings.desc, template=True)).name
    for path in sorted(settings.output_dir.glob(f"sub-*/**/anat/{pattern}")):
        content = read_json(path)
        found[ExistingTarget(str(content.get("HarmonizationMethod")),
                             str(content.get("TargetKind")), str(content.get("Target")))] += 1
    if len(found) > 1:
        kinds = "; ".join(f"{count} by {made}" for made, count in found.most_common())
        raise UsageError(
            f"the {modality} images desc-{settings.desc} in {settings.output_dir} were made by "
            f"several methods or to several targets: {kinds}. Delete the unwanted ones, or give "
            "the new ones another name with --desc.")
    return next(iter(found), None)


def planned_target(settings: Settings, modality: str, sites: Mapping[str, int]
                   ) -> tuple[str, str]:
    """Return kind and label of the target of the run, before any processing.

    The default is the target of the images in OUTPUT_DIR, else the site with the most scans.

    Parameters
    ----------
    settings : Settings
        Options of the run.
    modality : str
        BIDS suffix.
    sites : mapping of str to int
        Number of scans of each site of the model, or of the scans that it is fitted on.

    Raises
    ------
    UsageError
        If OUTPUT_DIR holds images of this desc by another method or to another target.
    """
    made = existing_target(settings, modality)
    kind, label = _requested_target(settings, modality, sites, made)
    if made is not None and (made.backend, made.label) != (settings.backend, label):
        raise UsageError(
            f"{settings.output_dir}: its {modality} images desc-{settings.desc} were made by "
            f"{made}; this run is {settings.backend} to {label!r}. To keep both, give this "
            f"one another name with --desc, such as --desc {settings.backend.replace('_', '')}; or "
            "use another output folder.")
    return kind, label


def reason_of_default(sites: Mapping[str, int]) -> str:
    """Return why a site is the default target.

    >>> reason_of_default({"A": 4, "B": 4, "C": 2})
    '4 scans, the most of all sites; first by name of A, B'
    """
    most = max(sites.values())
    largest = sorted(site for site, count in sites.items() if count == most)
    tie = f"; first by name of {', '.join(largest)}" if len(largest) > 1 else ""
    return f"{most} {'scan' if most == 1 else 'scans'}, the most of all sites{tie}"


def _requested_target(settings: Settings, modality: str, sites: Mapping[str, int],
                  made: ExistingTarget | None) -> tuple[str, str]:
    """Return kind and label of --target; by default those of existing images."""
    kind = settings.target_kind
    if kind == "site":
        return kind, site_label(settings.target[0], sites)
    if kind == "images":
        return "reference", _references_label(settings, reference_records(settings), modality)
    if kind == "card":
        card = Target.load(settings.target[0])
        return card.kind, card.label
    if kind == SCANNER_FREE:
        return kind, SCANNER_FREE
    if made is not None:
        return made.kind, made.label
    if not sites:
        return SCANNER_FREE, SCANNER_FREE
    return "site", max(sorted(sites), key=lambda site: sites[site])


def require_fit_target(settings: Settings, modality: str, cohort: Cohort) -> None:
    """Check before a fit that the model will have the target.

    Parameters
    ----------
    settings : Settings
        Options of the run.
    modality : str
        BIDS suffix.
    cohort : Cohort
        Scans that the model of this modality is fitted on.

    Raises
    ------
    UsageError
        If no scan is from the target site, or the target consists of reference images that were
        not given again.
    """
    kind, label = planned_target(settings, modality, cohort.sites)
    if kind == "site" and settings.target_kind != "card" and label not in cohort.sites:
        word = settings.target[0] if settings.target else label
        what = f"--target {word}" if settings.target else \
            f"the images in {settings.output_dir} were harmonized to {word!r}"
        alone = "" if len(settings.modalities) == 1 else \
            f" A run for {modality} alone (--modalities) may have another target."
        who = " of --fit-participants" if settings.fit_participants else ""
        remedy = "" if settings.target else (
            " Give another --target together with another --desc, or delete the images "
            f"desc-{settings.desc} and run the command again.")
        raise UsageError(f"{what}: no {modality} scan{who} is from that site. "
                         f"{did_you_mean(word, cohort.sites)}{alone}{remedy}")
    if kind == "reference" and not settings.target:
        raise UsageError(
            f"the {modality} images in {settings.output_dir} were harmonized to reference images, "
            f"{label!r}, and a new model needs them again. Give the same --target.")


def require_brains(settings: Settings, region: str) -> None:
    """Refuse guided results for whole heads: they are made from the tissues of the brain."""
    if region != "brain" and settings.detail == "guided":
        raise UsageError(
    f"{settings.backend} harmonizes whole heads (region={region}), and --detail "
    "guided needs the tissues of the brain. Drop --detail guided, or use "
    "region=brain.")


def model_folder_of(settings: Settings, modality: str) -> Path | None:
    """Find the model of a modality: of ``--model``, else in OUT/models, else None.

    ``--model`` may be a model folder, or a folder with one model folder for each modality.

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


def resolve_target(settings: Settings, modality: str, model: Path) -> ResolvedTarget:
    """Load the model, find the target and write its site card."""
    backend = registry.get(settings.backend).load(model)
    _check_options(settings, backend, model)
    references = None
    if settings.target_kind == "images":
        references = preprocess_references(settings, modality)
        target = _enrolled(settings, modality, backend, references)
    else:
        target = _named(settings, backend, modality)
    card = target.save(card_path(settings, modality, target.kind, target.label))
    return ResolvedTarget(model, card, target.label, target.kind, references)


def card_path(settings: Settings, modality: str, kind: str, label: str) -> Path:
    """Return OUT/models/<backend>/<modality>/targets/<kind>-<label>.safetensors."""
    folder = settings.output_dir / MODELS / settings.backend / modality / "targets"
    return folder / f"{kind}-{label}.safetensors"


def _named(settings: Settings, backend: Backend, modality: str) -> Target:
    """Return the target of a site, a site card, or the default of `planned_target`."""
    kind = settings.target_kind
    if kind == "card":
        return Target.load(settings.target[0])
    if kind == "default":
        made = existing_target(settings, modality)
        kind, label = planned_target(settings, modality, backend.sites_)
        why = "target of the images in OUTPUT_DIR" if made else reason_of_default(backend.sites_)
        LOGGER.info("No --target given: harmonizing %s to %r (%s).", modality, label, why)
        if kind == "reference":
            return Target.load(card_path(settings, modality, kind, label))
        return backend.target(label)
    try:
        return backend.target(site_label(settings.target[0], backend.sites_))
    except UsageError as error:
        raise UsageError(f"--target {settings.target[0]}, {backend.modality_}: {error}") from error


def site_label(text: str, sites: Collection[str]) -> str:
    """Return the label of a site that the user named: unchanged, or cleaned as in tables."""
    return text if text in sites else clean_label(text)


def _check_options(settings: Settings, backend: Backend, model: Path) -> None:
    """Refuse a model that was fitted with other options than those of the run.

    Raises
    ------
    UsageError
        If ``--backend-option`` differs from the model.
    """
    for name, (requested, fitted) in backend.differing_options(settings.backend_options).items():
        raise UsageError(
            f"--backend-option {name}={requested}: the model {model} was fitted with "
            f"{name}={fitted}. Run the fit stage with this option."
        )


def reference_records(settings: Settings) -> tuple[ScanRecord, ...]:
    """Return the reference images as records of subjects without a site."""
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
    """Return the modality of a reference image: its BIDS suffix, else that of the run."""
    suffix = split_name(path.name)[1]
    if suffix in MODALITIES:
        return suffix
    if len(settings.modalities) == 1:
        return settings.modalities[0]
    raise UsageError(f"--target {path}: its modality is not known; the run has "
                     f"{', '.join(settings.modalities)}. Rename it, such as ref_T1w.nii.gz.")


def preprocess_references(settings: Settings, modality: str) -> Path:
    """Preprocess the reference images into the models folder; return the folder."""
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
    records = reference_records(settings)
    wanted = [record.subject for record in records if record.modality == modality]
    found = find_preprocessed(folder, resolution_of(settings.sloppy), (modality,), wanted,
                              region=backend.region)
    return backend.enroll(cohort_of(found).scans, _references_label(settings, records, modality))


def _references_label(settings: Settings, records: Collection[ScanRecord], modality: str) -> str:
    several = sum(record.modality == modality for record in records) > 1
    label = "references" if several else Path(settings.target[0]).name.split(".")[0]
    return "".join(c for c in label if c.isalnum())


def target_bands(settings: Settings, modality: str,
                 resolved: ResolvedTarget) -> dict[str, list[list[float]]]:
    """Return tissue -> quantile functions of the target's scans, from the logs of preprocessing."""
    out = resolved.references or settings.output_dir
    found = find_preprocessed(out, resolution_of(settings.sloppy), (modality,))
    site = "reference" if resolved.references else resolved.label
    bands: dict[str, list[list[float]]] = {}
    if resolved.kind == "reference" and resolved.references is None:
        return bands
    fitted = set(read_json(resolved.model / "cohort.json").get("ScanIds", ()))
    own = resolved.references is None and resolved.model.is_relative_to(out)
    for item in found:
        if item.scan.site == site and (not own or item.scan_id in fitted):
            for tissue, quantiles in quantiles_of(item.paths).items():
                bands.setdefault(tissue, []).append(quantiles)
    return bands


def quantiles_of(paths: ScanPaths) -> dict[str, list[float]]:
    """Return the quantile functions of a scan by tissue, from its log; empty without one."""
    log = read_log(paths.out, paths.scan_id, "preprocess")
    return dict(log.facts.get("Quantiles", {})) if log else {}
