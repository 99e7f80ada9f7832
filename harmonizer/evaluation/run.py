"""The referee: is the scanner gone, the person still there, biology still there, anatomy unmoved?

All methods are judged on the same scans, beside the unharmonized images and beside ComBat on the
same features. What the data do not allow to say is a row that says why. Images are opened one pair
at a time; everything else is computed from numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cohort import MAX_TRAVELING_YEARS, Cohort, Scan
from ..errors import InputError, UsageError, did_you_mean
from ..segmentation.segmentations import TISSUES, Segment, name_of
from ..template import TEMPLATE, template_affine
from ..volume import AFFINE_TOLERANCE_MM, load_nifti, same_grid
from .cache import file_key, kept
from .metrics.distribution import LEVELS, QuantileTable, intensity_range, moment_map
from .metrics.scan_features import Job, Numbers, Progress, measure, spread, texture_rows
from .metrics.volumes import volume_tests
from .paired_metrics import Evaluation, eta_rows, evaluate_cohort, label_tissues
from .questions.anatomy import GUARDED
from .questions.anatomy_limits import Tolerance, Verdict, chance_of_flags, judge, learn_tolerance
from .questions.biology import age_by_scanner, age_tests, effect_tests
from .questions.scanner import site_tests
from .questions.subject import source_identity, travelling_identity
from .questions.traveling import (
    RESCALED,
    agreement_tests,
    compare_methods,
    pair_metrics,
    rescans,
    site_pairs,
)
from .statistics.combat import cross_fitted_combat
from .statistics.confounding import ConfoundingCheck, check_confounding
from .statistics.design import Design
from .statistics.distribution_tests import anderson_darling, distance_between_sites
from .statistics.resampling import Statistics, Test, bootstrap_interval, corrected, not_possible
from .table import MEASURES, Metric, Metrics

__all__ = ["COMBAT", "Ruling", "referee"]

COMBAT = "combat_features"
"""Name of the yardstick: ComBat on features of the unharmonized images, fitted on other people."""
MEANS = ("mean_csf", "mean_gm", "mean_wm")
TRAVELLING = ("auto", "no")
PERMUTATIONS = 200
Working = Callable[[str], Callable[..., Iterable]]  # what is being done -> ``map``, see `spread`


class Ruling(NamedTuple):
    """What the referee found.

    ``metrics``: per scan and pair; ``statistics``: tests with intervals; ``quantiles``: what curves
    are drawn from; ``verdicts``: method -> scan -> anatomy verdict; ``tolerances``: by modality.
    """

    metrics: Metrics
    statistics: Statistics
    quantiles: QuantileTable
    verdicts: Mapping[str, Mapping[str, Verdict]]
    tolerances: Mapping[str, Tolerance]


@dataclass(frozen=True)
class Features:
    """Features of the trial's scans by one method; a number that is not there is NaN."""

    texture: np.ndarray
    ratios: Mapping[str, np.ndarray]
    means: Mapping[str, np.ndarray]

    def matrix(self) -> np.ndarray:
        """(n, F) all of them that every scan has; columns in a fixed order."""
        parts = [self.texture, *(column[:, None] for table in (self.ratios, self.means)
                                 for column in table.values())]
        return np.hstack(parts)


@dataclass(frozen=True)
class Trial:
    """One modality: what is judged, and how. ``evaluations``, ``numbers``: see `_opened`."""

    before: Cohort
    variants: Mapping[str, Cohort]
    target: str
    reference: str
    covariates: tuple[str, ...]
    checked: tuple[str, ...]
    design: Design
    roams: bool
    seed: int
    permutations: int
    segment: Segment | None = None
    cache: Path | None = None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """BIDS suffix of all its scans."""
        return self.before.scans[0].modality


