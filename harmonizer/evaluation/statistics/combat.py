"""ComBat on features: the classical yardstick, with fit and apply kept apart.

    y_ijf = alpha_f + x_ij beta_f + gamma_if + delta_if e_ijf

Feature f of scan j at site i is freed of the site's shift gamma and scale delta, both shrunk over
the features by empirical Bayes; the covariates x keep their effect. Johnson, Li and Rabinovic 2007,
doi:10.1093/biostatistics/kxj037; for MRI features Fortin et al. 2018,
doi:10.1016/j.neuroimage.2017.11.024. Written afresh, because of the packages looked at in 2026 one
asks for numpy < 2 (neuroHarmonize), one is not maintained (neuroCombat), one is under the GPL
(inmoose) and one brings plotting and embedding packages (combatlearn). It gives their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, did_you_mean

__all__ = ["ComBat", "fit_combat", "cross_fitted_combat"]

TOLERANCE = 1e-4  # relative change at which the shrinkage of a site's shift and scale stops
ITERATIONS = 1000
CONSTANT = 1e-10  # pooled variance over mean square below which a feature is constant


@dataclass(frozen=True)
class ComBat:
    """What was learned; arrays over F features, ``sites`` in order of their rows.

    ``mean`` (F,) grand mean, ``beta`` (Q, F) effects of the covariates, ``sd`` (F,) pooled standard
    deviation (0 for a constant feature, which is passed through), ``shift`` (S, F) and ``scale``
    (S, F) of each site, in units of ``sd``.
    """

    sites: tuple[str, ...]
    mean: np.ndarray
    beta: np.ndarray
    sd: np.ndarray
    shift: np.ndarray
    scale: np.ndarray

    def apply(self, features: np.ndarray, sites: Sequence[str],
              covariates: np.ndarray | None = None) -> np.ndarray:
        """Features (n, F) without their sites' shift and scale; one scan is enough.

        InputError for a site that was not in the fit or other covariates than those of the fit.
        """
        features = np.asarray(features, dtype=np.float64)
        design = _covariates(covariates, len(features))
        if features.shape[1:] != self.mean.shape or design.shape[1] != len(self.beta):
            raise InputError(f"expected {self.mean.size} features and {len(self.beta)} covariates "
                             f"as in the fit, got {features.shape[1:]} and {design.shape[1]}.")
        rows = [self._row(site) for site in sites]
        expected = self.mean + design @ self.beta
        sd = np.where(self.sd > 0, self.sd, 1.0)
        z = ((features - expected) / sd - self.shift[rows]) / self.scale[rows]
        return np.where(self.sd > 0, z * sd + expected, features)

    def _row(self, site: str) -> int:
        if site not in self.sites:
            raise InputError(f"site {site!r} was not in the fit of ComBat. "
                             f"{did_you_mean(site, self.sites)} Fit again with scans of it.")
        return self.sites.index(site)


def fit_combat(
    features: np.ndarray,
    sites: Sequence[str],
    covariates: np.ndarray | None = None,
    *,
    reference: str | None = None,
    shrink: bool = True,
) -> ComBat:
    """Learn each site's shift and scale.

    Parameters
    ----------
    features : (n, F) numbers without gaps, one row per scan.
    sites : one label per scan; every site needs two scans for a variance.
    covariates : (n, Q) numbers whose effect is kept, or None.
    reference : site that stays as it is, or None for the grand mean.
    shrink : parametric empirical Bayes over features; without, or with fewer than two features
        that vary, every feature stands alone.

    InputError for gaps, fewer than two sites or scans per site, or a site that cannot be told from
    the covariates.
    """
    features, names, batch = _checked(features, sites, reference)
    design = np.hstack([batch, _covariates(covariates, len(features))])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise InputError("expected covariates that vary within sites; site and covariates cannot "
                         "be told apart. Leave out a covariate or a site.")
    effects = np.linalg.lstsq(design, features, rcond=None)[0]
    home = batch[:, names.index(reference)] > 0 if reference else np.ones(len(batch), bool)
    mean = (effects[names.index(reference)] if reference
            else batch.mean(axis=0) @ effects[:len(names)])
    beta = effects[len(names):]
    variance = ((features - design @ effects)[home] ** 2).mean(axis=0)
    varies = variance > CONSTANT * (features**2).mean(axis=0)
    sd = np.sqrt(np.where(varies, variance, 0.0))
    z = (features - mean - design[:, len(names):] @ beta) / np.where(varies, sd, 1.0)
    shift, scale = np.zeros((len(names), len(sd))), np.ones((len(names), len(sd)))
    for row, name in enumerate(names):
        if name != reference and varies.any():
            here = z[np.ix_(batch[:, row] > 0, varies)]
            shift[row, varies], scale[row, varies] = _site_effect(here, shrink)
    return ComBat(tuple(names), mean, beta, sd, shift, scale)


def _checked(features: np.ndarray, sites: Sequence[str], reference: str | None
             ) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Features as float64, site names in order, and the (n, S) one-hot table of sites."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) != len(sites) or not np.isfinite(features).all():
        raise InputError(f"expected one row of finite features per scan, got {features.shape} for "
                         f"{len(sites)} scans. Leave out features with gaps.")
    names = sorted(set(sites))
    batch = np.array([[site == name for name in names] for site in sites], dtype=np.float64)
    lone = [name for name, count in zip(names, batch.sum(axis=0)) if count < 2]
    if len(names) < 2 or lone:
        raise InputError("ComBat needs two sites, and two scans of each; "
                         + (f"there is one scan of {', '.join(lone)}." if lone else
                            f"there is {', '.join(names) or 'none'}."))
    if reference is not None and reference not in names:
        raise InputError(f"reference site {reference!r} has no scans. "
                         f"{did_you_mean(reference, names)}")
    return features, names, batch


def _covariates(covariates: np.ndarray | None, rows: int) -> np.ndarray:
    if covariates is None:
        return np.empty((rows, 0))
    table = np.asarray(covariates, dtype=np.float64).reshape(rows, -1)
    if not np.isfinite(table).all():
        raise InputError("expected covariates without gaps. Leave out the scans or the covariate.")
    return table


def _site_effect(z: np.ndarray, shrink: bool) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale (F,) of one site from its standardised features (n, F)."""
    shift, variance = z.mean(axis=0), z.var(axis=0, ddof=1)
    variance = np.where(variance > 0, variance, 1.0)
    if shrink and z.shape[1] > 1 and variance.var(ddof=1) > 0 and shift.var(ddof=1) > 0:
        shift, variance = _shrunk(z, shift, variance)
    return shift, np.sqrt(variance)


