"""Tests of the difference between the intensity distributions of sites.

The K-sample Anderson-Darling test compares the mean intensity distributions of the sites, as
DISARM++ reports it. It treats intensities as independent draws, which voxels are not, so its p
value depends on their number. The permutation test of the mean distance between sites compares
subjects of different sites; its p value should be preferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..metrics.distribution import LEVELS, site_distances, site_means
from .equivalence import (
    INTENSITY_MARGIN,
    interval_of_draws,
    needed_words,
    smallest_detectable,
    subjects_needed,
)
from .resampling import Test, bootstrap_interval, chance_level, not_possible, resample_subjects

__all__ = ["anderson_darling", "density", "distance_between_sites", "excess_distance"]

ANDERSON_DARLING_RESAMPLES = 999
PERMUTATIONS = 500
MIN_SUBJECTS_PER_SITE = 2


def anderson_darling(
    quantiles: np.ndarray,
    sites: Sequence[str],
    *,
    resamples: int = ANDERSON_DARLING_RESAMPLES,
    seeds: Sequence[int] = (0,),
) -> Test:
    """Compute the K-sample Anderson-Darling test of the mean intensity distributions of sites [1]_.

    Each site contributes the 200 intensities of its mean quantile function. SciPy's permutation
    method is used, because the tabulated p value is limited to 0.001-0.25.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions at `LEVELS`.
    sites : sequence of str, length n
        Site of each scan.
    resamples : int
        Permutations per seed.
    seeds : sequence of int
        Seeds; the p value is the mean over them.

    Returns
    -------
    Test
        The effect is the normalized statistic: near or below 0 for equal distributions.

    References
    ----------
    .. [1] Scholz and Stephens 1987, K-sample Anderson-Darling tests. doi:10.2307/2288805
    """
    from scipy import stats

    means = site_means(quantiles, sites) if len(quantiles) else {}
    if len(means) < 2 or all(np.ptp(mean) == 0 for mean in means.values()):
        return not_possible("anderson_darling", f"{len(means)} sites with varying intensities; "
                            "two are needed")
    with np.errstate(over="ignore"):  # of the number of all permutations, which SciPy computes
        results = [stats.anderson_ksamp(
            list(means.values()), method=stats.PermutationMethod(
                n_resamples=resamples, batch=64, random_state=np.random.default_rng(seed)))
            for seed in seeds]
    return Test("anderson_darling", len(sites), float(results[0].statistic),
                p=float(np.mean([result.pvalue for result in results])), question="scanner",
                method=f"midrank statistic of {len(means)} sites, {LEVELS.size} intensities each; "
                f"{len(seeds)} x {resamples} permutations of intensities",
                note="p treats intensities, not subjects, as independent; use it for comparison "
                "with the literature only")


def distance_between_sites(
    quantiles: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    data_range: float,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Test:
    """Compute the mean Wasserstein-1 distance between sites, with a permutation test over subjects.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions at `LEVELS`.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.
    data_range : float
        R > 0, in intensity units.
    permutations : int
        Permutations of the sites, see `shuffle_labels`, and bootstrap samples.
    seed : int
        Seed of both.

    Returns
    -------
    Test
        The effect is in R, 0 or more. It does not vanish for few subjects, so the method states its
        mean under permutation.
    """
    context: dict[str, Any] = {"question": "scanner", "unit": "R"}
    why = _too_few(sites, subjects)
    if why:
        return not_possible("distribution_distance", why, len(set(subjects)), **context)

    def score(labels: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        names, matrix = site_distances(quantiles[rows], labels.tolist())
        pairs = np.triu_indices(len(names), 1)
        return float(matrix[pairs].mean() / data_range) if len(names) > 1 else float("nan")

    labels = np.array(sites)
    observed = score(labels)
    chance = chance_level(score, labels, subjects, observed, permutations=permutations, seed=seed)
    low, high = bootstrap_interval(lambda rows, who: score(labels[rows], rows), subjects,
                                   draws=permutations, seed=seed)
    return Test("distribution_distance", len(set(subjects)), observed, low, high, chance.p,
                method=f"{permutations} permutations of the subjects' sites (mean "
                f"{chance.mean:.4f}); bootstrap over subjects", **context)


def _too_few(sites: Sequence[str], subjects: Sequence[str]) -> str:
    """Return why sites cannot be compared, or ""."""
    at_site = {site: {w for w, s in zip(subjects, sites) if s == site} for site in set(sites)}
    small = sorted(site for site, who in at_site.items() if len(who) < MIN_SUBJECTS_PER_SITE)
    if small:
        return f"fewer than {MIN_SUBJECTS_PER_SITE} subjects at {', '.join(small)}"
    return "one site only" if len(at_site) < 2 else ""


def excess_distance(
    quantiles: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Test:
    """Compute the distance between sites beyond chance, over that between subjects within a site.

    The numerator is the mean Wasserstein-1 distance between the sites' mean quantile functions,
    minus its mean over permutations of the sites after all sites were given one mean. It is zero
    without a site effect for any number of subjects. The ratio has no unit, so it can be compared
    between uncalibrated and harmonized images.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions at `LEVELS`.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.
    permutations : int
        Permutations of the sites, see `shuffle_labels`, and bootstrap samples.
    seed : int
        Seed of both.

    Returns
    -------
    Test
        ``distribution_excess`` with margin and smallest detectable effect.
    """
    context: dict[str, Any] = {"question": "scanner"}
    why = _too_few(sites, subjects)
    labels, n = np.array(sites), len(set(subjects))
    within = math.nan if why else _within_sites(quantiles, labels)
    if why or not within > 1e-9 * float(np.ptp(quantiles)):
        return not_possible("distribution_excess", why or "the subjects of a site have the same "
                            "intensities", n, **context)

    def score(rows: np.ndarray, names: np.ndarray) -> float:
        found, matrix = site_distances(rows, names.tolist())
        return float(matrix[np.triu_indices(len(found), 1)].mean()) if len(found) > 1 else math.nan

    means = site_means(quantiles, sites)
    centered = quantiles - np.stack([means[site] for site in sites])
    chance = chance_level(partial(score, centered), labels, subjects, 0.0,
                          permutations=permutations, seed=seed)
    effect = (score(quantiles, labels) - chance.mean) / within
    draws = [score(quantiles[rows], labels[rows]) / within
             for rows, _ in resample_subjects(subjects, permutations, seed)]
    null_std = chance.std / within
    low, high = interval_of_draws(effect, draws, null_std)
    needed = subjects_needed(n, (high - low) / 2 / 1.96, INTENSITY_MARGIN)
    return Test("distribution_excess", n, effect, low, high, margin=INTENSITY_MARGIN,
                detectable=smallest_detectable(null_std),
                method="mean Wasserstein-1 distance between sites minus its mean under "
                f"{permutations} permutations of the subjects' sites, over that between subjects "
                "of a site; interval: standard error of the bootstrap over subjects, and at least "
                "that of the permutations" + needed_words(needed), **context)


def _within_sites(quantiles: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean Wasserstein-1 distance between two scans of a site, over all sites."""
    distances = []
    for site in np.unique(labels):
        ordered = np.sort(quantiles[labels == site], axis=0)
        n = len(ordered)
        if n > 1:  # the mean absolute difference of n sorted numbers, at every level
            weights = (2 * np.arange(1, n + 1) - n - 1)[:, None]
            distances.append(float((2 * weights * ordered).sum(axis=0).mean() / (n * (n - 1))))
    return float(np.mean(distances)) if distances else math.nan


def density(quantiles: np.ndarray, grid: np.ndarray, bandwidth: float) -> np.ndarray:
    """Estimate the density of the intensities of a quantile function with a Gaussian kernel.

    Parameters
    ----------
    quantiles : ndarray, shape (200,)
        Quantile function at `LEVELS`.
    grid : ndarray, shape (m,)
        Intensities.
    bandwidth : float
        Standard deviation of the kernel, in intensity units.

    Returns
    -------
    ndarray, shape (m,)
        Density per intensity unit.
    """
    distance = (np.asarray(grid)[:, None] - np.asarray(quantiles)[None]) / bandwidth
    kernel = np.exp(-0.5 * distance**2) / (bandwidth * np.sqrt(2 * np.pi))
    return kernel.mean(axis=1)
