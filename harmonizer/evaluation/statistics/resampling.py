"""Intervals over subjects, paired tests, corrections for multiple tests, and chance levels.

The unit of every interval and test is the subject: several scans of one brain are not independent.
A number that cannot be estimated is a row without a value and with the reason as its note. The rows
form ``group_statistics.tsv``; the JSON data dictionary beside it also lists the subjects that each
number was fitted and computed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import numpy as np

from ...errors import InputError
from ...files import read_json
from ..dictionary import TEST_DESCRIPTIONS
from ..table import MISSING, Table, data_dictionary, parse_number, read_tsv

__all__ = ["Labels", "Test", "KnownTest", "Statistics", "Chance", "is_known", "not_possible",
           "resample_subjects", "bootstrap_interval", "paired_wilcoxon",
           "correct_p_values", "corrected", "shuffle_labels", "chance_level"]

CONFIDENCE_LEVEL = 0.95
MIN_SUBJECTS = 3  # for an interval or a paired test
NO_SUBJECT_INFORMATION = "information about subjects is lost"  # of constant features
BOOTSTRAP_DRAWS = 2000

COLUMNS = {
    "question": "Question that the row belongs to: scanner (site effect), subject (identity), "
    "biology (effects of covariates) or anatomy (unintended change)",
    "name": "Name of the number or test",
    "modality": "BIDS suffix of the images",
    "tissue": "Region: brain, CSF, GM or WM",
    "site": "Site that the number describes",
    "reference": "What it is compared with: a site, a method, a feature or a covariate",
    "backend": "Harmonization method; n/a for unharmonized images",
    "target": "What the images were harmonized to",
    "stage": "Which images the number was computed on",
    "n": "Number of subjects",
    "effect": "The number; n/a if it cannot be estimated, with the reason in the note",
    "unit": "Unit of the effect",
    "low": "Lower end of the 95 % interval (for a chance level, of its band)",
    "high": "Upper end of the 95 % interval (for a chance level, of its band)",
    "margin": "Margin of an equivalence test, stated before the data are seen: the largest effect "
    "that is negligible, or the largest negligible loss",
    "detectable": "Smallest true effect that a test at 5 % on these subjects finds with a "
    "probability of 80 %",
    "p": "p value, not corrected",
    "p_corrected": "p value corrected over the family of tests that the method names",
    "method": "Estimator, test, interval and correction in words",
    "fitted_on": "Name of the list of training subjects; the lists are in the JSON file",
    "computed_on": "Name of the list of evaluated subjects; the lists are in the JSON file",
    "note": "Warning, or the reason why there is no number",
}
Labels = Sequence[str] | np.ndarray
CORRECTIONS = {"holm": ("holm", "Holm"), "bh": ("fdr_bh", "Benjamini-Hochberg")}  # statsmodels'
_NUMBERS = ("effect", "low", "high", "margin", "detectable", "p", "p_corrected")


@dataclass(frozen=True)
class Test:
    """One row of ``group_statistics.tsv``.

    The attributes are the columns, described in `COLUMNS`; a missing number is None.
    """

    __test__: ClassVar[bool] = False  # pytest would collect the class by its name

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
    margin: float | None = None
    detectable: float | None = None

    @property
    def known(self) -> bool:
        """Whether the effect is a finite number."""
        return self.effect is not None and math.isfinite(self.effect)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and lies on one side of zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


class KnownTest(Test):
    """A row whose effect is a finite number, for type checkers; see `is_known`."""

    effect: float


def is_known(row: Test | None) -> TypeGuard[KnownTest]:
    """Return whether there is a row and its effect is a finite number."""
    return row is not None and row.known


def not_possible(name: str, why: str, n: int = 0, **context: Any) -> Test:
    """Return a row without a value.

    Parameters
    ----------
    name : str
        Name of the number or test.
    why : str
        Reason, for the note.
    n : int
        Number of subjects.
    **context : str
        Further columns of `Test`.

    Returns
    -------
    Test
        The row.
    """
    return Test(name, n, note=why, **context)


@dataclass(frozen=True)
class Statistics(Table[Test]):
    """Table of tests; ``group_statistics.tsv``.

    Attributes
    ----------
    rows : tuple of Test
        The tests.
    subject_lists : mapping of str to tuple of str
        Subjects by the names that ``fitted_on`` and ``computed_on`` refer to.
    """

    subject_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.rows + other.rows, {**self.subject_lists, **other.subject_lists})

    def to_tsv(self, path: Path) -> Path:
        """Write the table, and beside it its data dictionary with the extension ``.json``."""
        dictionary = data_dictionary(COLUMNS, "name", TEST_DESCRIPTIONS, self.distinct("name"))
        dictionary["subject_lists"] = {
            "Description": "Lists of subjects that fitted_on and computed_on refer to",
            "Levels": {name: list(who) for name, who in self.subject_lists.items()}}
        return self.write(path, COLUMNS, dictionary)

    @classmethod
    def from_tsv(cls, path: Path) -> Statistics:
        """Read a table written by `to_tsv`.

        Parameters
        ----------
        path : Path
            TSV file.

        Returns
        -------
        Statistics
            The table.

        Raises
        ------
        InputError
            If a column is missing or a cell is not a number.
        """
        rows = tuple(_test_of(row, path) for row in read_tsv(path, COLUMNS))
        beside = Path(path).with_suffix(".json")
        lists = (read_json(beside).get("subject_lists", {}).get("Levels", {})
                 if beside.is_file() else {})
        return cls(rows, {name: tuple(labels) for name, labels in lists.items()})


def _test_of(row: Mapping[str, str], path: Path) -> Test:
    numbers = {name: parse_number(row[name], path) for name in (*_NUMBERS, "n")}
    texts = {item.name: "" if row[item.name] in (None, MISSING) else row[item.name]
             for item in fields(Test) if item.name not in numbers}
    return Test(**texts, n=int(numbers.pop("n") or 0), **numbers)  # type: ignore[arg-type]


def resample_subjects(subjects: Labels, draws: int, seed: int
                    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield bootstrap samples of whole subjects.

    Parameters
    ----------
    subjects : sequence of str, length n
        Subject of each row.
    draws : int
        Number of samples.
    seed : int
        Seed of the samples.

    Yields
    ------
    rows : ndarray of int, shape (m,)
        Row indices.
    who : ndarray of int, shape (m,)
        Number of the drawn subject; a subject that is drawn twice has two numbers.
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


def _rows_of(subjects: Labels) -> list[np.ndarray]:
    """Return the row indices of each subject, subjects in sorted order."""
    counts = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    order = np.argsort(counts[1], kind="stable")
    return np.split(order, np.cumsum(counts[2])[:-1])


def bootstrap_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    subjects: Labels,
    *,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    level: float = CONFIDENCE_LEVEL,
) -> tuple[float, float]:
    """Compute a percentile interval by resampling subjects with all their scans.

    Parameters
    ----------
    statistic : callable
        Takes row indices, shape (m,), and the number of each row's subject, shape (m,).
    subjects : sequence of str, length n
        Subject of each row.
    draws : int
        Number of bootstrap samples.
    seed : int
        Seed of the samples.
    level : float
        Confidence level, 0 to 1.

    Returns
    -------
    low, high : float
        NaN with fewer than 3 subjects, or if more than half of the samples have no value.
    """
    labels = np.asarray(subjects)
    if len(np.unique(labels)) < MIN_SUBJECTS:
        return math.nan, math.nan
    drawn = np.array([statistic(rows, who) for rows, who in resample_subjects(labels, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        return math.nan, math.nan
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)


def paired_wilcoxon(first: Mapping[str, float], second: Mapping[str, float], name: str,
                    *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Test:
    """Test the change from first to second by Wilcoxon's signed-rank test [1]_.

    Parameters
    ----------
    first, second : mapping of str to float
        One number per subject; subjects without both finite numbers are left out.
    name : str
        Name of the test.
    seed : int
        Seed of the bootstrap.
    draws : int
        Number of bootstrap samples.

    Returns
    -------
    Test
        The effect is the median of second - first. The p value is exact without ties up to 50.

    References
    ----------
    .. [1] Wilcoxon 1945, Individual comparisons by ranking methods. doi:10.2307/3001968
    """
    from scipy.stats import wilcoxon

    common = [who for who in first if who in second
              and math.isfinite(first[who]) and math.isfinite(second[who])]
    change = np.array([second[who] - first[who] for who in common])
    method = "median difference; Wilcoxon signed-rank, two-sided; bootstrap over subjects"
    if len(common) < MIN_SUBJECTS:
        return not_possible(name, f"{len(common)} subjects have both numbers; a paired test needs "
                            f"{MIN_SUBJECTS}", len(common))
    low, high = bootstrap_interval(lambda rows, who: float(np.median(change[rows])), common,
                                   seed=seed, draws=draws)
    p = float(wilcoxon(change).pvalue) if np.any(change != 0) else 1.0
    smallest = 2.0 ** (1 - len(common))
    note = (f"with {len(common)} subjects p cannot fall below {smallest:.2g}"
            if smallest > 0.05 else "")
    return Test(name, len(common), float(np.median(change)), low, high, p, None, method, note=note)


def correct_p_values(p_values: Sequence[float | None], how: str = "holm") -> list[float | None]:
    """Correct p values for multiple tests.

    Parameters
    ----------
    p_values : sequence of float or None
        Missing values stay missing and are not counted.
    how : {"holm", "bh"}
        Holm's step-down procedure (family-wise error) [1]_ or Benjamini and Hochberg's step-up
        procedure (false discovery rate) [2]_.

    Returns
    -------
    list of float or None
        Corrected p values, 0 to 1, in the same order.

    References
    ----------
    .. [1] Holm 1979, A simple sequentially rejective multiple test procedure. Scandinavian Journal
       of Statistics 6:65-70.
    .. [2] Benjamini and Hochberg 1995, Controlling the false discovery rate.
       doi:10.1111/j.2517-6161.1995.tb02031.x
    """
    from statsmodels.stats.multitest import multipletests

    done: list[float | None] = [None] * len(p_values)
    known = [i for i, p in enumerate(p_values) if p is not None and math.isfinite(p)]
    if known:
        values = multipletests([p_values[i] for i in known], method=CORRECTIONS[how][0])[1]
        for i, value in zip(known, values):
            done[i] = float(value)
    return done


def corrected(tests: Sequence[Test], how: str = "holm") -> tuple[Test, ...]:
    """Fill in the corrected p values of one family of tests.

    Parameters
    ----------
    tests : sequence of Test
        The family.
    how : {"holm", "bh"}
        Holm or Benjamini-Hochberg.

    Returns
    -------
    tuple of Test
        In the same order.
    """
    values, words = correct_p_values([test.p for test in tests], how), CORRECTIONS[how][1]
    count = sum(value is not None for value in values)
    return tuple(
        test if value is None else replace(
            test, p_corrected=value, method=f"{test.method}; {words} over {count} tests")
        for test, value in zip(tests, values))


@dataclass(frozen=True)
class Chance:
    """Distribution of a score if labels carry no information.

    Attributes
    ----------
    mean, low, high : float
        Mean and 95 % interval of the score.
    p : float
        One-sided p value of the observed score, above 0.
    permutations : int
        Permutations that have a score.
    std : float
        Standard deviation of the score.
    """

    mean: float
    low: float
    high: float
    p: float
    permutations: int
    std: float = math.nan


def shuffle_labels(labels: Labels, subjects: Labels, rng: np.random.Generator
                   ) -> np.ndarray:
    """Permute labels without breaking the assignment of scans to subjects.

    A subject with several labels has them permuted among its own scans. Subjects with one label
    exchange it with each other, for all their scans (restricted permutation [1]_).

    Parameters
    ----------
    labels, subjects : sequence of str, length n
        Label and subject of each scan.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    ndarray of str, shape (n,)
        Permuted labels.

    References
    ----------
    .. [1] Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses.
       doi:10.1007/b138696
    """
    given = np.array(labels)
    groups = _rows_of(subjects)
    has_one_label = [(given[rows] == given[rows[0]]).all() for rows in groups]
    single = iter(rng.permutation(
        [given[rows[0]] for rows, one in zip(groups, has_one_label) if one]))
    shuffled = given.copy()
    for rows, one in zip(groups, has_one_label):
        if one:
            shuffled[rows] = next(single)
    for rows, one in zip(groups, has_one_label):
        if not one:
            shuffled[rows] = rng.permutation(given[rows])
    return shuffled


def chance_level(
    score: Callable[[np.ndarray], float],
    labels: Labels,
    subjects: Labels,
    observed: float,
    *,
    permutations: int = 200,
    seed: int = 0,
) -> Chance:
    """Compute a score under permuted labels, and the p value of the observed score [1]_.

    Parameters
    ----------
    score : callable
        Takes labels, shape (n,), and returns a number; permutations that give NaN are not counted.
    labels, subjects : sequence of str, length n
        Label and subject of each scan.
    observed : float
        Score of the true labels; higher is stronger.
    permutations : int
        Number of permutations, at least 1.
    seed : int
        Seed of the permutations.

    Returns
    -------
    Chance
        With p = (1 + count) / (1 + permutations).

    Raises
    ------
    InputError
        If `permutations` is below 1.

    References
    ----------
    .. [1] Phipson and Smyth 2010, Permutation p-values should never be zero.
       doi:10.2202/1544-6115.1585
    """
    if permutations < 1:
        raise InputError(f"expected at least one permutation, got {permutations}.")
    rng = np.random.default_rng(seed)
    drawn = np.array([score(shuffle_labels(labels, subjects, rng)) for _ in range(permutations)])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return Chance(math.nan, math.nan, math.nan, math.nan, 0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    count = np.count_nonzero(drawn >= observed - 1e-12)  # equal up to rounding
    return Chance(float(drawn.mean()), float(low), float(high),
                  float((1 + count) / (1 + drawn.size)), drawn.size,
                  float(drawn.std(ddof=1)) if drawn.size > 1 else math.nan)
