"""Validation of a learned method on subjects that it is not trained on.

A scan of a validation subject is transformed to a simulated scanner and harmonized back to its own
site; the truth is the scan itself. The site is described by its other subjects, so methods that
mistake anatomy for contrast score badly.

The baseline of each case is fitted on other subjects of the site. Truth and baseline are then
scaled to one gain, because the gain of a scan is not part of its contrast. Tissue probabilities are
those of the original scan, because a segmenter may fail on simulated contrasts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...bounding_box import BoundingBox
from ...cohort import Cohort, Scan
from ...contrast.intensity import IntensityScale
from ...deep.augmentation.contrast import ContrastSettings, draw_view
from ...volume import Volume
from ..base import ScanContext, StatisticsBackend
from ..target import Target
from .baseline import match_percentiles
from .inference import Inference

__all__ = ["ValidationCase", "make_cases", "score", "validate", "measure_error",
           "residual_weight_key"]

MAX_REFERENCES = 8  # scans of other subjects that represent a site
MIN_MEAN_SQUARE = 1e-8  # of the range; a smaller change is rounding
SIMULATED_SCANNER = ContrastSettings(bias=0.2, blur=0.6, noise=0.03)
SIMULATED_RANGE = 200.0  # intensities of a simulated scan are 0 to this
ERROR, BASELINE_ERROR, RESIDUAL_WEIGHT = "error", "baseline_error", "residual_weight"


@dataclass(frozen=True, eq=False)
class ValidationCase:
    """Middle slices of a validation scan as acquired by a simulated scanner.

    Attributes
    ----------
    baseline : Volume
        The simulated scan after the baseline, in the unit of its site.
    truth : Volume
        The scan itself.
    tissues : mapping of str to ndarray
        Tissue probabilities; empty if the baseline does not use them.
    site, modality : str
        Where and how the subject was scanned.
    references : tuple of (Volume, mapping)
        The same slices of other subjects' scans of the site, and their tissues.
    """

    baseline: Volume
    truth: Volume
    tissues: Mapping[str, np.ndarray]
    site: str
    modality: str
    references: tuple[tuple[Volume, Mapping[str, np.ndarray]], ...]

    def error(self) -> np.ndarray:
        """Return truth - baseline in the brain, relative to the truth's range, shape (n,)."""
        return (self.truth.in_mask() - self.baseline.in_mask()) / self.range

    @property
    def range(self) -> float:
        """The truth's 0.5 to 99.5 % range in the brain."""
        low, high = np.quantile(self.truth.in_mask(), [0.005, 0.995])
        return max(float(high - low), 1e-6)


def make_cases(cohort: Cohort, trained: tuple[int, ...], validated: tuple[int, ...],
               baseline: StatisticsBackend | None, count: int, depth: int, seed: int
               ) -> list[ValidationCase]:
    """Make validation cases of sites at which other subjects are trained on.

    Parameters
    ----------
    cohort : Cohort
        All scans. Their tissues are known if the baseline is by tissue.
    trained, validated : tuple of int
        Indices of scans; no subject is in both.
    baseline : StatisticsBackend or None
        Not fitted yet; fitted here on trained scans. None: two percentiles are matched.
    count : int
        Number of cases.
    depth : int
        Axial slices around the brain's middle; 0 = all.
    """
    others = {site: [cohort.scans[i] for i in trained if cohort.scans[i].site == site]
              [:MAX_REFERENCES] for site in cohort.sites}
    pool = [cohort.scans[i] for i in validated if others[cohort.scans[i].site]]
    if not pool:
        return []
    sites = sorted({scan.site for scan in pool})
    if baseline is not None:
        baseline.fit(Cohort(tuple(scan for site in sites for scan in others[site])), seed=seed)
    references = {site: tuple(_reference(scan, baseline, depth) for scan in others[site])
                  for site in sites}
    return [_make_case(pool[number % len(pool)], references, baseline, depth,
                       np.random.default_rng([seed, number, 3])) for number in range(count)]


