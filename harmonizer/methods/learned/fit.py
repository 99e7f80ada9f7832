"""Fitting of networks: in one process or several, on one modality or several.

With several modalities, one set of networks is trained on all of them. The input contains a code
of the modality, and both scans of a training pair have the same modality. The result is one model
per modality, with its own sites, baseline and residual weight. Site cards, `--model` and the
evaluation treat these models like any other. The networks are stored in each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...bounding_box import BoundingBox
from ...cohort import Cohort
from ...deep.training.data import VolumeStore, scan_identity
from ...deep.training.loop import CHECKPOINT, TrainingOutcome, train
from ...deep.training.processes import DistributedContext, launch
from ...deep.training.settings import Resources
from ...errors import InternalError, Terminated, UnavailableError
from ...progress import reporter
from ...tissues import TISSUES
from ...volume import write_volume
from ..base import Progress, StatisticsBackend, read_scan
from .baseline import baseline_of
from .inference import Inference, first_line, segmenter_of
from .model import LearnedModel
from .validation import (
    BASELINE_ERROR,
    ERROR,
    RESIDUAL_WEIGHT,
    ValidationCase,
    make_cases,
    measure_error,
    residual_weight_key,
    validate,
)

__all__ = ["TrainingSummary", "FitResult", "fit_baselines", "fit_networks", "modalities_of",
           "working_folder"]

LOGGER = logging.getLogger("harmonizer")
RESUMABLE_SETTINGS = ("steps", "patience", "log_every", "save_every")  # may change on resuming
MEMORY_SETTINGS = ("batch", "subjects", "views", "pairs", "slices", "patch")  # of a training step


@dataclass
class TrainingSummary:
    """Facts about a finished training.

    Attributes
    ----------
    steps, best_step : int
        Steps done, and the step of the weights.
    minutes : float
        Duration.
    stop_reason : str
        ``steps``, ``patience``, ``time``, ``signal`` or ``divergence``.
    device : str
        Number and kind of devices.
    validation_scans, test_scans : int
        Scans that the residual weight was chosen on, and scans that the error was measured on.
    error, baseline_error : float, optional
        Test errors with and without the networks; see `validation.measure_error`. None if unknown.
    waiting_fraction : float
        Fraction of the time of the steps that was spent waiting for data.
    is_first_process : bool
        Whether this process saves the model.
    """

    steps: int
    best_step: int
    minutes: float
    stop_reason: str
    device: str
    validation_scans: int
    test_scans: int
    error: float | None
    baseline_error: float | None
    waiting_fraction: float
    is_first_process: bool


@dataclass
class FitResult:
    """Result of a fit, as plain values that a process can return.

    Attributes
    ----------
    name : str
        Name of the method.
    weights : dict of str to ndarray
        Weights of all networks by ``network.parameter``.
    sites, modalities : tuple of str
        Of all scans, sorted.
    box, grid_shape
        See `Inference`.
    history : list of dict
        Rows of history.tsv.
    summary : TrainingSummary
        Facts about the training.
    residual_weights : dict of str to float
        Weight of the residual of each modality.
    """

    name: str
    weights: dict[str, np.ndarray]
    sites: tuple[str, ...]
    modalities: tuple[str, ...]
    box: BoundingBox
    grid_shape: tuple[int, ...]
    history: list[dict[str, Any]]
    summary: TrainingSummary
    residual_weights: dict[str, float]


@dataclass(frozen=True)
class _FitTask:
    """What every process of a fit needs."""

    name: str
    version: str
    model_class: type[LearnedModel]
    config: Any
    resources: Resources
    cohort: Cohort
    seed: int


def modalities_of(cohort: Cohort) -> tuple[str, ...]:
    """Return the modalities of a cohort, sorted."""
    return tuple(sorted({scan.modality for scan in cohort}))


def fit_baselines(baselines: Mapping[str, StatisticsBackend | None], cohort: Cohort, folder: Path,
                  seed: int, progress: Progress) -> dict[str, Cohort]:
    """Fit the baseline of each modality.

    Parameters
    ----------
    baselines : mapping
        Modality -> baseline, not fitted yet; None where the config has none.
    cohort : Cohort
        Scans of these modalities.
    folder : Path
        Where tissues are stored that had to be segmented.

    Returns
    -------
    dict of str to Cohort
        The scans of each modality, with their tissues if the baseline uses them.
    """
    parts = {}
    for modality, baseline in baselines.items():
        part = cohort.of_modality(modality)
        if baseline:
            part = with_tissues(part, baseline, folder / "tissues")
            baseline.fit(part, seed=seed, progress=progress)
        parts[modality] = part
    return parts


def fit_networks(name: str, version: str, model_class: type[LearnedModel], config: Any,
                 resources: Resources, cohort: Cohort, seed: int, progress: Progress) -> FitResult:
    """Train one set of networks.

    Parameters
    ----------
    name, version : str
        Of the method; part of a checkpoint's identity.
    model_class : type
        Networks of the method.
    resources : Resources
        Its folder holds checkpoint, history and volume store.
    cohort : Cohort
        Scans of one or several modalities, from `fit_baselines`.

    Raises
    ------
    Terminated
        If a signal ended the training after a checkpoint.
    InternalError
        If the training diverged, and no earlier weights can be used.
    """
    task = _FitTask(name, version, model_class, config, resources, cohort, seed)
    progress_here = progress if resources.process_count == 1 else None
    try:
        return launch(_fit_in_process, resources, task, progress_here)
    except InternalError as error:
        assert resources.folder is not None
        if not model_class.recovers_from_divergence or \
                not (resources.folder / CHECKPOINT).exists():
            raise
        LOGGER.warning("%s The best model before that is kept.", error)
    resources = replace(resources, max_minutes=0.0)  # restores the checkpoint, makes no step
    result = launch(_fit_in_process, resources, replace(task, resources=resources), progress_here)
    result.summary.stop_reason = "divergence"
    return result


@contextlib.contextmanager
def working_folder(resources: Resources) -> Iterator[Path]:
    """Create the folder of a fit; a temporary one if the resources name none."""
    if resources.folder is not None:
        resources.folder.mkdir(parents=True, exist_ok=True)
        yield resources.folder
        return
    with tempfile.TemporaryDirectory(prefix="harmonizer-fit-") as folder:
        yield Path(folder)


def _fit_in_process(distributed: DistributedContext, task: _FitTask, progress: Progress | None
                    ) -> FitResult:
    """Run one process of a fit: volume store, training task, loop, validation."""
    config, cohort, seed = task.config, task.cohort, task.seed
    assert task.resources.folder is not None
    resources = replace(task.resources, device=str(distributed.device))
    model = task.model_class(config, tuple(cohort.sites), modalities_of(cohort),
                             resources.device)
    baseline = baseline_of(config.baseline)
    store = _build_store(distributed, task, model, baseline)
    inference = Inference(task.name, model, baseline, store.box, store.grid_shape)
    parts = _split(cohort, config, seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model.networks = model.build_networks()
        model.load_user_weights()
    training = model.training_task(store, parts.trained, seed)
    training.identity = {
        "backend": task.name, "version": task.version, "seed": seed,
        "config": {k: v for k, v in vars(config).items() if k not in RESUMABLE_SETTINGS},
        "scans": [[*scan_identity(scan), scan.site] for scan in cohort]}
    cases: list[ValidationCase] = []
    if distributed.is_first:
        _warn_without_validation(task.name, config, parts)
        cases = _make_cases(cohort, parts.trained, parts.validation, config, seed)
    if cases:
        training.validate = lambda: validate(inference, cases)  # type: ignore[method-assign]
    outcome = _train(distributed, task, training, resources, progress)
    weights = {k: v.float().numpy() for k, v in outcome.weights.items()}
    metrics, errors = outcome.metrics, {}
    if distributed.is_first:
        model.load_weights(weights)
        if cases and not metrics:  # the training ended before the first validation
            metrics = validate(inference, cases)
    residual_weights = _residual_weights(config, model.modalities, metrics)
    test_cases = _make_cases(cohort, parts.trained, parts.test, config, seed + 1) \
        if distributed.is_first else []
    if test_cases:
        errors = measure_error(inference, test_cases, residual_weights)
    summary = TrainingSummary(
        outcome.steps, outcome.best_step, outcome.minutes, outcome.stop_reason,
        f"{distributed.size} x {distributed.device}", len(parts.validation), len(parts.test),
        errors.get(ERROR), errors.get(BASELINE_ERROR), outcome.waiting_fraction,
        distributed.is_first)
    return FitResult(task.name, weights, model.sites, model.modalities, store.box,
                     store.grid_shape, outcome.history, summary, residual_weights)


def _build_store(distributed: DistributedContext, task: _FitTask, model: LearnedModel,
                 baseline: StatisticsBackend | None) -> VolumeStore:
    """Build the volume store in the first process, and open it in all."""
    assert task.resources.folder is not None
    folder = task.resources.folder / "volumes"
    segment = segmenter_of(task.model_class, baseline)
    if distributed.is_first:
        VolumeStore.build(task.cohort, folder, model.multiple, segment)
    distributed.barrier()
    return VolumeStore.build(task.cohort, folder, model.multiple, segment)


def _train(distributed: DistributedContext, task: _FitTask, training: Any, resources: Resources,
           progress: Progress | None) -> TrainingOutcome:
    """Run the training loop, with a progress bar and explained errors."""
    bar: Any = contextlib.nullcontext()
    if progress is None and distributed.is_first:  # the caller's is in another process
        bar, progress = reporter("train")
    assert resources.folder is not None
    try:
        with bar:
            outcome = train(training, task.config.training_schedule(), resources,
                            resources.folder, task.seed, distributed=distributed,
                            progress=progress)
    except torch.cuda.OutOfMemoryError as error:
        options = " ".join(f"{k}={v}" for k, v in vars(task.config).items()
                           if k in MEMORY_SETTINGS)
        raise UnavailableError(
            f"{task.name}: {distributed.device} has not enough memory for a step of training "
            f"({first_line(error)}). Set less with --backend-option (now {options}) or use a "
            "GPU with more memory, or --device cpu."
        ) from error
    if outcome.stop_reason == "signal":
        raise Terminated(
            f"{task.name}: training received a stop signal and saved a checkpoint; the "
            "same command resumes it."
        )
    return outcome


def _make_cases(cohort: Cohort, trained: tuple[int, ...], validated: tuple[int, ...], config: Any,
                seed: int) -> list[ValidationCase]:
    """Make the same number of cases for each modality, with a baseline fitted within it."""
    cases: list[ValidationCase] = []
    if not validated or not config.validation_cases:
        return cases
    for modality in modalities_of(cohort):
        train_part, validation_part = (
            tuple(i for i in some if cohort.scans[i].modality == modality)
            for some in (trained, validated))
        cases += make_cases(cohort, train_part, validation_part, baseline_of(config.baseline),
                            config.validation_cases, config.validation_depth, seed)
    return cases


class _SubjectSplit(NamedTuple):
    """Indices of the scans of three groups of subjects; no subject is in two of them.

    Attributes
    ----------
    trained, validation, test : tuple of int
        Scans that networks are trained on, that weights are chosen on, and that the error of the
        result is measured on.
    """

    trained: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def _split(cohort: Cohort, config: Any, seed: int) -> _SubjectSplit:
    """Split the scans by subject; of two subjects kept from training one is for validation."""
    _, held_out = cohort.split(config.validation_fraction, seed)
    site_of = {s: min(scan.site for scan in held_out if scan.subject == s)
               for s in held_out.subjects}
    ordered = sorted(held_out.subjects, key=lambda s: (site_of[s], s))
    validation = set(ordered[::2]) if config.uses_validation else set()
    test_subjects = set(ordered) - validation

    def scans_of(included: Callable[[str], bool]) -> tuple[int, ...]:
        return tuple(i for i, scan in enumerate(cohort.scans) if included(scan.subject))

    return _SubjectSplit(scans_of(lambda s: s not in site_of), scans_of(lambda s: s in validation),
                  scans_of(lambda s: s in test_subjects))


def _warn_without_validation(name: str, config: Any, parts: _SubjectSplit) -> None:
    """Say before the training that its result will not be used."""
    if config.weight_residual and not (parts.validation and config.validation_cases):
        LOGGER.warning(
            "%s: no subject is kept for validation (validation_fraction=%g, validation_cases=%d), "
            "so the networks' residual gets the weight 0 and results are those of the baseline %s. "
            "Fit on more subjects, or set a larger validation_fraction with --backend-option.",
            name, config.validation_fraction, config.validation_cases, config.baseline)


def _residual_weights(config: Any, modalities: tuple[str, ...], metrics: Mapping[str, float]
                      ) -> dict[str, float]:
    """Return the weight of each modality's residual: 1 as published, 0 if nothing was validated."""
    if not config.weight_residual:
        return dict.fromkeys(modalities, 1.0)
    shared = metrics.get(RESIDUAL_WEIGHT, 0.0) if len(modalities) == 1 else 0.0
    return {m: metrics.get(residual_weight_key(m), shared) for m in modalities}


def with_tissues(cohort: Cohort, baseline: StatisticsBackend, folder: Path) -> Cohort:
    """Return the cohort with the tissues of all scans, if the baseline is by tissue.

    Unknown tissues are segmented once and stored in the folder under a name that depends on the
    scan's files.
    """
    scans = []
    for scan in cohort if baseline.by_tissue else ():
        name = hashlib.sha256(json.dumps(scan_identity(scan)).encode()).hexdigest()[:16]
        paths = {tissue: folder / f"{name}_{tissue}.nii.gz" for tissue in TISSUES}
        if not scan.tissues and not all(path.is_file() for path in paths.values()):
            volume = read_scan(scan)
            for tissue, probability in baseline.segment(volume).items():
                write_volume(paths[tissue],
                             volume.with_data(np.asarray(probability, np.float32)))
        scans.append(scan if scan.tissues else replace(scan, tissues=paths))
    return Cohort(tuple(scans)) if scans else cohort
