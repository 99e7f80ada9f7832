"""The same person on several scanners: is he or she nearer to himself than before?

A travelling person was scanned at two or more sites within a year (`Cohort.traveling`). Two scans
of a session at *one* site that differ in run alone are rescans, and tell what a scanner and the
preprocessing do on their own. Every person is seen on
every ordered pair of sites, one scan per site. Harmonized, the first image of a pair is compared
with the person's own unharmonized image at the target where the second site is the target, and with
the second harmonized image where it is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...cohort import ACQUISITION_TIME, DAYS_PER_YEAR, Cohort, Scan, years_between
from ...errors import InputError
from ...volume import Volume
from ..metrics import image as near
from ..statistics.resampling import (
    Test,
    bootstrap_interval,
    corrected,
    not_possible,
    paired_wilcoxon,
)
from ..table import MEASURES, Metric, Metrics

__all__ = ["Pair", "Icc", "rescans", "site_pairs", "compare_images", "pair_metrics",
           "person_means", "compare_methods", "complete_table", "icc", "within_subject_cov",
           "agreement_tests",
           "PAIR_MEASURES"]

RESCALED = "rescaled"
PAIR_MEASURES = ("psnr", "ssim", "ms_ssim", "rmse", "mae")
FEWEST_PEOPLE = 3
MAX_RESCAN_DAYS = 30  # two sessions at most this far apart can be rescans
CONSTANT = 1e-6  # standard deviation over mean below which a feature is the same for all


@dataclass(frozen=True)
class Pair:
    """One person's scans at two sites; ``first`` is aimed at ``second``."""

    first: Scan
    second: Scan

    @property
    def subject(self) -> str:
        """Whose they are."""
        return self.first.subject


def rescans(cohort: Cohort) -> tuple[Pair, ...]:
    """Return pairs of rescans: a subject scanned twice in the same way at one site.

    Two scans are rescans if their names differ in ``run`` alone: same session and same acq, ce, rec
    and any other entity. Scans of two sessions are rescans if they are otherwise named alike and
    ``acq_time`` says that they were made at most `MAX_RESCAN_DAYS` apart. Each scan is paired with
    the next one.
    """
    groups: dict[tuple[str, ...], list[Scan]] = {}
    for scan in cohort:
        groups.setdefault((scan.subject, scan.site, scan.modality, _protocol(scan)),
                          []).append(scan)
    return tuple(Pair(*two) for group in groups.values() for two in zip(group, group[1:])
                 if _is_rescan(*two))


def _protocol(scan: Scan) -> str:
    """Entities of a BIDS name without subject, session and run: how a scan was made.

    A name that is not of BIDS says nothing, so scans of one session are then taken as made alike.
    """
    entities = re.sub(r"(^|_)(sub|ses|run)-[^_]+", "", scan.scan_id)
    return entities if scan.scan_id.startswith("sub-") else ""


def _is_rescan(one: Scan, two: Scan) -> bool:
    if one.session == two.session:
        return True
    dated = all(ACQUISITION_TIME in scan.covariates for scan in (one, two))
    years = years_between(one, two) if dated else None
    return years is not None and years * DAYS_PER_YEAR <= MAX_RESCAN_DAYS + 0.5


def site_pairs(cohort: Cohort) -> tuple[Pair, ...]:
    """Every person on every ordered pair of sites, the first scan (by name) of each site."""
    first: dict[tuple[str, str], dict[str, Scan]] = {}
    for scan in cohort.traveling():
        first.setdefault((scan.modality, scan.subject), {}).setdefault(scan.site, scan)
    return tuple(Pair(here[one], here[two]) for here in first.values()
                 for one in sorted(here) for two in sorted(here) if one != two)


def compare_images(first: Volume, second: Volume, data_range: float) -> dict[str, float]:
    """PSNR, SSIM, MS-SSIM, RMSE and MAE of two images of one person on one grid.

    Inside the intersection of both masks; ``data_range`` R is one number for the whole study.
    InputError for other grids or masks that do not meet.
    """
    if first.mask is None or second.mask is None or not first.same_grid(second):
        raise InputError(f"expected two masked images on one grid, got {first.shape} and "
                         f"{second.shape}. Use images on the template grid.")
    given = (first.data, second.data, first.mask & second.mask, data_range)
    values = {"psnr": near.psnr(*given), "ssim": near.ssim(*given),
              "ms_ssim": near.ms_ssim(*given)[0], "rmse": near.rmse(*given),
              "mae": near.mae(*given)}
    return values


