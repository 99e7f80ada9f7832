"""The stage `harmonize`: preprocessed scans are harmonized to the target."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonizer.errors import InputError, UnavailableError, UsageError
from harmonizer.files import read_json, sha256_of
from harmonizer.methods import registry
from harmonizer.methods.model_folder import model_hash

from ..outputs.collect import Preprocessed
from ..outputs.figures import figures_index
from ..outputs.names import sidecar
from ..outputs.scanlog import ScanLog, write_log
from ..outputs.selection import Selection
from ..settings import Settings
from ..stages.targets import (
    ResolvedTarget,
    model_folder_of,
    require_brains,
    resolve_target,
    target_bands,
)
from .engine import ScanFailure, execute
from .preprocessing import MEM_GB, write_graph

if TYPE_CHECKING:
    from nipype import Workflow

__all__ = ["harmonize", "init_harmonization_wf", "device_of"]

LOGGER = logging.getLogger("pipelines")
MAPPING_GB = 1.0  # measured: 0.64 for histogram matching, native grid of 15 million voxels
SEGMENTING_GB = MEM_GB["segment"]  # `guided` segments the scan


def harmonize(settings: Settings, selection: Selection
              ) -> tuple[tuple[ScanFailure, ...], tuple[str, ...]]:
    """Harmonize the selected scans of each modality; return failures, and lines for the user.

    Without a model, the lines state what to run next, unless the stage was requested by name.

    Raises
    ------
    UnavailableError
        If the stage or a model was requested by name and there is no model.
    InputError
        If nothing is preprocessed.
    """
    failures: tuple[ScanFailure, ...] = ()
    lines: list[str] = []
    resolved_targets = {}
    for modality in settings.modalities:  # all errors come before any processing
        model = model_folder_of(settings, modality)
        if model is None:
            lines.append(_without_model(settings, modality))
        else:
            resolved_targets[modality] = resolve_target(settings, modality, model)
    for modality, resolved in resolved_targets.items():
        found = selection.find((modality,))
        missed = _harmonize_modality(settings, modality, found, resolved)
        failures += missed
        lines.append(f"Harmonized ({modality}): {len(found) - len(missed)} of {len(found)} scans "
                     f"to {resolved.label!r} with {settings.backend}.")
    return failures, tuple(lines)


def _without_model(settings: Settings, modality: str) -> str:
    text = (f"no fitted {settings.backend} model for {modality} in {settings.output_dir}. Run the "
            "group level when all participants are preprocessed: it fits, harmonizes and "
            "evaluates. Or give a model with --model.")
    if "harmonize" in settings.stages:
        raise UnavailableError(text[0].upper() + text[1:])
    return f"Not harmonized yet: {text}"


def _harmonize_modality(
    settings: Settings, modality: str, found: Sequence[Preprocessed], resolved: ResolvedTarget
) -> tuple[ScanFailure, ...]:
    if not found:
        raise InputError(f"{settings.output_dir}: no preprocessed {modality} scan of these "
                         "participants. Run the preprocess stage first.")
    require_brains(
    settings,
    read_json(
        resolved.model /
        "config.json")["Config"].get(
            "region",
             "brain"))
    key = {"ModelSHA256": model_hash(resolved.model), "TargetSHA256": sha256_of(resolved.card),
           "RandomSeed": settings.random_seed, "Detail": settings.detail}
    jobs = [item for item in found if not _is_finished(item, settings, resolved, key)]
    if len(jobs) < len(found):
        LOGGER.info("%d of %d scans were harmonized before and are reused.",
                    len(found) - len(jobs), len(found))
    if not jobs or settings.dry_run:
        return ()
    build = partial(init_harmonization_wf, settings, resolved=resolved,
                    bands=target_bands(settings, modality, resolved))
    if settings.write_graph:
        write_graph(build(jobs), settings.output_dir, f"harmonize_{modality}")
    failures = execute(build, jobs, settings, f"harmonize {modality}")
    for failure in failures:
        write_log(settings.output_dir, ScanLog(
            failure.scan_id, f"harmonize-{settings.desc}", "failed", message=failure.message))
    return failures


def _is_finished(item: Preprocessed, settings: Settings,
                 resolved: ResolvedTarget, key: dict[str, Any]) -> bool:
    """Return whether the result exists, from the same model, target, image, site and seed.

    Raises
    ------
    UsageError
        If the image of this desc was made by another method or to another target.
    """
    images = [item.paths.image(settings.desc, template=t) for t in (False, True)]
    if not all(path.is_file() and sidecar(path).is_file() for path in images):
        return False
    content = read_json(sidecar(images[1]))
    made = (content.get("HarmonizationMethod"), content.get("Target"))
    if made != (settings.backend, resolved.label):
        raise UsageError(
            f"{images[0]}: was made by {made[0]} to {made[1]!r}, this run is {settings.backend} "
            f"to {resolved.label!r}. To keep both, give this one another name with --desc, such as "
            f"--desc {settings.backend.replace('_', '')}; or use another output folder."
        )
    now = {**key, "PreprocessedSHA256": item.sidecar["ImageSHA256"], "SourceSite": item.scan.site}
    # figures are written last
    drawn = figures_index(item.paths, f"harmonize-{settings.desc}").is_file()
    return drawn and all(content.get(name) == value for name, value in now.items())


def device_of(settings: Settings) -> str:
    """Return the device of the networks; ``cpu`` for methods without training."""
    if not registry.get(settings.backend).capabilities.trained or settings.device == "cpu":
        return "cpu"
    return _first_device() if settings.device == "auto" else settings.device


@lru_cache(maxsize=1)
def _first_device() -> str:
    """Return ``cuda:0`` if torch can use it, else ``cpu``; warn once of a GPU that is not used."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    from harmonizer.deep.processor import gpu_problem

    problem = gpu_problem()
    if problem:
        LOGGER.warning("The networks use the CPU: %s. See docs/how-to/containers.md, GPUs and "
                       "drivers.", problem)
    return "cpu" if problem else "cuda:0"


