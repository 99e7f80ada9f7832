"""Who was scanned where, row by row: what a statistical model needs to know of a cohort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...cohort import Cohort, Scan
from ...errors import InputError, did_you_mean

__all__ = ["Design", "dummies", "residual_squares", "partial_eta",
           "partial_share"]


@dataclass(frozen=True)
class Design:
    """One row per scan, n rows in every field.

    ``ages`` (n,) years, NaN where unknown; ``sexes`` "M", "F" or ""; ``covariates``: name -> texts.
    ``concurrent``: False for the scans that `Cohort.scanned_years_apart` from those of the same
    subject at another site; empty means True for all.
    """

    subjects: tuple[str, ...]
    sites: tuple[str, ...]
    ages: np.ndarray
    sexes: tuple[str, ...]
    covariates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    concurrent: tuple[bool, ...] = ()

    @classmethod
    def of(cls, scans: Iterable[Scan]) -> Design:
        """The design of some scans, in their order."""
        scans = tuple(scans)
        names = sorted({name for scan in scans for name in scan.covariates})
        apart = {scan.scan_id for scan in Cohort(scans).scanned_years_apart()}
        return cls(
            tuple(scan.subject for scan in scans), tuple(scan.site for scan in scans),
            np.array([math.nan if scan.age is None else scan.age for scan in scans], dtype=float),
            tuple((scan.sex or "").strip()[:1].upper() for scan in scans),
            {name: tuple(str(scan.covariates.get(name, "")) for scan in scans) for name in names},
            tuple(scan.scan_id not in apart for scan in scans))

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def people(self) -> int:
        """How many people there are."""
        return len(set(self.subjects))

    def take(self, rows: Sequence[int] | np.ndarray) -> Design:
        """The chosen rows, in that order; a row may be taken twice."""
        pick = [int(row) for row in rows]
        return Design(tuple(self.subjects[i] for i in pick), tuple(self.sites[i] for i in pick),
                      self.ages[pick], tuple(self.sexes[i] for i in pick),
                      {name: tuple(column[i] for i in pick)
                       for name, column in self.covariates.items()},
                      tuple(self.concurrent[i] for i in pick) if self.concurrent else ())

    @property
    def traveling_rows(self) -> np.ndarray:
        """(n,) bool: scans of subjects at two or more sites, see `Cohort.traveling`."""
        now = self.concurrent or (True,) * len(self)
        sites: dict[str, set[str]] = {}
        for who, where, same_time in zip(self.subjects, self.sites, now):
            sites.setdefault(who, set()).update({where} if same_time else ())
        return np.array([same_time and len(sites[who]) > 1
                         for who, same_time in zip(self.subjects, now)], dtype=bool)

    @property
    def kind(self) -> str:
        """travelling (everybody at two or more sites), nested (nobody is) or mixed."""
        traveling = len(set(np.asarray(self.subjects)[self.traveling_rows].tolist()))
        return ("nested" if not traveling else
                "travelling" if traveling == self.people else "mixed")

    def column(self, name: str) -> np.ndarray:
        """A covariate (n,): float with NaN where unknown if every known value is a number, else
        text with "" where unknown. InputError for a name that is not there.
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
        """(n,) bool: where a covariate has a value."""
        column = self.column(name)
        return np.isfinite(column) if column.dtype.kind == "f" else column != ""

    def adjusting(self, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
        """(n, Q) columns for covariates that are known everywhere and vary, and their names."""
        parts, used = [], []
        for name in names:
            column = self.column(name)
            if self.known(name).all() and len(np.unique(column)) > 1:
                parts.append(column[:, None] - column.mean() if column.dtype.kind == "f"
                             else dummies(column))
                used.append(name)
        return (np.hstack(parts) if parts else np.empty((len(self), 0))), used


def dummies(labels: Sequence[str] | np.ndarray, first: str | None = None) -> np.ndarray:
    """(n, k - 1) indicators of all labels but the first (by name, or the one given)."""
    names = sorted(set(labels), key=lambda name: (name != first, name))
    return np.array([[label == name for name in names[1:]] for label in labels],
                    dtype=float).reshape(len(labels), -1)


def residual_squares(y: np.ndarray, *blocks: np.ndarray) -> tuple[float, int]:
    """Sum of squared residuals and residual degrees of freedom of y (n,) on a constant and blocks.

    Columns that others already span are not counted twice.
    """
    table = np.hstack([np.ones((len(y), 1)), *(np.reshape(b, (len(y), -1)) for b in blocks)])
    fit, _, rank, _ = np.linalg.lstsq(table, y, rcond=None)
    return float(np.sum((y - table @ fit) ** 2)), len(y) - int(rank)


def partial_eta(y: np.ndarray, tested: np.ndarray, *others: np.ndarray) -> tuple[float, float]:
    """Partial eta squared and p of ``tested`` (n, k) beyond ``others``: type II, F test.

    SS_tested / (SS_tested + SS_residual), 0 to 1. (NaN, NaN) where nothing is left to test on.
    """
    from scipy.stats import f as fisher

    full, rest = residual_squares(y, tested, *others)
    reduced, before = residual_squares(y, *others)
    share = _share(y, full, rest, reduced, before)
    if math.isnan(share):
        return math.nan, math.nan
    ratio = ((reduced - full) / (before - rest)) / (full / rest) if full > 0 else math.inf
    return share, float(fisher.sf(ratio, before - rest, rest))


def partial_share(y: np.ndarray, tested: np.ndarray, *others: np.ndarray) -> float:
    """Partial eta squared alone, as :func:`partial_eta`: for the draws of a bootstrap."""
    return _share(y, *residual_squares(y, tested, *others), *residual_squares(y, *others))


def _share(y: np.ndarray, full: float, rest: int, reduced: float, before: int) -> float:
    if rest < 1 or before == rest or not reduced > 1e-12 * np.sum(y**2):
        return math.nan
    return (reduced - full) / reduced