def pair_metrics(
    before: Cohort,
    after: Cohort | None,
    target: str,
    data_range: Mapping[str, float],
    *,
    backend: str = "",
    maps: Mapping[str, tuple[float, float]] | None = None,
    to: str = "",
    mapper: Callable[..., Iterable] = map,
) -> Metrics:
    """Rows of every travelling pair, before harmonization or, where ``after`` is given, after.

    ``after``: the harmonized images by the same ``scan_id``; a pair without both is left out.
    ``maps``: scan_id -> gain and offset, applied to unharmonized images: what no more than a linear
    map per scan reaches (stage ``rescaled``).
    ``data_range``: R by modality. ``site`` of a row is the first site, ``reference`` the second.
    ``to``: keep to pairs that end at that site. ``mapper``:
    ``map``, or one with its signature that spreads pairs over processes. Two volumes are in memory
    for each; the measures are symmetric, so an ordered pair of which both images were seen the
    other way round is not computed twice.
    """
    harmonized = {scan.scan_id: scan for scan in after} if after is not None else {}
    jobs: dict[frozenset, _Comparison] = {}
    pairs: list[tuple[Pair, frozenset]] = []
    for pair in site_pairs(before):
        images = _images_of(pair, harmonized, target) if after is not None else (
            pair.first, pair.second)
        if images is None or to not in ("", pair.second.site):
            continue
        key = frozenset(str(scan.image) for scan in images)
        jobs.setdefault(key, (images, data_range[pair.first.modality], tuple(
            None if maps is None else maps[scan.scan_id] for scan in images)))
        pairs.append((pair, key))
    done = dict(zip(jobs, mapper(_compared, jobs.values())))
    rows = [row for pair, key in pairs for row in _pair_rows(pair, done[key])]
    stage = "after" if after is not None else "before" if maps is None else "rescaled"
    goal = "" if after is None else target
    return Metrics(tuple(replace(r, stage=stage, backend=backend, target=goal) for r in rows))


_Comparison = tuple[tuple[Scan, Scan], float, tuple[Any, Any], "Path | None"]


def _compared(job: _Comparison) -> dict[str, float]:
    """Two images, read and compared; R; a gain and an offset for each, or None."""
    images, scale, maps = job
    return compare_images(*(_read(scan, one) for scan, one in zip(images, maps)), scale)


def _read(scan: Scan, linear: tuple[float, float] | None) -> Volume:
    volume = scan.read()
    return volume if linear is None else volume.with_data(linear[0] * volume.data + linear[1])


def _images_of(pair: Pair, harmonized: Mapping[str, Scan], target: str
               ) -> tuple[Scan, Scan] | None:
    """What is compared after harmonization, or None where an image is missing."""
    second = pair.second if pair.second.site == target else harmonized.get(pair.second.scan_id)
    first = harmonized.get(pair.first.scan_id)
    return None if first is None or second is None else (first, second)


def _pair_rows(pair: Pair, values: Mapping[str, float]) -> Iterator[Metric]:
    one = pair.first
    for name, value in values.items():
        yield Metric(name, value, MEASURES[name].unit, "", one.subject, one.session or "",
                     one.scan_id, one.modality, one.site, reference=pair.second.site)


def person_means(metrics: Metrics, measure: str, target: str = "") -> dict[str, float]:
    """Mean of a measure over each person's pairs; with ``target``, only over pairs that end there.

    Infinite values (PSNR of equal images) count as missing: they are copies and no measurement.
    """
    found: dict[str, list[float]] = {}
    for row in metrics.select(measure=measure):
        if row.value is not None and math.isfinite(row.value) and (
                not target or row.reference == target):
            found.setdefault(row.subject, []).append(row.value)
    return {who: float(np.mean(values)) for who, values in found.items()}


