"""Base class of learned methods: the public verbs of `Backend` over networks.

The work is done by other modules:

* `model`: the networks of a method, and what they compute from one scan;
* `fit`: baselines and training;
* `validation`: the error on validation subjects;
* `inference`: application to whole volumes;
* `persistence`: arrays of the model folder.

A method is a package with a `config.py`, a `model.py`, a `training.py` and a `backend.py`. The
backend declares

    name, reference, summary, capabilities, Config
    Model      its `LearnedModel`
    presets    {"tiny": {...}, "small": {...}, "paper": {...}}: values that differ from `Config`'s

**Baseline.** The image is first brought to the target by a training-free method
(`config.baseline`), in the target's unit. The networks receive that image, and their output is
added as a residual. An untrained network changes nothing.

**Residual weight.** The residual is weighted by its benefit on validation subjects, from 0 to 1
(`residual_weight_`). If nothing was validated the weight is 0. The papers have no such weight: with
``weight_residual=false``, as in the presets ``paper``, it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...bounding_box import BoundingBox
from ...cohort import Cohort, Scan
from ...deep.training.settings import Resources
from ...errors import UnavailableError, UsageError, did_you_mean
from ...volume import Volume
from ..base import Backend, HarmonizationResult, Progress, ScanContext, StatisticsBackend, read_scan
from ..target import Target
from . import persistence
from .baseline import (
    PERCENTILES,
    PREFIX,
    apply_baseline,
    baseline_of,
    check_baseline_style,
    with_prefix,
)
from .fit import (
    FitResult,
    TrainingSummary,
    fit_baselines,
    fit_networks,
    modalities_of,
    working_folder,
)
from .inference import Inference, first_line
from .model import LearnedModel

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LearnedBackend", "fit_together"]

MIN_BRIGHTNESS = 0.1  # of a voxel after the residual, relative to before: never zero or negative
Summary = dict[str, np.ndarray]


class LearnedBackend(Backend):
    """A method with networks; see the module.

    Attributes
    ----------
    resources : Resources
        Where a fit or an inference runs; not saved.
    baseline_ : StatisticsBackend or None
        The fitted baseline.
    model_ : LearnedModel
        The networks.
    styles_ : dict of str to dict
        Style of each site of the fit.
    residual_weight_ : float
        Weight of the networks' residual, 0 to 1.
    box_, grid_shape_
        Box around all brains of the fit, and its grid; see `Inference`.
    history_, training_
        Training history, and facts about the training; None after `load`.
    """

    version = "5"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    Model: ClassVar[type[LearnedModel]]

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.resources = Resources()
        self.baseline_: StatisticsBackend | None = baseline_of(self.config.baseline)
        self.model_: LearnedModel = self.Model(self.config)
        self.styles_: dict[str, dict[str, np.ndarray]] = {}
        self.residual_weight_ = 1.0
        self.box_: BoundingBox | None = None
        self.grid_shape_: tuple[int, ...] = ()
        self.history_: list[dict[str, Any]] = []
        self.training_: TrainingSummary | None = None

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """Make a `Config` from names and values, on top of the preset named among them."""
        preset = values.get("preset", cls.Config().preset)
        if preset not in cls.presets:
            raise UsageError(f"{cls.name} has no preset {preset!r}. "
                             f"{did_you_mean(str(preset), cls.presets)}")
        return super().config_from({**cls.presets[preset], **values})

    # Fit ------------------------------------------------------------------------------------

    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        _fit_models({cohort.scans[0].modality: self}, cohort, seed, progress)

    def _adopt(self, result: FitResult, cohort: Cohort) -> None:
        """Take over the trained networks, and describe the sites of this model's modality."""
        self.modality_ = cohort.scans[0].modality
        self.model_ = self.Model(self.config, tuple(cohort.sites), result.modalities,
                                 self.resources.device)
        self.model_.load_weights(result.weights)
        self.box_, self.grid_shape_ = result.box, result.grid_shape
        self.history_, self.training_ = result.history, result.summary
        self.residual_weight_ = result.residual_weights[self.modality_]
        summaries: dict[str, list[Summary]] = {}
        for scan in cohort:
            summaries.setdefault(scan.site, []).append(self._summary_of(scan))
        self.styles_ = {site: self._pool(summaries[site],
                                         self.baseline_.styles_[site] if self.baseline_ else {})
                        for site in sorted(summaries)}

    def on(self, device: str) -> Self:
        """Move the networks to a device; see `Backend.on`."""
        self.resources = replace(self.resources, device=device)
        self.model_.to(device)
        return self

    @property
    def saves_model(self) -> bool:
        """Whether this process saves the model; of distributed processes the first does."""
        return self.training_ is None or self.training_.is_first_process

    @property
    def inference(self) -> Inference:
        """Application of the networks to whole volumes."""
        assert self.box_ is not None, "not fitted"
        return Inference(self.name, self.model_, self.baseline_, self.box_, self.grid_shape_)

    # Styles ---------------------------------------------------------------------------------

    def _summary_of(self, scan: Scan) -> Summary:
        return self.inference.describe(read_scan(scan),
                                       ScanContext(scan.site, tissues=scan.read_tissues()))

    def _pool(self, summaries: list[Summary], baseline: Mapping[str, np.ndarray]) -> Summary:
        """Make a style: that of the baseline, the scans' percentiles, and the model's own."""
        percentiles = np.mean([s[PERCENTILES] for s in summaries], axis=0)
        own = [{k: v for k, v in s.items() if not k.startswith(PREFIX)} for s in summaries]
        return {**with_prefix(baseline), PERCENTILES: percentiles, **self.model_.pool(own)}

    def _fit_facts(self) -> dict[str, Any]:
        return self.baseline_._fit_facts() if self.baseline_ else {}

    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        return {**self.styles_[label], **self.model_.site_style(label)}

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        baseline = self.baseline_._enroll(scans) if self.baseline_ else {}
        return self._pool([self._summary_of(scan) for scan in scans], baseline)

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        self.model_.check_style(style)
        check_baseline_style(self.baseline_, style)

    # Harmonize ------------------------------------------------------------------------------

    def baseline_only(self, volume: Volume, target: Target, context: ScanContext | None = None
                      ) -> Volume:
        """Harmonize a volume by the baseline alone."""
        context = self.inference.add_tissues(volume, context or ScanContext())
        return apply_baseline(self.baseline_, volume, target, context)

    def _harmonize(self, volume: Volume, target: Target, context: ScanContext,
                   rng: np.random.Generator, checkpoint_folder: Path | None
                   ) -> HarmonizationResult:
        inference = self.inference
        context = inference.add_tissues(volume, context)
        first = self.baseline_only(volume, target, context)
        if not self.residual_weight_:
            return HarmonizationResult(first)
        residual = inference.residual(first, target.style, context, rng, checkpoint_folder)
        weight = np.float32(self.residual_weight_)
        result = _add_residual(first, weight * residual.change)
        if not np.isfinite(result.in_mask()).all():
            raise UnavailableError(
                f"{self.name}: the networks gave NaN or infinite voxels; the model's weights or "
                "the target's numbers are out of range. Fit again, or use another target.")
        return HarmonizationResult(result, None if residual.std is None else weight * residual.std)

    # State ----------------------------------------------------------------------------------

    def _state(self) -> dict[str, np.ndarray]:
        assert self.box_ is not None
        return persistence.model_arrays(self.model_, self.styles_, self.baseline_,
                                        self.residual_weight_, self.box_, self.grid_shape_)

    def _set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        model = self.Model(self.config, tuple(self.sites_),
                           persistence.modalities_from(arrays, self.modality_),
                           self.resources.device)
        self.box_, self.grid_shape_ = persistence.geometry_from(arrays, model.multiple)
        self.styles_ = persistence.styles_from(arrays, self.sites_)
        self.residual_weight_ = persistence.residual_weight_from(arrays)
        if self.baseline_:
            self.baseline_.left_out_sites_ = self.left_out_sites_
            persistence.restore_baseline(self.baseline_, arrays, self.styles_, self.modality_,
                                         self.sites_)
        try:
            persistence.restore_networks(model, arrays)
            self.model_ = model
            for site in self.sites_:
                self._check_style(self._site_style(site))
        except (RuntimeError, ArithmeticError, AssertionError, IndexError) as error:
            raise ValueError(first_line(error)) from error

    # Facts ----------------------------------------------------------------------------------

    def describe_model(self) -> dict[str, Any]:
        """Return the baseline, and the weight of the networks' residual, 0 to 1."""
        return {"Baseline": self.config.baseline,
                "ResidualWeight": round(self.residual_weight_, 4)}

    def training_history(self) -> list[dict[str, Any]]:
        """See `Backend.training_history`."""
        return self.history_

    def training_facts(self) -> list[str]:
        """See `Backend.training_facts`."""
        facts, modalities = self.training_, self.model_.modalities
        if facts is None:
            return []
        together = f" on {', '.join(modalities)} together" if len(modalities) > 1 else ""
        lines = [f"Trained{together} for {facts.steps} steps in {facts.minutes:.1f} minutes on "
                 f"{facts.device} (ended by: {facts.stop_reason}); the weights are averages of "
                 f"step {facts.best_step}. Of the time of the steps "
                 f"{facts.waiting_fraction:.0%} was spent waiting for data."]
        lines.append(self._weight_fact(facts))
        if facts.error is None:
            lines.append("No subject was kept for a test: the error is unknown.")
        else:
            lines.append(
                f"Simulated scanners on {facts.test_scans} scans of subjects used neither for "
                f"training nor for validation: error {facts.error:.4f} of the intensity range; "
                f"{self.config.baseline} alone {facts.baseline_error:.4f}.")
        return lines

    def _weight_fact(self, facts: TrainingSummary) -> str:
        """Say how the residual weight was chosen."""
        if not self.config.weight_residual:
            return "The networks' residual is added in full, as published."
        if not facts.validation_scans:
            return ("No subject was kept for validation, so the residual weight is 0: results are "
                    f"those of {self.config.baseline}.")
        return (f"Residual weight: {self.residual_weight_:.2f}, which minimizes the error on "
                f"{facts.validation_scans} validation scans.")


