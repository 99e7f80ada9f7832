"""Variance of tissue volumes explained by site and subject.

For subjects scanned at several sites, the mixed model y = site + (1 | subject) + e splits the
variance of a tissue ratio into site, subject and residual. If each subject was scanned at one site
only, site and subject cannot be separated. Partial eta squared is reported instead: the fraction of
variance that the site explains beyond age and sex.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import NotEstimableError
from ..questions.traveling import complete_table
from ..statistics.design import Design, dummies, partial_eta_squared, partial_eta_squared_test
from ..statistics.resampling import (
    Labels,
    Test,
    bootstrap_interval,
    corrected,
    not_possible,
    resample_subjects,
)

__all__ = ["VarianceComponents", "balanced_variance_components", "paired_t_tests",
           "site_partial_eta_squared", "variance_components", "volume_tests"]

MIN_SUBJECTS = 3
MIN_INTERVAL_SUBJECTS = 5
BOOTSTRAP_DRAWS = 500
MIN_RELATIVE_STD = 1e-6  # relative to the mean; below this a ratio is constant
R2_TESTS = (("marginal_r2", "scanner"), ("conditional_r2", "subject"))
MIXED_MODEL_DRAWS = 100  # fewer, because each needs an iterative fit


@dataclass(frozen=True)
class VarianceComponents:
    """Variance components of a mixed model, in squared units of the response.

    Attributes
    ----------
    site : float
        Variance of the fitted site effects over the scans.
    subject : float
        Variance between subjects.
    residual : float
        Residual variance.
    """

    site: float
    subject: float
    residual: float

    @property
    def marginal_r2(self) -> float:
        """R2 of the site alone, 0 to 1; Nakagawa and Schielzeth 2013, eq. 26."""
        return self._fraction(self.site)

    @property
    def conditional_r2(self) -> float:
        """R2 of site and subject, 0 to 1; Nakagawa and Schielzeth 2013, eq. 27."""
        return self._fraction(self.site + self.subject)

    def _fraction(self, part: float) -> float:
        total = self.site + self.subject + self.residual
        return part / total if total > 0 else math.nan


def variance_components(values: Sequence[float] | np.ndarray, sites: Labels, subjects: Labels
                        ) -> VarianceComponents:
    """Fit y = site + (1 | subject) + e by restricted maximum likelihood (REML).

    A complete table has a closed form that equals REML; else statsmodels' MixedLM is used. The
    variance of the site effects is that of R's ``MuMIn::r.squaredGLMM`` [1]_.

    Parameters
    ----------
    values : sequence of float, length n
        Response.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.

    Returns
    -------
    VarianceComponents
        Components of the variance.

    Raises
    ------
    NotEstimableError
        If site and subject cannot be separated, values are constant or no residual degree of
        freedom is left.

    References
    ----------
    .. [1] Nakagawa and Schielzeth 2013, A general and simple method for obtaining R2 from
       generalized linear mixed-effects models. doi:10.1111/j.2041-210x.2012.00261.x
    """
    y = np.asarray(values, float)
    if Design(tuple(subjects), tuple(sites), np.full(len(y), np.nan), ("",) * len(y)
              ).kind == "nested":
        raise NotEstimableError("expected subjects at two or more sites: site and subject cannot "
                                "be separated. Use site_partial_eta_squared.")
    table, table_subjects, _ = complete_table(y, subjects, sites)
    if table.size == len(y) and len(set(subjects)) == len(table_subjects):
        return balanced_variance_components(table)
    return _mixed_model(y, np.asarray(sites), np.asarray(subjects))


def balanced_variance_components(table: np.ndarray) -> VarianceComponents:
    """Compute variance components of a complete table by two-way analysis of variance.

    The variance between subjects is (MS_subjects - MS_error) / sites. If this is negative, it is 0
    and the residual variance is pooled over both, the REML estimate on the boundary.

    Parameters
    ----------
    table : ndarray, shape (n, k)
        One value per subject and site, without gaps.

    Returns
    -------
    VarianceComponents
        Components of the variance.

    Raises
    ------
    NotEstimableError
        If there are fewer than 2 subjects or sites.
    """
    n, k = table.shape
    if n < 2 or k < 2:
        raise NotEstimableError(f"expected at least 2 subjects at 2 sites, got {n} at {k}.")
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    ss_error = float(np.sum((table - rows - columns + table.mean()) ** 2))
    ss_subjects = float(k * np.sum((rows - table.mean()) ** 2))
    error = ss_error / ((n - 1) * (k - 1))
    subject = (ss_subjects / (n - 1) - error) / k
    if subject < 0:
        subject, error = 0.0, (ss_error + ss_subjects) / ((n - 1) * k)
    fixed = float(np.sum((columns - table.mean()) ** 2)) * n / (n * k - 1)
    return VarianceComponents(fixed, subject, error)


def _mixed_model(y: np.ndarray, sites: np.ndarray, subjects: np.ndarray) -> VarianceComponents:
    from statsmodels.regression.mixed_linear_model import MixedLM

    design = np.hstack([np.ones((len(y), 1)), dummies(sites)])
    std = y.std()
    if not std > 0 or len(y) <= design.shape[1] + 1:
        raise NotEstimableError(f"expected more scans than {design.shape[1] + 1} with values that "
                                f"vary, got {len(y)}.")
    scaled = (y - y.mean()) / std
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of zero is a valid result
        try:
            fit = MixedLM(scaled, design, groups=subjects).fit(reml=True,
                                                               method=["lbfgs", "powell"])
        except np.linalg.LinAlgError:  # raised for a variance between subjects of zero
            return _without_subject_variance(y, design)
    fixed = np.var(design @ fit.fe_params, ddof=1)
    subject = max(float(np.asarray(fit.cov_re)[0, 0]), 0.0)
    return VarianceComponents(float(fixed) * std**2, subject * std**2, float(fit.scale) * std**2)


def _without_subject_variance(y: np.ndarray, design: np.ndarray) -> VarianceComponents:
    """Fit the model without variance between subjects, the boundary of REML."""
    fit, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    rest = float(np.sum((y - design @ fit) ** 2)) / (len(y) - int(rank))
    return VarianceComponents(float(np.var(design @ fit, ddof=1)), 0.0, rest)


def site_partial_eta_squared(values: Sequence[float] | np.ndarray, design: Design
                             ) -> tuple[float, float, list[str]]:
    """Compute partial eta squared of the site beyond age and sex.

    Parameters
    ----------
    values : sequence of float, length n
        One per scan; scans of a subject at one site are averaged.
    design : Design
        Design of the scans. Age and sex are used if they are known for all and vary.

    Returns
    -------
    effect : float
        0 to 1, lower is better; chance gives about (k - 1) / (n - 1).
    p : float
        p value of the F test.
    used : list of str
        Covariates in the model.
    """
    y, site, adjusting, used, _ = _site_blocks(values, design)
    return (*partial_eta_squared_test(y, site, adjusting), used)


def _site_blocks(values: Sequence[float] | np.ndarray, design: Design
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], tuple[str, ...]]:
    """Return values, site, covariates, their names, and subjects, one row per subject and site."""
    y, design = _per_subject(np.asarray(values, float), design)
    adjusting, used = design.adjusting(("age", "sex"))
    return y, dummies(design.sites), adjusting, used, design.subjects


def _per_subject(values: np.ndarray, design: Design) -> tuple[np.ndarray, Design]:
    """Average the scans of each subject and site."""
    rows: dict[tuple[str, str], list[int]] = {}
    for i, cell in enumerate(zip(design.subjects, design.sites)):
        if math.isfinite(values[i]):
            rows.setdefault(cell, []).append(i)
    return (np.array([values[cell].mean() for cell in rows.values()]),
            design.select_rows([cell[0] for cell in rows.values()]))


def paired_t_tests(values: Mapping[str, Sequence[float]], design: Design, reference: str
                   ) -> tuple[Test, ...]:
    """Compare every site with the reference site on the subjects who were at both.

    Parameters
    ----------
    values : mapping of str to sequence of float
        One value per scan, by tissue.
    design : Design
        Design of the scans.
    reference : str
        Reference site.

    Returns
    -------
    tuple of Test
        The effect is the mean difference. One family over sites and tissues, corrected by
        Benjamini-Hochberg.
    """
    from scipy.stats import ttest_1samp

    tests = []
    for tissue, numbers in values.items():
        for site in sorted(set(design.sites) - {reference}):
            change = _differences(numbers, design, site, reference)
            context: dict[str, Any] = {"question": "scanner", "site": site, "reference": reference,
                                       "tissue": tissue}
            if len(change) < MIN_SUBJECTS or np.ptp(change) == 0:
                tests.append(not_possible(
                    "paired_t", f"{len(change)} subjects with differing changes were at both "
                    f"sites; {MIN_SUBJECTS} are needed", len(change), **context))
                continue
            result = ttest_1samp(change, 0.0)
            interval = result.confidence_interval(0.95)
            tests.append(Test("paired_t", len(change), float(change.mean()), float(interval.low),
                              float(interval.high), float(result.pvalue),
                              method="paired t test, two-sided", **context))
    return corrected(tests, "bh")


def _differences(numbers: Sequence[float], design: Design, site: str, reference: str
                 ) -> np.ndarray:
    mean: dict[tuple[str, str], list[float]] = {}
    for value, who, where in zip(numbers, design.subjects, design.sites):
        if math.isfinite(value):
            mean.setdefault((who, where), []).append(value)
    return np.array([np.mean(mean[who, site]) - np.mean(mean[who, reference])
                     for who in dict.fromkeys(design.subjects)
                     if (who, site) in mean and (who, reference) in mean])


def volume_tests(values: Mapping[str, Sequence[float]], design: Design, reference: str,
                 *, seed: int = 0) -> tuple[Test, ...]:
    """Test the effect of the site on tissue ratios, by what the design allows.

    With traveling subjects (only these are used): marginal and conditional R2, and paired t tests
    against the reference site. Without: partial eta squared of the site.

    Parameters
    ----------
    values : mapping of str to sequence of float
        Ratio of each scan, by tissue.
    design : Design
        Design of the scans.
    reference : str
        Reference site.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        Of one stage of one method.
    """
    tests: list[Test] = []
    traveling = design.traveling_rows
    for tissue, numbers in values.items():
        y = np.asarray(numbers, float)
        tests += _tissue_tests(y, design, traveling, tissue, seed)
    if traveling.any():
        ratios = {name: np.asarray(v, float)[traveling] for name, v in values.items()}
        tests += paired_t_tests(ratios, design.select_rows(np.flatnonzero(traveling)), reference)
    return tuple(tests)


def _tissue_tests(y: np.ndarray, design: Design, traveling: np.ndarray, tissue: str, seed: int
                 ) -> list[Test]:
    rows = np.flatnonzero(traveling & np.isfinite(y))
    part = design.select_rows(rows)
    known = y[np.isfinite(y)]
    if not known.size or not known.std() > MIN_RELATIVE_STD * abs(known.mean()):
        why = "the same in every scan" if known.size else "no image could be segmented"
        return [not_possible(name, why, design.n_subjects, tissue=tissue, question=question)
                for name, question in R2_TESTS]
    tests = [] if design.kind == "traveling" else [_eta_test(y, design, tissue, seed)]
    if part.n_subjects >= MIN_SUBJECTS:
        return tests + _r2_tests(y[rows], part, tissue, seed)
    why = (f"{part.n_subjects} subjects were scanned at two or more sites; {MIN_SUBJECTS} are "
           "needed to separate site and subject")
    return tests + [not_possible(name, why, part.n_subjects, tissue=tissue, question=question)
                    for name, question in R2_TESTS]


def _r2_tests(y: np.ndarray, design: Design, tissue: str, seed: int) -> list[Test]:
    """Return marginal and conditional R2 with intervals; rescans at a site are averaged."""
    y, design = _per_subject(y, design)
    context: dict[str, Any] = {"tissue": tissue}
    try:
        components = variance_components(y, design.sites, design.subjects)
    except NotEstimableError as error:
        return [not_possible(name, str(error).split(".")[0], design.n_subjects, question=question,
                             **context) for name, question in R2_TESTS]
    drawn, words = _bootstrap_r2(y, design, seed)
    if design.n_subjects < MIN_INTERVAL_SUBJECTS:  # most draws repeat one or two subjects
        drawn = np.full_like(drawn, math.nan)
    return [Test(name, design.n_subjects, getattr(components, name), *_bounds(drawn[:, column]),
                 method=f"site fixed, subject random; {words}; {len(drawn)} bootstrap draws over "
                 "subjects", question=question, **context)
            for column, (name, question) in enumerate(R2_TESTS)]


def _bootstrap_r2(y: np.ndarray, design: Design, seed: int) -> tuple[np.ndarray, str]:
    """Return R2 of resampled subjects, shape (draws, 2), and how they were fitted."""
    table, table_subjects, _ = complete_table(y, design.subjects, design.sites)
    sites, complete = np.asarray(design.sites), table.size == len(y)

    def draw(rows: np.ndarray, who: np.ndarray) -> tuple[float, float]:
        try:
            found = (balanced_variance_components(table[rows]) if complete else
                     variance_components(y[rows], sites[rows], who.astype(str)))
        except NotEstimableError:
            return math.nan, math.nan
        return found.marginal_r2, found.conditional_r2

    labels, draws = ((table_subjects, BOOTSTRAP_DRAWS) if complete
                     else (design.subjects, MIXED_MODEL_DRAWS))
    return (np.array([draw(*one) for one in resample_subjects(labels, draws, seed)]),
            "closed form of the complete table" if complete else "REML, statsmodels MixedLM")


def _bounds(drawn: np.ndarray) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if len(known) < len(drawn) / 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _eta_test(y: np.ndarray, design: Design, tissue: str, seed: int) -> Test:
    eta, p, used = site_partial_eta_squared(y, design)
    context: dict[str, Any] = {"tissue": tissue, "question": "scanner"}
    if not math.isfinite(eta):
        return not_possible("site_partial_eta_squared", "one site, constant values, or not more "
                            "subjects than sites and covariates", design.n_subjects, **context)
    mean, site, adjusting, _, unit_subjects = _site_blocks(y, design)
    low, high = bootstrap_interval(
        lambda rows, who: partial_eta_squared(mean[rows], site[rows], adjusting[rows]),
        unit_subjects, draws=BOOTSTRAP_DRAWS, seed=seed)
    chance = (len(set(design.sites)) - 1) / max(design.n_subjects - 1, 1)
    words = " and ".join(used) or "no covariate (age and sex unknown or the same for all)"
    note = ("site and subject cannot be separated: subjects differ between sites too"
            if design.kind == "nested" else "")
    return Test("site_partial_eta_squared", design.n_subjects, eta, low, high, p,
                method=f"type II, beyond {words}; chance about {chance:.2f}; bootstrap over "
                "subjects",
                note=note, **context)
