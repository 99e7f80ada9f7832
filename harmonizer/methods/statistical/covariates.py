"""Coding of covariates as columns of a design matrix, and the reasons why some are not modeled.

A covariate is a number if every known value is a number. Sex is -0.5 (F) and 0.5 (M). Any other
covariate is a category in reference (treatment) coding: one column of zeros and ones for each level
except the first in alphabetical order, which is the reference. Codes such as 1, 2, 3 are numbers;
write words to have them used as categories.

Missing values: a scan without a value does not contribute to the slope of that covariate (it has
the mean of its site there), and counts as average elsewhere. A covariate is not modeled if more
than `MAX_MISSING_FRACTION` of the scans lack it, or all scans of a site do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from ...cohort import MISSING_TEXTS, Scan
from ...errors import UsageError, did_you_mean

__all__ = ["Column", "Covariate", "code_covariates", "covariates_of", "within_sites"]

MAX_MISSING_FRACTION = 0.2
MAX_LEVELS = 10  # a category with more levels is an identifier


@dataclass(frozen=True)
class Column:
    """One column of the design matrix.

    Attributes
    ----------
    name : str
        Name of the covariate.
    level : str
        Level of a category that the column indicates; empty for a number.
    """

    name: str
    level: str = ""

    @property
    def key(self) -> str:
        """Name of the column in a model file, without slash or colon."""
        words = (self.name, self.level) if self.level else (self.name,)
        return "=".join(quote(word, safe=" ") for word in words)

    @classmethod
    def from_key(cls, key: str) -> Column:
        """Create a column from its `key`."""
        name, _, level = key.partition("=")
        return cls(unquote(name), unquote(level))

    def value(self, covariates: Mapping[str, Any], levels: Sequence[str]) -> float | None:
        """Return the entry of one scan.

        Parameters
        ----------
        covariates : mapping
            Covariates of the scan.
        levels : sequence of str
            Levels of the category that were in the fit.

        Returns
        -------
        float or None
            None if the value is missing, or is a level that was not in the fit.
        """
        entry = covariates.get(self.name)
        if not self.level:
            return _number(self.name, entry)
        text = _text(entry)
        return float(text == self.level) if text in levels else None


@dataclass(frozen=True)
class Covariate:
    """Coding of one covariate in a fit.

    Attributes
    ----------
    name : str
        Name of the covariate.
    levels : tuple of str
        Levels of a category, the reference first; empty for a number.
    missing : int
        Number of scans without a value.
    reason : str
        Reason why it is not modeled; empty if it is.
    """

    name: str
    levels: tuple[str, ...] = ()
    missing: int = 0
    reason: str = ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the covariate in the design matrix."""
        return tuple(Column(self.name, level) for level in self.levels[1:]) or (Column(self.name),)

    def in_words(self) -> str:
        """Return one phrase for log, model card and report."""
        if self.reason:
            return f"{self.name}: not modeled, {self.reason}"
        kind = (f"category, {', '.join(self.levels[1:])} against reference {self.levels[0]}"
                if self.levels else "F against M" if self.name == "sex" else "number")
        missing = (f"; missing in {self.missing} {'scans' if self.missing > 1 else 'scan'}, "
                   "average assumed" if self.missing else "")
        return f"{self.name}: modeled ({kind}{missing})"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types for the model folder."""
        return {"Name": self.name, "Modeled": not self.reason, "Levels": list(self.levels),
                "Missing": self.missing, "Summary": self.in_words()}


def covariates_of(scan: Scan) -> dict[str, Any]:
    """Return all covariates of a scan by name, age and sex included."""
    return {**scan.covariates, "age": scan.age, "sex": scan.sex}


def code_covariates(scans: Sequence[Scan], wanted: Sequence[str]) -> tuple[Covariate, ...]:
    """Decide which covariates of the scans can be modeled, and how they are coded.

    Parameters
    ----------
    scans : sequence of Scan
        Scans of the fit.
    wanted : sequence of str
        Names of covariates.

    Raises
    ------
    UsageError
        If no scan has a value of a covariate other than age and sex: its name is misspelled, or
        its column is empty.
    """
    known = {"age", "sex", *(name for scan in scans for name in scan.covariates)}
    for name in wanted:
        if name not in known:
            raise UsageError(f"covariates: no scan of the fit has a value of {name!r}. "
                             f"{did_you_mean(name, known)}")
    return tuple(_code(scans, name) for name in dict.fromkeys(wanted))


def _code(scans: Sequence[Scan], name: str) -> Covariate:
    texts = [_text(covariates_of(scan).get(name)) for scan in scans]
    numbers = [_number(name, text) for text in texts]
    categorical = name != "sex" and any(text and n is None for text, n in zip(texts, numbers))
    values: list[Any] = [text or None for text in texts] if categorical else list(numbers)
    missing = sum(value is None for value in values)
    levels = tuple(sorted({value for value in values if value is not None})) if categorical else ()
    return Covariate(name, levels, missing, _reason(scans, values, levels, missing))


def _reason(scans: Sequence[Scan], values: Sequence[Any], levels: Sequence[str], missing: int
            ) -> str:
    """Return why a covariate cannot be modeled; empty if it can."""
    sites: dict[str, set[Any]] = {scan.site: set() for scan in scans}
    for scan, value in zip(scans, values):
        sites[scan.site] |= set() if value is None else {value}
    without_values = [site for site, found in sites.items() if not found]
    if missing == len(values):
        return "it is missing for all scans"
    if without_values:
        return f"it is missing for all scans of {', '.join(without_values)}"
    if missing > MAX_MISSING_FRACTION * len(values):
        return (f"it is missing for {missing} of {len(values)} scans "
                f"(at most {MAX_MISSING_FRACTION:.0%} may be missing)")
    if len(set.union(*sites.values())) < 2:
        return "all scans have the same value"
    if all(len(found) < 2 for found in sites.values()):
        return "it is confounded with the site: all scans of a site have the same value"
    if len(levels) > MAX_LEVELS:
        return f"it has {len(levels)} different texts (a category has at most {MAX_LEVELS})"
    return ""


def within_sites(scans: Sequence[Scan], covariates: Sequence[Covariate]
                 ) -> tuple[list[Column], np.ndarray]:
    """Return the columns that vary within a site, and their values.

    Returns
    -------
    columns : list of Column
    values : ndarray, shape (n_scans, n_columns)
        NaN where a value is missing.
    """
    columns, found = [], []
    for covariate in covariates:
        for column in covariate.columns:
            values = np.array([
                math.nan if value is None else value for value in (
                    column.value(covariates_of(scan), covariate.levels) for scan in scans)])
            pairs = {(scan.site, value) for scan, value in zip(scans, values) if value == value}
            if len(pairs) > len({site for site, _ in pairs}):
                columns.append(column)
                found.append(values)
    return columns, np.array(found).reshape(len(columns), len(scans)).T


def _text(value: Any) -> str:
    """Return a value as text; empty if it is missing."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in MISSING_TEXTS else text


def _number(name: str, value: Any) -> float | None:
    """Return a covariate as a number, sex as -0.5 (F) or 0.5 (M); None if it is not a number."""
    if name == "sex":
        return {"F": -0.5, "M": 0.5}.get(str(value)[:1].upper())
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