def fit_together(backends: Mapping[str, LearnedBackend], cohort: Cohort, *, seed: int = 0,
                 progress: Progress | None = None) -> None:
    """Fit models of several modalities with one set of networks.

    Parameters
    ----------
    backends : mapping
        Modality -> model to be fitted, all of one method and config; the first one's `resources`
        are used.
    cohort : Cohort
        Preprocessed scans of these modalities on the template grid, with masks.

    Raises
    ------
    UsageError
        If the method cannot be trained on several modalities, models and scans are of different
        modalities, or the models are of different methods or configs.
    InputError
        If a scan cannot be used.
    """
    first = next(iter(backends.values()), None)
    if first is None or not first.capabilities.modalities:
        raise UsageError(f"{first.name if first else 'this'} cannot be trained on several "
                         "modalities at once. Fit a model for each.")
    if set(backends) != set(modalities_of(cohort)):
        raise UsageError(f"expected scans of {', '.join(sorted(backends))}, got "
                         f"{', '.join(modalities_of(cohort)) or 'none'}.")
    if any((b.name, b.config) != (first.name, first.config) for b in backends.values()):
        raise UsageError("models of several methods or configs cannot share their networks.")
    _fit_models(backends, cohort, seed, progress or (lambda done, total: None))
    for modality, backend in backends.items():
        backend._record_cohort(cohort.of_modality(modality))


