"""ComBat on features as a yardstick: each subject is harmonized by a fit without that subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...combat import ComBat

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
    """Return features after ComBat, each row by a fit that its subject was not in.

    Parameters
    ----------
    features : ndarray, shape (n, F)
        One row per scan.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.
    covariates : ndarray, shape (n, Q), optional
        Numbers whose effect is kept.
    reference : str, optional
        Site that keeps its values; default: the grand mean.
    folds : int
        Parts that the subjects are divided into, balanced by site.
    seed : int
        Seed of the division.

    Returns
    -------
    ndarray, shape (n, F)
        NaN in rows that no fit could reach (a site with too few other subjects).

    Raises
    ------
    InputError
        As `harmonizer.combat.ComBat.fit`.
    """
    features = np.asarray(features, dtype=np.float64)
    done = np.full(features.shape, np.nan)
    table = np.empty((len(features), 0)) if covariates is None else np.reshape(
        covariates, (len(features), -1))
    labels = np.asarray(sites)
    for held_out in _subject_folds(sites, subjects, folds, seed):
        rest = ~held_out
        known = [site for site in set(sites) if (rest & (labels == site)).sum() >= 2]
        usable = np.isin(labels, known)
        if len(known) < 2 or (reference and reference not in known):
            continue
        train, test = rest & usable, held_out & usable
        model = ComBat(reference).fit(features[train], labels[train], table[train])
        if test.any():
            done[test] = model.transform(features[test], labels[test], table[test])
    return done


def _subject_folds(sites: Sequence[str], subjects: Sequence[str], folds: int, seed: int
                   ) -> Iterator[np.ndarray]:
    """Masks (n,) of held-out scans; subjects are dealt site by site so that folds hold all sites.

    A subject scanned at several sites counts at the first by name.
    """
    home = {who: min(s for s, w in zip(sites, subjects) if w == who) for who in set(subjects)}
    rng = np.random.default_rng(seed)
    order = [who for site in sorted(set(home.values()))
             for who in rng.permutation(sorted(w for w in home if home[w] == site))]
    count = min(folds, len(order))
    for part in range(count):
        yield np.isin(subjects, order[part::count])
