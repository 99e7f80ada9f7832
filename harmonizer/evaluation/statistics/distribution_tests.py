"""Is the difference between the sites' grey levels more than chance?

Two answers to two questions. The K-sample Anderson-Darling test asks whether the sites' mean grey
level distributions could be one distribution (DISARM++ reports it); it takes grey levels for
independent draws, which voxels are not, so its p depends on how many are looked at. The permutation
test of the mean distance between sites asks whether *people* of different sites differ more than
people do; that is the one to believe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..metrics.distribution import LEVELS, site_distances, site_means
from .resampling import Test, bootstrap_interval, chance_level, not_possible

__all__ = ["anderson_darling", "distance_between_sites", "density"]

RESAMPLES = 999
PERMUTATIONS = 500
FEWEST_PER_SITE = 2


def anderson_darling(quantiles: np.ndarray, sites: Sequence[str], *, resamples: int = RESAMPLES,
                     seeds: Sequence[int] = (0,)) -> Test:
    """K-sample Anderson-Darling test of the sites' mean grey level distributions.

    ``quantiles`` (scans, 200) at LEVELS, one site label per scan. Each site gives the 200 grey
    levels of its mean quantile function. p by SciPy's permutation method (the tabulated p is capped
    to 0.001-0.25), the mean over ``seeds``, each of ``resamples`` permutations. ``effect`` is the
    normalised statistic: near or below 0 for equal distributions, lower is better. Scholz and
    Stephens 1987, doi:10.2307/2288805.
    """
    from scipy import stats

    means = site_means(quantiles, sites) if len(quantiles) else {}
    if len(means) < 2 or all(np.ptp(mean) == 0 for mean in means.values()):
        return not_possible("anderson_darling", f"{len(means)} sites with a range of grey levels; "
                            "two are needed")
    with np.errstate(over="ignore"):  # SciPy counts all permutations there could be
        results = [stats.anderson_ksamp(
            list(means.values()), method=stats.PermutationMethod(
                n_resamples=resamples, batch=64, random_state=np.random.default_rng(seed)))
            for seed in seeds]
    return Test("anderson_darling", len(sites), float(results[0].statistic),
                p=float(np.mean([result.pvalue for result in results])), question="scanner",
                method=f"midrank statistic of {len(means)} sites, {LEVELS.size} grey levels each; "
                f"{len(seeds)} x {resamples} permutations of grey levels",
                note="p counts grey levels, not people; for comparison with the literature only")


def distance_between_sites(
    quantiles: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    data_range: float,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Test:
    """Mean W1 between every two sites' mean quantile functions over R, and whether it is chance.

    p: share of shuffles of the site labels between people (a traveller's among his own scans) with
    as large a distance. 0 to infinity, lower is better; a distance does not vanish for few people,
    so the shuffled mean is given in the method.
    """
    context = {"question": "scanner", "unit": "R"}
    people = {site: {w for w, s in zip(subjects, sites) if s == site} for site in set(sites)}
    small = sorted(site for site, who in people.items() if len(who) < FEWEST_PER_SITE)
    if len(people) < 2 or small:
        why = (f"fewer than {FEWEST_PER_SITE} people at {', '.join(small)}" if small
               else "one site only")
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
                method=f"{permutations} permutations of people's sites (mean {chance.mean:.4f}); "
                "bootstrap over people", **context)


def density(quantiles: np.ndarray, grid: np.ndarray, bandwidth: float) -> np.ndarray:
    """Kernel density at ``grid`` (m,) of the grey levels of one quantile function (200,).

    Gaussian kernel of standard deviation ``bandwidth`` (grey levels); integrates to one over a
    grid that covers them. For the curves of one site before and after.
    """
    distance = (np.asarray(grid)[:, None] - np.asarray(quantiles)[None]) / bandwidth
    kernel = np.exp(-0.5 * distance**2) / (bandwidth * np.sqrt(2 * np.pi))
    return kernel.mean(axis=1)
