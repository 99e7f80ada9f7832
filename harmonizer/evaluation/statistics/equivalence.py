"""Equivalence tests: effects with intervals, margins stated in advance, and detectable effects.

A p value above .05 does not show that an effect is absent. An effect is shown to be negligible if
its interval lies inside a margin that was stated before the data were seen [1]_. If it does not,
the smallest effect that the data would have shown tells whether the study was large enough.

References
----------
.. [1] Lakens 2017, Equivalence tests: a practical primer for t tests, correlations, and
   meta-analyses. doi:10.1177/1948550617697177
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CLASSIFICATION_MARGIN", "DETECTION_POWER", "FEATURES_FRACTION", "IDENTITY_MARGIN",
           "INTENSITY_MARGIN", "OWN_TO_OTHERS_MARGIN", "RETENTION_MARGIN", "SITE_VARIANCE_MARGIN",
           "Equivalence", "exact_fraction_interval", "interval_of_draws", "interval_of_mean",
           "needed_words", "noncentrality", "smallest_detectable", "subjects_needed",
           "variance_fraction"]

CLASSIFICATION_MARGIN = 0.10
"""Macro F1 above the mean of permuted labels. With two sites it is 60 % of correct predictions
where 50 % is chance."""
INTENSITY_MARGIN = 0.25
"""Distance between sites over that between subjects of one site. At a quarter, the site adds
6 % to the variance of intensities between subjects."""
SITE_VARIANCE_MARGIN = 0.05
"""Fraction of a feature's variance that the site explains; a small effect is .01, a medium one .06
(Cohen 1988)."""
FEATURES_FRACTION = 0.95
"""Fraction of the features that must lie inside the margin: of 95 % intervals, one in twenty may
miss the true value."""
IDENTITY_MARGIN = 0.05
"""Loss of the fraction of identified subjects, and relative increase of the error between two
images of one subject."""
OWN_TO_OTHERS_MARGIN = 0.5
"""Distance of a harmonized image to its own source over that to sources of other subjects."""
RETENTION_MARGIN = 0.10
"""Fraction of a biological effect that may be lost."""
DETECTION_POWER = 0.8
LEVEL = 0.95
Z_95 = 1.959964  # normal quantiles of .975, .95 and .8
Z_ONE_SIDED = 1.644854
Z_POWER = 0.841621
MAX_NONCENTRALITY = 9999.0  # SciPy's limit


@dataclass(frozen=True)
class Equivalence:
    """Effect with its interval, margin and smallest detectable effect.

    Attributes
    ----------
    effect, low, high : float
        Estimate and 95 % interval.
    margin : float
        Effect up to which a site effect is negligible.
    detectable : float
        Smallest true effect that a test at 5 % finds with a probability of 80 %.
    """

    effect: float
    low: float
    high: float
    margin: float
    detectable: float


def interval_of_draws(effect: float, draws: Sequence[float] | np.ndarray, null_std: float = 0.0
                      ) -> tuple[float, float]:
    """Compute a 95 % interval of an effect from its bootstrap draws.

    The draws give the standard error only. Their mean is biased: a classifier that is trained on
    resampled subjects sees fewer of them, and distances between means of resampled subjects are
    larger. The standard error is at least that without any effect.

    Parameters
    ----------
    effect : float
        Estimate on all subjects.
    draws : sequence of float
        Bootstrap draws; those that are not finite are left out.
    null_std : float
        Standard deviation of the estimate under permuted labels.

    Returns
    -------
    low, high : float
        NaN if fewer than half of the draws are finite.
    """
    values = np.asarray(draws, float)
    known = values[np.isfinite(values)]
    if len(known) < max(len(values) / 2, 2) or not math.isfinite(null_std):
        return math.nan, math.nan
    half = Z_95 * max(float(known.std(ddof=1)), null_std)
    return effect - half, effect + half


def interval_of_mean(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Compute the 95 % interval of a mean by the t distribution.

    Parameters
    ----------
    values : sequence of float, length n
        One number per subject.

    Returns
    -------
    low, high : float
        NaN with fewer than three subjects.
    error : float
        Standard error of the mean.
    """
    from scipy.stats import t

    numbers = np.asarray(values, float)
    if len(numbers) < 3:
        return math.nan, math.nan, math.nan
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    half = float(t.ppf((1 + LEVEL) / 2, len(numbers) - 1)) * error
    return float(numbers.mean()) - half, float(numbers.mean()) + half, error