def validate(inference: Inference, cases: list[ValidationCase]) -> dict[str, float]:
    """Score the residuals of a model on validation cases.

    Returns
    -------
    dict
        See `score`; for several modalities also the residual weight of each
        (`residual_weight_key`).
    """
    changes = [_residual(inference, case, number) for number, case in enumerate(cases)]
    metrics = score(cases, changes)
    modalities = inference.model.modalities
    for modality in modalities if len(modalities) > 1 else ():
        own = [n for n, case in enumerate(cases) if case.modality == modality]
        if own:
            metrics[residual_weight_key(modality)] = score(
                [cases[n] for n in own], [changes[n] for n in own])[RESIDUAL_WEIGHT]
    return metrics


def measure_error(inference: Inference, cases: list[ValidationCase],
                  residual_weights: Mapping[str, float]) -> dict[str, float]:
    """Measure the error of a finished model on cases that had no part in its choice.

    Parameters
    ----------
    residual_weights : mapping of str to float
        Weight of the residual of each modality, already chosen.

    Returns
    -------
    dict
        ``error`` and ``baseline_error``; see `score`.
    """
    changes = [np.float32(residual_weights[case.modality]) * _residual(inference, case, number)
               for number, case in enumerate(cases)]
    metrics = score(cases, changes, weight=1.0)
    return {name: metrics[name] for name in (ERROR, BASELINE_ERROR)}


def residual_weight_key(modality: str) -> str:
    """Return the name of the residual weight of one of several modalities."""
    return f"{RESIDUAL_WEIGHT} {modality}"


def score(cases: list[ValidationCase], changes: list[np.ndarray], weight: float | None = None
          ) -> dict[str, float]:
    """Find the weight of the residuals that minimizes the error, and that error.

    Parameters
    ----------
    changes : list of ndarray, shape (I, J, K)
        Residual of the networks for each case.
    weight : float, optional
        A weight that was chosen before. Default: the best one for these cases.

    Returns
    -------
    dict
        ``residual_weight``, 0 to 1: least squares over all cases. Errors are relative to the
        baseline error of the case, so that one difficult case does not dominate. ``error`` with
        this weight and ``baseline_error`` without: root mean square in the brain over the range
        of the truth, geometric mean over cases.
    """
    errors = [case.error() for case in cases]
    residuals = [change[case.truth.mask] / case.range for case, change in zip(cases, changes)]
    if weight is None:
        weight = _best_weight(errors, residuals)
    return {ERROR: _rms([e - np.float32(weight) * r for e, r in zip(errors, residuals)]),
            BASELINE_ERROR: _rms(errors), RESIDUAL_WEIGHT: weight}


def _best_weight(errors: list[np.ndarray], residuals: list[np.ndarray]) -> float:
    """Return the weight in [0, 1] that minimizes the relative errors; 0 without any change."""
    weights = [1 / max(_mean_square(e), MIN_MEAN_SQUARE) for e in errors]
    along = sum(w * np.mean(e * r, dtype=np.float64)
                for w, e, r in zip(weights, errors, residuals))
    length = sum(w * _mean_square(r) for w, r in zip(weights, residuals))
    any_change = any(_mean_square(r) > MIN_MEAN_SQUARE for r in residuals)
    return float(np.clip(along / length, 0, 1)) if any_change else 0.0


def _residual(inference: Inference, case: ValidationCase, number: int) -> np.ndarray:
    """Return the residual of one case, with the style of its site."""
    context = ScanContext(tissues=case.tissues, modality=case.modality)
    references = [inference.network_input(volume, ScanContext(case.site, tissues=tissues))
                  for volume, tissues in case.references]
    model = inference.model
    summaries = [model.describe(scan, model.options) for scan in references]
    style = {**model.pool(summaries), **model.site_style(case.site)}
    return inference.residual(case.baseline, style, context, np.random.default_rng(number)).change