def _fit_models(backends: Mapping[str, LearnedBackend], cohort: Cohort, seed: int,
                progress: Progress) -> None:
    """Fit baselines and networks, then what each model stores of its own modality."""
    first = next(iter(backends.values()))
    with working_folder(first.resources) as folder:
        for backend in backends.values():
            if backend.baseline_:
                backend.baseline_.left_out_sites_ = backend.left_out_sites_
        parts = fit_baselines({modality: backend.baseline_ for modality, backend
                               in backends.items()}, cohort, folder, seed, progress)
        whole = Cohort(tuple(scan for part in parts.values() for scan in part))
        result = fit_networks(first.name, first.version, first.Model, first.config,
                              replace(first.resources, folder=folder), whole, seed, progress)
        for modality, backend in backends.items():
            backend._adopt(result, parts[modality])


def _add_residual(volume: Volume, change: np.ndarray) -> Volume:
    """Add a change that fades towards zero intensity, so that no voxel becomes dark or negative."""
    assert volume.mask is not None
    values = volume.data[volume.mask].astype(np.float64)
    low = max(float(np.quantile(values, 0.01)), 1e-3 * float(np.abs(values).max()))
    y = values + change[volume.mask] * np.clip(values / low, 0, 1)
    data = volume.data.copy()
    data[volume.mask] = np.where(values > 0, np.maximum(y, MIN_BRIGHTNESS * values), values)
    return volume.with_data(data)
