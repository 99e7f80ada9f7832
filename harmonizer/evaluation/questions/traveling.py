"""Traveling subjects: similarity of images and agreement of numbers across scanners.

A traveling subject was scanned at two or more sites within a year (`Cohort.traveling`). Each
subject contributes every ordered pair of its sites, with one scan per site. After harmonization,
the first image of a pair is compared with the subject's unharmonized image if the second site is
the target, else with the second harmonized image. Two scans at one site that differ in run only are
rescans; they show the variation of scanner and preprocessing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...cohort import ACQUISITION_TIME, DAYS_PER_YEAR, Cohort, Scan, years_between
from ...errors import InputError, NotEstimableError
from ...volume import Volume
from ..metrics import image as near
from ..statistics.equivalence import IDENTITY_MARGIN, interval_of_mean, smallest_detectable
from ..statistics.resampling import (
    NO_SUBJECT_INFORMATION,
    Labels,
    Test,
    bootstrap_interval,
    corrected,
    not_possible,
    paired_wilcoxon,
)
from ..table import MEASURES, RESCALED, Metric, Metrics, stage_of

__all__ = ["PAIR_MEASURES", "RESCALED", "Icc", "Pair", "agreement_tests", "compare_images",
           "compare_methods", "complete_table", "icc", "pair_metrics", "rescans", "site_pairs",
           "subject_means", "within_subject_cov"]

PAIR_MEASURES = ("psnr", "ssim", "ms_ssim", "rmse", "mae")
MIN_SUBJECTS = 3
MAX_RESCAN_DAYS = 30  # two sessions at most this far apart can be rescans
MIN_RELATIVE_STD = 1e-6  # relative to the mean; below this a feature is constant


@dataclass(frozen=True)
class Pair:
    """Scans of one subject at two sites, or two scans at one site.

    Attributes
    ----------
    first, second : Scan
        Harmonization should make the first like the second.
    """

    first: Scan
    second: Scan

    @property
    def subject(self) -> str:
        """Subject of both scans."""
        return self.first.subject


def rescans(cohort: Cohort) -> tuple[Pair, ...]:
    """Return pairs of rescans: a subject scanned twice in the same way at one site.

    Two scans are rescans if their names differ in ``run`` only: same session and same acq, ce, rec
    and other entities. Scans of two sessions are rescans if they are otherwise named alike and
    ``acq_time`` is at most `MAX_RESCAN_DAYS` apart. Each scan is paired with the next one.

    Parameters
    ----------
    cohort : Cohort
        Scans.

    Returns
    -------
    tuple of Pair
        In the order of the cohort.
    """
    groups: dict[tuple[str, ...], list[Scan]] = {}
    for scan in cohort:
        groups.setdefault((scan.subject, scan.site, scan.modality, _protocol(scan)),
                          []).append(scan)
    return tuple(Pair(*two) for group in groups.values() for two in zip(group, group[1:])
                 if _is_rescan(*two))


def _protocol(scan: Scan) -> str:
    """Return the entities of a BIDS name without subject, session and run.

    A name that is not of BIDS gives "", so all scans of a session count as acquired alike.
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
    """Return every ordered pair of sites of each traveling subject, one scan per site.

    Parameters
    ----------
    cohort : Cohort
        Scans; the first one of a site in the cohort is used.

    Returns
    -------
    tuple of Pair
        Grouped by modality and subject.
    """
    first: dict[tuple[str, str], dict[str, Scan]] = {}
    for scan in cohort.traveling():
        first.setdefault((scan.modality, scan.subject), {}).setdefault(scan.site, scan)
    return tuple(Pair(here[one], here[two]) for here in first.values()
                 for one in sorted(here) for two in sorted(here) if one != two)


