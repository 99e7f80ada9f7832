"""ComBat on features as a comparison method, fitted without the subject that it harmonizes.

Three variants: ComBat with age as a number, with a spline of age as ComBat-GAM [1]_, and with a
random intercept of each subject as longitudinal ComBat [2]_. They are implemented here, because the
packages that offer them need numpy < 2 (neuroHarmonize) or R (longCombat).

References
----------
.. [1] Pomponio et al. 2020, Harmonization of large MRI datasets for the analysis of brain imaging
   patterns throughout the lifespan. doi:10.1016/j.neuroimage.2019.116450
.. [2] Beer et al. 2020, Longitudinal ComBat: a method for harmonizing longitudinal multi-scanner
   imaging data. doi:10.1016/j.neuroimage.2020.117129
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...combat import ComBat
from ...errors import NotEstimableError

__all__ = ["age_spline", "cross_fitted_combat", "subject_intercepts"]

SPLINE_KNOTS = (0.05, 0.35, 0.65, 0.95)  # quantiles of age, as Harrell 2015, section 2.4.6
VARIANCE_RATIOS = np.concatenate([[0.0], np.logspace(-2, 4, 37)])  # subject over residual


def age_spline(ages: np.ndarray) -> np.ndarray:
    """Compute a restricted cubic spline of age with four knots.

    Parameters
    ----------
    ages : ndarray, shape (n,)
        In years.

    Returns
    -------
    ndarray, shape (n, 3)
        A linear and two nonlinear columns, linear beyond the outer knots; centered.
    """
    ages = np.asarray(ages, float)
    knots = np.quantile(ages, SPLINE_KNOTS)
    scale = (knots[-1] - knots[0]) ** 2
    cubes = np.maximum(ages[:, None] - knots, 0) ** 3
    last = knots[-1] - knots[-2]
    columns = [ages]
    for j in range(len(knots) - 2):
        columns.append((cubes[:, j] - cubes[:, -2] * (knots[-1] - knots[j]) / last
                        + cubes[:, -1] * (knots[-2] - knots[j]) / last) / scale)
    table = np.stack(columns, axis=1)
    return table - table.mean(axis=0)


def subject_intercepts(values: np.ndarray, design: np.ndarray, subjects: Sequence[str]
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Predict the random intercept of each subject in a linear mixed model, by REML.

    The ratio of the variances is searched on a grid for all features at once; quasi-demeaned rows
    give the restricted likelihood [1]_.

    Parameters
    ----------
    values : ndarray, shape (n, F)
        One row per scan.
    design : ndarray, shape (n, p)
        Fixed effects, with a constant in their span.
    subjects : sequence of str, length n
        Subject of each scan.

    Returns
    -------
    intercepts : ndarray, shape (n, F)
        Best linear unbiased predictions, repeated for the scans of a subject.
    ratios : ndarray, shape (F,)
        Variance between subjects over residual variance.

    References
    ----------
    .. [1] Bates et al. 2015, Fitting linear mixed-effects models using lme4.
       doi:10.18637/jss.v067.i01
    """
    groups, counts = np.unique(subjects, return_inverse=True, return_counts=True)[1:]
    best = np.full(values.shape[1], -np.inf)
    ratios = np.zeros(values.shape[1])
    for ratio in VARIANCE_RATIOS:
        likelihood = _restricted_likelihood(values, design, groups, counts, ratio)
        ratios = np.where(likelihood > best, ratio, ratios)
        best = np.maximum(best, likelihood)
    found = np.zeros_like(values)
    for ratio in np.unique(ratios):
        part = ratios == ratio
        _, fit = _quasi_demeaned_fit(values[:, part], design, groups, counts, ratio)
        rest = _group_means(values[:, part] - design @ fit, groups, counts)
        found[:, part] = (ratio * counts / (1 + ratio * counts))[groups][:, None] * rest[groups]
    return found, ratios