def _scratch(settings: Settings, item: Preprocessed, key: dict[str, Any]) -> Path:
    """Return the checkpoint folder of the sampling of one image, which nothing else uses."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(settings.work_dir) / "sampling" / f"{item.scan.scan_id}-{settings.desc}-{digest}"


def init_harmonization_wf( settings: Settings,
    jobs: Sequence[Preprocessed],
    resolved: ResolvedTarget,
    bands: dict[str,
     Any] ) -> Workflow:
    """Build a workflow with one sub-workflow for each scan: harmonize -> draw."""
    from nipype import Workflow

    workflow = Workflow(name="harmonize_wf", base_dir=str(settings.work_dir))
    workflow.add_nodes([_init_scan_wf(settings, item, resolved, bands) for item in jobs])
    return workflow


def _init_scan_wf(settings: Settings, item: Preprocessed,
                  resolved: ResolvedTarget, bands: dict[str, Any] ) -> Workflow:
    from nipype import Node, Workflow

    from ..interfaces.harmonize import Harmonize
    from ..interfaces.reports import DrawHarmonized

    paths, device = item.paths, device_of(settings)
    key = {"model": model_hash(resolved.model), "card": sha256_of(resolved.card), "device": device,
           "source": item.sidecar["ImageSHA256"], "seed": settings.random_seed}
    place = {"out_dir": str(paths.out), "folder": str(paths.folder), "stem": paths.stem,
             "modality": paths.modality, "resolution": paths.resolution}
    change = Node(Harmonize(
        **place, site=item.scan.site, backend=settings.backend, model=str(resolved.model),
        model_sha256=key["model"], card=str(resolved.card), card_sha256=key["card"],
        source_sha256=key["source"], desc=settings.desc, device=device,
        scratch=str(_scratch(settings, item, key)),
        detail=settings.detail,
        covariates={**item.scan.covariates, "age": item.scan.age, "sex": item.scan.sex},
        use_gpu=device.startswith("cuda"), seed=settings.random_seed),
        name="harmonize", n_procs=1,
        mem_gb=SEGMENTING_GB if settings.detail == "guided" else MAPPING_GB)
    draw = Node(DrawHarmonized(**place, desc=settings.desc, target=resolved.label,
                               target_quantiles=bands), name="draw", mem_gb=0.7)
    change.overwrite = draw.overwrite = True  # they write to OUTPUT_DIR, not the cache
    workflow = Workflow(name=item.name)
    workflow.connect(change, "template_file", draw, "harmonized")
    return workflow