def compare_images(first: Volume, second: Volume, data_range: float) -> dict[str, float]:
    """Compute PSNR, SSIM, MS-SSIM, RMSE and MAE of two images of one subject.

    Parameters
    ----------
    first, second : Volume
        On one grid; compared inside both masks.
    data_range : float
        R > 0 of the study, in intensity units.

    Returns
    -------
    dict of str to float
        Keys as in `PAIR_MEASURES`.

    Raises
    ------
    InputError
        If a mask is missing, the grids differ or the masks do not overlap.
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
    """Compare the images of every pair of traveling subjects, before or after harmonization.

    The measures are symmetric, so two unordered images are compared once.

    Parameters
    ----------
    before : Cohort
        Unharmonized scans.
    after : Cohort or None
        Harmonized images by the same ``scan_id``; a pair without both is left out. None compares
        the unharmonized images.
    target : str
        Site harmonized to.
    data_range : mapping of str to float
        R of the study by modality.
    backend : str
        Name of the method, for the table.
    maps : mapping of str to tuple of float, optional
        Gain and offset by scan, applied to unharmonized images (stage "rescaled").
    to : str
        Only pairs that end at this site; "" for all.
    mapper : callable
        ``map``, or a parallel replacement; each job holds two volumes in memory.

    Returns
    -------
    Metrics
        `site` is the first site of a pair, `reference` the second.
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
        first, second = (None if maps is None else maps[scan.scan_id] for scan in images)
        jobs.setdefault(key, (images, data_range[pair.first.modality], (first, second)))
        pairs.append((pair, key))
    done = dict(zip(jobs, mapper(_compared, jobs.values())))
    rows = [row for pair, key in pairs for row in _pair_rows(pair, done[key])]
    stage = "after" if after is not None else "before" if maps is None else "rescaled"
    named = "" if after is None else target
    return Metrics(tuple(replace(r, stage=stage, backend=backend, target=named) for r in rows))


_Comparison = tuple[tuple[Scan, Scan], float, tuple[Any, Any]]


def _compared(job: _Comparison) -> dict[str, float]:
    """Read and compare two images; the job has both, R, and gain and offset (or None) of each."""
    images, scale, maps = job
    first, second = (_read(scan, one) for scan, one in zip(images, maps))
    return compare_images(first, second, scale)


def _read(scan: Scan, linear: tuple[float, float] | None) -> Volume:
    volume = scan.read()
    return volume if linear is None else volume.with_data(linear[0] * volume.data + linear[1])


def _images_of(pair: Pair, harmonized: Mapping[str, Scan], target: str
               ) -> tuple[Scan, Scan] | None:
    """Return the images compared after harmonization, or None if one is missing."""
    second = pair.second if pair.second.site == target else harmonized.get(pair.second.scan_id)
    first = harmonized.get(pair.first.scan_id)
    return None if first is None or second is None else (first, second)


def _pair_rows(pair: Pair, values: Mapping[str, float]) -> Iterator[Metric]:
    one = pair.first
    for name, value in values.items():
        yield Metric(name, value, MEASURES[name].unit, "", one.subject, one.session or "",
                     one.scan_id, one.modality, one.site, reference=pair.second.site)


def subject_means(metrics: Metrics, measure: str, target: str = "") -> dict[str, float]:
    """Average a measure over the pairs of each subject.

    Parameters
    ----------
    metrics : Metrics
        Rows of `pair_metrics`.
    measure : str
        Name of the measure.
    target : str
        Only pairs that end at this site; "" for all.

    Returns
    -------
    dict of str to float
        By subject. Infinite values (PSNR of equal images) count as missing, because copies are not
        measurements.
    """
    found: dict[str, list[float]] = {}
    for row in metrics.select(measure=measure):
        if row.value is not None and math.isfinite(row.value) and (
                not target or row.reference == target):
            found.setdefault(row.subject, []).append(row.value)
    return {who: float(np.mean(values)) for who, values in found.items()}


