"""How sure is it? Intervals over people, paired tests, corrections, chance levels.

The unit of every interval and test is the **person**: ten scans of one brain are one brain. A
number that cannot be given is a row all the same, without a value and with the reason as its note.
``group_statistics.tsv`` holds the rows, and beside it lies a JSON data dictionary, which also names
the people whom each number was fitted and computed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...errors import InputError
from ...files import read_json, write_json, write_text
from ..dictionary import TESTS
from ..table import MISSING, STAGES, parse_number, read_tsv

__all__ = ["Test", "Statistics", "Chance", "not_possible", "resample_people",
           "bootstrap_interval", "paired_wilcoxon", "holm", "benjamini_hochberg", "corrected",
           "shuffle_labels", "chance_level"]

LEVEL = 0.95
FEWEST_PEOPLE = 3  # an interval over fewer people has no meaning
DRAWS = 2000

COLUMNS = {
    "question": "What it speaks to: scanner (is it gone), person (is he or she still there), "
    "biology (is it still there) or anatomy (did it move)",
    "name": "Name of the number or test",
    "modality": "BIDS suffix of the images",
    "tissue": "Where it was taken: brain, CSF, GM or WM",
    "site": "Site that the number describes",
    "reference": "What was compared with: a site, a method, a feature or a covariate",
    "backend": "Harmonization method; n/a for unharmonized images",
    "target": "What the images were harmonized to",
    "stage": "Which images the number was taken on",
    "n": "People that the number rests on",
    "effect": "The number; n/a where it cannot be given, and then the note says why",
    "unit": "Unit of the effect",
    "low": "Lower end of the 95 % interval (for a chance level, of its band)",
    "high": "Upper end of the 95 % interval (for a chance level, of its band)",
    "p": "p value, not corrected",
    "p_corrected": "p value corrected over the family of tests that the method names",
    "method": "Estimator, test, interval and correction in words",
    "fitted_on": "List of people whom anything fitted was fitted on; the names are in the JSON",
    "computed_on": "List of people whom the number was computed on; the names are in the JSON",
    "note": "What to bear in mind, or why there is no number",
}
_NUMBERS = ("effect", "low", "high", "p", "p_corrected")


@dataclass(frozen=True)
class Test:
    """One row of ``group_statistics.tsv``; columns as in COLUMNS, a missing number is None."""

    __test__: ClassVar[bool] = False  # not one of pytest's

    name: str
    n: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    method: str = ""
    unit: str = "1"
    question: str = ""
    stage: str = ""
    modality: str = ""
    tissue: str = "brain"
    site: str = ""
    reference: str = ""
    backend: str = ""
    target: str = ""
    fitted_on: str = ""
    computed_on: str = ""
    note: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a finite number."""
        return self.effect is not None and math.isfinite(self.effect)


def not_possible(name: str, why: str, n: int = 0, **context: str) -> Test:
    """A row that says why there is no number."""
    return Test(name, n, note=why, **context)


@dataclass(frozen=True)
class Statistics:
    """The table: rows, and the lists of people that ``fitted_on`` and ``computed_on`` name."""

    rows: tuple[Test, ...] = ()
    people: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Test]:
        return iter(self.rows)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.rows + other.rows, {**self.people, **other.people})

    def select(self, **wanted: str) -> Statistics:
        """The rows whose columns equal every given value, e.g. ``select(question="scanner")``."""
        return replace(self, rows=tuple(
            row for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())))

    def distinct(self, column: str) -> tuple[str, ...]:
        """The values of ``column`` in order of first appearance, without the empty one."""
        return tuple(dict.fromkeys(getattr(row, column) for row in self.rows
                                   if getattr(row, column)))

    def to_tsv(self, path: Path) -> Path:
        """Write the table and, beside it with the ending ``.json``, its data dictionary."""
        lines = ["\t".join(COLUMNS)]
        lines += ["\t".join(_cell(getattr(row, name)) for name in COLUMNS) for row in self.rows]
        write_text(Path(path), "\n".join(lines) + "\n")
        write_json(Path(path).with_suffix(".json"), _dictionary(self))
        return Path(path)

    @classmethod
    def from_tsv(cls, path: Path) -> Statistics:
        """Read what :meth:`to_tsv` wrote; InputError where a column is missing or no number."""
        rows = tuple(_test(row, path) for row in read_tsv(path, COLUMNS))
        beside = Path(path).with_suffix(".json")
        lists = read_json(beside).get("people", {}).get("Levels", {}) if beside.is_file() else {}
        return cls(rows, {name: tuple(labels) for name, labels in lists.items()})


