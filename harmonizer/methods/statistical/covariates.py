"""Coding of covariates as columns of numbers: which can be modelled, how, and why others cannot.

A covariate is a number if every known value is a number; sex is -0.5 (F) and 0.5 (M). Anything else
is a category in reference (treatment) coding: one column of zeros and ones for each level but the
first in alphabetical order, which is the reference. Codes such as 1, 2, 3 are numbers; write words
to have them taken as categories.

Missing values: a scan without a value adds nothing to the slope of that covariate (it counts as
the mean of its site there) and is taken as average elsewhere. A covariate is left out if more than
`MAX_MISSING_FRACTION` of the scans lack it, or all scans of a site do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from ...cohort import Scan
from ...errors import UsageError, did_you_mean

__all__ = ["Column", "Covariate", "code_covariates", "covariates_of", "within_sites"]

MAX_MISSING_FRACTION = 0.2
MAX_LEVELS = 10  # of a category; with more it is an identifier
MISSING = ("", "n/a", "na", "nan", "none", "null")


@dataclass(frozen=True)
class Column:
    """One column of the model: a number, or one level of a category (``level`` not empty)."""

    name: str
    level: str = ""

    @property
    def key(self) -> str:
        """Text that names the column in a file, without slash or colon."""
        words = (self.name, self.level) if self.level else (self.name,)
        return "=".join(quote(word, safe=" ") for word in words)

    @classmethod
    def from_key(cls, key: str) -> Column:
        """Read what `key` wrote."""
        name, _, level = key.partition("=")
        return cls(unquote(name), unquote(level))

    def value(self, covariates: Mapping[str, Any], levels: Sequence[str]) -> float | None:
        """Return the number of one scan; None where its value is missing or was not in the fit.

        ``levels``: those of the category that were in the fit.
        """
        given = covariates.get(self.name)
        if not self.level:
            return _number(self.name, given)
        text = _text(given)
        return float(text == self.level) if text in levels else None


@dataclass(frozen=True)
class Covariate:
    """What became of one covariate in a fit.

    ``levels`` of a category, the reference first; ``missing``: scans without a value;
    ``reason``: why it is not modelled, empty where it is.
    """

    name: str
    levels: tuple[str, ...] = ()
    missing: int = 0
    reason: str = ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that it has in the model."""
        return tuple(Column(self.name, level) for level in self.levels[1:]) or (Column(self.name),)

    def in_words(self) -> str:
        """One sentence for log, model card and report."""
        if self.reason:
            return f"{self.name}: not modelled, {self.reason}"
        kind = (f"category, reference {self.levels[0]}, against it {', '.join(self.levels[1:])}"
                if self.levels else "F against M" if self.name == "sex" else "number")
        gaps = f"; unknown in {self.missing} scans, taken as average there" if self.missing else ""
        return f"{self.name}: modelled ({kind}{gaps})"

    def as_dict(self) -> dict[str, Any]:
        """JSON types for the model folder."""
        return {"Name": self.name, "Modeled": not self.reason, "Levels": list(self.levels),
                "Missing": self.missing, "Summary": self.in_words()}


def covariates_of(scan: Scan) -> dict[str, Any]:
    """All covariates of a scan by name."""
    return {**scan.covariates, "age": scan.age, "sex": scan.sex}


def code_covariates(scans: Sequence[Scan], wanted: Sequence[str]) -> tuple[Covariate, ...]:
    """Decide which covariates of the scans can be modelled, and how.

    Raises
    ------
    UsageError
        If a covariate beside age and sex has no value in any scan: it is misspelled, or empty.
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
    """Why a covariate cannot be modelled; empty if it can."""
    sites: dict[str, set[Any]] = {scan.site: set() for scan in scans}
    for scan, value in zip(scans, values):
        sites[scan.site] |= set() if value is None else {value}
    unknown = [site for site, found in sites.items() if not found]
    if missing == len(values):
        return "it is unknown for all scans"
    if unknown:
        return f"it is unknown for all scans of {', '.join(unknown)}"
    if missing > MAX_MISSING_FRACTION * len(values):
        return (f"it is unknown for {missing} of {len(values)} scans, and at most "
                f"{MAX_MISSING_FRACTION:.0%} may lack it")
    if len(set.union(*sites.values())) < 2:
        return "all scans have the same value"
    if all(len(found) < 2 for found in sites.values()):
        return "it cannot be told from site: all scans of a site have the same value"
    if len(levels) > MAX_LEVELS:
        return f"it has {len(levels)} different texts, and a category has at most {MAX_LEVELS}"
    return ""


def within_sites(scans: Sequence[Scan], covariates: Sequence[Covariate]
                 ) -> tuple[list[Column], np.ndarray]:
    """Return the columns that vary within a site, and their values (n, columns), NaN if missing."""
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
    """A value as text, empty where it is missing."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in MISSING else text


def _number(name: str, value: Any) -> float | None:
    """A covariate as a number; sex as -0.5 (F) and 0.5 (M); None where it is none."""
    if name == "sex":
        return {"F": -0.5, "M": 0.5}.get(str(value)[:1].upper())
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
