"""Site effect on each feature: additive, multiplicative, and in combination.

These are the diagnostics of ComBat papers [1]_, [2]_. The additive effect is the fraction of each
feature's variance that the site explains beyond age and sex. The multiplicative effect is the ratio
of the sites' standard deviations. Principal components of all features and the Mahalanobis distance
between sites follow. Every number has an exact interval or test, so none needs resampling.

References
----------
.. [1] Fortin et al. 2018, Harmonization of cortical thickness measurements across scanners and
   sites. doi:10.1016/j.neuroimage.2017.11.024
.. [2] Beer et al. 2020, Longitudinal ComBat: a method for harmonizing longitudinal multi-scanner
   imaging data. doi:10.1016/j.neuroimage.2020.117129
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..statistics.design import Design, dummies
from ..statistics.equivalence import (
    FEATURES_FRACTION,
    SITE_VARIANCE_MARGIN,
    noncentrality,
    variance_fraction,
)
from ..statistics.resampling import NO_SUBJECT_INFORMATION, Test, corrected, not_possible

__all__ = ["principal_components", "site_feature_tests"]

MIN_RELATIVE_STD = 1e-6  # relative to the mean; below this a feature is constant
N_COMPONENTS = 2  # that are shown and tested
MAX_MAHALANOBIS_COMPONENTS = 10
ROWS_PER_COMPONENT = 5  # of the within-site covariance
MIN_SUBJECTS = 6


@dataclass(frozen=True)
class _Rows:
    """One row per subject and site: features (n, F), site columns, covariates and subjects."""

    values: np.ndarray
    site: np.ndarray
    covariates: np.ndarray
    subject: np.ndarray
    sites: tuple[str, ...]
    ages: np.ndarray
    n_subjects: int
    words: str


def site_feature_tests(features: Mapping[str, Sequence[float]], design: Design) -> tuple[Test, ...]:
    """Test the site effect on every feature, on principal components, and between pairs of sites.

    The scans of a subject at one site are averaged. If all subjects travel, they are a factor of
    the model. If some do, each subject counts at its first site only, so that rows are independent.

    Parameters
    ----------
    features : mapping of str to sequence of float
        One value per scan.
    design : Design
        Design of the scans. Age and sex are covariates if they are known for all scans.

    Returns
    -------
    tuple of Test
        ``site_variance``, ``site_scale`` and ``covariates_variance`` of each feature,
        ``features_within_margin``, ``component_variance``, ``component_site_variance`` and
        ``component_age_correlation`` of the first principal components, and ``site_mahalanobis`` of
        each pair of sites.
    """
    table = np.array([np.asarray(column, float) for column in features.values()]).T
    rows = _rows(table.reshape(len(design), -1), design)
    n_sites = len(set(rows.sites))
    spare = len(rows.sites) - _rank(rows.site, rows.covariates, rows.subject)
    others = _rank(rows.covariates, rows.subject)
    confounded = len(rows.sites) - spare - others < n_sites - 1
    if n_sites < 2 or rows.n_subjects < MIN_SUBJECTS or spare < 3 or confounded:
        why = ("one site only" if n_sites < 2 else
               "the site cannot be told from age and sex" if confounded else
               f"{rows.n_subjects} subjects; {MIN_SUBJECTS} and more scans than sites and "
               "covariates are needed")
        return (not_possible("features_within_margin", why, rows.n_subjects, question="scanner"),)
    tests = _feature_tests(list(features), rows)
    return (*tests, _within_margin(tests, rows), *_component_tests(rows), *_mahalanobis(rows))


def _rows(table: np.ndarray, design: Design) -> _Rows:
    """Average the scans of a subject at a site; choose rows and factors by the kind of design."""
    cells: dict[tuple[str, str], list[int]] = {}
    for i, cell in enumerate(zip(design.subjects, design.sites)):
        if design.kind != "mixed" or cell[0] not in {who for who, _ in cells} or cell in cells:
            cells.setdefault(cell, []).append(i)
    part = design.select_rows([where[0] for where in cells.values()])
    covariates, used = part.adjusting(("age", "sex"))
    traveling = design.kind == "traveling"
    words = ("subjects as a factor" if traveling else
             f"beyond {' and '.join(used) or 'no covariate (age and sex unknown or alike)'}")
    return _Rows(np.array([table[where].mean(axis=0) for where in cells.values()]),
                 dummies(part.sites), covariates,
                 dummies(part.subjects) if traveling else np.empty((len(part), 0)),
                 part.sites, part.ages, part.n_subjects, words)


def _design_table(*blocks: np.ndarray) -> np.ndarray:
    return np.hstack([np.ones((len(blocks[0]), 1)), *blocks])


def _rank(*blocks: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(_design_table(*blocks)))


def _residuals(values: np.ndarray, *blocks: np.ndarray) -> tuple[np.ndarray, int]:
    """Return residuals of least squares, shape (n, F), and their degrees of freedom."""
    table = _design_table(*blocks)
    fit, _, rank, _ = np.linalg.lstsq(table, values, rcond=None)
    return values - table @ fit, len(values) - int(rank)


def _varies(values: np.ndarray) -> np.ndarray:
    """Return which columns are finite and vary, bool of shape (F,)."""
    finite = np.isfinite(values).all(axis=0)
    known = np.where(finite, values, 0.0)
    return finite & (known.std(axis=0) > MIN_RELATIVE_STD * np.abs(known.mean(axis=0)))


def _feature_tests(names: Sequence[str], rows: _Rows) -> list[Test]:
    """Return the three tests of each feature, p values corrected over the features."""
    varies = _varies(rows.values)
    additive, scale, covariates = [], [], []
    found = iter(_variance_tests(rows.values[:, varies], rows))
    spare = _residuals(np.where(varies, rows.values, 0.0), rows.site, rows.covariates)[0]
    for i, name in enumerate(names):
        context: dict[str, Any] = {"question": "scanner", "reference": name}
        if not varies[i]:
            why = ("the feature is the same in every scan: " + NO_SUBJECT_INFORMATION
                   if np.isfinite(rows.values[:, i]).all() else "the feature is missing in a scan")
            additive.append(not_possible("site_variance", why, rows.n_subjects, **context))
            continue
        test, beyond = next(found)
        additive.append(replace(test, name="site_variance", **context))
        scale.append(_scale_test(spare[:, i], rows, context))
        if rows.covariates.shape[1] and not rows.subject.shape[1]:
            words = f"{rows.words.removeprefix('beyond ')} beyond the site"
            covariates.append(Test("covariates_variance", rows.n_subjects, beyond,
                                   method=f"fraction of variance, {words}", **context))
    return [*corrected(additive, "bh"), *corrected(scale, "bh"), *covariates]


def _variance_tests(values: np.ndarray, rows: _Rows) -> list[tuple[Test, float]]:
    """Return the site's fraction of the variance of each column, and that of the covariates."""
    from scipy.stats import f as fisher

    full, rest = _residuals(values, rows.site, rows.covariates, rows.subject)
    reduced, before = _residuals(values, rows.covariates, rows.subject)
    without, _ = _residuals(values, rows.site)
    spare, spare_df = _residuals(values, rows.site, rows.covariates)
    df = (before - rest, rest)
    done = []
    for i in range(values.shape[1]):
        error, total = float(np.sum(full[:, i] ** 2)), float(np.sum(without[:, i] ** 2))
        floor = 1e-12 * float(np.sum(values[:, i] ** 2))
        f = (float(np.sum(reduced[:, i] ** 2)) - error) / df[0] / max(error / df[1], floor)
        found = variance_fraction(max(f, 0.0), df, len(values), max(error / df[1], floor),
                                  max(float(np.sum(spare[:, i] ** 2)) / spare_df, floor))
        p = float(fisher.sf(f, *df))
        test = Test("", rows.n_subjects, found.effect, found.low, found.high, p,
                    margin=found.margin, detectable=found.detectable, question="scanner",
                    method=f"F test of the site, {rows.words}; exact interval of noncentral F")
        beyond = 1 - float(np.sum(spare[:, i] ** 2)) / total if total > 0 else math.nan
        done.append((test, beyond))
    return done


