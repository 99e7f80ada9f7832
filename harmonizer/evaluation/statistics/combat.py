"""ComBat on features as a comparison method, fitted without the subject that it harmonizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...combat import ComBat
from ...errors import NotEstimableError

__all__ = ["cross_fitted_combat"]


def cross_fitted_combat(
    features: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    covariates: np.ndarray | None = None,
    *,
    reference: str | None = None,
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
        model = ComBat(reference).fit(features[train], labels[train], table[train])
        if test.any():
            done[test] = model.transform(features[test], labels[test], table[test])
    return done


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
