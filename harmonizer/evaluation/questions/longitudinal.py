"""Repeated scans: within-subject change over time, and the order of subjects.

Harmonization must keep the change of a subject between two visits (atrophy), and it must not change
which of two subjects has more gray matter. A method that maps every scan to one typical brain fails
both, even if it removes the site effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...cohort import Scan, years_of
from ..statistics.design import first_rows
from ..statistics.equivalence import (
    IDENTITY_MARGIN,
    RETENTION_MARGIN,
    interval_of_mean,
    smallest_detectable,
)
from ..statistics.resampling import (
    NO_SUBJECT_INFORMATION,
    Test,
    bootstrap_interval,
    not_possible,
    resample_subjects,
)

__all__ = ["annual_changes", "change_losses", "change_tests", "order_tests"]

MIN_YEARS = 0.5  # between two visits; less is a rescan
MIN_SUBJECTS = 4  # with two visits, or at the same two sites
BOOTSTRAP_DRAWS = 500
ORDER_DRAWS = 200
KINDS = ("same site", "across sites")


def annual_changes(values: Sequence[float], scans: Sequence[Scan], across: bool
                   ) -> dict[str, float]:
    """Compute the annual change of a feature, by subject with visits half a year or more apart.

    Parameters
    ----------
    values : sequence of float, length n
        Feature of each scan.
    scans : sequence of Scan
        The scans; ``acq_time`` or age gives their time.
    across : bool
        Whether the first and the last visit are at different sites (True) or at one site (False).

    Returns
    -------
    dict of str to float
        Subject to the difference of the last and the first visit per year.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, scan in enumerate(scans):
        groups.setdefault((scan.subject, "" if across else scan.site), []).append(i)
    found: dict[str, list[float]] = {}
    for (subject, _), rows in groups.items():
        rows = [i for i in rows if math.isfinite(values[i])]
        years = years_of([scans[i] for i in rows]) if len(rows) > 1 else None
        if years is None or max(years) - min(years) < MIN_YEARS:
            continue
        first, last = rows[int(np.argmin(years))], rows[int(np.argmax(years))]
        if (scans[first].site != scans[last].site) == across:
            found.setdefault(subject, []).append(
                (values[last] - values[first]) / (max(years) - min(years)))
    return {subject: float(np.mean(changes)) for subject, changes in found.items()}


def change_tests(features: Mapping[str, Sequence[float]], scans: Sequence[Scan]
                 ) -> tuple[Test, ...]:
    """Compute the mean annual change of each feature, of visits at one site and across sites.

    Parameters
    ----------
    features : mapping of str to sequence of float
        One value per scan.
    scans : sequence of Scan
        The scans.

    Returns
    -------
    tuple of Test
        ``annual_change`` with a t interval; empty if no subject was scanned twice.
    """
    tests = []
    for name, values in features.items():
        for kind in KINDS:
            changes = list(annual_changes(values, scans, kind == KINDS[1]).values())
            if len(changes) >= MIN_SUBJECTS:
                low, high, _ = interval_of_mean(changes)
                tests.append(Test("annual_change", len(changes), float(np.mean(changes)), low, high,
                                  unit="1/year", question="biology", reference=f"{name} | {kind}",
                                  method=f"mean over subjects with visits {MIN_YEARS:g} years or "
                                  "more apart; t interval"))
    return tuple(tests)


def change_losses(bases: Mapping[str, Mapping[str, Sequence[float]]],
                  after: Mapping[str, Sequence[float]], scans: Sequence[Scan], seed: int = 0
                  ) -> tuple[Test, ...]:
    """Compute the fraction of the annual change at one site that is lost by harmonization.

    At one site the unharmonized images hold the true change, because the site effect is the same at
    both visits.

    Parameters
    ----------
    bases : mapping of str to mapping of str to sequence of float
        Features before, by stage; the first whose mean change is established counts.
    after : mapping of str to sequence of float
        Features of harmonized images.
    scans : sequence of Scan
        The scans.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        ``change_loss`` = 1 - after / before of each feature with an established change.
    """
    tests = []
    for name in after:
        for stage, features in bases.items():
            test = _change_loss(name, stage, features, after, scans, seed)
            if test is not None:
                tests.append(test)
                break
    return tuple(tests)


def _change_loss(name: str, stage: str, features: Mapping[str, Sequence[float]],
                 after: Mapping[str, Sequence[float]], scans: Sequence[Scan], seed: int
                 ) -> Test | None:
    """Return the loss of one feature's change, or None if it is not established before."""
    if name not in features:
        return None
    one, two = (annual_changes(table[name], scans, across=False) for table in (features, after))
    subjects = [subject for subject in one if subject in two]
    if len(subjects) < MIN_SUBJECTS:
        return None
    before = np.array([one[subject] for subject in subjects])
    low, high, _ = interval_of_mean(before)
    if not low * high > 0:
        return None
    changed = np.array([two[subject] for subject in subjects])
    draws = np.array([1 - changed[rows].mean() / before[rows].mean()
                      for rows, _ in resample_subjects(subjects, BOOTSTRAP_DRAWS, seed)])
    ends = np.quantile(draws, [0.025, 0.975, 0.16, 0.84])
    return Test("change_loss", len(subjects), float(1 - changed.mean() / before.mean()),
                float(ends[0]), float(ends[1]), margin=RETENTION_MARGIN,
                detectable=smallest_detectable(float(ends[3] - ends[2]) / 2), question="biology",
                reference=f"{name} | annual change",
                method=f"1 - after / {stage} of the mean annual change at one site; paired "
                "bootstrap over subjects")