def compare_methods(tables: Mapping[str, Metrics], *, target: str = "", seed: int = 0
                    ) -> tuple[Test, ...]:
    """Test every two methods on each measure of traveling pairs.

    All tests of one measure are one family, Holm-corrected.

    Parameters
    ----------
    tables : mapping of str to Metrics
        Rows of `pair_metrics` by method; "" for unharmonized, "rescaled" for linearly rescaled
        images.
    target : str
        Only pairs that end at this site; "" for all.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        Means (``traveling_pair``), paired tests (``traveling_wilcoxon``), and the change of the
        error against linear rescaling with its margin (``pair_error_change``).
    """
    tests: list[Test] = []
    for measure in PAIR_MEASURES:
        means = {name: subject_means(table, measure, target) for name, table in tables.items()}
        tests += [_mean_test(measure, name, values, seed) for name, values in means.items()]
        names = list(means)
        family = [
            replace(paired_wilcoxon(means[one], means[two], "traveling_wilcoxon", seed=seed),
                    unit=MEASURES[measure].unit, question="subject", **stage_of(two),
                    reference=f"{measure} | {one or 'unharmonized'}")
            for i, one in enumerate(names) for two in names[i + 1:]]
        tests += corrected(family)
        if measure == "rmse" and RESCALED in means:
            tests += [_error_change(means[RESCALED], values, name) for name, values in
                      means.items() if name not in ("", RESCALED)]
    return tuple(tests)


def _error_change(rescaled: Mapping[str, float], after: Mapping[str, float], backend: str) -> Test:
    """Return the relative change of RMSE against linear rescaling alone, with its margin."""
    context: dict[str, Any] = {"question": "subject", "reference": f"rmse | {RESCALED}",
                               **stage_of(backend)}
    common = [who for who in rescaled if after.get(who, 0) > 0 and rescaled[who] > 0]
    if len(common) < MIN_SUBJECTS:
        return not_possible("pair_error_change", f"{len(common)} subjects have both numbers; "
                            f"{MIN_SUBJECTS} are needed", len(common), **context)
    ratios = np.log([after[who] / rescaled[who] for who in common])
    low, high, error = interval_of_mean(ratios)
    return Test("pair_error_change", len(common), math.expm1(float(ratios.mean())),
                math.expm1(low), math.expm1(high), margin=IDENTITY_MARGIN,
                detectable=math.expm1(smallest_detectable(error)),
                method="geometric mean over subjects of RMSE after over RMSE of linearly rescaled "
                "images, minus 1; t interval", **context)


def _mean_test(measure: str, backend: str, means: Mapping[str, float], seed: int) -> Test:
    context: dict[str, Any] = {"question": "subject", "reference": measure,
                               "unit": MEASURES[measure].unit, **stage_of(backend)}
    if not means:
        return not_possible("traveling_pair", "no traveling subject has both images of a pair",
                            **context)
    values = np.array(list(means.values()))
    low, high = bootstrap_interval(lambda rows, who: float(values[rows].mean()), list(means),
                                   seed=seed)
    return Test("traveling_pair", len(values), float(values.mean()), low, high,
                method="mean over subjects of the mean over their pairs; bootstrap over subjects",
                **context)


@dataclass(frozen=True)
class Icc:
    """Intraclass correlation.

    Attributes
    ----------
    value, low, high : float
        Estimate, at most 1, and its 95 % interval.
    f, p : float
        F test against zero.
    """

    value: float
    low: float
    high: float
    f: float
    p: float


