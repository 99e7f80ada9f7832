"""Rows of ``group_statistics.tsv`` for each question, from the numbers of an evaluation input.

A statistic that cannot be estimated from the data (`NotEstimableError`) becomes a row with the
reason. Any other exception is a fault and propagates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..cohort import MAX_TRAVELING_YEARS, Cohort, Scan
from ..errors import NotEstimableError
from .cache import array_key, cached, file_key
from .inputs import EvaluationInput, Features
from .measurements import COMBAT, PoolMap
from .metrics.scan_features import texture_rows
from .metrics.volumes import volume_tests
from .paired_metrics import eta_rows, map_quantiles
from .questions.anatomy import GUARDED
from .questions.anatomy_limits import (
    AnatomyCheck,
    Tolerance,
    chance_of_flags,
    check_anatomy,
    detectable_flags,
)
from .questions.biology import age_by_scanner, age_loss, age_tests, effect_losses, effect_tests
from .questions.longitudinal import change_losses, change_tests, order_tests
from .questions.scanner import site_tests
from .questions.site_features import principal_components, site_feature_tests
from .questions.subject import identity_changes, source_identity, traveling_identity
from .questions.traveling import agreement_tests, compare_methods, pair_metrics, site_pairs
from .statistics.distribution_tests import anderson_darling, distance_between_sites, excess_distance
from .statistics.equivalence import exact_fraction_interval
from .statistics.resampling import MIN_SUBJECTS, Test, bootstrap_interval, corrected, not_possible
from .table import MEASURES, RESCALED, Metric, Metrics, stage_of

__all__ = ["AnatomyResult", "anatomy_tests", "biology_tests", "combat_missing",
           "component_rows", "identity_tests", "longitudinal_tests", "pair_tests", "ratio_rows",
           "scanner_tests", "subject_agreement_tests", "tests_or_reason", "texture_metrics"]

AnatomyResult = tuple[Tolerance, dict[str, dict[str, AnatomyCheck]], list[Metric], list[Test]]


def tests_or_reason(name: str, question: str, compute: Callable[..., Test | Iterable[Test]],
                    *args: Any, **kwargs: Any) -> list[Test]:
    """Compute tests; if they cannot be estimated, return one row with the reason.

    Parameters
    ----------
    name : str
        Name of the row with the reason.
    question : str
        Question that the row belongs to.
    compute : callable
        Returns a test or several.
    *args, **kwargs
        Passed to `compute`.

    Returns
    -------
    list of Test
        The tests, or one row without a value.
    """
    try:
        found = compute(*args, **kwargs)
        return [found] if isinstance(found, Test) else list(found)
    except NotEstimableError as error:
        return [not_possible(name, f"not possible with these data: {error}", question=question)]


def _of_method(tests: Iterable[Test], backend: str) -> list[Test]:
    """Return the tests of a method, "" or `RESCALED` with its stage and backend."""
    return [replace(test, **stage_of(backend)) for test in tests]


def scanner_tests(inputs: EvaluationInput) -> Iterator[Test]:
    """Test the site effect in intensities, texture features and tissue volumes."""
    yield from _intensity_tests(inputs)
    after = {name: found.texture for name, found in inputs.features.items() if name}
    yield from tests_or_reason("site_f1_retrained", "scanner", _site_tests, inputs, after)
    for backend, found in inputs.features.items():
        yield from _of_method(tests_or_reason(
            "features_within_margin", "scanner", site_feature_tests, found.columns(),
            inputs.design), backend)
    if not inputs.features[""].ratios:
        yield not_possible("marginal_r2", "tissue segmentation was disabled, so there are no "
                           "tissue ratios", question="scanner")
        return
    for backend, found in inputs.features.items():
        yield from _of_method(tests_or_reason(
            "marginal_r2", "scanner", volume_tests, found.ratios, inputs.design, inputs.reference,
            seed=inputs.seed), backend)


def _site_tests(inputs: EvaluationInput, after: Mapping[str, np.ndarray]) -> list[Test]:
    """Classify the site, or read the tests from the cache: they do not depend on covariates."""
    before = inputs.features[""].texture
    sites, subjects = inputs.design.sites, inputs.design.subjects
    key = file_key((), "site classification", sites, subjects, inputs.target, inputs.permutations,
                   inputs.seed, array_key(before),
                   [(name, array_key(table)) for name, table in after.items()])
    rows = cached(inputs.cache, key, lambda: [vars(test) for test in site_tests(
        before, after, sites, subjects, inputs.target, permutations=inputs.permutations,
        seed=inputs.seed)])
    known: list[dict[str, Any]] = [
        {name: None if isinstance(value, float) and math.isnan(value) else value
         for name, value in row.items()} for row in rows]
    return [Test(**row) for row in known]


def _intensity_tests(inputs: EvaluationInput) -> Iterator[Test]:
    """Compare the intensity distributions of the sites, by tissue."""
    data_range = inputs.data_range()
    before = inputs.first_metrics.quantiles.select(stage="before")
    sources = [("", before), (RESCALED, map_quantiles(before, inputs.linear_maps()))]
    sources += [(name, found.quantiles.select(stage="after"))
                for name, found in inputs.paired_metrics.items() if name]
    for backend, table in sources:
        for tissue in dict.fromkeys(table.column("tissue")):
            part = table.select(tissue=tissue)
            matrix, sites, subjects = part.matrix(), part.column("site"), part.column("subject")
            tests = tests_or_reason(
                "distribution_distance", "scanner", distance_between_sites, matrix, sites,
                subjects, data_range, permutations=inputs.permutations, seed=inputs.seed)
            tests += tests_or_reason(
                "distribution_excess", "scanner", excess_distance, matrix, sites, subjects,
                permutations=inputs.permutations, seed=inputs.seed)
            if tissue == "brain":
                tests += tests_or_reason("anderson_darling", "scanner", anderson_darling, matrix,
                                         sites, seeds=(inputs.seed,))
            yield from (replace(test, tissue=tissue) for test in _of_method(tests, backend))


def pair_tests(inputs: EvaluationInput, pool: PoolMap) -> tuple[Metrics, list[Test]]:
    """Compare images of traveling subjects across sites, before, rescaled and by each method.

    Parameters
    ----------
    inputs : EvaluationInput
        Measured input.
    pool : callable
        Label to ``map``.

    Returns
    -------
    metrics : Metrics
        Rows of every pair.
    tests : list of Test
        Means and paired tests, or the reason why there are none.
    """
    if not inputs.has_traveling_subjects:
        years = ("" if all(inputs.design.concurrent)
                 else f" within {MAX_TRAVELING_YEARS:g} year")
        return Metrics(), [not_possible(
            "traveling_pair", f"no subject was scanned at two sites{years} (or traveling=no), so "
            "no image can be compared with one of the same brain at another site",
            question="subject")]
    ranges = {inputs.modality: inputs.data_range()}
    end_site = _end_site(inputs)
    table = partial(_pair_table, inputs, end_site, ranges, pool)
    tables = {"": table(None, ""), RESCALED: table(None, "", inputs.linear_maps())}
    for name, cohort in inputs.variants.items():
        tables[name] = table(cohort, name)
    tests = tests_or_reason("traveling_pair", "subject", compare_methods, tables, target=end_site,
                            seed=inputs.seed)
    return sum(tables.values(), Metrics()), tests


def _end_site(inputs: EvaluationInput) -> str:
    """Return the target if traveling subjects were scanned there, else "" for all sites.

    With pairs that end at the target their number grows with the scans, not with the square of
    the number of sites.
    """
    ends = {pair.second.site for pair in site_pairs(inputs.before)}
    return inputs.target if inputs.target in ends else ""


def _pair_table(inputs: EvaluationInput, end_site: str, ranges: Mapping[str, float], pool: PoolMap,
                after: Cohort | None, backend: str,
                maps: Mapping[str, tuple[float, float]] | None = None) -> Metrics:
    """Return the rows of one method, from the cache if they are there."""
    paths = [scan.image for scan in (*inputs.before, *(after or ()))]
    key = file_key(paths, "pairs", backend, inputs.target, end_site, ranges, maps,
                   [(scan.scan_id, scan.subject, scan.site) for scan in inputs.before],
                   [(p.first.scan_id, p.second.scan_id) for p in site_pairs(inputs.before)])
    label = f"{inputs.modality} pairs {backend or ('before' if maps is None else RESCALED)}"
    rows = cached(inputs.cache, key, lambda: [vars(row) for row in pair_metrics(
        inputs.before, after, inputs.target, ranges, backend=backend, maps=maps, to=end_site,
        mapper=pool(label))])
    return Metrics(tuple(Metric(**row) for row in rows))


def subject_agreement_tests(inputs: EvaluationInput) -> Iterator[Test]:
    """Test the agreement of features of traveling subjects across sites."""
    if not inputs.has_traveling_subjects:
        return
    rows = np.flatnonzero(inputs.design.concurrent)
    design = inputs.design.select_rows(rows)
    for backend, found in inputs.features.items():
        features = {**{f"{name} ratio": column[rows] for name, column in found.ratios.items()},
                    **{name: column[rows] for name, column in found.means.items()}}
        yield from _of_method(tests_or_reason(
            "icc31", "subject", agreement_tests, features, design.subjects, design.sites,
            seed=inputs.seed), backend)


def identity_tests(inputs: EvaluationInput) -> Iterator[Test]:
    """Test whether subjects are identified across sites and after harmonization."""
    scans = inputs.before.scans
    concurrent = [scan for scan, same_time in zip(scans, inputs.design.concurrent) if same_time]
    fingerprints = {
        name: {scan.scan_id: inputs.measurements[scan.scan_id].fingerprints[name]
               for scan in scans} for name in ("", *inputs.variants)}
    for backend, found in fingerprints.items():
        if inputs.has_traveling_subjects:
            tests = tests_or_reason("identification", "subject", traveling_identity, found,
                                    concurrent, inputs.seed)
            yield from _of_method(tests, backend)
            if not backend:  # fingerprints have neither gain nor offset
                yield from _of_method(tests, RESCALED)
        if backend and inputs.has_traveling_subjects:
            yield from (replace(test, stage="change", backend=backend) for test in tests_or_reason(
                "identification_change", "subject", identity_changes, fingerprints[""], found,
                concurrent))
        if backend:
            yield from (replace(test, stage="change", backend=backend) for test in tests_or_reason(
                "source_identification", "subject", source_identity, fingerprints[""], found,
                scans, inputs.seed))


def biology_tests(inputs: EvaluationInput) -> Iterator[Test]:
    """Test the effects of age, sex and the named covariates."""
    raw = inputs.features[""].matrix()
    target_is_site = inputs.target in inputs.before.sites
    site = inputs.target if target_is_site else inputs.reference
    for backend, found in inputs.features.items():
        matrix = found.matrix()
        shared = np.isfinite(raw).any(axis=0) & np.isfinite(matrix).any(axis=0)
        train = (raw if target_is_site else matrix)[:, shared]
        tests = tests_or_reason("age_r2", "biology", age_tests, train, matrix[:, shared],
                                inputs.design, site, inputs.seed)
        if "GM" in found.ratios:
            tests += corrected(tests_or_reason(
                "age_interaction_any", "biology", age_by_scanner, found.ratios["GM"],
                inputs.design, inputs.reference), "bh")
        tests += corrected(tests_or_reason(
            "effect_size", "biology", effect_tests, _biological(found), inputs.design,
            inputs.covariates, seed=inputs.seed), "bh")
        if backend not in ("", RESCALED):
            tests += _losses(inputs, backend, train, shared, site)
        yield from _of_method(tests, backend)


def _losses(inputs: EvaluationInput, backend: str, train: np.ndarray, shared: np.ndarray, site: str
            ) -> list[Test]:
    """Return the fractions of biological effects that a method loses."""
    bases = {stage_of(name)["stage"]: inputs.features[name] for name in ("", RESCALED)
             if name in inputs.features}
    after = inputs.features[backend]
    tests = tests_or_reason(
        "age_r2_loss", "biology", age_loss, train,
        {stage: found.matrix()[:, shared] for stage, found in bases.items()},
        after.matrix()[:, shared], inputs.design, site, inputs.seed)
    return tests + tests_or_reason(
        "effect_loss", "biology", effect_losses,
        {stage: _biological(found) for stage, found in bases.items()}, _biological(after),
        inputs.design, inputs.covariates, seed=inputs.seed)


def _biological(found: Features) -> dict[str, np.ndarray]:
    """Return tissue ratios, or mean intensities without a segmenter."""
    return {f"{name} ratio": column for name, column in found.ratios.items()} or dict(found.means)


def longitudinal_tests(inputs: EvaluationInput) -> Iterator[Test]:
    """Test the within-subject change over time and the order of subjects."""
    scans = inputs.before.scans
    now = np.flatnonzero(inputs.design.concurrent)
    bases = {stage_of(name)["stage"]: _biological(inputs.features[name])
             for name in ("", RESCALED) if name in inputs.features}
    for backend, found in inputs.features.items():
        features = _biological(found)
        tests = tests_or_reason("annual_change", "biology", change_tests, features, scans)
        before = None if backend in ("", RESCALED) else {
            name: column[now] for name, column in bases.get("rescaled", {}).items()}
        tests += tests_or_reason(
            "subject_order", "subject", order_tests,
            {name: column[now] for name, column in features.items()}, [scans[i] for i in now],
            before, inputs.seed)
        if before is not None:
            tests += tests_or_reason("change_loss", "biology", change_losses, bases, features,
                                     scans, inputs.seed)
        yield from _of_method(tests, backend)


def anatomy_tests(inputs: EvaluationInput) -> AnatomyResult:
    """Check the anatomy of all scans and methods.

    Parameters
    ----------
    inputs : EvaluationInput
        Measured input.

    Returns
    -------
    tolerance : Tolerance
        Limits of the anatomy guard.
    checks : dict of str to dict of str to AnatomyCheck
        By method and scan identifier.
    rows : list of Metric
        Anatomy measures of every scan.
    tests : list of Test
        Fraction of flagged scans, means of the measures, and the limits.
    """
    if not inputs.variants:
        return Tolerance(), {}, [], []
    tolerance = inputs.tolerance
    checks: dict[str, dict[str, AnatomyCheck]] = {}
    rows: list[Metric] = []
    tests: list[Test] = []
    for backend in inputs.variants:
        found = {scan.scan_id: check_anatomy(
            inputs.measurements[scan.scan_id].anatomy[backend], tolerance)
            for scan in inputs.before}
        checks[backend] = found
        for scan in inputs.before:
            rows += _anatomy_rows(scan, found[scan.scan_id], backend, inputs.target)
        tests += [replace(test, backend=backend, stage="change")
                  for test in _check_tests(inputs, found, tolerance)]
    tests += [Test("anatomy_limit", tolerance.pairs, limit, reference=name, question="anatomy",
                   unit=MEASURES[name].unit, method=tolerance.origin, stage="before")
              for name, limit in tolerance.limits.items()]
    return tolerance, checks, rows, tests


def _anatomy_rows(scan: Scan, check: AnatomyCheck, backend: str, target: str) -> Iterator[Metric]:
    """Yield the anatomy measures that `measure_cohort` does not write already."""
    values = {name: value for name, value in check.values.items()
              if name not in ("ssim_structure", "gradient_agreement")}
    for name, value in {**values, "anatomy_held": float(check.ok)}.items():
        yield Metric(name, value, MEASURES[name].unit, "change", scan.subject, scan.session or "",
                     scan.scan_id, scan.modality, scan.site, backend=backend, target=target,
                     reference="; ".join(check.reasons) if name == "anatomy_held" else "")


def _check_tests(inputs: EvaluationInput, checks: Mapping[str, AnatomyCheck], tolerance: Tolerance
                 ) -> Iterator[Test]:
    """Yield the fraction of flagged scans and the mean of each measure, with intervals."""
    n_subjects = inputs.design.n_subjects
    ids = [scan.scan_id for scan in inputs.before]
    flagged = np.array([not checks[name].ok for name in ids], dtype=float)
    interval = partial(bootstrap_interval, subjects=inputs.design.subjects, seed=inputs.seed)
    yield Test("anatomy_flagged", n_subjects, float(flagged.mean()),
               *(exact_fraction_interval(int(flagged.sum()), len(flagged))
                 if n_subjects >= MIN_SUBJECTS else (math.nan, math.nan)),
               p=chance_of_flags(int(flagged.sum()), len(flagged), tolerance),
               margin=tolerance.flagged, detectable=detectable_flags(len(flagged), tolerance),
               method=f"limits from {tolerance.origin}; a faithful image breaks any limit with "
               f"probability {tolerance.flagged:.2f}; p: probability of so many flags or more on "
               "faithful images (beta-binomial); exact interval over images",
               question="anatomy")
    for name in GUARDED:
        values = np.array([checks[key].values.get(name, math.nan) for key in ids])
        missing = int(np.count_nonzero(~np.isfinite(values)))
        if missing < len(values):
            yield Test("anatomy_measure", n_subjects, _finite_mean(values),
                       *interval(partial(_finite_mean_of_rows, values)),
                       unit=MEASURES[name].unit, reference=name, question="anatomy",
                       method="mean over scans; bootstrap over subjects",
                       note=f"{missing} scans without this number" if missing else "")


def _finite_mean_of_rows(values: np.ndarray, rows: np.ndarray, who: np.ndarray) -> float:
    return _finite_mean(values[rows])


def _finite_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def texture_metrics(inputs: EvaluationInput) -> Iterator[Metric]:
    """Yield noise, blur and band energies of every scan and method, and their site effect."""
    for backend in ("", *inputs.variants):
        rows = [row for scan in inputs.before for row in texture_rows(
            scan, inputs.measurements[scan.scan_id].texture[backend], backend, inputs.target)]
        yield from rows
        yield from (replace(row, backend=backend, target=inputs.target if backend else "")
                    for row in eta_rows(rows, inputs.modality))


def component_rows(inputs: EvaluationInput) -> list[Metric]:
    """Return the first two principal components of the features of every scan and method."""
    rows = []
    for backend, found in inputs.features.items():
        complete = np.isfinite(found.matrix()).all(axis=1)
        if not complete.any():
            continue
        scores, _ = principal_components(found.matrix()[complete])
        for scan, values in zip(np.array(inputs.before.scans, object)[complete], scores[:, :2]):
            rows += [Metric(f"principal_component_{i + 1}", float(value), "1", subject=scan.subject,
                            session=scan.session or "", scan=scan.scan_id, modality=scan.modality,
                            site=scan.site,
                            target=inputs.target if backend else "", **stage_of(backend))
                     for i, value in enumerate(values)]
    return rows


def ratio_rows(inputs: EvaluationInput) -> list[Metric]:
    """Return the tissue ratios of every scan and method."""
    return [Metric("tissue_ratio", float(column[i]), "1", subject=scan.subject,
                   session=scan.session or "", scan=scan.scan_id, modality=scan.modality,
                   site=scan.site, tissue=tissue, target=inputs.target if backend else "",
                   **stage_of(backend))
            for backend, found in inputs.features.items()
            for tissue, column in found.ratios.items()
            for i, scan in enumerate(inputs.before)]


def combat_missing(inputs: EvaluationInput) -> list[Test]:
    """Return a row with the reason if ComBat could not be fitted."""
    if COMBAT in inputs.features:
        return []
    return [not_possible(
        "combat", "ComBat needs two sites with two training subjects each, and covariates that are "
        "not confounded with the site", inputs.design.n_subjects, question="scanner",
        backend=COMBAT, stage="after")]