def order_tests(features: Mapping[str, Sequence[float]], scans: Sequence[Scan],
                before: Mapping[str, Sequence[float]] | None = None, seed: int = 0
                ) -> tuple[Test, ...]:
    """Test the order of subjects between sites, and within sites against the images before.

    Parameters
    ----------
    features : mapping of str to sequence of float
        One value per scan.
    scans : sequence of Scan
        The scans; for the order between sites, scans of one year at most apart.
    before : mapping of str to sequence of float, optional
        Features of linearly rescaled images. With them, the change of the order between sites and
        the order within sites are tested.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        ``subject_order``, ``subject_order_change`` and ``subject_order_within_site``: Spearman
        correlations and their change, with a bootstrap over subjects.
    """
    tests = []
    for name, column in features.items():
        values = np.asarray(column, float)
        context: dict[str, Any] = {"question": "subject", "reference": name}
        known = values[np.isfinite(values)]
        if not known.size or not known.std() > 1e-6 * abs(known.mean()):
            tests.append(not_possible("subject_order", f"{name} is the same in every scan: "
                                      f"{NO_SUBJECT_INFORMATION}", 0, **context))
            continue
        pairs = _pairs_between(scans)
        base = None if before is None or name not in before else np.asarray(before[name], float)
        if pairs:
            tests += _between_tests(values, base, pairs, context, seed)
        if base is not None:
            tests += _within_test(values, base, scans, context, seed)
    return tuple(tests)


def _pairs_between(scans: Sequence[Scan]) -> list[dict[str, tuple[int, int]]]:
    """Return the rows of the subjects that two sites share, for each pair of sites."""
    at = first_rows(scans)
    sites = sorted(at)
    pairs = [{who: (at[one][who], at[two][who]) for who in at[one] if who in at[two]}
             for n, one in enumerate(sites) for two in sites[n + 1:]]
    return [pair for pair in pairs if len(pair) >= MIN_SUBJECTS]


def _mean_spearman(values: np.ndarray, pairs: Sequence[Mapping[str, tuple[int, int]]],
                   chosen: Sequence[str]) -> float:
    """Return the mean over pairs of sites of Spearman's correlation of the chosen subjects."""
    found = []
    for pair in pairs:
        rows = np.array([pair[who] for who in chosen if who in pair])
        if len(rows) >= MIN_SUBJECTS:
            found.append(_spearman(values[rows[:, 0]], values[rows[:, 1]]))
    return _mean_of_finite(found)


def _mean_of_finite(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _spearman(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import rankdata

    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (one, two))
    size = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / size if size > 0 else math.nan


def _between_tests(values: np.ndarray, base: np.ndarray | None,
                   pairs: Sequence[Mapping[str, tuple[int, int]]], context: Mapping[str, Any],
                   seed: int) -> list[Test]:
    subjects = sorted({who for pair in pairs for who in pair})

    def order(table: np.ndarray, rows: np.ndarray, who: np.ndarray) -> float:
        return _mean_spearman(table, pairs, [subjects[i] for i in rows])

    every = np.arange(len(subjects))
    effect = order(values, every, every)
    if not math.isfinite(effect):
        return [not_possible("subject_order", "a value is missing, or all subjects of a site have "
                             "the same", len(subjects), **context)]
    interval = partial(bootstrap_interval, subjects=subjects, draws=ORDER_DRAWS, seed=seed)
    method = f"mean over {len(pairs)} pairs of sites; bootstrap over subjects"
    tests = [Test("subject_order", len(subjects), effect, *interval(partial(order, values)),
                  method=method, **context)]
    if base is None or not math.isfinite(order(base, every, every)):
        return tests

    def change(rows: np.ndarray, who: np.ndarray) -> float:
        return order(values, rows, who) - order(base, rows, who)

    low, high = interval(change)
    return [*tests, Test("subject_order_change", len(subjects), change(every, every), low, high,
                         margin=IDENTITY_MARGIN,
                         detectable=smallest_detectable((high - low) / (2 * 1.96)),
                         method=f"{method}; against linearly rescaled images", **context)]


def _within_test(values: np.ndarray, base: np.ndarray, scans: Sequence[Scan],
                 context: Mapping[str, Any], seed: int) -> list[Test]:
    """Return the correlation of a site's subjects before and after, mean over sites."""
    subjects = np.array([scan.subject for scan in scans])
    sites = np.array([scan.site for scan in scans])
    good = np.isfinite(values) & np.isfinite(base)

    def order(rows: np.ndarray, who: np.ndarray) -> float:
        found = [_spearman(base[part], values[part]) for site in np.unique(sites)
                 if len(part := rows[(sites[rows] == site) & good[rows]]) >= MIN_SUBJECTS]
        return _mean_of_finite(found)

    every = np.arange(len(values))
    effect = order(every, every)
    if not math.isfinite(effect):
        return []
    low, high = bootstrap_interval(order, subjects, draws=ORDER_DRAWS, seed=seed)
    return [Test("subject_order_within_site", len(set(subjects)), effect, low, high,
                 method="Spearman correlation with linearly rescaled images, mean over sites; "
                 "bootstrap over subjects", **context)]
