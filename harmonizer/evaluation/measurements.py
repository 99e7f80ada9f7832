"""Measurement of all images of an evaluation, one pair of volumes at a time, and ComBat on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from ..cohort import Cohort
from ..errors import NotEstimableError
from ..segmentation.segmentations import name_of
from ..tissues import TISSUES
from .cache import cached, file_key
from .inputs import EvaluationInput, Features
from .metrics.distribution import LEVELS
from .metrics.scan_features import ScanJob, measure_scan
from .paired_metrics import PairedMetrics, label_tissues, measure_cohort
from .questions.anatomy_limits import Tolerance, learn_tolerance
from .questions.traveling import rescans
from .statistics.combat import age_spline, cross_fitted_combat
from .table import RESCALED

__all__ = ["COMBAT", "COMBAT_GAM", "COMBAT_LONGITUDINAL", "PoolMap", "measure_images"]

COMBAT = "combat_features"
"""Name of the comparison method: ComBat on features of linearly rescaled images."""
COMBAT_GAM = "combat_gam_features"
"""The same with a spline of age."""
COMBAT_LONGITUDINAL = "combat_longitudinal_features"
"""The same with a random intercept of each subject."""
MIN_GAM_AGE_RANGE_YEARS = 30.0  # a shorter part of the life span is nearly linear
MIN_GAM_SUBJECTS = 40  # ten for each column of the spline and sex
MIN_REPEATED_SCANS = 4  # beyond the first of each subject
TISSUE_MEAN_MEASURES = ("mean_csf", "mean_gm", "mean_wm")
PoolMap = Callable[[str], Callable[..., Iterable]]
"""Takes a label for the progress and returns a ``map``, see `metrics.scan_features.process_pool`.
"""


def measure_images(
    inputs: EvaluationInput,
    pool: PoolMap,
    priors: Mapping[str, np.ndarray] | None = None,
    target_quantiles: Mapping[str, np.ndarray] | None = None,
    combat: bool = True,
) -> EvaluationInput:
    """Measure all images; everything after this works on numbers.

    Parameters
    ----------
    inputs : EvaluationInput
        Scans of one modality.
    pool : callable
        Label to ``map``.
    priors : mapping of str to ndarray, shape (I, J, K), optional
        Tissue probabilities on the grid of the images.
    target_quantiles : mapping of str to ndarray, shape (200,), optional
        Quantile function of the target by modality, if the target is not a site.
    combat : bool
        Whether to add features after ComBat, if ComBat can be fitted.

    Returns
    -------
    EvaluationInput
        With `paired_metrics`, `tolerance`, `measurements` and `features`.

    Raises
    ------
    InputError
        If an image cannot be read or lies on another grid.
    """
    inputs = replace(inputs, paired_metrics=_paired_metrics(inputs, pool, priors, target_quantiles))
    low, high = np.interp([0.005, 0.995], LEVELS, inputs.target_quantiles())
    maps = inputs.linear_maps()
    labels = None if priors is None else label_tissues(priors)
    if inputs.variants:
        inputs = replace(inputs, tolerance=_tolerance(inputs, pool))
    jobs = [ScanJob(scan, {name: cohort.scans[i] for name, cohort in inputs.variants.items()},
                    labels, (float(low), float(high)), inputs.segment, inputs.cache,
                    maps[scan.scan_id], inputs.tolerance.limits)
            for i, scan in enumerate(inputs.before)]
    mapper = pool(f"{inputs.modality} tissues, anatomy")
    inputs = replace(inputs, measurements={
        found.scan_id: found for found in mapper(measure_scan, jobs)})
    features = {name: _features(inputs, name) for name in ("", RESCALED, *inputs.variants)}
    inputs = replace(inputs, features=features)
    return _add_combat(inputs) if combat else inputs


def _tolerance(inputs: EvaluationInput, pool: PoolMap) -> Tolerance:
    """Return the limits of the anatomy guard, from the cache if they are there."""
    paths = [scan.image for scan in inputs.before]
    key = file_key(paths, "tolerance of rescans", inputs.seed,
                   inputs.segment and name_of(inputs.segment),
                   [(p.first.scan_id, p.second.scan_id) for p in rescans(inputs.before)])
    found = cached(inputs.cache, key, lambda: vars(learn_tolerance(
        inputs.before, inputs.segment, seed=inputs.seed, cache=inputs.cache,
        mapper=pool(f"{inputs.modality} limits from rescans"))))
    return Tolerance(**found)


def _paired_metrics(inputs: EvaluationInput, pool: PoolMap,
                    priors: Mapping[str, np.ndarray] | None,
                    target_quantiles: Mapping[str, np.ndarray] | None
                    ) -> dict[str, PairedMetrics]:
    """Return the paired metrics by method; without methods, those of the images before."""
    label = f"{inputs.modality} intensities"
    if not inputs.variants:
        return {"": measure_cohort(inputs.before, Cohort(()), inputs.target, priors=priors,
                                   mapper=pool(label), cache=inputs.cache)}
    return {name: measure_cohort(inputs.before, cohort, inputs.target, backend=name,
                                 priors=priors, target_quantiles=target_quantiles,
                                 mapper=pool(f"{label} {name}"), cache=inputs.cache)
            for name, cohort in inputs.variants.items()}


def _features(inputs: EvaluationInput, backend: str) -> Features:
    """Return texture, tissue ratios and mean intensities of all scans by one method."""
    found = [inputs.measurements[scan.scan_id] for scan in inputs.before]
    names = sorted(set.intersection(*(set(one.texture[key]) for one in found
                                      for key in one.texture)))
    texture = np.array([[one.texture[backend][name] for name in names] for one in found])
    tissues = TISSUES if any(one.ratios for one in found) else ()
    ratios = {tissue: np.array([one.ratios.get(backend, {}).get(tissue, math.nan)
                                for one in found]) for tissue in tissues}
    return Features(texture.reshape(len(found), -1), ratios, _mean_intensities(inputs, backend),
                    tuple(names))


def _mean_intensities(inputs: EvaluationInput, backend: str) -> dict[str, np.ndarray]:
    """Return the mean intensity of each tissue, by measure."""
    metrics = inputs.paired_metrics.get(backend) or inputs.first_metrics
    rows = metrics.metrics.select(stage="after" if backend in inputs.variants else "before")
    maps = inputs.linear_maps() if backend == RESCALED else {}
    gain, offset = np.array([maps.get(scan.scan_id, (1.0, 0.0)) for scan in inputs.before]).T
    means = {}
    for name in TISSUE_MEAN_MEASURES:
        known = {row.scan: row.value for row in rows.select(measure=name)}
        if all(scan.scan_id in known for scan in inputs.before):
            means[name] = gain * np.array([known[scan.scan_id] for scan in inputs.before],
                                          dtype=float) + offset
    return means


def _add_combat(inputs: EvaluationInput) -> EvaluationInput:
    """Return the input with features after each variant of ComBat that can be fitted."""
    design = inputs.design
    covariates, used = design.adjusting(("age", "sex"))
    tables = {COMBAT: (covariates, False)}
    if "age" in used and _ages_need_a_spline(inputs):
        sex, _ = design.adjusting(("sex",))
        tables[COMBAT_GAM] = (np.hstack([age_spline(design.ages), sex]), False)
    if len(design) - design.n_subjects >= MIN_REPEATED_SCANS:
        tables[COMBAT_LONGITUDINAL] = (covariates, True)
    features = dict(inputs.features)
    for name, (table, longitudinal) in tables.items():
        found = _combat(inputs, table, longitudinal)
        if found is not None:
            features[name] = found
    return replace(inputs, features=features)


def _ages_need_a_spline(inputs: EvaluationInput) -> bool:
    design = inputs.design
    return (float(np.ptp(design.ages)) >= MIN_GAM_AGE_RANGE_YEARS
            and design.n_subjects >= MIN_GAM_SUBJECTS)


def _combat(inputs: EvaluationInput, covariates: np.ndarray, longitudinal: bool
            ) -> Features | None:
    """Return features after ComBat, or None if it cannot be fitted."""
    raw = inputs.features[RESCALED]  # raw intensities are in arbitrary units
    reference = inputs.target if inputs.target in inputs.before.sites else None
    try:
        table = cross_fitted_combat(raw.matrix(), inputs.design.sites, inputs.design.subjects,
                                    covariates, reference=reference, longitudinal=longitudinal,
                                    seed=inputs.seed)
    except NotEstimableError:
        return None
    if not np.isfinite(table).all(axis=1).any():
        return None
    columns = iter(table[:, raw.texture.shape[1]:].T)
    return Features(table[:, :raw.texture.shape[1]], {name: next(columns) for name in raw.ratios},
                    {name: next(columns) for name in raw.means}, raw.names)