def compare_methods(tables: Mapping[str, Metrics], *, target: str = "", seed: int = 0
                    ) -> tuple[Test, ...]:
    """Mean of each measure per method, and paired tests of every two methods.

    ``tables``: method -> its rows of :func:`pair_metrics`; the unharmonized ones under "", the
    linearly rescaled ones under "rescaled". All tests on one measure are one family,
    Holm-corrected. ``target``: keep to pairs that end there.
    """
    tests: list[Test] = []
    for measure in PAIR_MEASURES:
        means = {name: person_means(table, measure, target) for name, table in tables.items()}
        tests += [_mean_test(measure, name, values, seed) for name, values in means.items()]
        names = list(means)
        family = [
            replace(paired_wilcoxon(means[one], means[two], "travelling_wilcoxon", seed=seed),
                    unit=MEASURES[measure].unit, question="person", **_stage_of(two),
                    reference=f"{measure} | {one or 'unharmonized'}")
            for i, one in enumerate(names) for two in names[i + 1:]]
        tests += corrected(family)
    return tuple(tests)


def _stage_of(name: str) -> dict[str, str]:
    """Stage and backend of a method's name in ``tables``."""
    stage = {"": "before", RESCALED: "rescaled"}.get(name, "after")
    return {"stage": stage, "backend": name if stage == "after" else ""}


def _mean_test(measure: str, backend: str, means: Mapping[str, float], seed: int) -> Test:
    context = {"question": "person", "reference": measure, "unit": MEASURES[measure].unit,
               **_stage_of(backend)}
    if not means:
        return not_possible("travelling_pair", "no travelling person has both images of a pair",
                            **context)
    values = np.array(list(means.values()))
    low, high = bootstrap_interval(lambda rows, who: float(values[rows].mean()), list(means),
                                   seed=seed)
    return Test("travelling_pair", len(values), float(values.mean()), low, high,
                method="mean over people of the mean over their pairs; bootstrap over people",
                **context)


@dataclass(frozen=True)
class Icc:
    """An intraclass correlation with its 95 % interval; ``f`` and ``p`` test it against zero."""

    value: float
    low: float
    high: float
    f: float
    p: float


def icc(table: np.ndarray, kind: str = "3,1", level: float = 0.95) -> Icc:
    """Intraclass correlation of a table (people, sites) without gaps.

    ICC(3,1) = (BMS - EMS) / (BMS + (k - 1) EMS): consistency, sites fixed, their offsets forgiven.
    ICC(2,1) = (BMS - EMS) / (BMS + (k - 1) EMS + k (JMS - EMS) / n): agreement, offsets count.
    Range up to 1, higher is better. Intervals: Shrout and Fleiss 1979, p. 424-425, and for (2,1)
    McGraw and Wong 1996, case 2A. InputError for fewer than 2 people or sites, or gaps.
    """
    from scipy.stats import f as fisher

    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise InputError(f"expected a complete table of 2 or more people by 2 or more sites, got "
                         f"{table.shape}. Use complete_table first.")
    n, k = table.shape
    people, sites, error = _mean_squares(table)
    ratio = people / error if error > 0 else math.inf
    df = (n - 1, (n - 1) * (k - 1))
    p = float(fisher.sf(ratio, *df))
    tail = (1 + level) / 2
    if kind == "3,1":
        bounds = [ratio / fisher.ppf(tail, *df), ratio * fisher.ppf(tail, df[1], df[0])]
        value, low, high = (_consistency(f, k) for f in (ratio, *bounds))
        return Icc(value, low, high, ratio, p)
    return Icc(*_agreement(people, sites, error, n, k, tail), ratio, p)


def _consistency(ratio: float, k: int) -> float:
    return 1.0 if math.isinf(ratio) else float((ratio - 1) / (ratio + k - 1))


def _agreement(people: float, sites: float, error: float, n: int, k: int, tail: float
               ) -> tuple[float, float, float]:
    """ICC(2,1) with its interval (Satterthwaite's degrees of freedom)."""
    from scipy.stats import f as fisher

    total = people + (k - 1) * error + k * (sites - error) / n
    value = (people - error) / total if total > 0 else math.nan
    if not error > 0 or not abs(value) < 1:
        return float(value), math.nan, math.nan
    ratio = sites / error
    top = (k - 1) * (n - 1) * (k * value * ratio + n * (1 + (k - 1) * value) - k * value) ** 2
    v = top / ((n - 1) * k**2 * value**2 * ratio**2
               + (n * (1 + (k - 1) * value) - k * value) ** 2)
    up, down = fisher.ppf(tail, n - 1, v), fisher.ppf(tail, v, n - 1)
    rest = k * sites + (k * n - k - n) * error
    low = n * (people - up * error) / (up * rest + n * people)
    high = n * (down * people - error) / (rest + n * down * people)
    return float(value), float(low), float(high)


