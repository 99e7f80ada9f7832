"""Is biology still there? Age, sex and whatever else the user names, before and after.

Harmonization may remove what the scanner did; what age and sex did must stay. A method that maps
everybody to one mean image passes every test of the scanner and fails here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..statistics.design import Design, dummies, partial_eta, partial_share, residual_squares
from ..statistics.resampling import Test, bootstrap_interval, not_possible

__all__ = ["predict_age", "age_tests", "age_by_scanner", "effect_size", "effect_tests"]

FEWEST_TO_LEARN = 8  # people with an age at the target site
FEWEST_TO_TEST = 5  # people with an age elsewhere
FEWEST_FOR_EFFECT = 8
DRAWS = 500
FOLDS = 5


def predict_age(train: np.ndarray, test: np.ndarray, design: Design, target: str, seed: int = 0
                ) -> np.ndarray:
    """Age (n,) in years of the scans outside ``target``, NaN for those of it.

    Ridge regression on standardised features, fitted on the target site's rows of ``train``
    (n, F), applied to the rows of ``test`` (n, F). A person who is at the target too is never
    predicted by a fit that saw him or her (folds by person).
    """
    ages, sites = design.ages, np.asarray(design.sites)
    known = np.isfinite(ages) & np.isfinite(train).all(axis=1) & np.isfinite(test).all(axis=1)
    learn, look = known & (sites == target), known & (sites != target)
    predicted = np.full(len(design), math.nan)
    for held in _held_out(design, learn, look, seed):
        fit_rows = learn & ~np.isin(design.subjects, held)
        rows = look & np.isin(design.subjects, held)
        if fit_rows.sum() >= 2 and rows.any():
            predicted[rows] = _ridge().fit(train[fit_rows], ages[fit_rows]).predict(test[rows])
    return predicted


def _held_out(design: Design, learn: np.ndarray, look: np.ndarray, seed: int
              ) -> Iterator[list[str]]:
    """Groups of people to predict: first those who are not at the target, then folds of the rest.
    """
    subjects = np.asarray(design.subjects)
    teachers, tested = set(subjects[learn]), set(subjects[look])
    yield sorted(tested - teachers)
    both = np.random.default_rng(seed).permutation(sorted(tested & teachers))
    folds = min(FOLDS, len(both))
    for part in range(folds):
        yield both[part::folds].tolist()


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 13)))


def age_tests(train: np.ndarray, test: np.ndarray, design: Design, target: str, seed: int = 0
              ) -> tuple[Test, ...]:
    """R2 = 1 - SSE / SST and mean absolute error of age predicted at sites it was not learned on.

    ``train``: features of unharmonized images (the target's rows are learned from); ``test``: those
    of the images to be judged, the same scans. SST is about the tested people's own mean age.
    """
    learners, tested = _people(train, test, design, target)
    context = {"question": "biology", "reference": "age"}
    if learners < FEWEST_TO_LEARN or tested < FEWEST_TO_TEST:
        why = (f"{learners} people with an age at the target '{target}' and {tested} elsewhere; "
               f"{FEWEST_TO_LEARN} and {FEWEST_TO_TEST} are needed")
        return tuple(not_possible(name, why, tested, **context) for name in ("age_r2", "age_mae"))
    if not all(np.ptp(design.ages[rows & np.isfinite(design.ages)]) > 0 for rows in _two_sides(
            design, target)):
        return tuple(not_possible(name, "everybody at the target, or elsewhere, has the same age",
                                  tested, **context) for name in ("age_r2", "age_mae"))
    predicted = predict_age(train, test, design, target, seed)
    rows = np.flatnonzero(np.isfinite(predicted))
    ages, guess = design.ages[rows], predicted[rows]
    who = [design.subjects[i] for i in rows]
    method = f"ridge on {train.shape[1]} features of {learners} people; bootstrap over people"
    scores = {"age_r2": lambda r, w: _r2(ages[r], guess[r]),
              "age_mae": lambda r, w: float(np.abs(ages[r] - guess[r]).mean())}
    every = np.arange(len(rows))
    return tuple(
        Test(name, len(set(who)), score(every, every),
             *bootstrap_interval(score, who, draws=DRAWS, seed=seed), method=method,
             unit="1" if name == "age_r2" else "years", **context)
        for name, score in scores.items())


def _two_sides(design: Design, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool: scans at the target, and those elsewhere."""
    at = np.asarray(design.sites) == target
    return at, ~at


def _people(train: np.ndarray, test: np.ndarray, design: Design, target: str) -> tuple[int, int]:
    """People with an age and all features at the target, and elsewhere."""
    finite = np.isfinite(train).all(axis=1) & np.isfinite(test).all(axis=1)
    known = np.isfinite(design.ages) & finite
    at = np.asarray(design.sites) == target
    subjects = np.asarray(design.subjects)
    return len(set(subjects[known & at])), len(set(subjects[known & ~at]))


def _r2(ages: np.ndarray, guess: np.ndarray) -> float:
    total = np.sum((ages - ages.mean()) ** 2)
    return float(1 - np.sum((ages - guess) ** 2) / total) if total > 0 else math.nan


def age_by_scanner(volume: Sequence[float], design: Design, reference: str) -> tuple[Test, ...]:
    """DISARM++'s test: age ~ volume x site; does the slope of age on volume depend on the scanner?

    ``volume``: one value per scan (grey matter ratio), standardised here, so that slopes are in
    years per standard deviation. One row per site against ``reference`` (t test of the
    interaction), one for all interactions together (F test), and the residual standard error. With
    several scans of a person the errors of the slopes are clustered by person.
    """
    y, x, sites, subjects = _complete(volume, design)
    names = sorted(set(sites), key=lambda site: (site != reference, site))
    few = [name for name in names if len(set(subjects[sites == name])) < 3]
    context = {"question": "biology"}
    if len(names) < 2 or few or len(y) <= 2 * len(names) + 1 or not np.ptp(y) > 0 or not (
            x.std() > 1e-6 * abs(x.mean())):
        why = (f"fewer than 3 people with an age at {', '.join(few)}" if few else
               "one site, one age or volume for all, or fewer scans than slopes")
        return (not_possible("age_interaction_any", why, len(set(subjects)), **context),)
    z = (x - x.mean()) / x.std(ddof=1)
    site = dummies(sites, first=names[0])
    slopes = site * z[:, None]
    rest, df = residual_squares(y, z, site, slopes)
    share, p = partial_eta(y, slopes, np.column_stack([z, site]))
    repeated = len(set(subjects)) < len(y)
    n = len(set(subjects))
    tests = [Test("age_interaction_any", n, (residual_squares(y, z, site)[0] - rest)
                  / residual_squares(y)[0], p=None if repeated else p,
                  method="change of R2; F test", **context,
                  note="no p: people have several scans" if repeated else ""),
             Test("age_rmse", n, math.sqrt(rest / df), unit="years",
                  method="residual standard error", **context)]
    return tuple(tests + _slope_tests(y, z, site, slopes, names, subjects, repeated, context))


def _complete(volume: Sequence[float], design: Design
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Age, volume, site and person of the scans that have age and volume."""
    x = np.asarray(volume, float)
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(design.ages))
    return (design.ages[rows], x[rows], np.asarray(design.sites)[rows],
            np.asarray(design.subjects)[rows])


def _slope_tests(y: np.ndarray, z: np.ndarray, site: np.ndarray, slopes: np.ndarray,
                 names: Sequence[str], subjects: np.ndarray, repeated: bool,
                 context: Mapping[str, str]) -> list[Test]:
    """One t test per interaction term, statsmodels' OLS."""
    import statsmodels.api as sm

    table = np.column_stack([np.ones(len(y)), z, site, slopes])
    groups = np.unique(subjects, return_inverse=True)[1]
    fit = (sm.OLS(y, table).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
           if repeated else sm.OLS(y, table).fit())
    interval = np.asarray(fit.conf_int(0.05))
    first = 2 + site.shape[1]
    words = "t test" + (", errors clustered by person" if repeated else "")
    return [Test("age_interaction", len(set(subjects)), float(fit.params[first + i]),
                 float(interval[first + i, 0]), float(interval[first + i, 1]),
                 float(fit.pvalues[first + i]), method=words, unit="years", site=name,
                 reference=names[0], **context)
            for i, name in enumerate(names[1:])]


def effect_size(values: Sequence[float], design: Design, covariate: str
                ) -> tuple[str, float, float]:
    """What a covariate does to a feature: kind of effect, the effect, its p (NaN if not given).

    Two groups: Cohen's d = adjusted difference (second group by name less the first) over the
    residual standard deviation. A number: standardised slope. More groups: partial eta squared.
    Adjusted for site, age and sex (whichever is known for all and is not the covariate).
    """
    y = np.asarray(values, float)
    kind, x, rest = _blocks(design, covariate)
    p = partial_eta(y, x, rest)[1] if design.people == len(design) else math.nan
    return kind, _effect(kind, y, x, rest), p


def _blocks(design: Design, covariate: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Kind of effect, the covariate's columns (n, k), and those of site, age and sex."""
    column = design.column(covariate)
    others, _ = design.adjusting([name for name in ("age", "sex") if name != covariate])
    rest = np.hstack([dummies(design.sites), others])
    if column.dtype.kind == "f":
        return "standardised_beta", column[:, None], rest
    groups = dummies(column)
    return ("cohens_d" if groups.shape[1] == 1 else "partial_eta_squared"), groups, rest


def _effect(kind: str, y: np.ndarray, x: np.ndarray, rest: np.ndarray) -> float:
    """The effect of columns x (n, k) on y; NaN where it is not defined."""
    if kind == "partial_eta_squared":
        return partial_share(y, x, rest)
    slope = _coefficient(y, x[:, 0], rest)
    if kind == "standardised_beta":
        return slope * x[:, 0].std(ddof=1) / _or_nan(y.std(ddof=1))
    squares, df = residual_squares(y, x, rest)
    return slope / _or_nan(math.sqrt(squares / df)) if df > 0 else math.nan


def _or_nan(number: float) -> float:
    return number if number > 0 else math.nan


def _coefficient(y: np.ndarray, x: np.ndarray, rest: np.ndarray) -> float:
    """Coefficient of x in y ~ 1 + x + rest; NaN where the others already say what x says."""
    table = np.column_stack([np.ones(len(y)), rest])
    residual = x - table @ np.linalg.lstsq(table, x, rcond=None)[0]
    if not np.sum(residual**2) > 1e-10 * np.sum((x - x.mean()) ** 2):
        return math.nan
    return float(residual @ y / (residual @ residual))


def effect_tests(features: Mapping[str, Sequence[float]], design: Design,
                 covariates: Sequence[str], *, seed: int = 0) -> tuple[Test, ...]:
    """The effect of every covariate on every feature (one value per scan), with an interval.

    p only where everybody has one scan: else scans would be taken for people; the interval always
    is over people. Rows whose covariate is unknown are left out.
    """
    tests = []
    for covariate in covariates:
        known = design.known(covariate)
        for name, values in features.items():
            rows = np.flatnonzero(known & np.isfinite(np.asarray(values, float)))
            tests.append(_effect_test(np.asarray(values, float)[rows], design.take(rows), covariate,
                                      name, seed))
    return tuple(tests)


def _effect_test(y: np.ndarray, design: Design, covariate: str, name: str, seed: int) -> Test:
    reference = f"{name} | {covariate}"
    column = design.column(covariate)
    reason = _told_from_nothing(design, covariate) or _no_effect(y, column, design)
    if reason:
        return not_possible("effect_size", reason, design.people, reference=reference,
                            question="biology")
    kind, effect, p = effect_size(y, design, covariate)
    if kind == "cohens_d":
        one, two = sorted(set(column))
        reference += f": {two} - {one}"
    if not math.isfinite(effect):
        return not_possible(kind, f"{covariate} cannot be told from site, age or sex here",
                            design.people, reference=reference, question="biology")

    _, x, rest = _blocks(design, covariate)
    low, high = bootstrap_interval(lambda rows, who: _effect(kind, y[rows], x[rows], rest[rows]),
                                   design.subjects, draws=DRAWS, seed=seed)
    return Test(kind, design.people, effect, low, high, p if math.isfinite(p) else None,
                method="adjusted for site, age and sex; F test; bootstrap over people",
                reference=reference, question="biology",
                note="" if math.isfinite(p) else "no p: people have several scans")


def _told_from_nothing(design: Design, covariate: str) -> str:
    """Say that a covariate varies between sites alone, or is the same for all within them."""
    column = np.asarray(design.column(covariate))
    within = {site: set(column[np.asarray(design.sites) == site].tolist()) for site in design.sites}
    varies = len(set().union(*within.values())) > 1
    if not varies or any(len(values) > 1 for values in within.values()) or (
            design.people <= len(within)):
        return ""
    return f"{covariate} cannot be told from site: all scans of a site have the same value"


def _no_effect(y: np.ndarray, column: np.ndarray, design: Design) -> str:
    """Why an effect cannot be given, or empty."""
    if design.people < FEWEST_FOR_EFFECT:
        return f"{design.people} people have a value; {FEWEST_FOR_EFFECT} are needed"
    if len(set(column)) < 2:
        return "everybody has the same value"
    if not np.std(y) > 1e-6 * abs(np.mean(y)):
        return "the feature is the same in every scan: whatever it told of people is gone"
    if column.dtype.kind != "f":
        counts = {value: len({w for w, v in zip(design.subjects, column) if v == value})
                  for value in set(column)}
        if min(counts.values()) < 2:
            return "a group has one person only"
    return ""