def referee(
    before: Cohort,
    variants: Mapping[str, Cohort],
    target: str,
    *,
    covariates: Sequence[str] = ("age", "sex"),
    checked: Sequence[str] = (),
    reference_site: str | None = None,
    travelling: str = "auto",
    segment: Segment | None = None,
    priors: Mapping[str, np.ndarray] | None = None,
    target_quantiles: Mapping[str, np.ndarray] | None = None,
    fitted_on: Mapping[str, Sequence[str]] | None = None,
    combat: bool = True,
    permutations: int = PERMUTATIONS,
    workers: int = 1,
    progress: Progress | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> Ruling:
    """Run every measure that the data allow, before and after, for all methods side by side.

    Parameters
    ----------
    before : preprocessed scans on the template grid.
    variants : method -> the same scans (by ``scan_id``) with ``image`` naming the harmonized one.
        Numbers are compared on the scans that every method has.
    target : site harmonized to, or another name ("scanner-free").
    covariates : whose effects must survive: age, sex, columns of the cohort.
    checked : further columns that are compared with the site, as age, sex and ``covariates`` are,
        such as those by which the subjects of a fit were chosen.
    reference_site : for paired tests and slopes; default the target, else the largest site.
    travelling : "auto" takes one label at several sites for one person; "no" for several people.
    segment : volume -> labels or probabilities (`NetworkSegmenter`); without, no tissue ratios.
    priors : "GM", "WM", "CSF" on the images' grid, for tissue-wise numbers; without, brain only.
    target_quantiles : modality -> quantile function (200,) of a target that is no site, such as
        reference images; without, what the scans became is the ruler of distances to it.
    fitted_on : method -> people it was fitted on; named in the table, and where they are judged too
        the row says so.
    combat : add ComBat on the same features, fitted on other people than it is judged on.
    permutations : shuffles for each chance level.
    workers : processes for what is done scan by scan; each holds one pair of volumes.
    progress : called with (what is being done, jobs done, jobs in all).
    cache : folder for the numbers of each scan and pair, or None.
    seed : of every fold, shuffle and bootstrap.

    Raises
    ------
    InputError for unreadable or misfitting images, images that are not on one grid, or, with
    ``priors``, not on the template's; UsageError for an unknown choice.
    """
    if travelling not in TRAVELLING:
        raise UsageError(f"travelling is one of {', '.join(TRAVELLING)}, not {travelling!r}.")
    if not len(before):
        raise InputError("expected at least one scan to evaluate, got none. Run preprocess first.")
    before.require_one_grid()
    if priors is not None:
        _require_template_grid(before, priors)
    cohort = before if travelling == "auto" else _apart(before)
    rulings = []
    with spread(workers, progress) as working:
        for modality in dict.fromkeys(scan.modality for scan in cohort):
            trial = _trial(cohort.of_modality(modality), variants, target, reference_site,
                           tuple(covariates), travelling, seed, permutations, segment, cache)
            trial = replace(trial, checked=_named(trial, checked))
            trial = _opened(trial, priors, target_quantiles, combat, working)
            rulings.append(_judged(trial, dict(fitted_on or {}), working))
    return _joined(rulings)


def _apart(cohort: Cohort) -> Cohort:
    """The same label at two sites taken for two people."""
    return Cohort(tuple(replace(scan, subject=f"{scan.subject}@{scan.site}") for scan in cohort))


def _named(trial: Trial, checked: Sequence[str]) -> tuple[str, ...]:
    """Variables that are compared with the site beside age and sex, each once."""
    names = [name for name in dict.fromkeys((*trial.covariates, *checked))
             if name not in ("age", "sex", "site")]
    for name in names:
        trial.design.column(name)  # an unknown column is refused before any image is opened
    return tuple(names)


def _require_template_grid(before: Cohort, priors: Mapping[str, np.ndarray]) -> None:
    """Tissue priors of the template are read voxel by voxel, so images must lie on its grid.

    Raises
    ------
    InputError
        If the priors have the shape of the template at 1 or 2 mm and the images have another grid.
    """
    shape = next(iter(priors.values())).shape
    affine = template_affine(shape)
    image = load_nifti(before.scans[0].image)
    if affine is not None and not same_grid(image.shape[:3], image.affine, shape, affine):
        raise InputError(
            f"{before.scans[0].image}: expected an image on the grid of the {TEMPLATE} template, "
            f"shape {shape}, to which the tissue priors belong, got shape {image.shape[:3]} or "
            f"another affine (tolerance {AFFINE_TOLERANCE_MM} mm). Register the images to the "
            "template, or evaluate without priors.")


def _trial(before: Cohort, variants: Mapping[str, Cohort], target: str,
           reference_site: str | None, covariates: tuple[str, ...], travelling: str, seed: int,
           permutations: int, segment: Segment | None, cache: Path | None) -> Trial:
    """The scans that every method has, under the subjects of ``before``."""
    done = {name: {scan.scan_id: scan for scan in cohort} for name, cohort in variants.items()}
    done = {name: scans for name, scans in done.items()
            if any(scan.scan_id in scans for scan in before)}
    shared = before.where(lambda scan: all(scan.scan_id in scans for scans in done.values()))
    if not len(shared):
        raise InputError(f"no {before.scans[0].modality} scan has an image of every method "
                         f"({', '.join(done)}). Leave one out of the comparison.")
    if reference_site is not None and reference_site not in shared.sites:
        raise UsageError(f"reference site {reference_site!r} has no scan to compare. "
                         f"{did_you_mean(reference_site, shared.sites)}")
    reference = reference_site or (target if target in shared.sites else shared.largest_site)
    images = {name: Cohort(tuple(replace(scan, image=scans[scan.scan_id].image,
                                         mask=scans[scan.scan_id].mask) for scan in shared))
              for name, scans in done.items()}
    design = Design.of(shared.scans)
    for name in covariates:
        design.column(name)  # an unknown covariate is refused before any image is opened
    return Trial(shared, images, target, reference, covariates, (), design,
                 travelling == "auto" and design.kind != "nested", seed, permutations, segment,
                 cache)


def _opened(trial: Trial, priors: Mapping[str, np.ndarray] | None,
            target_quantiles: Mapping[str, np.ndarray] | None, combat: bool,
            working: Working) -> Trial:
    """The trial with all that images are opened for, one pair at a time; then ComBat on it."""
    intensities = f"{trial.modality} intensities"
    evaluations = {name: evaluate_cohort(trial.before, cohort, trial.target, backend=name,
                                         priors=priors, target_quantiles=target_quantiles,
                                         mapper=working(f"{intensities} {name}"),
                                         cache=trial.cache)
                   for name, cohort in trial.variants.items()}
    if not evaluations:
        evaluations = {"": evaluate_cohort(trial.before, Cohort(()), trial.target, priors=priors,
                                           mapper=working(intensities), cache=trial.cache)}
    curves = _curves(next(iter(evaluations.values())), "before").matrix().mean(axis=0)
    low, high = np.interp([0.005, 0.995], LEVELS, curves)
    labels = None if priors is None else label_tissues(priors)
    jobs = [Job(scan, {name: cohort.scans[i] for name, cohort in trial.variants.items()}, labels,
                (float(low), float(high)), trial.segment, trial.cache)
            for i, scan in enumerate(trial.before)]
    mapper = working(f"{trial.modality} tissues, anatomy")
    numbers = {found.scan_id: found for found in mapper(measure, jobs)}
    trial = replace(trial, evaluations=evaluations, numbers=numbers)
    trial = replace(trial, features={name: _features(trial, name)
                                     for name in ("", *trial.variants)})
    return _with_combat(trial) if combat else trial


def _curves(evaluation: Evaluation, stage: str, tissue: str = "brain") -> QuantileTable:
    return evaluation.quantiles.select(stage=stage, tissue=tissue)


def _features(trial: Trial, backend: str) -> Features:
    """Texture, tissue ratios and mean intensities of all scans by one method."""
    numbers = [trial.numbers[scan.scan_id] for scan in trial.before]
    names = sorted(set.intersection(*(set(found.texture[key]) for found in numbers
                                      for key in found.texture)))
    texture = np.array([[found.texture[backend][name] for name in names] for found in numbers])
    tissues = TISSUES if any(found.ratios for found in numbers) else ()
    ratios = {tissue: np.array([found.ratios.get(backend, {}).get(tissue, math.nan)
                                for found in numbers]) for tissue in tissues}
    evaluation = trial.evaluations.get(backend) or next(iter(trial.evaluations.values()))
    rows = evaluation.metrics.select(stage="after" if backend else "before")
    means = {}
    for name in MEANS:
        known = {row.scan: row.value for row in rows.select(measure=name)}
        if all(scan.scan_id in known for scan in trial.before):
            means[name] = np.array([known[scan.scan_id] for scan in trial.before], dtype=float)
    return Features(texture.reshape(len(numbers), -1), ratios, means)


def _with_combat(trial: Trial) -> Trial:
    """The trial with ComBat's features; without them where ComBat cannot be fitted."""
    raw = trial.features[""]
    matrix = raw.matrix()
    reference = trial.target if trial.target in trial.before.sites else None
    covariates, _ = trial.design.adjusting(("age", "sex"))
    try:
        done = cross_fitted_combat(matrix, trial.design.sites, trial.design.subjects, covariates,
                                   reference=reference, seed=trial.seed)
    except InputError:
        return trial
    if not np.isfinite(done).all(axis=1).any():
        return trial
    columns = iter(done[:, raw.texture.shape[1]:].T)
    found = Features(done[:, :raw.texture.shape[1]], {name: next(columns) for name in raw.ratios},
                     {name: next(columns) for name in raw.means})
    return replace(trial, features={**trial.features, COMBAT: found})


def _judged(trial: Trial, fitted_on: Mapping[str, Sequence[str]],
            working: Working) -> Ruling:
    """All questions, from numbers."""
    pairs, pair_tests = _pairs(trial, working)
    tolerance, verdicts, anatomy_rows, anatomy_tests = _anatomy(trial, working)
    tests = [*_distributions(trial), *_guesses(trial), *_volumes(trial), *pair_tests,
             *_agreement(trial), *_identity(trial), *_biology(trial), *anatomy_tests,
             *_confounding(trial)]
    if COMBAT not in trial.features:
        tests.append(not_possible(
            "combat", "ComBat needs two sites with two people each besides those it is judged on, "
            "and covariates that do not stand for the site", trial.design.people,
            question="scanner", backend=COMBAT, stage="after"))
    metrics = sum((one.metrics for one in trial.evaluations.values()), Metrics())
    extra = Metrics((*_ratio_rows(trial), *_texture_rows(trial), *anatomy_rows))
    people = {"evaluated": tuple(sorted(set(trial.design.subjects))),
              **{f"fit of {name}": tuple(who) for name, who in fitted_on.items()}}
    tests = [_signed(test, trial, people) for test in tests]
    return Ruling(metrics + pairs + extra, Statistics(tuple(_with_warnings(tests, trial)), people),
                  _all_curves(trial), verdicts, {trial.modality: tolerance})


def _all_curves(trial: Trial) -> QuantileTable:
    """Quantiles before, and of the first method after (the table has no column for more)."""
    return next(iter(trial.evaluations.values())).quantiles


def _joined(rulings: Sequence[Ruling]) -> Ruling:
    verdicts: dict[str, dict[str, Verdict]] = {}
    for ruling in rulings:
        for name, found in ruling.verdicts.items():
            verdicts.setdefault(name, {}).update(found)
    return Ruling(sum((r.metrics for r in rulings), Metrics()),
                  sum((r.statistics for r in rulings), Statistics()),
                  QuantileTable(tuple(row for r in rulings for row in r.quantiles.rows)), verdicts,
                  {name: value for r in rulings for name, value in r.tolerances.items()})


def _safely(name: str, question: str, compute: Callable[[], Iterable[Test]]) -> list[Test]:
    """The tests, or one row that says why they are not possible: never a crash for want of data."""
    try:
        return list(compute())
    except (InputError, np.linalg.LinAlgError, ValueError, ZeroDivisionError) as error:
        return [not_possible(name, f"not possible with these data: {error}", question=question)]


def _of(tests: Iterable[Test], backend: str) -> list[Test]:
    return [replace(test, backend=backend, stage="after" if backend else "before")
            for test in tests]


def _distributions(trial: Trial) -> Iterator[Test]:
    """B: grey levels between sites, by tissue."""
    scale = _scale(trial)
    sources = [("", "before", next(iter(trial.evaluations.values())))]
    sources += [(name, "after", found) for name, found in trial.evaluations.items() if name]
    for backend, stage, evaluation in sources:
        for tissue in dict.fromkeys(evaluation.quantiles.column("tissue")):
            part = _curves(evaluation, stage, tissue)
            if not len(part):
                continue
            matrix, sites, who = part.matrix(), part.column("site"), part.column("subject")
            tests = _safely("distribution_distance", "scanner", lambda: [distance_between_sites(
                matrix, sites, who, scale, permutations=trial.permutations, seed=trial.seed)])
            if tissue == "brain":
                tests += _safely("anderson_darling", "scanner", lambda: [anderson_darling(
                    matrix, sites, seeds=(trial.seed,))])
            yield from (replace(test, tissue=tissue) for test in _of(tests, backend))


def _scale(trial: Trial) -> float:
    """R of the study: the target's unharmonized images, or, where it is no site, all of them."""
    table = _curves(next(iter(trial.evaluations.values())), "before")
    here = table.select(site=trial.target)
    scale = intensity_range((here if len(here) else table).matrix().mean(axis=0))
    if not scale > 0:
        raise InputError("expected unharmonized images with a range of intensities, got none.")
    return scale


def _guesses(trial: Trial) -> list[Test]:
    """C: can the site be guessed."""
    after = {name: found.texture for name, found in trial.features.items() if name}
    return _safely("site_f1_retrained", "scanner", lambda: site_tests(
        trial.features[""].texture, after, trial.design.sites, trial.design.subjects, trial.target,
        permutations=trial.permutations, seed=trial.seed))


def _volumes(trial: Trial) -> Iterator[Test]:
    """D: site and person in tissue ratios."""
    if not trial.features[""].ratios:
        yield not_possible("marginal_r2", "no segmentation was asked for, so there are no tissue "
                           "ratios", question="scanner")
        return
    for backend, found in trial.features.items():
        yield from _of(_safely("marginal_r2", "scanner", lambda: volume_tests(
            found.ratios, trial.design, trial.reference, seed=trial.seed)), backend)


def _pairs(trial: Trial, working: Working) -> tuple[Metrics, list[Test]]:
    """A: travelling people, image against image."""
    if not trial.roams:
        return Metrics(), [not_possible(
            "travelling_pair", f"nobody was scanned at two sites{_limit_words(trial)} (or "
            "travelling=no), so no image can be compared with the same brain elsewhere",
            question="person")]
    ranges = {trial.modality: _scale(trial)}
    goal = _goal(trial)
    table = partial(_pair_table, trial, goal, ranges, working)
    tables = {"": table(None, ""), RESCALED: table(None, "", _linear_maps(trial))}
    for name, cohort in trial.variants.items():
        tables[name] = table(cohort, name)
    tests = _safely("travelling_pair", "person",
                    lambda: compare_methods(tables, target=goal, seed=trial.seed))
    return sum(tables.values(), Metrics()), tests


def _limit_words(trial: Trial) -> str:
    """The limit of `Cohort.traveling`, where it leaves out scans."""
    apart = not all(trial.design.concurrent)
    return f" within {MAX_TRAVELING_YEARS:g} year" if apart else ""


def _linear_maps(trial: Trial) -> dict[str, tuple[float, float]]:
    """Gain and offset of every scan that give it the mean and spread of the target (or of all)."""
    table = _curves(next(iter(trial.evaluations.values())), "before")
    here = table.select(site=trial.target)
    gain, offset = moment_map(table.matrix(), (here if len(here) else table).matrix().mean(axis=0))
    return {name: (float(a), float(b))
            for name, a, b in zip(table.column("scan"), gain[:, 0], offset[:, 0])}


def _goal(trial: Trial) -> str:
    """The target where travelling people were at it: pairs then end there, so that their number
    grows with the scans and not with the square of the sites. Else every ordered pair counts.
    """
    ends = {pair.second.site for pair in site_pairs(trial.before)}
    return trial.target if trial.target in ends else ""


def _pair_table(trial: Trial, goal: str, ranges: Mapping[str, float],
                working: Working, after: Cohort | None, backend: str,
                maps: Mapping[str, tuple[float, float]] | None = None) -> Metrics:
    """Rows of one method, kept between runs."""
    paths = [scan.image for scan in (*trial.before, *(after or ()))]
    key = file_key(paths, "pairs", backend, trial.target, goal, ranges, maps,
                   [(scan.scan_id, scan.subject, scan.site) for scan in trial.before],
                   [(p.first.scan_id, p.second.scan_id) for p in site_pairs(trial.before)])
    label = f"{trial.modality} pairs {backend or ('before' if maps is None else RESCALED)}"
    rows = kept(trial.cache, key, lambda: [vars(row) for row in pair_metrics(
        trial.before, after, trial.target, ranges, backend=backend, maps=maps, to=goal,
        mapper=working(label))])
    return Metrics(tuple(Metric(**row) for row in rows))


def _agreement(trial: Trial) -> Iterator[Test]:
    """A: does a person's number follow him from scanner to scanner."""
    if not trial.roams:
        return
    rows = np.flatnonzero(trial.design.concurrent)
    design = trial.design.take(rows)
    for backend, found in trial.features.items():
        features = {**{f"{name} ratio": column[rows] for name, column in found.ratios.items()},
                    **{name: column[rows] for name, column in found.means.items()}}
        yield from _of(_safely("icc31", "person", lambda: agreement_tests(
            features, design.subjects, design.sites, seed=trial.seed)), backend)


def _identity(trial: Trial) -> Iterator[Test]:
    """A: can a person be told from others, from site to site and after harmonization."""
    scans = trial.before.scans
    now = [scan for scan, same_time in zip(scans, trial.design.concurrent) if same_time]
    prints = {name: {scan.scan_id: trial.numbers[scan.scan_id].prints[name] for scan in scans}
              for name in ("", *trial.variants)}
    for backend, found in prints.items():
        if trial.roams:
            yield from _of(_safely("identification", "person", lambda: travelling_identity(
                found, now, trial.seed)), backend)
        if backend:
            yield from (replace(test, stage="change", backend=backend) for test in _safely(
                "source_identification", "person", lambda: source_identity(
                    prints[""], found, scans, trial.seed)))


def _biology(trial: Trial) -> Iterator[Test]:
    """E: age, sex and what the user names."""
    raw = trial.features[""].matrix()
    known = trial.target in trial.before.sites
    site = trial.target if known else trial.reference
    for backend, found in trial.features.items():
        matrix = found.matrix()
        shared = np.isfinite(raw).any(axis=0) & np.isfinite(matrix).any(axis=0)
        train = (raw if known else matrix)[:, shared]
        tests = _safely("age_r2", "biology", lambda: age_tests(
            train, matrix[:, shared], trial.design, site, trial.seed))
        features = {f"{name} ratio": column for name, column in found.ratios.items()} or found.means
        if "GM" in found.ratios:
            tests += corrected(_safely("age_interaction_any", "biology", lambda: age_by_scanner(
                found.ratios["GM"], trial.design, trial.reference)), "bh")
        tests += corrected(_safely("effect_size", "biology", lambda: effect_tests(
            features, trial.design, trial.covariates, seed=trial.seed)), "bh")
        yield from _of(tests, backend)


def _anatomy(trial: Trial, working: Working
             ) -> tuple[Tolerance, dict[str, dict[str, Verdict]], list[Metric], list[Test]]:
    """F: the guard over all scans and methods."""
    if not trial.variants:
        return Tolerance(), {}, [], []
    tolerance = _tolerance(trial, working)
    verdicts, rows, tests = {}, [], []
    for backend in trial.variants:
        found = {scan.scan_id: judge(trial.numbers[scan.scan_id].anatomy[backend], tolerance)
                 for scan in trial.before}
        verdicts[backend] = found
        for scan in trial.before:
            rows += _guard_rows(scan, found[scan.scan_id], backend, trial.target)
        tests += [replace(test, backend=backend, stage="change")
                  for test in _guard_tests(trial, found, tolerance)]
    tests += [Test("anatomy_limit", tolerance.pairs, limit, reference=name, question="anatomy",
                   unit=MEASURES[name].unit, method=tolerance.origin, stage="before")
              for name, limit in tolerance.limits.items()]
    return tolerance, verdicts, rows, tests


def _tolerance(trial: Trial, working: Working) -> Tolerance:
    paths = [scan.image for scan in trial.before]
    key = file_key(paths, "tolerance of rescans", trial.seed,
                   trial.segment and name_of(trial.segment),
                   [(p.first.scan_id, p.second.scan_id) for p in rescans(trial.before)])
    found = kept(trial.cache, key, lambda: vars(learn_tolerance(
        trial.before, trial.segment, seed=trial.seed,
        mapper=working(f"{trial.modality} limits from rescans"))))
    return Tolerance(**found)


def _guard_rows(scan: Scan, verdict: Verdict, backend: str, target: str) -> Iterator[Metric]:
    """What `evaluate_cohort` does not write already: edges, local change, Dice, rAVD, verdict."""
    values = {name: value for name, value in verdict.values.items()
              if name not in ("ssim_structure", "gradient_agreement")}
    for name, value in {**values, "anatomy_held": float(verdict.ok)}.items():
        yield Metric(name, value, MEASURES[name].unit, "change", scan.subject, scan.session or "",
                     scan.scan_id, scan.modality, scan.site, backend=backend, target=target,
                     reference="; ".join(verdict.reasons) if name == "anatomy_held" else "")


def _guard_tests(trial: Trial, found: Mapping[str, Verdict], tolerance: Tolerance
                 ) -> Iterator[Test]:
    subjects = trial.design.subjects
    ids = [scan.scan_id for scan in trial.before]
    flagged = np.array([not found[name].ok for name in ids], dtype=float)
    interval = partial(bootstrap_interval, subjects=subjects, seed=trial.seed)
    yield Test("anatomy_flagged", trial.design.people, float(flagged.mean()),
               *interval(lambda rows, who: float(flagged[rows].mean())),
               p=chance_of_flags(int(flagged.sum()), len(flagged), tolerance),
               method=f"limits from {tolerance.origin}; a faithful image breaks any of them with a "
               f"chance of {tolerance.flagged:.2f}; p: so many flags or more on faithful images "
               "(beta-binomial); interval: bootstrap over people", question="anatomy")
    for name in GUARDED:
        values = np.array([found[key].values.get(name, math.nan) for key in ids])
        if np.isfinite(values).any():
            yield Test("anatomy_measure", trial.design.people, _mean_of_known(values),
                       *interval(lambda rows, who: _mean_of_known(values[rows])),
                       unit=MEASURES[name].unit, reference=name, question="anatomy",
                       method="mean over scans; bootstrap over people",
                       note=f"{np.count_nonzero(~np.isfinite(values))} scans without this number"
                       if not np.isfinite(values).all() else "")


def _mean_of_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _texture_rows(trial: Trial) -> Iterator[Metric]:
    """Noise, blur and band energies of every scan and method, and what the site explains of them.
    """
    for backend in ("", *trial.variants):
        rows = [row for scan in trial.before for row in texture_rows(
            scan, trial.numbers[scan.scan_id].texture[backend], backend, trial.target)]
        yield from rows
        yield from (replace(row, backend=backend, target=trial.target if backend else "")
                    for row in eta_rows(rows, trial.modality))


def _ratio_rows(trial: Trial) -> list[Metric]:
    """Tissue ratios of every scan and method."""
    return [Metric("tissue_ratio", float(column[i]), "1", "after" if backend else "before",
                   scan.subject, scan.session or "", scan.scan_id, scan.modality, scan.site,
                   tissue, backend=backend, target=trial.target if backend else "")
            for backend, found in trial.features.items()
            for tissue, column in found.ratios.items()
            for i, scan in enumerate(trial.before)]


def _signed(test: Test, trial: Trial, people: Mapping[str, tuple[str, ...]]) -> Test:
    """Modality, target and both lists of people; who was fitted on and judged is said aloud."""
    name = f"fit of {test.backend}"
    fitted = name if name in people else ""
    if test.backend == COMBAT or test.name.startswith(("site_f1", "target_fid", "age_r2")):
        folds = "other people (folds)"
        fitted = f"{fitted}; {folds}" if fitted else folds
    overlap = len(set(people.get(name, ())) & set(people["evaluated"]))
    note = test.note
    if overlap and test.known:
        said = (f"{overlap} of {len(people['evaluated'])} people were in the method's own fit: "
                "optimistic")
        note = f"{note}; {said}" if note else said
    return replace(test, modality=trial.modality, target=trial.target if test.backend else "",
                   fitted_on=fitted, computed_on="evaluated", note=note)


def _checks(trial: Trial) -> tuple[ConfoundingCheck, ...]:
    """Age, sex and the named variables against site."""
    design = trial.design
    return check_confounding(
        design.subjects, design.sites,
        [None if math.isnan(age) else float(age) for age in design.ages], design.sexes, trial.seed,
        {name: design.column(name).tolist() for name in trial.checked})


def _confounding(trial: Trial) -> list[Test]:
    """A row for each named variable, and for age or sex where they cannot be told from site."""
    return [Test("site_confounding", check.people - check.missing, check.effect,
                 p=min(check.tests.values(), default=None), reference=check.variable,
                 question="biology", stage="before",
                 method=f"{check.effect_name}; smallest p of {', '.join(check.tests) or 'no test'};"
                 " one value per subject and site", note=check.warning)
            for check in _checks(trial) if check.is_site or check.variable in trial.checked]


def _with_warnings(tests: Iterable[Test], trial: Trial) -> Iterator[Test]:
    """The confounding said beside every number that it touches."""
    words = "; ".join(map(_confounding_words, (c for c in _checks(trial) if c.warning)))
    for test in tests:
        touched = (words and test.known and test.question in ("scanner", "biology")
                   and test.name != "site_confounding")
        yield replace(test, note="; ".join(filter(None, (test.note, words)))) if touched else test


def _confounding_words(check: ConfoundingCheck) -> str:
    if check.is_site:
        return f"{check.variable} cannot be told from site"
    if check.tests:
        return (f"{check.variable} may differ between sites "
                f"({check.effect_name} {check.effect:.2f})")
    return f"it is not known whether {check.variable} differs between sites"