def _mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Two-way analysis of variance, one value per cell: people (BMS), sites (JMS), error (EMS)."""
    n, k = table.shape
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    rest = table - rows - columns + table.mean()
    error = np.sum(rest**2) / ((n - 1) * (k - 1))
    scale = np.finfo(float).eps * np.abs(table).max() ** 2 * table.size
    return (float(k * rows.var(ddof=1)), float(n * columns.var(ddof=1)),
            float(error) if error > scale else 0.0)


def within_subject_cov(table: np.ndarray) -> float:
    """sqrt(mean over people of (sd_i / mean_i)^2) in percent; 0 to infinity, lower is better.

    ``table`` (people, sites). Quan and Shih 1996, doi:10.2307/2533000, the root mean square method;
    NaN where a person's mean is zero.
    """
    table = np.asarray(table, dtype=np.float64)
    means = table.mean(axis=1)
    if (means == 0).any():
        return math.nan
    return float(100 * np.sqrt(np.mean((table.std(axis=1, ddof=1) / means) ** 2)))


def complete_table(
    values: Sequence[float], subjects: Sequence[str], sites: Sequence[str]
) -> tuple[np.ndarray, list[str], list[str]]:
    """(people, sites) table without gaps, and its two headings.

    One value per scan; several scans of a person at a site are averaged. Where not everybody was
    everywhere, the sites seen by most people are kept, as many as make the table largest in
    degrees of freedom, (people - 1)(sites - 1). Empty where no two people share two sites.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for value, who, where in zip(values, subjects, sites):
        if value is not None and math.isfinite(value):
            cells.setdefault((who, where), []).append(float(value))
    people_of = {where: {who for who, site in cells if site == where} for _, where in cells}
    order = sorted(people_of, key=lambda site: (-len(people_of[site]), site))
    best: tuple[list[str], list[str]] = ([], [])
    for count in range(2, len(order) + 1):
        shared = sorted(set.intersection(*(people_of[site] for site in order[:count])))
        if shared and (len(shared) - 1) * (count - 1) > _freedom(*best):
            best = (shared, sorted(order[:count]))
    people, kept = best
    table = np.array([[np.mean(cells[who, where]) for where in kept] for who in people])
    return table.reshape(len(people), len(kept)), people, kept


def _freedom(people: Sequence[str], sites: Sequence[str]) -> int:
    return (len(people) - 1) * (len(sites) - 1) if people else 0


def agreement_tests(
    features: Mapping[str, Sequence[float]],
    subjects: Sequence[str],
    sites: Sequence[str],
    *,
    seed: int = 0,
    interval: Callable[..., tuple[float, float]] = bootstrap_interval,
) -> tuple[Test, ...]:
    """ICC(3,1), ICC(2,1) and within-subject CoV over sites of features with a value per scan."""
    tests: list[Test] = []
    for name, values in features.items():
        table, people, kept = complete_table(values, subjects, sites)
        context = {"question": "person", "reference": name}
        if len(people) < FEWEST_PEOPLE:
            tests += [not_possible(test, f"{len(people)} people have {name} at the same two or "
                                   f"more sites; {FEWEST_PEOPLE} are needed", len(people),
                                   **context)
                      for test in ("icc31", "icc21", "within_subject_cov")]
            continue
        if not table.std() > CONSTANT * abs(table.mean()):
            tests += [not_possible(test, f"{name} is the same in every scan: whatever it told of "
                                   "people is gone", len(people), **context)
                      for test in ("icc31", "icc21", "within_subject_cov")]
            continue
        words = f"sites {', '.join(kept)}"
        for test, kind in (("icc31", "3,1"), ("icc21", "2,1")):
            found = icc(table, kind)
            tests.append(Test(test, len(people), found.value, found.low, found.high,
                              found.p if kind == "3,1" else None,
                              method=f"two-way ANOVA, F interval; {words}", **context))
        low, high = interval(lambda rows, who: within_subject_cov(table[rows]), people, seed=seed)
        tests.append(Test("within_subject_cov", len(people), within_subject_cov(table), low, high,
                          unit="%", method=f"root mean square; bootstrap over people; {words}",
                          **context))
    return tuple(tests)