def _scale_test(residuals: np.ndarray, rows: _Rows, context: Mapping[str, Any]) -> Test:
    """Return the ratio of the largest to the smallest site's std with Levene's test."""
    from scipy.stats import levene

    groups = [residuals[np.asarray(rows.sites) == site] for site in sorted(set(rows.sites))]
    stds = np.array([group.std(ddof=1) if len(group) > 2 else math.nan for group in groups])
    if not (np.isfinite(stds).all() and stds.min() > 0):
        return not_possible("site_scale", "three subjects at each site are needed",
                            rows.n_subjects, **context)
    return Test("site_scale", rows.n_subjects, float(stds.max() / stds.min()),
                p=float(levene(*groups, center="median").pvalue),
                method="largest over smallest std of a site's residuals; Levene test with medians",
                **context)


def _within_margin(tests: Sequence[Test], rows: _Rows) -> Test:
    """Return the fraction of features whose interval lies below the margin."""
    found = [test for test in tests if test.name == "site_variance" and test.known]
    if not found:
        return not_possible("features_within_margin", "the features are the same in every scan: "
                            f"{NO_SUBJECT_INFORMATION}", rows.n_subjects, question="scanner")
    inside = [test.high is not None and test.high < SITE_VARIANCE_MARGIN for test in found]
    return Test("features_within_margin", rows.n_subjects, float(np.mean(inside)),
                margin=FEATURES_FRACTION, detectable=found[0].detectable, question="scanner",
                method=f"{len(found)} features; upper end of the interval of site_variance below "
                f"{SITE_VARIANCE_MARGIN:g}; detectable: smallest site_variance of one feature")


