"""Do tissue volumes follow the scanner or the person?

With people who were scanned at several sites, a mixed model y = site + (1 | person) + e splits the
variance of a tissue ratio into what the site, the person and neither explain. Where every person
was at one site only, site and person cannot be told apart that way; then the share of the variance
that the site explains beyond age and sex is given instead, under another name.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..questions.traveling import complete_table
from ..statistics.design import Design, dummies, partial_eta, partial_share
from ..statistics.resampling import (
    Test,
    bootstrap_interval,
    corrected,
    not_possible,
    resample_people,
)

__all__ = ["Shares", "variance_shares", "balanced_shares", "site_share", "paired_t_tests",
           "volume_tests"]

FEWEST_PEOPLE = 3
FEWEST_FOR_INTERVAL = 5
DRAWS = 500
CONSTANT = 1e-6  # standard deviation over mean below which a ratio is the same everywhere
R2_TESTS = (("marginal_r2", "scanner"), ("conditional_r2", "person"))
SLOW_DRAWS = 100  # where each draw needs an iterated fit


@dataclass(frozen=True)
class Shares:
    """Variance of y, in its units squared: of the site means, between people, and the rest."""

    fixed: float
    person: float
    residual: float

    @property
    def marginal(self) -> float:
        """R2 of the site alone, 0 to 1; Nakagawa and Schielzeth 2013, eq. 26."""
        return self._share(self.fixed)

    @property
    def conditional(self) -> float:
        """R2 of site and person, 0 to 1; Nakagawa and Schielzeth 2013, eq. 27."""
        return self._share(self.fixed + self.person)

    def _share(self, part: float) -> float:
        total = self.fixed + self.person + self.residual
        return part / total if total > 0 else math.nan


def variance_shares(values: Sequence[float], sites: Sequence[str], subjects: Sequence[str]
                    ) -> Shares:
    """y = site + (1 | person) + e by restricted maximum likelihood, in shares of variance.

    ``fixed`` is the variance (n - 1) of the fitted site effects over the scans, as in R's
    MuMIn::r.squaredGLMM. A complete table has a closed form, which REML equals; else statsmodels'
    MixedLM. InputError where people and sites cannot be told apart or nothing is left over.
    """
    y, sites, subjects = np.asarray(values, float), np.asarray(sites), np.asarray(subjects)
    if Design(tuple(subjects), tuple(sites), np.full(len(y), np.nan), ("",) * len(y)
              ).kind == "nested":
        raise InputError("expected people at two or more sites; site and person cannot be told "
                         "apart. Use site_share.")
    table, people, kept = complete_table(y, subjects, sites)
    if table.size == len(y) and len(set(subjects)) == len(people):
        return balanced_shares(table)
    return _mixed_model(y, sites, subjects)


def balanced_shares(table: np.ndarray) -> Shares:
    """Shares of a complete table (people, sites), from its two-way analysis of variance.

    var_person = (MS_people - MS_error) / sites; where that is negative it is 0, and the error is
    pooled over both (the REML estimate on the boundary).
    """
    n, k = table.shape
    if n < 2 or k < 2:
        raise InputError(f"expected at least 2 people at 2 sites, got {n} at {k}.")
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    ss_error = float(np.sum((table - rows - columns + table.mean()) ** 2))
    ss_people = float(k * np.sum((rows - table.mean()) ** 2))
    error = ss_error / ((n - 1) * (k - 1))
    person = (ss_people / (n - 1) - error) / k
    if person < 0:
        person, error = 0.0, (ss_error + ss_people) / ((n - 1) * k)
    fixed = float(np.sum((columns - table.mean()) ** 2)) * n / (n * k - 1)
    return Shares(fixed, person, error)


def _mixed_model(y: np.ndarray, sites: np.ndarray, subjects: np.ndarray) -> Shares:
    from statsmodels.regression.mixed_linear_model import MixedLM

    design = np.hstack([np.ones((len(y), 1)), dummies(sites)])
    spread = y.std()
    if not spread > 0 or len(y) <= design.shape[1] + 1:
        raise InputError(f"expected more scans than {design.shape[1] + 1} with values that vary, "
                         f"got {len(y)}.")
    scaled = (y - y.mean()) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of zero is an answer here, not a failure
        try:
            fit = MixedLM(scaled, design, groups=subjects).fit(reml=True,
                                                               method=["lbfgs", "powell"])
        except np.linalg.LinAlgError:  # how statsmodels meets a variance between people of zero
            return _without_person(y, design)
    fixed = np.var(design @ fit.fe_params, ddof=1)
    person = max(float(np.asarray(fit.cov_re)[0, 0]), 0.0)
    return Shares(float(fixed) * spread**2, person * spread**2, float(fit.scale) * spread**2)


def _without_person(y: np.ndarray, design: np.ndarray) -> Shares:
    """The model on its boundary: people do not differ, what REML then becomes."""
    fit, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    rest = float(np.sum((y - design @ fit) ** 2)) / (len(y) - int(rank))
    return Shares(float(np.var(design @ fit, ddof=1)), 0.0, rest)


def site_share(values: Sequence[float], design: Design) -> tuple[float, float, list[str]]:
    """Partial eta squared of the site beyond age and sex, its p, and the covariates used.

    0 to 1, lower is better; chance gives about (k - 1) / (n - 1). Age or sex are left out where
    they are unknown for somebody or the same for all. One value per scan; scans of one person are
    averaged first.
    """
    y, site, adjusting, used, _ = _site_blocks(values, design)
    return (*partial_eta(y, site, adjusting), used)


def _site_blocks(values: Sequence[float], design: Design
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], tuple[str, ...]]:
    """One row per person and site: values, site, covariates and their names, people."""
    y, design = _per_person(np.asarray(values, float), design)
    adjusting, used = design.adjusting(("age", "sex"))
    return y, dummies(design.sites), adjusting, used, design.subjects


def _per_person(values: np.ndarray, design: Design) -> tuple[np.ndarray, Design]:
    """One row per person and site: the mean of the scans."""
    rows: dict[tuple[str, str], list[int]] = {}
    for i, cell in enumerate(zip(design.subjects, design.sites)):
        if math.isfinite(values[i]):
            rows.setdefault(cell, []).append(i)
    return (np.array([values[cell].mean() for cell in rows.values()]),
            design.take([cell[0] for cell in rows.values()]))


def paired_t_tests(values: Mapping[str, Sequence[float]], design: Design, reference: str
                   ) -> tuple[Test, ...]:
    """Every site against the reference site on the people who were at both, all tissues.

    ``values``: tissue -> one value per scan. The effect is the mean difference, its interval that
    of the t test. One family over sites and tissues, Benjamini-Hochberg corrected.
    """
    from scipy.stats import ttest_1samp

    tests = []
    for tissue, numbers in values.items():
        for site in sorted(set(design.sites) - {reference}):
            change = _differences(numbers, design, site, reference)
            context = {"question": "scanner", "site": site, "reference": reference,
                       "tissue": tissue}
            if len(change) < FEWEST_PEOPLE or np.ptp(change) == 0:
                tests.append(not_possible(
                    "paired_t", f"{len(change)} people with differing changes were at both sites; "
                    f"{FEWEST_PEOPLE} are needed", len(change), **context))
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
    """All that the design allows to say on tissue ratios at one stage of one method.

    With travelling people (they alone are used): marginal and conditional R2, and paired t tests
    against the reference site. Without: the site's partial eta squared.
    """
    tests: list[Test] = []
    roaming = design.traveling_rows
    for tissue, numbers in values.items():
        y = np.asarray(numbers, float)
        tests += _share_tests(y, design, roaming, tissue, seed)
    if roaming.any():
        tests += paired_t_tests({name: np.asarray(v, float)[roaming] for name, v in values.items()},
                                design.take(np.flatnonzero(roaming)), reference)
    return tuple(tests)


def _share_tests(y: np.ndarray, design: Design, roaming: np.ndarray, tissue: str, seed: int
                 ) -> list[Test]:
    rows = np.flatnonzero(roaming & np.isfinite(y))
    part = design.take(rows)
    known = y[np.isfinite(y)]
    if not known.size or not known.std() > CONSTANT * abs(known.mean()):
        why = "the same in every scan" if known.size else "no image could be segmented"
        return [not_possible(name, why, design.people, tissue=tissue, question=question)
                for name, question in R2_TESTS]
    tests = [] if design.kind == "travelling" else [_eta_test(y, design, tissue, seed)]
    if part.people >= FEWEST_PEOPLE:
        return tests + _r2_tests(y[rows], part, tissue, seed)
    why = (f"{part.people} people were scanned at two or more sites; {FEWEST_PEOPLE} are needed to "
           "tell site from person")
    return tests + [not_possible(name, why, part.people, tissue=tissue, question=question)
                    for name, question in R2_TESTS]


def _r2_tests(y: np.ndarray, design: Design, tissue: str, seed: int) -> list[Test]:
    """Marginal and conditional R2 with intervals over people; rescans at a site are averaged."""
    y, design = _per_person(y, design)
    context = {"tissue": tissue}
    try:
        shares = variance_shares(y, design.sites, design.subjects)
    except (InputError, np.linalg.LinAlgError, ValueError) as error:
        return [not_possible(name, str(error).split(".")[0], design.people, question=question,
                             **context) for name, question in R2_TESTS]
    drawn, words = _drawn_shares(y, design, seed)
    if design.people < FEWEST_FOR_INTERVAL:  # most draws would be one or two people again and again
        drawn = np.full_like(drawn, math.nan)
    return [Test(name, design.people, getattr(shares, which), *_bounds(drawn[:, column]),
                 method=f"site fixed, person random; {words}; {len(drawn)} bootstrap draws over "
                 "people", question=question, **context)
            for column, ((name, question), which) in enumerate(
                zip(R2_TESTS, ("marginal", "conditional")))]


def _drawn_shares(y: np.ndarray, design: Design, seed: int) -> tuple[np.ndarray, str]:
    """(draws, 2) marginal and conditional R2 of resampled people, and how they were fitted."""
    table, people, _ = complete_table(y, design.subjects, design.sites)
    sites, complete = np.asarray(design.sites), table.size == len(y)

    def draw(rows: np.ndarray, who: np.ndarray) -> tuple[float, float]:
        try:
            found = (balanced_shares(table[rows]) if complete else
                     variance_shares(y[rows], sites[rows], who.astype(str)))
        except (InputError, np.linalg.LinAlgError, ValueError):
            return math.nan, math.nan
        return found.marginal, found.conditional

    labels, draws = (people, DRAWS) if complete else (design.subjects, SLOW_DRAWS)
    return (np.array([draw(*one) for one in resample_people(labels, draws, seed)]),
            "closed form of the complete table" if complete else "REML, statsmodels MixedLM")


def _bounds(drawn: np.ndarray) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if len(known) < len(drawn) / 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _eta_test(y: np.ndarray, design: Design, tissue: str, seed: int) -> Test:
    share, p, used = site_share(y, design)
    context = {"tissue": tissue, "question": "scanner"}
    if not math.isfinite(share):
        return not_possible("site_partial_eta_squared", "one site, no spread, or not more people "
                            "than sites and covariates", design.people, **context)
    mean, site, adjusting, _, people = _site_blocks(y, design)
    low, high = bootstrap_interval(
        lambda rows, who: partial_share(mean[rows], site[rows], adjusting[rows]), people,
        draws=DRAWS, seed=seed)
    chance = (len(set(design.sites)) - 1) / max(design.people - 1, 1)
    words = " and ".join(used) or "no covariate (age and sex unknown or the same for all)"
    note = ("site and person cannot be told apart here: people differ between sites too"
            if design.kind == "nested" else "")
    return Test("site_partial_eta_squared", design.people, share, low, high, p,
                method=f"type II, beyond {words}; chance about {chance:.2f}; bootstrap over people",
                note=note, **context)