def _mean_square(values: np.ndarray) -> float:
    return float(np.mean(values * values, dtype=np.float64))


def _rms(errors: list[np.ndarray]) -> float:
    """Return the geometric mean of the root mean squares."""
    return float(np.exp(np.mean([0.5 * np.log(max(_mean_square(e), 1e-20)) for e in errors])))


def _reference(scan: Scan, baseline: StatisticsBackend | None, depth: int
               ) -> tuple[Volume, Mapping[str, np.ndarray]]:
    volume = scan.read()
    at, middle = _middle(volume, depth)
    return middle, _crop(_tissues_of(scan, baseline), at)


def _make_case(scan: Scan,
               references: Mapping[str, tuple[tuple[Volume, Mapping[str, np.ndarray]], ...]],
               baseline: StatisticsBackend | None, depth: int, rng: np.random.Generator
               ) -> ValidationCase:
    whole = scan.read()
    source, tissues = _simulate_scanner(whole, rng), _tissues_of(scan, baseline)
    if baseline is None:
        first = match_percentiles(source, _percentiles([v for v, _ in references[scan.site]]))
    else:
        target = Target("site", scan.site, 1, baseline.name, scan.modality,
                        baseline.styles_[scan.site])
        context = ScanContext(covariates={**scan.covariates, "age": scan.age, "sex": scan.sex},
                              tissues=tissues, modality=scan.modality)
        first = baseline.apply_baseline(source, target, context)
    estimate, truth = first.in_mask().astype(np.float64), whole.in_mask().astype(np.float64)
    gain = max(float(estimate @ truth), 0.0) / max(float(truth @ truth), 1e-30)
    at, scaled_truth = _middle(whole.with_data(whole.data * np.float32(gain or 1.0)), depth)
    return ValidationCase(_middle(first, depth)[1], scaled_truth, _crop(tissues, at), scan.site,
                          scan.modality, references[scan.site])


def _tissues_of(scan: Scan, baseline: StatisticsBackend | None) -> Mapping[str, np.ndarray]:
    return scan.read_tissues() if baseline is not None and baseline.by_tissue else {}


def _percentiles(volumes: list[Volume]) -> np.ndarray:
    scales = [IntensityScale.of(volume.in_mask()) for volume in volumes]
    return np.mean([(scale.low, scale.high) for scale in scales], axis=0)


def _simulate_scanner(truth: Volume, rng: np.random.Generator) -> Volume:
    """Return the same scan in another contrast, with a bias field, blur and noise."""
    assert truth.mask is not None
    view = draw_view(rng, SIMULATED_SCANNER, 3)
    box = BoundingBox.around(truth.mask)
    unit = np.clip(IntensityScale.of(truth.in_mask()).to_unit(truth.data), -1, 1)
    image, mask = (torch.from_numpy(box.crop(a.astype(np.float32)))[None, None]
                   for a in (np.where(truth.mask, unit, -1), truth.mask))
    seen = SIMULATED_RANGE / 2 * (view.apply(image, mask) + 1) * mask
    return truth.with_data(box.paste(seen[0, 0].numpy(), np.zeros(truth.shape, np.float32)))


def _crop(tissues: Mapping[str, np.ndarray], at: Any) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tissue[at]) for name, tissue in tissues.items()}


def _middle(volume: Volume, depth: int) -> tuple[Any, Volume]:
    """Return the slices around the brain's middle, as an index and as a volume."""
    assert volume.mask is not None
    hits: Any = np.flatnonzero(volume.mask.any(axis=(0, 1)))
    middle, half = (int(hits[0]) + int(hits[-1]) + 1) // 2, (depth or 2 * volume.shape[2]) // 2
    low = max(0, middle - half)
    at = np.s_[:, :, low:middle + max(1, half)]
    affine = volume.affine.copy()
    affine[:3, 3] += low * affine[:3, 2]
    return at, Volume(np.ascontiguousarray(volume.data[at]), affine,
                      np.ascontiguousarray(volume.mask[at]))