def icc(table: np.ndarray, kind: str = "3,1", level: float = 0.95) -> Icc:
    """Compute an intraclass correlation [1]_.

    ICC(3,1) = (BMS - EMS) / (BMS + (k - 1) EMS): consistency; offsets between sites do not count.
    ICC(2,1) = (BMS - EMS) / (BMS + (k - 1) EMS + k (JMS - EMS) / n): agreement; offsets count. The
    interval of ICC(2,1) is that of McGraw and Wong [2]_.

    Parameters
    ----------
    table : ndarray, shape (n, k)
        One value per subject and site, without gaps.
    kind : {"3,1", "2,1"}
        Which correlation.
    level : float
        Confidence level, 0 to 1.

    Returns
    -------
    Icc
        At most 1, higher is better.

    Raises
    ------
    NotEstimableError
        If there are fewer than 2 subjects or sites, or gaps.

    References
    ----------
    .. [1] Shrout and Fleiss 1979, Intraclass correlations: uses in assessing rater reliability.
       doi:10.1037/0033-2909.86.2.420
    .. [2] McGraw and Wong 1996, Forming inferences about some intraclass correlation coefficients,
       case 2A. doi:10.1037/1082-989X.1.1.30
    """
    from scipy.stats import f as fisher

    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise NotEstimableError(f"expected a complete table of 2 or more subjects by 2 or more "
                                f"sites, got {table.shape}. Use complete_table first.")
    n, k = table.shape
    ms_subjects, ms_sites, ms_error = _mean_squares(table)
    ratio = ms_subjects / ms_error if ms_error > 0 else math.inf
    df = (n - 1, (n - 1) * (k - 1))
    p = float(fisher.sf(ratio, *df))
    tail = (1 + level) / 2
    if kind == "3,1":
        bounds = [ratio / fisher.ppf(tail, *df), ratio * fisher.ppf(tail, df[1], df[0])]
        value, low, high = (_consistency(f, k) for f in (ratio, *bounds))
        return Icc(value, low, high, ratio, p)
    return Icc(*_agreement(ms_subjects, ms_sites, ms_error, n, k, tail), ratio, p)


def _consistency(ratio: float, k: int) -> float:
    return 1.0 if math.isinf(ratio) else float((ratio - 1) / (ratio + k - 1))


def _agreement(ms_subjects: float, ms_sites: float, ms_error: float, n: int, k: int, tail: float
               ) -> tuple[float, float, float]:
    """Return ICC(2,1) and its interval with Satterthwaite's degrees of freedom."""
    from scipy.stats import f as fisher

    total = ms_subjects + (k - 1) * ms_error + k * (ms_sites - ms_error) / n
    value = (ms_subjects - ms_error) / total if total > 0 else math.nan
    if not ms_error > 0 or not abs(value) < 1:
        return float(value), math.nan, math.nan
    ratio = ms_sites / ms_error
    top = (k - 1) * (n - 1) * (k * value * ratio + n * (1 + (k - 1) * value) - k * value) ** 2
    v = top / ((n - 1) * k**2 * value**2 * ratio**2
               + (n * (1 + (k - 1) * value) - k * value) ** 2)
    up, down = fisher.ppf(tail, n - 1, v), fisher.ppf(tail, v, n - 1)
    rest = k * ms_sites + (k * n - k - n) * ms_error
    low = n * (ms_subjects - up * ms_error) / (up * rest + n * ms_subjects)
    high = n * (down * ms_subjects - ms_error) / (rest + n * down * ms_subjects)
    return float(value), float(low), float(high)