def principal_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute principal components of standardized features.

    Parameters
    ----------
    values : ndarray, shape (n, F)
        Features; columns that are constant or have missing values are left out.

    Returns
    -------
    scores : ndarray, shape (n, q)
        Components by decreasing variance. The largest loading of each is positive.
    fractions : ndarray, shape (q,)
        Fraction of the variance of each.
    """
    used = values[:, _varies(values)]
    if not used.shape[1]:
        return np.empty((len(values), 0)), np.empty(0)
    z = (used - used.mean(axis=0)) / used.std(axis=0, ddof=1)
    left, size, loadings = np.linalg.svd(z, full_matrices=False)
    rank = int(np.sum(size > 1e-8 * size[0]))
    signs = np.sign(loadings[np.arange(rank), np.abs(loadings[:rank]).argmax(axis=1)])
    return left[:, :rank] * size[:rank] * signs, (size**2 / np.sum(size**2))[:rank]


def _component_tests(rows: _Rows) -> list[Test]:
    """Return variance, site effect and correlation with age of the first components."""
    scores, fractions = principal_components(rows.values)
    scores, tests = scores[:, :N_COMPONENTS], []
    for i, (site, _) in enumerate(_variance_tests(scores, rows)):
        context: dict[str, Any] = {"question": "scanner", "reference": f"PC{i + 1}"}
        tests += [Test("component_variance", rows.n_subjects, float(fractions[i]),
                       method="principal components of standardized features", **context),
                  replace(site, name="component_site_variance", **context)]
        if np.isfinite(rows.ages).all() and np.ptp(rows.ages) > 0:
            tests.append(_correlation(scores[:, i], rows, context))
    return tests


def _correlation(scores: np.ndarray, rows: _Rows, context: Mapping[str, Any]) -> Test:
    from scipy.stats import pearsonr

    found = pearsonr(scores, rows.ages)
    interval = found.confidence_interval(0.95)
    return Test("component_age_correlation", rows.n_subjects, float(found.statistic),
                float(interval.low), float(interval.high), float(found.pvalue),
                method="Pearson correlation, one row per subject and site", **context)


def _mahalanobis(rows: _Rows) -> list[Test]:
    """Return the Mahalanobis distance of each pair of sites with its exact interval."""
    scores, _ = principal_components(rows.values)
    labels = np.asarray(rows.sites)
    names = sorted(set(rows.sites))
    freedom = len(labels) - len(names)
    q = min(MAX_MAHALANOBIS_COMPONENTS, scores.shape[1], freedom // ROWS_PER_COMPONENT)
    if q < 1:
        return [not_possible("site_mahalanobis", "too few subjects, or features that do not vary",
                             rows.n_subjects, question="scanner")]
    scores = scores[:, :q]
    means = {name: scores[labels == name].mean(axis=0) for name in names}
    residuals = scores - np.stack([means[name] for name in labels])
    inverse = np.linalg.pinv(residuals.T @ residuals / freedom)
    tests = []
    for i, one in enumerate(names):
        for two in names[i + 1:]:
            difference = means[one] - means[two]
            squared = float(difference @ inverse @ difference)
            n_one, n_two = np.sum(labels == one), np.sum(labels == two)
            weight = n_one * n_two / (n_one + n_two)
            df = (q, freedom - q + 1)
            found = noncentrality(df[1] / (freedom * q) * weight * squared, df)
            effect, low, high = (math.sqrt(value / weight) for value in found)
            tests.append(Test("site_mahalanobis", int(n_one + n_two), effect, low, high,
                              question="scanner", site=one, reference=two,
                              method=f"{q} principal components, covariance within sites; without "
                              "the bias of few subjects; exact interval of Hotelling's T2"))
    return tests