def _group_means(table: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    total = np.zeros((len(counts), table.shape[1]))
    np.add.at(total, groups, table)
    return total / counts[:, None]


def _quasi_demeaned_fit(values: np.ndarray, design: np.ndarray, groups: np.ndarray,
                        counts: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the transformed design and the generalized least squares fit, shape (p, F)."""
    weight = (1 - 1 / np.sqrt(1 + ratio * counts))[groups][:, None]
    x, y = (table - weight * _group_means(table, groups, counts)[groups]
            for table in (design, values))
    return x, np.linalg.lstsq(x, y, rcond=None)[0]


def _restricted_likelihood(values: np.ndarray, design: np.ndarray, groups: np.ndarray,
                           counts: np.ndarray, ratio: float) -> np.ndarray:
    """Return twice the log restricted likelihood of each feature, up to a constant."""
    x, fit = _quasi_demeaned_fit(values, design, groups, counts, ratio)
    weight = (1 - 1 / np.sqrt(1 + ratio * counts))[groups][:, None]
    y = values - weight * _group_means(values, groups, counts)[groups]
    freedom = len(values) - design.shape[1]
    squares = np.maximum(((y - x @ fit) ** 2).sum(axis=0), 1e-300)
    return -(freedom * np.log(squares / freedom) + np.log1p(ratio * counts).sum()
             + np.linalg.slogdet(x.T @ x)[1])


def cross_fitted_combat(
    features: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    covariates: np.ndarray | None = None,
    *,
    reference: str | None = None,
    longitudinal: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Return features after ComBat, each row by a fit without its subject.

    Parameters
    ----------
    features : ndarray, shape (n, F)
        One row per scan.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.
    covariates : ndarray, shape (n, Q), optional
        Numbers whose effect is preserved.
    reference : str, optional
        Site that keeps its values; default: the grand mean.
    longitudinal : bool
        Whether the model has a random intercept of each subject, for repeated scans.
    folds : int
        Number of folds of subjects, balanced by site.
    seed : int
        Seed of the folds.

    Returns
    -------
    ndarray, shape (n, F)
        NaN in rows that no fit covers (a site with fewer than two scans of other subjects).

    Raises
    ------
    NotEstimableError
        If a feature is missing, or the covariates are confounded with the site.
    """
    features = np.asarray(features, dtype=np.float64)
    if not features.size or not np.isfinite(features).all():
        raise NotEstimableError("ComBat needs features without missing values.")
    done = np.full(features.shape, np.nan)
    table = np.empty((len(features), 0)) if covariates is None else np.reshape(
        covariates, (len(features), -1))
    labels = np.asarray(sites)
    for test_scans in _subject_folds(sites, subjects, folds, seed):
        rest = ~test_scans
        known = [site for site in set(sites) if (rest & (labels == site)).sum() >= 2]
        usable = np.isin(labels, known)
        if len(known) < 2 or (reference and reference not in known):
            continue
        train, test = rest & usable, test_scans & usable
        effects = (_intercepts(features, labels, np.asarray(subjects), table, train, test)
                   if longitudinal else np.zeros_like(features))
        model = ComBat(reference).fit((features - effects)[train], labels[train], table[train])
        if test.any():
            done[test] = effects[test] + model.transform(
                (features - effects)[test], labels[test], table[test])
    return done


def _intercepts(features: np.ndarray, labels: np.ndarray, subjects: np.ndarray, table: np.ndarray,
                train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the intercepts of training and test subjects by the model of the training scans.

    With the intercepts of the mixed model subtracted, least squares gives its fixed effects
    (Henderson's equations), so that ComBat of the rest is longitudinal ComBat.
    """
    sites = sorted(set(labels[train]))
    design = np.hstack([np.stack([labels == site for site in sites], axis=1).astype(float), table])
    found = np.zeros_like(features)
    found[train], ratios = subject_intercepts(features[train], design[train], subjects[train])
    fit = np.linalg.lstsq(design[train], (features - found)[train], rcond=None)[0]
    if test.any():
        groups, counts = np.unique(subjects[test], return_inverse=True, return_counts=True)[1:]
        means = _group_means(features[test] - design[test] @ fit, groups, counts)
        shrinkage = ratios * counts[:, None] / (1 + ratios * counts[:, None])
        found[test] = (shrinkage * means)[groups]
    return found


def _subject_folds(sites: Sequence[str], subjects: Sequence[str], folds: int, seed: int
                   ) -> Iterator[np.ndarray]:
    """Yield masks, shape (n,), of the scans of each fold; every fold has subjects of all sites.

    A subject scanned at several sites counts at the first by name.
    """
    first_site = {who: min(s for s, w in zip(sites, subjects) if w == who) for who in set(subjects)}
    rng = np.random.default_rng(seed)
    order = [who for site in sorted(set(first_site.values()))
             for who in rng.permutation(sorted(w for w in first_site if first_site[w] == site))]
    count = min(folds, len(order))
    for part in range(count):
        yield np.isin(subjects, order[part::count])