def _mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Return the mean squares of subjects, sites and error of a two-way analysis of variance."""
    n, k = table.shape
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    rest = table - rows - columns + table.mean()
    error = np.sum(rest**2) / ((n - 1) * (k - 1))
    scale = np.finfo(float).eps * np.abs(table).max() ** 2 * table.size
    return (float(k * rows.var(ddof=1)), float(n * columns.var(ddof=1)),
            float(error) if error > scale else 0.0)


def within_subject_cov(table: np.ndarray) -> float:
    """Compute the within-subject coefficient of variation, root mean square method [1]_.

    Parameters
    ----------
    table : ndarray, shape (n, k)
        One value per subject and site.

    Returns
    -------
    float
        sqrt(mean over subjects of (std_i / mean_i)^2) in percent, 0 or more; NaN if a mean is 0.

    References
    ----------
    .. [1] Quan and Shih 1996, Assessing reproducibility by the within-subject coefficient of
       variation with random effects models. doi:10.2307/2533000
    """
    table = np.asarray(table, dtype=np.float64)
    means = table.mean(axis=1)
    if (means == 0).any():
        return math.nan
    return float(100 * np.sqrt(np.mean((table.std(axis=1, ddof=1) / means) ** 2)))


def complete_table(
    values: Sequence[float] | np.ndarray, subjects: Labels, sites: Labels
) -> tuple[np.ndarray, list[str], list[str]]:
    """Arrange values as a table of subjects by sites without gaps.

    If not all subjects were at all sites, the sites with most subjects are kept: as many as
    maximize the degrees of freedom, (subjects - 1) (sites - 1).

    Parameters
    ----------
    values : sequence of float, length n
        One per scan; scans of a subject at one site are averaged.
    subjects, sites : sequence of str, length n
        Subject and site of each scan.

    Returns
    -------
    table : ndarray, shape (rows, columns)
        Empty if no two subjects share two sites.
    rows, columns : list of str
        Subjects and sites.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for value, who, where in zip(values, subjects, sites):
        if value is not None and math.isfinite(value):
            cells.setdefault((who, where), []).append(float(value))
    subjects_at = {where: {who for who, site in cells if site == where} for _, where in cells}
    order = sorted(subjects_at, key=lambda site: (-len(subjects_at[site]), site))
    best: tuple[list[str], list[str]] = ([], [])
    for count in range(2, len(order) + 1):
        shared = sorted(set.intersection(*(subjects_at[site] for site in order[:count])))
        if shared and (len(shared) - 1) * (count - 1) > _freedom(*best):
            best = (shared, sorted(order[:count]))
    rows, columns = best
    table = np.array([[np.mean(cells[who, where]) for where in columns] for who in rows])
    return table.reshape(len(rows), len(columns)), rows, columns


def _freedom(subjects: Sequence[str], sites: Sequence[str]) -> int:
    return (len(subjects) - 1) * (len(sites) - 1) if subjects else 0


def _cov_of_rows(table: np.ndarray, rows: np.ndarray, who: np.ndarray) -> float:
    return within_subject_cov(table[rows])


def agreement_tests(
    features: Mapping[str, Sequence[float]],
    subjects: Sequence[str],
    sites: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[Test, ...]:
    """Compute ICC(3,1), ICC(2,1) and the within-subject coefficient of variation across sites.

    Parameters
    ----------
    features : mapping of str to sequence of float
        One value per scan.
    subjects, sites : sequence of str, length n
        Subject and site of each scan.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        Three per feature.
    """
    tests: list[Test] = []
    for name, values in features.items():
        table, rows, columns = complete_table(values, subjects, sites)
        context: dict[str, Any] = {"question": "subject", "reference": name}
        if len(rows) < MIN_SUBJECTS:
            tests += [not_possible(test, f"{len(rows)} subjects have {name} at the same two or "
                                   f"more sites; {MIN_SUBJECTS} are needed", len(rows),
                                   **context)
                      for test in ("icc31", "icc21", "within_subject_cov")]
            continue
        if not table.std() > MIN_RELATIVE_STD * abs(table.mean()):
            tests += [not_possible(test, f"{name} is the same in every scan: "
                                   f"{NO_SUBJECT_INFORMATION}", len(rows), **context)
                      for test in ("icc31", "icc21", "within_subject_cov")]
            continue
        words = f"sites {', '.join(columns)}"
        for test, kind in (("icc31", "3,1"), ("icc21", "2,1")):
            found = icc(table, kind)
            tests.append(Test(test, len(rows), found.value, found.low, found.high,
                              found.p if kind == "3,1" else None,
                              method=f"two-way ANOVA, F interval; {words}", **context))
        low, high = bootstrap_interval(partial(_cov_of_rows, table), rows, seed=seed)
        tests.append(Test("within_subject_cov", len(rows), within_subject_cov(table), low, high,
                          unit="%", method=f"root mean square; bootstrap over subjects; {words}",
                          **context))
    return tuple(tests)
