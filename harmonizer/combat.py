"""ComBat for tables of features: remove the additive and multiplicative effect of each site.

The model of feature f of scan j at site i is::

    y_ijf = mean_f + x_ij beta_f + std_f (shift_if + scale_if e_ijf)

ComBat subtracts the shift and divides by the scale; the effect of the covariates x stays. Shift and
scale are shrunk over the features by parametric empirical Bayes.

The implementation reproduces neuroCombat to the printed digits (a test compares them). No package
is used because those available in 2026 need numpy < 2 (neuroHarmonize), are not maintained
(neuroCombat), or are under the GPL (inmoose).

References
----------
.. [1] Johnson, Li and Rabinovic 2007, Adjusting batch effects in microarray expression data using
   empirical Bayes methods. doi:10.1093/biostatistics/kxj037
.. [2] Fortin et al. 2018, Harmonization of cortical thickness measurements across scanners and
   sites. doi:10.1016/j.neuroimage.2017.11.024
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, NotEstimableError, UsageError, did_you_mean
from .files import read_json, write_json

__all__ = ["ComBat"]

SHRINKAGE_TOLERANCE = 1e-7  # relative change at which the shrinkage iteration stops
MAX_SHRINKAGE_ITERATIONS = 1000
MIN_RELATIVE_VARIANCE = 1e-10  # pooled variance / mean square; a feature below it is constant
MODEL_FORMAT = "harmonizer-combat-1"


class ComBat:
    """Remove site effects from a table of features.

    Parameters
    ----------
    reference : str, optional
        Site that keeps its values; all others are brought to it. Default: the grand mean.
    shrink : bool, default True
        Shrink shift and scale over the features by empirical Bayes. With fewer than two features
        that vary there is nothing to shrink over.

    Attributes
    ----------
    sites_ : tuple of str
        Sites of the fit, sorted, and those added later.
    features_ : tuple of str
        Names of the F features.
    mean_, std_ : ndarray, shape (F,)
        Grand mean (or the reference site's) and pooled standard deviation. The standard deviation
        of a constant feature is 0; such a feature passes through unchanged.
    coefficients_ : ndarray, shape (Q, F)
        Effects of the Q covariate columns.
    shift_, scale_ : ndarray, shape (S, F)
        Site effects in units of ``std_``.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sites = ["A"] * 20 + ["B"] * 20
    >>> X = rng.normal(size=(40, 3)) + 2.0 * (np.array(sites) == "B")[:, None]
    >>> harmonized = ComBat().fit_transform(X, sites)
    >>> bool(abs(harmonized[:20].mean() - harmonized[20:].mean()) < 0.1)
    True
    """

    def __init__(self, reference: str | None = None, shrink: bool = True) -> None:
        self.reference = reference
        self.shrink = shrink

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's parameters by name (as in scikit-learn)."""
        return {"reference": self.reference, "shrink": self.shrink}

    def set_params(self, **params: Any) -> ComBat:
        """Set constructor parameters by name; an unknown name raises `UsageError`."""
        for name, value in params.items():
            if name not in self.get_params():
                raise UsageError(f"ComBat has no parameter {name!r}. "
                                 f"{did_you_mean(name, self.get_params())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"ComBat(reference={self.reference!r}, shrink={self.shrink!r})"

    def fit(self, X: Any, sites: Sequence[str] | np.ndarray, covariates: Any = None) -> ComBat:
        """Estimate the effect of each site.

        To learn the site effects from controls only, pass the rows of the controls here and all
        rows to `transform`.

        Parameters
        ----------
        X : array-like or DataFrame, shape (n, F)
            One row per scan, one column per feature, no missing values.
        sites : sequence of str, length n
            Site of each scan; every site needs two scans.
        covariates : DataFrame, mapping of name to n values, or array of shape (n, Q), optional
            Variables whose effect is kept. Numbers enter as they are; text is coded as one
            indicator column per category but the first in alphabetical order.

        Returns
        -------
        ComBat
            This object.

        Raises
        ------
        InputError
            If a value is missing.
        NotEstimableError
            If there are fewer than two sites or fewer than two scans of a site, or site and
            covariates cannot be told apart.
        """
        values, names = _features(X)
        labels, batch = _batch(sites, len(values), self.reference)
        columns = _columns(covariates, len(values))
        coding = _Coding.fit(columns)
        design = np.hstack([batch, coding.transform(columns, len(values))])
        if np.linalg.matrix_rank(design) < design.shape[1]:
            raise NotEstimableError("the covariates cannot be told apart from the site or from "
                                    "each other: expected covariates that vary within sites. "
                                    "Leave out a covariate or a site.")
        effects = np.linalg.lstsq(design, values, rcond=None)[0]
        row = labels.index(self.reference) if self.reference is not None else None
        used = np.ones(len(batch), bool) if row is None else batch[:, row] > 0
        self.mean_ = (batch.mean(axis=0) @ effects[:len(labels)] if row is None
                      else effects[row])
        self.coefficients_ = effects[len(labels):]
        variance = ((values - design @ effects)[used] ** 2).mean(axis=0)
        varies = variance > MIN_RELATIVE_VARIANCE * (values**2).mean(axis=0)
        self.std_ = np.sqrt(np.where(varies, variance, 0.0))
        self.sites_, self.features_, self._coding = tuple(labels), names, coding
        z = self._standardized(values, design[:, len(labels):])
        self.shift_ = np.zeros((len(labels), len(names)))
        self.scale_ = np.ones_like(self.shift_)
        for index, label in enumerate(labels):
            if label != self.reference:
                self.shift_[index], self.scale_[index] = self._effect(z[batch[:, index] > 0])
        return self

    def transform(self, X: Any, sites: Sequence[str] | np.ndarray, covariates: Any = None) -> Any:
        """Remove the site effects from scans, which need not have been in the fit.

        Parameters
        ----------
        X, sites, covariates
            As in `fit`; one scan is enough.

        Returns
        -------
        ndarray or DataFrame, shape (n, F)
            Harmonized features; a DataFrame if `X` is one.

        Raises
        ------
        InputError
            If a site was not in the fit (see `add_site`), or features or covariates differ from
            those of the fit.
        """
        self._check_fitted()
        values, names = _features(X)
        design = self._design(values, names, covariates)
        if len(sites) != len(values):
            raise InputError(f"expected one site per row, got {len(sites)} sites for "
                             f"{len(values)} rows. Check the table.")
        rows = [self._row(str(site)) for site in sites]
        z = (self._standardized(values, design) - self.shift_[rows]) / self.scale_[rows]
        expected = self.mean_ + design @ self.coefficients_
        done = np.where(self.std_ > 0, z * self.std_ + expected, values)
        return type(X)(done, index=X.index, columns=X.columns) if hasattr(X, "columns") else done

    def fit_transform(self, X: Any, sites: Sequence[str] | np.ndarray, covariates: Any = None
                      ) -> Any:
        """Fit to the scans and return them harmonized; parameters as in `fit`."""
        return self.fit(X, sites, covariates).transform(X, sites, covariates)

    def add_site(self, X: Any, site: str, covariates: Any = None) -> ComBat:
        """Add a site that was not in the fit.

        Mean, covariate effects and pooled standard deviation stay those of the fit; only the shift
        and scale of the new site are estimated. Values harmonized before do not change.

        Parameters
        ----------
        X : array-like or DataFrame, shape (n, F)
            Two or more scans of the new site.
        site : str
            Its label.
        covariates
            As in `fit`.

        Returns
        -------
        ComBat
            This object.

        Raises
        ------
        InputError
            If the site is known already, or has fewer than two scans.
        """
        self._check_fitted()
        values, names = _features(X)
        if str(site) in self.sites_:
            raise InputError(f"site {site!r} is in the model already. Use transform for its scans.")
        if len(values) < 2:
            raise InputError(f"expected two or more scans of site {site!r}, got {len(values)}. "
                             "One scan has no variance.")
        shift, scale = self._effect(
            self._standardized(values, self._design(values, names, covariates)))
        self.sites_ = (*self.sites_, str(site))
        self.shift_ = np.vstack([self.shift_, shift])
        self.scale_ = np.vstack([self.scale_, scale])
        return self

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted model as JSON and return the path."""
        self._check_fitted()
        return write_json(path, {
            "Format": MODEL_FORMAT, "Parameters": self.get_params(),
            "Sites": list(self.sites_), "Features": list(self.features_),
            "Covariates": self._coding.to_json(), "Mean": self.mean_.tolist(),
            "Std": self.std_.tolist(), "Coefficients": self.coefficients_.tolist(),
            "Shift": self.shift_.tolist(), "Scale": self.scale_.tolist()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ComBat:
        """Read a model written by `save`; anything else raises `InputError`."""
        content = read_json(path)
        try:
            if content["Format"] != MODEL_FORMAT:
                raise ValueError(f"format is {content['Format']!r:.80}")
            model = cls(**content["Parameters"])
            model.sites_ = tuple(str(site) for site in content["Sites"])
            model.features_ = tuple(str(name) for name in content["Features"])
            model._coding = _Coding.from_json(content["Covariates"])
            s, f, q = len(model.sites_), len(model.features_), len(model._coding)
            model.mean_ = _array(content, "Mean", (f,))
            model.std_ = _array(content, "Std", (f,))
            model.coefficients_ = _array(content, "Coefficients", (q, f))
            model.shift_ = _array(content, "Shift", (s, f))
            model.scale_ = _array(content, "Scale", (s, f))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is not a ComBat model ({error}). Expected a file written by "
                             "ComBat.save.") from error
        return model

    def _check_fitted(self) -> None:
        if not hasattr(self, "sites_"):
            raise UsageError("this ComBat is not fitted yet. Call fit(X, sites) or ComBat.load.")

    def _design(self, values: np.ndarray, names: tuple[str, ...], covariates: Any) -> np.ndarray:
        if names != self.features_ and not (names == _numbered(len(names)) and
                                            len(names) == len(self.features_)):
            raise InputError(f"expected the {len(self.features_)} features of the fit "
                             f"({', '.join(self.features_[:5])} ...) in their order, got "
                             f"{len(names)} ({', '.join(names[:5])} ...).")
        return self._coding.transform(_columns(covariates, len(values)), len(values))

    def _standardized(self, values: np.ndarray, design: np.ndarray) -> np.ndarray:
        """(n, F) residuals from mean and covariates, in units of the pooled std."""
        expected = self.mean_ + design @ self.coefficients_
        return (values - expected) / np.where(self.std_ > 0, self.std_, 1.0)

    def _effect(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale (F,) of one site; 0 and 1 for constant features."""
        shift, scale, varies = np.zeros(z.shape[1]), np.ones(z.shape[1]), self.std_ > 0
        if varies.any():
            shift[varies], scale[varies] = _site_effect(z[:, varies], self.shrink)
        return shift, scale

    def _row(self, site: str) -> int:
        if site not in self.sites_:
            raise InputError(f"site {site!r} was not in the fit of ComBat. "
                             f"{did_you_mean(site, self.sites_)} Add it with add_site (two or more "
                             "scans), or fit again.")
        return self.sites_.index(site)


@dataclass(frozen=True)
class _Coding:
    """Coding of covariates as columns: name -> categories, or None for a number."""

    levels: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)

    @classmethod
    def fit(cls, columns: Mapping[str, np.ndarray]) -> _Coding:
        return cls({name: None if column.dtype.kind == "f" else tuple(sorted(set(column)))
                    for name, column in columns.items()})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> _Coding:
        return cls({str(name): None if levels is None else tuple(str(level) for level in levels)
                    for name, levels in content.items()})

    def to_json(self) -> dict[str, Any]:
        return {name: None if levels is None else list(levels)
                for name, levels in self.levels.items()}

    def __len__(self) -> int:
        return sum(1 if levels is None else len(levels) - 1 for levels in self.levels.values())

    def transform(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """(n, Q) design columns; the first category of each text covariate is the reference."""
        if list(columns) != list(self.levels):
            raise InputError(f"expected the covariates of the fit "
                             f"({', '.join(self.levels) or 'none'}), got "
                             f"{', '.join(columns) or 'none'}.")
        parts = []
        for name, column in columns.items():
            levels = self.levels[name]
            if levels is None:
                if column.dtype.kind != "f":
                    raise InputError(f"covariate {name!r} was numeric in the fit and holds text "
                                     "now. Give numbers.")
                parts.append(column[:, None])
                continue
            column = column.astype(str)
            unknown = sorted(set(column) - set(levels))
            if unknown:
                raise InputError(f"covariate {name!r} has the category {str(unknown[0])!r}, "
                                 f"which was not in the fit ({', '.join(levels)}). Fit again "
                                 "with scans of it, or leave the scans out.")
            parts.append(np.stack([column == level for level in levels[1:]], axis=1).astype(float)
                         if len(levels) > 1 else np.empty((len(column), 0)))
        return np.hstack([np.empty((rows, 0)), *parts])



def _features(X: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (n, F) float64 values and the names of their columns."""
    names = tuple(str(name) for name in X.columns) if hasattr(X, "columns") else None
    try:
        values = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected a table of numbers, got a column that is none ({error}). "
                         "Leave text columns out.") from error
    if values.ndim != 2 or not values.size:
        raise InputError(f"expected a table of scans by features, got shape {values.shape}.")
    names = names or _numbered(values.shape[1])
    missing = [name for name, column in zip(names, values.T) if not np.isfinite(column).all()]
    if missing:
        raise InputError(f"{len(missing)} feature(s) hold missing or infinite values: "
                         f"{', '.join(missing[:5])}. Leave out those features or scans.")
    return values, names


def _numbered(count: int) -> tuple[str, ...]:
    """Make names for features without names."""
    return tuple(f"feature {number}" for number in range(1, count + 1))


def _columns(covariates: Any, rows: int) -> dict[str, np.ndarray]:
    """Return name -> (n,) float64, or text if a value is not a number; refuse missing values."""
    if covariates is None:
        return {}
    if hasattr(covariates, "columns"):
        given = {str(name): np.asarray(covariates[name]) for name in covariates.columns}
    elif isinstance(covariates, Mapping):
        given = {str(name): np.asarray(column) for name, column in covariates.items()}
    else:
        table = np.asarray(covariates).reshape(len(covariates), -1)
        given = {f"covariate {n}": column for n, column in enumerate(table.T, start=1)}
    done = {}
    for name, column in given.items():
        if column.shape != (rows,):
            raise InputError(f"covariate {name!r} has shape {column.shape} for {rows} scans. Give "
                             "one value per scan.")
        column = _numbers_or_text(column)
        missing = int((~np.isfinite(column)).sum() if column.dtype.kind == "f"
                      else np.isin(column, ("", "n/a", "nan", "None")).sum())
        if missing:
            raise InputError(f"covariate {name!r} is missing for {missing} of {rows} scans. Leave "
                             "out the covariate or the scans.")
        done[name] = column
    return done


def _numbers_or_text(column: np.ndarray) -> np.ndarray:
    """Return the column as float64 if every value is a number, else as text."""
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError):
        return np.array([str(value).strip() for value in column])


def _batch(sites: Sequence[str] | np.ndarray, rows: int, reference: str | None
           ) -> tuple[list[str], np.ndarray]:
    """Return the sorted site labels and the (n, S) one-hot table of sites."""
    given = [str(site) for site in sites]
    if len(given) != rows:
        raise InputError(f"expected one site per row, got {len(given)} sites for {rows} rows. "
                         "Check the table.")
    labels = sorted(set(given))
    batch = np.array([[site == label for label in labels] for site in given], dtype=np.float64)
    single = [label for label, count in zip(labels, batch.sum(axis=0)) if count < 2]
    if len(labels) < 2 or single:
        raise NotEstimableError("ComBat needs two sites, and two scans of each; "
                                + (f"there is one scan of {', '.join(single)}." if single else
                                   f"there is {', '.join(labels) or 'none'}."))
    if reference is not None and reference not in labels:
        raise InputError(f"reference site {reference!r} has no scans. "
                         f"{did_you_mean(reference, labels)}")
    return labels, batch


def _array(content: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a finite array of this shape from JSON; ValueError if it is none."""
    array = np.asarray(content[name], dtype=np.float64).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array


def _site_effect(z: np.ndarray, shrink: bool) -> tuple[np.ndarray, np.ndarray]:
    """Estimate shift and scale (F,) of one site from its standardized features (n, F)."""
    shift, variance = z.mean(axis=0), z.var(axis=0, ddof=1)
    variance = np.where(variance > 0, variance, 1.0)
    if shrink and z.shape[1] > 1 and variance.var(ddof=1) > 0 and shift.var(ddof=1) > 0:
        shift, variance = _shrunk(z, shift, variance)
    return shift, np.sqrt(variance)


def _shrunk(z: np.ndarray, shift: np.ndarray, variance: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """Compute posterior means of shift and variance by iteration ([1]_, equations 2.4 to 3.1).

    The priors are a normal distribution for the shift and an inverse gamma(a, b) for the variance,
    their parameters estimated by moments over the features.
    """
    n, prior_mean, prior_variance = len(z), shift.mean(), shift.var(ddof=1)
    m, v = variance.mean(), variance.var(ddof=1)
    a, b = (2 * v + m**2) / v, (m * v + m**3) / v
    new_shift, new_variance = shift, variance
    for _ in range(MAX_SHRINKAGE_ITERATIONS):
        old = new_shift, new_variance
        new_shift = ((prior_variance * n * shift + old[1] * prior_mean)
                     / (prior_variance * n + old[1]))
        squares = ((z - new_shift) ** 2).sum(axis=0)
        new_variance = (squares / 2 + b) / (n / 2 + a - 1)
        change = max(np.abs(new - before).max() / np.abs(before).max()
                     for new, before in zip((new_shift, new_variance), old))
        if change < SHRINKAGE_TOLERANCE:
            break
    return new_shift, new_variance
