"""Subject, site and covariates of each scan of a statistical model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...cohort import Cohort, Scan
from ...errors import InputError, did_you_mean

__all__ = ["Design", "dummies", "first_rows", "partial_eta_squared", "partial_eta_squared_test",
           "residual_squares"]


def first_rows(scans: Sequence[Scan]) -> dict[str, dict[str, int]]:
    """Return the index of the first scan of each subject at each site, by site and subject."""
    at: dict[str, dict[str, int]] = {}
    for i, scan in enumerate(scans):
        at.setdefault(scan.site, {}).setdefault(scan.subject, i)
    return at


@dataclass(frozen=True)
class Design:
    """Design of a cohort, one row per scan.

    Attributes
    ----------
    subjects, sites : tuple of str, length n
        Subject and site of each scan.
    ages : ndarray, shape (n,)
        In years, NaN if unknown.
    sexes : tuple of str, length n
        "M", "F" or "".
    covariates : mapping of str to tuple of str
        Values of further columns, as text.
    concurrent : tuple of bool, length n
        False for scans that `Cohort.scanned_years_apart` from those of the same subject at another
        site; an empty tuple means True for all.
    """

    subjects: tuple[str, ...]
    sites: tuple[str, ...]
    ages: np.ndarray
    sexes: tuple[str, ...]
    covariates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    concurrent: tuple[bool, ...] = ()

    @classmethod
    def of(cls, scans: Iterable[Scan]) -> Design:
        """Return the design of scans, in their order."""
        scans = tuple(scans)
        names = sorted({name for scan in scans for name in scan.covariates})
        years_apart = {scan.scan_id for scan in Cohort(scans).scanned_years_apart()}
        return cls(
            tuple(scan.subject for scan in scans), tuple(scan.site for scan in scans),
            np.array([math.nan if scan.age is None else scan.age for scan in scans], dtype=float),
            tuple((scan.sex or "").strip()[:1].upper() for scan in scans),
            {name: tuple(str(scan.covariates.get(name, "")) for scan in scans) for name in names},
            tuple(scan.scan_id not in years_apart for scan in scans))

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return len(set(self.subjects))

    def select_rows(self, rows: Sequence[int] | np.ndarray) -> Design:
        """Select rows in the given order; a row may be selected twice."""
        pick = [int(row) for row in rows]
        return Design(tuple(self.subjects[i] for i in pick), tuple(self.sites[i] for i in pick),
                      self.ages[pick], tuple(self.sexes[i] for i in pick),
                      {name: tuple(column[i] for i in pick)
                       for name, column in self.covariates.items()},
                      tuple(self.concurrent[i] for i in pick) if self.concurrent else ())

    @property
    def traveling_rows(self) -> np.ndarray:
        """Scans of subjects at two or more sites, bool of shape (n,); see `Cohort.traveling`."""
        now = self.concurrent or (True,) * len(self)
        sites: dict[str, set[str]] = {}
        for who, where, same_time in zip(self.subjects, self.sites, now):
            sites.setdefault(who, set()).update({where} if same_time else ())
        return np.array([same_time and len(sites[who]) > 1
                         for who, same_time in zip(self.subjects, now)], dtype=bool)

    @property
    def kind(self) -> str:
        """Kind of design: all subjects "traveling", none ("nested"), or "mixed"."""
        traveling = len(set(np.asarray(self.subjects)[self.traveling_rows].tolist()))
        return ("nested" if not traveling else
                "traveling" if traveling == self.n_subjects else "mixed")

    def column(self, name: str) -> np.ndarray:
        """Return the values of a covariate.

        Parameters
        ----------
        name : str
            "age", "sex" or a column of the cohort.

        Returns
        -------
        ndarray, shape (n,)
            Floats with NaN for unknown if all known values are numbers, else text with "" for
            unknown.

        Raises
        ------
        InputError
            If there is no such column.
        """
        if name == "age":
            return self.ages
        if name == "sex":
            return np.array([sex if sex in ("M", "F") else "" for sex in self.sexes])
        if name not in self.covariates:
            raise InputError(f"covariate {name!r} is no column of the cohort. "
                             f"{did_you_mean(name, ['age', 'sex', *self.covariates])}")
        texts = [text.strip() if text.strip() != "n/a" else "" for text in self.covariates[name]]
        try:
            return np.array([float(text) if text else math.nan for text in texts])
        except ValueError:
            return np.array(texts)

    def known(self, name: str) -> np.ndarray:
        """Return where a covariate has a value, bool of shape (n,)."""
        column = self.column(name)
        return np.isfinite(column) if column.dtype.kind == "f" else column != ""

    def adjusting(self, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
        """Return columns for the covariates that are known for all scans and vary.

        Parameters
        ----------
        names : iterable of str
            Covariates.

        Returns
        -------
        columns : ndarray, shape (n, Q)
            Centered numbers, and indicators of groups.
        used : list of str
            Covariates that are in `columns`.
        """
        parts, used = [], []
        for name in names:
            column = self.column(name)
            if self.known(name).all() and len(np.unique(column)) > 1:
                parts.append(column[:, None] - column.mean() if column.dtype.kind == "f"
                             else dummies(column))
                used.append(name)
        return (np.hstack(parts) if parts else np.empty((len(self), 0))), used


def dummies(labels: Sequence[str] | np.ndarray, first: str | None = None) -> np.ndarray:
    """Return indicators of all labels except the first.

    Parameters
    ----------
    labels : sequence of str, length n
        Labels.
    first : str, optional
        Reference label; default: the first by name.

    Returns
    -------
    ndarray, shape (n, k - 1)
        0 or 1; labels in sorted order.
    """
    names = sorted(set(labels), key=lambda name: (name != first, name))
    return np.array([[label == name for name in names[1:]] for label in labels],
                    dtype=float).reshape(len(labels), -1)


def residual_squares(y: np.ndarray, *blocks: np.ndarray) -> tuple[float, int]:
    """Fit a linear model with a constant by least squares and return its residual sum of squares.

    Parameters
    ----------
    y : ndarray, shape (n,)
        Response.
    *blocks : ndarray, shape (n,) or (n, k)
        Regressors; linearly dependent columns count once.

    Returns
    -------
    squares : float
        Residual sum of squares.
    freedom : int
        Residual degrees of freedom.
    """
    table = np.hstack([np.ones((len(y), 1)), *(np.reshape(b, (len(y), -1)) for b in blocks)])
    fit, _, rank, _ = np.linalg.lstsq(table, y, rcond=None)
    return float(np.sum((y - table @ fit) ** 2)), len(y) - int(rank)


def partial_eta_squared_test(y: np.ndarray, tested: np.ndarray, *others: np.ndarray
                             ) -> tuple[float, float]:
    """Compute partial eta squared (type II) of regressors beyond others, and p of its F test.

    Parameters
    ----------
    y : ndarray, shape (n,)
        Response.
    tested : ndarray, shape (n, k)
        Regressors that are tested.
    *others : ndarray, shape (n, q)
        Regressors of both models.

    Returns
    -------
    effect : float
        SS_tested / (SS_tested + SS_residual), 0 to 1; NaN without residual degrees of freedom.
    p : float
        NaN if the effect is NaN.
    """
    from scipy.stats import f as fisher

    full, rest = residual_squares(y, tested, *others)
    reduced, before = residual_squares(y, *others)
    eta = _eta_squared(y, full, rest, reduced, before)
    if math.isnan(eta):
        return math.nan, math.nan
    ratio = ((reduced - full) / (before - rest)) / (full / rest) if full > 0 else math.inf
    return eta, float(fisher.sf(ratio, before - rest, rest))


def partial_eta_squared(y: np.ndarray, tested: np.ndarray, *others: np.ndarray) -> float:
    """Compute partial eta squared without its test, for the draws of a bootstrap.

    Parameters
    ----------
    y, tested, *others
        As in `partial_eta_squared_test`.

    Returns
    -------
    float
        0 to 1, or NaN.
    """
    return _eta_squared(y, *residual_squares(y, tested, *others), *residual_squares(y, *others))


def _eta_squared(y: np.ndarray, full: float, rest: int, reduced: float, before: int) -> float:
    if rest < 1 or before == rest or not reduced > 1e-12 * np.sum(y**2):
        return math.nan
    return (reduced - full) / reduced