def _dictionary(table: Statistics) -> dict[str, object]:
    content: dict[str, object] = {name: {"Description": text} for name, text in COLUMNS.items()}
    content["stage"] = {"Description": COLUMNS["stage"], "Levels": dict(STAGES)}
    content["name"] = {"Description": COLUMNS["name"], "Levels": {
        name: TESTS[name].in_words() if name in TESTS else name
        for name in table.distinct("name")}}
    content["people"] = {"Description": "The lists of people that fitted_on and computed_on name",
                         "Levels": {name: list(who) for name, who in table.people.items()}}
    return content


def _cell(value: str | float | int | None) -> str:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return " ".join(value.split()) if isinstance(value, str) else f"{value:.8g}"


def _test(row: Mapping[str, str], path: Path) -> Test:
    numbers = {name: parse_number(row[name], path) for name in (*_NUMBERS, "n")}
    texts = {item.name: "" if row[item.name] in (None, MISSING) else row[item.name]
             for item in fields(Test) if item.name not in numbers}
    return Test(**texts, n=int(numbers.pop("n") or 0), **numbers)  # type: ignore[arg-type]


def resample_people(subjects: Sequence[str], draws: int, seed: int
                    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bootstrap samples of whole people: (row indices, who), both (m,), ``draws`` times.

    ``who`` numbers the drawn people, so that one drawn twice counts as two.
    """
    rows = _rows_of(subjects)
    sizes = np.array([len(index) for index in rows])
    alone = np.concatenate(rows) if (sizes == 1).all() else None
    rng, everyone = np.random.default_rng(seed), np.arange(len(rows))
    for _ in range(draws):
        chosen = rng.integers(len(rows), size=len(rows))
        if alone is not None:
            yield alone[chosen], everyone
        else:
            yield (np.concatenate([rows[i] for i in chosen]), np.repeat(everyone, sizes[chosen]))


def _rows_of(subjects: Sequence[str]) -> list[np.ndarray]:
    """Row indices of each person, people in sorted order; not quadratic in people."""
    counts = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    order = np.argsort(counts[1], kind="stable")
    return np.split(order, np.cumsum(counts[2])[:-1])


def bootstrap_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    subjects: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of a number by resampling people with all their scans, never scans.

    Parameters
    ----------
    statistic : takes row indices (m,) and who each row belongs to (m,), returns the number.
    subjects : one label per row.

    (NaN, NaN) with fewer than 3 people, or where most draws have no value.
    """
    labels = np.asarray(subjects)
    people = np.unique(labels)
    if len(people) < FEWEST_PEOPLE:
        return math.nan, math.nan
    drawn = np.array([statistic(rows, who) for rows, who in resample_people(labels, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        return math.nan, math.nan
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)


def paired_wilcoxon(first: Mapping[str, float], second: Mapping[str, float], name: str,
                    *, seed: int = 0, draws: int = DRAWS) -> Test:
    """Wilcoxon signed-rank test of second - first on the people that both know.

    ``first``, ``second``: one number per person. ``effect``: the median difference, its interval
    by bootstrap over people. Wilcoxon 1945, doi:10.2307/3001968; exact without ties up to 50.
    """
    from scipy.stats import wilcoxon

    common = [who for who in first if who in second
              and math.isfinite(first[who]) and math.isfinite(second[who])]
    change = np.array([second[who] - first[who] for who in common])
    method = "median difference; Wilcoxon signed-rank, two-sided; bootstrap over people"
    if len(common) < FEWEST_PEOPLE:
        return not_possible(name, f"{len(common)} people have both numbers; a paired test needs "
                            f"{FEWEST_PEOPLE}", len(common))
    low, high = bootstrap_interval(lambda rows, who: float(np.median(change[rows])), common,
                                   seed=seed, draws=draws)
    p = float(wilcoxon(change).pvalue) if np.any(change != 0) else 1.0
    smallest = 2.0 ** (1 - len(common))
    note = (f"with {len(common)} people p cannot fall below {smallest:.2g}"
            if smallest > 0.05 else "")
    return Test(name, len(common), float(np.median(change)), low, high, p, None, method, note=note)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (family-wise error), missing values stay missing.

    Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    return _stepwise(p_values, lambda p: np.maximum.accumulate(p * np.arange(len(p), 0, -1)))


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini and Hochberg's step-up correction (false discovery rate).

    Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x; missing stay missing.
    """
    return _stepwise(p_values, lambda p: np.minimum.accumulate(
        (p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1])


def _stepwise(p_values: Sequence[float | None], rule: Callable[[np.ndarray], np.ndarray]
              ) -> list[float | None]:
    known = [i for i, p in enumerate(p_values) if p is not None and math.isfinite(p)]
    order = sorted(known, key=lambda i: p_values[i])  # type: ignore[arg-type,return-value]
    done: list[float | None] = [None] * len(p_values)
    if order:
        ranked = np.minimum(rule(np.array([p_values[i] for i in order], dtype=float)), 1.0)
        for i, value in zip(order, ranked):
            done[i] = float(value)
    return done


def corrected(tests: Sequence[Test], how: str = "holm") -> tuple[Test, ...]:
    """The tests of one family with ``p_corrected`` filled in; how: "holm" or "bh"."""
    rule, words = {"holm": (holm, "Holm"), "bh": (benjamini_hochberg, "Benjamini-Hochberg")}[how]
    values = rule([test.p for test in tests])
    count = sum(value is not None for value in values)
    return tuple(
        test if value is None else replace(
            test, p_corrected=value, method=f"{test.method}; {words} over {count} tests")
        for test, value in zip(tests, values))


@dataclass(frozen=True)
class Chance:
    """What a score is when labels mean nothing: mean and 95 % band; p of the observed score."""

    mean: float
    low: float
    high: float
    p: float
    permutations: int


def shuffle_labels(labels: Sequence[str], subjects: Sequence[str], rng: np.random.Generator
                   ) -> np.ndarray:
    """Labels shuffled so that only what is tested is destroyed, never who is whose scan.

    A person with several labels (a traveller) has them shuffled among his own scans; people with
    one label swap it with each other, all their scans together (restricted permutation, Good 2005).
    """
    labels = np.array(labels)
    people = _rows_of(subjects)
    settled = [(labels[rows] == labels[rows[0]]).all() for rows in people]
    homes = iter(rng.permutation([labels[rows[0]] for rows, one in zip(people, settled) if one]))
    shuffled = labels.copy()
    for rows, one in zip(people, settled):
        if one:
            shuffled[rows] = next(homes)
    for rows, one in zip(people, settled):
        if not one:
            shuffled[rows] = rng.permutation(labels[rows])
    return shuffled


def chance_level(
    score: Callable[[np.ndarray], float],
    labels: Sequence[str],
    subjects: Sequence[str],
    observed: float,
    *,
    permutations: int = 200,
    seed: int = 0,
) -> Chance:
    """Scores under shuffled labels; p is the share at or above ``observed`` (one-sided).

    p = (1 + count) / (1 + permutations), Phipson and Smyth 2010, doi:10.2202/1544-6115.1585. A
    shuffle that has no score (NaN) is not counted.
    """
    if permutations < 1:
        raise InputError(f"expected at least one permutation, got {permutations}.")
    rng = np.random.default_rng(seed)
    drawn = np.array([score(shuffle_labels(labels, subjects, rng)) for _ in range(permutations)])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return Chance(math.nan, math.nan, math.nan, math.nan, 0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    count = np.count_nonzero(drawn >= observed - 1e-12)
    return Chance(float(drawn.mean()), float(low), float(high),
                  float((1 + count) / (1 + drawn.size)), drawn.size)