def _shrunk(z: np.ndarray, shift: np.ndarray, variance: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means of shift and variance, Johnson et al. 2007, eqs. 2.4 to 3.1, iterated.

    Priors by moments over features: shift normal, variance inverse gamma(a, b).
    """
    n, centre, spread = len(z), shift.mean(), shift.var(ddof=1)
    m, v = variance.mean(), variance.var(ddof=1)
    a, b = (2 * v + m**2) / v, (m * v + m**3) / v
    new_shift, new_variance = shift, variance
    for _ in range(ITERATIONS):
        old = new_shift, new_variance
        new_shift = (spread * n * shift + old[1] * centre) / (spread * n + old[1])
        squares = ((z - new_shift) ** 2).sum(axis=0)
        new_variance = (squares / 2 + b) / (n / 2 + a - 1)
        moved = max(np.abs(new - before).max() / np.abs(before).max()
                    for new, before in zip((new_shift, new_variance), old))
        if moved < TOLERANCE * 1e-3:
            break
    return new_shift, new_variance


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
    """Features (n, F) after ComBat, each row by a fit that its person was not in.

    People are dealt into ``folds`` parts that each leave every site two scans to fit on; rows that
    no fit could reach (a site with too few other people) are NaN. Errors as `fit_combat`.
    """
    features = np.asarray(features, dtype=np.float64)
    done = np.full(features.shape, np.nan)
    table = _covariates(covariates, len(features))
    for held in _people_folds(sites, subjects, folds, seed):
        rest = ~held
        known = [site for site in set(sites) if sum(
            s == site and keep for s, keep in zip(sites, rest)) >= 2]
        usable = np.isin(sites, known)
        if len(known) < 2 or (reference and reference not in known):
            continue
        train, test = rest & usable, held & usable
        labels = np.asarray(sites)
        model = fit_combat(features[train], labels[train].tolist(), table[train],
                           reference=reference)
        if test.any():
            done[test] = model.apply(features[test], labels[test].tolist(), table[test])
    return done


def _people_folds(sites: Sequence[str], subjects: Sequence[str], folds: int, seed: int
                  ) -> Iterator[np.ndarray]:
    """Masks (n,) of the held-out scans; people dealt site by site so that folds hold all sites."""
    home = {who: min(s for s, w in zip(sites, subjects) if w == who) for who in set(subjects)}
    rng = np.random.default_rng(seed)
    order = [who for site in sorted(set(home.values()))
             for who in rng.permutation(sorted(w for w in home if home[w] == site))]
    count = min(folds, len(order))
    for part in range(count):
        yield np.isin(subjects, order[part::count])
