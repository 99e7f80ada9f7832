"""Access to the test results of one modality, for cards and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.measurements import COMBAT, COMBAT_GAM, COMBAT_LONGITUDINAL
from ..evaluation.questions.anatomy_limits import AnatomyCheck
from ..evaluation.statistics.resampling import KnownTest, Statistics, Test, is_known
from ..evaluation.table import RESCALED
from ..evaluation.verdicts import MIN_SHOWN_R2
from .html import number_words

__all__ = ["COMBAT", "COMBAT_WORDS", "EFFECT_SYMBOLS", "RESCALED", "ModalityResults",
           "effect_row", "limit_fraction", "method_words", "pair_rows", "strongest_effects",
           "value_words"]

COMBAT_WORDS = {COMBAT: "ComBat (features)", COMBAT_GAM: "ComBat-GAM (features)",
                COMBAT_LONGITUDINAL: "longitudinal ComBat (features)"}
EFFECT_SYMBOLS = {"cohens_d": "d", "standardized_beta": "β", "partial_eta_squared": "η²"}


@dataclass(frozen=True)
class ModalityResults:
    """Tests and anatomy verdicts of one modality.

    Attributes
    ----------
    table : Statistics
        Rows of the modality.
    methods : tuple of str
        Methods; the run's own is first.
    verdicts : mapping
        Method -> scan -> verdict of the anatomy guard.
    modality : str
        "T1w", "T2w", "FLAIR" or "PDw".
    """

    table: Statistics
    methods: tuple[str, ...]
    verdicts: Mapping[str, Mapping[str, AnatomyCheck]]
    modality: str

    @property
    def combat(self) -> tuple[str, ...]:
        """Names of the variants of ComBat that have a number."""
        return tuple(name for name in COMBAT_WORDS
                     if any(row.known for row in self.table.select(backend=name)))

    def images(self, combat: bool = True) -> tuple[str, ...]:
        """Return the rows of a table: "" (unharmonized), `RESCALED`, the methods and ComBat."""
        rescaled = any(row.known for row in self.table.select(stage="rescaled"))
        return ("", *((RESCALED,) if rescaled else ()), *self.methods,
                *(self.combat if combat else ()))

    def rows(self, name: str, backend: str = "", **more: str) -> tuple[Test, ...]:
        """Return the matching rows; "" and `RESCALED` are images without a method."""
        rows = self.table.select(name=name, backend="" if backend == RESCALED else backend,
                                 **more).rows
        if "stage" not in more and backend in ("", RESCALED):
            rows = tuple(row for row in rows if (row.stage == "rescaled") == (backend == RESCALED))
        return rows

    def row(self, name: str, backend: str = "", **more: str) -> Test | None:
        """Return the first of `rows`, or None."""
        return next(iter(self.rows(name, backend, **more)), None)

    def known(self, name: str, backend: str = "", **more: str) -> KnownTest | None:
        """Return the first matching row if it has a number, else None."""
        row = self.row(name, backend, **more)
        return row if is_known(row) else None


def method_words(name: str) -> str:
    """Return the label of a method: "before" for none, "ComBat (features)" for the baseline."""
    return {"": "before", RESCALED: "only rescaled", **COMBAT_WORDS}.get(name, name)


def value_words(row: KnownTest, digits: int = 3) -> str:
    """Format the number of a test; very low R² of age is shown as a bound only."""
    if row.name == "age_r2" and row.effect < MIN_SHOWN_R2:
        return f"< {MIN_SHOWN_R2:.0f}"
    return number_words(row.effect, digits)


def pair_rows(results: ModalityResults, measure: str) -> list[tuple[str, str, Test | None]]:
    """Return (label, style, row) of a measure of traveling pairs: before, rescaled, each method."""
    rows = [("before", "before", results.row("traveling_pair", "", reference=measure,
                                            stage="before")),
            ("rescaled", "other", results.row("traveling_pair", "", reference=measure,
                                             stage="rescaled"))]
    return rows + [(name, "after" if name == results.methods[0] else "other",
                    results.row("traveling_pair", name, reference=measure))
                   for name in results.methods]


def effect_row(results: ModalityResults, method: str, reference: str) -> KnownTest | None:
    """Return the effect of a covariate on a feature (`reference`) if it is known, else None."""
    return next((row for name in EFFECT_SYMBOLS
                 if (row := results.known(name, method, reference=reference))), None)


def strongest_effects(results: ModalityResults) -> list[str]:
    """Sort effects on unharmonized images: those that exclude zero first, then by size."""
    rows = [row for name in EFFECT_SYMBOLS for row in results.table.select(name=name, backend="")
            if is_known(row) and row.stage != "rescaled"]
    rows.sort(key=lambda r: (not r.excludes_zero, -abs(r.effect)))
    return [row.reference for row in rows]


def limit_fraction(verdict: AnatomyCheck, name: str, higher: bool) -> tuple[float, bool]:
    """Return a measure as a fraction of its limit, and whether it exceeds the limit.

    The fraction is 0 without a change and 1 at the limit.
    """
    value, limit = verdict.values[name], verdict.limits[name]
    if not math.isfinite(value):
        return math.inf, True
    bad = value < limit if higher else value > limit
    ideal = 1.0 if higher else 0.0
    return ((value - ideal) / (limit - ideal) if limit != ideal else float(bad)), bad
