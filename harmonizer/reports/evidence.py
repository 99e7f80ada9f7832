"""Evidence of one modality for the group report: cards, tables and flagged images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..evaluation.questions.anatomy_limits import AnatomyCheck
from ..evaluation.statistics.resampling import Statistics
from ..evaluation.verdicts import compute_verdicts
from .cards import Card, verdict_card
from .diagnostics import diagnostic_tables
from .results import ModalityResults
from .tables import Table, compare_methods, question_tables

__all__ = ["Evidence", "evidence_of"]


@dataclass(frozen=True)
class Evidence:
    """Cards, tables and flagged images of one modality.

    Attributes
    ----------
    cards : tuple of Card
        Cards of the run's own method.
    methods : Table, optional
        Comparison of all methods.
    tables : mapping
        Question -> tables.
    flagged : tuple
        (scan, method, reasons) of images that the anatomy guard flags.
    """

    cards: tuple[Card, ...] = ()
    methods: Table | None = None
    tables: Mapping[str, tuple[Table, ...]] = field(default_factory=dict)
    flagged: tuple[tuple[str, str, str], ...] = ()


def evidence_of(statistics: Statistics, modality: str, methods: Sequence[str],
                verdicts: Mapping[str, Mapping[str, AnatomyCheck]]) -> Evidence:
    """Collect cards and tables from the tests on the images of one modality.

    Parameters
    ----------
    statistics : Statistics
        Tests of all modalities.
    modality : str
        "T1w", "T2w", "FLAIR" or "PDw".
    methods : sequence of str
        Methods; the run's own is first.
    verdicts : mapping
        Method -> scan -> verdict of the anatomy guard.
    """
    results = ModalityResults(statistics.select(modality=modality), tuple(methods), verdicts,
                              modality)
    found = {name: compute_verdicts(statistics, name, modality) for name in methods}
    cards = tuple(verdict_card(results, answer) for answer in found[methods[0]]) if methods else ()
    flagged = tuple((scan, method, "; ".join(verdict.reasons)) for method in methods
                    for scan, verdict in sorted(verdicts.get(method, {}).items())
                    if not verdict.ok)
    tables = question_tables(results)
    tables["scanner"] += diagnostic_tables(results)
    return Evidence(cards, compare_methods(results, found), tables, flagged)