def smallest_detectable(null_std: float) -> float:
    """Return the effect that a one-sided test at 5 % finds with a probability of 80 %.

    Parameters
    ----------
    null_std : float
        Standard deviation of the estimate without an effect.

    Returns
    -------
    float
        In the unit of the effect.
    """
    return (Z_ONE_SIDED + Z_POWER) * null_std


def subjects_needed(n: int, standard_error: float, margin: float) -> int | None:
    """Return the number of subjects with which an interval around zero fits into the margin.

    Parameters
    ----------
    n : int
        Number of subjects of this study.
    standard_error : float
        Standard error of the effect in this study; it falls with the root of n.
    margin : float
        Margin.

    Returns
    -------
    int or None
        None if the standard error is not known.
    """
    if not (standard_error > 0 and margin > 0 and math.isfinite(standard_error)):
        return None
    return max(math.ceil(n * (Z_95 * standard_error / margin) ** 2), n)


def needed_words(subjects: int | None) -> str:
    """Return the end of a method's description: how many subjects the margin needs, or ""."""
    return "" if subjects is None else f"; the margin needs about {subjects} subjects"


def exact_fraction_interval(count: int, total: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of a fraction [1]_.

    Parameters
    ----------
    count, total : int
        Events and trials.

    Returns
    -------
    low, high : float
        0 to 1; (0, 1) without trials.

    References
    ----------
    .. [1] Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the
       case of the binomial. doi:10.1093/biomet/26.4.404
    """
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, count, total - count + 1) if count > 0 else 0.0
    high = beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def variance_fraction(f: float, df: tuple[int, int], n: int, error: float, rest: float,
                      margin: float = SITE_VARIANCE_MARGIN) -> Equivalence:
    """Compute the fraction of variance that a factor explains, from its F statistic.

    The exact interval of the noncentrality of F is converted to a fraction of variance [1]_. Unlike
    eta squared, the estimate is not biased by the number of groups.

    Parameters
    ----------
    f : float
        F statistic.
    df : tuple of int
        Its degrees of freedom.
    n : int
        Number of observations.
    error : float
        Residual variance of the F test.
    rest : float
        Variance that neither the factor nor the covariates explain; larger than `error` if subjects
        are in the model.
    margin : float
        Largest negligible fraction.

    Returns
    -------
    Equivalence
        0 to 1.

    References
    ----------
    .. [1] Steiger 2004, Beyond the F test: effect size confidence intervals and tests of close fit.
       doi:10.1037/1082-989X.9.2.164
    """
    from scipy.special import ncfdtrinc
    from scipy.stats import f as fisher

    best, low, high = noncentrality(f, df)
    seen = float(ncfdtrinc(*df, 1 - DETECTION_POWER, fisher.ppf(LEVEL, *df)))
    ratio = error / (n * rest) if rest > 0 else math.nan
    effect, low, high, seen = (value * ratio / (1 + value * ratio)
                               for value in (best, low, high, seen))
    return Equivalence(effect, low, high, margin, seen)


def noncentrality(f: float, df: tuple[int, int]) -> tuple[float, float, float]:
    """Estimate the noncentrality of an F statistic with its exact 95 % interval.

    Parameters
    ----------
    f : float
        F statistic.
    df : tuple of int
        Its degrees of freedom.

    Returns
    -------
    estimate, low, high : float
        0 or more; the estimate is unbiased where it is above 0.
    """
    tail = (1 - LEVEL) / 2
    best = max(df[0] * (f * (df[1] - 2) / df[1] - 1), 0.0) if df[1] > 2 else df[0] * max(f - 1, 0)
    low, high = (_noncentrality(df, p, f) for p in (1 - tail, tail))
    return best, min(low, best), max(high, best)


def _noncentrality(df: tuple[int, int], p: float, f: float) -> float:
    """Return the noncentrality at which F is below `f` with probability p; 0 if there is none."""
    from scipy.special import ncfdtr, ncfdtrinc

    if not f > 0 or ncfdtr(*df, 0.0, f) <= p:
        return 0.0
    if not math.isfinite(f) or ncfdtr(*df, MAX_NONCENTRALITY, f) > p:
        # The interval of a very large effect: F / (1 + z sqrt(2 / df2)) as of a scaled variance.
        tail = Z_95 if p < 0.5 else -Z_95
        return max(df[0] * (f - 1) * (1 + tail * math.sqrt(2 / df[1])), 0.0)
    return float(ncfdtrinc(*df, p, f))
