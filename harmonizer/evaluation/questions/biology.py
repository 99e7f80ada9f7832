"""Effects of age, sex and named covariates before and after harmonization.

Harmonization should remove the site effect and preserve biology. A method that maps all subjects to
one mean image removes the site effect and fails here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..statistics.design import (
    Design,
    dummies,
    partial_eta_squared,
    partial_eta_squared_test,
    residual_squares,
)
from ..statistics.equivalence import RETENTION_MARGIN, smallest_detectable
from ..statistics.resampling import (
    NO_SUBJECT_INFORMATION,
    Test,
    bootstrap_interval,
    not_possible,
    resample_subjects,
)

__all__ = ["age_by_scanner", "age_loss", "age_tests", "effect_losses", "effect_size",
           "effect_tests", "predict_age"]

MIN_TRAIN_SUBJECTS = 8  # with an age, at the target site
MIN_TEST_SUBJECTS = 5  # with an age, at other sites
MIN_EFFECT_SUBJECTS = 8
BOOTSTRAP_DRAWS = 500
FOLDS = 5


def predict_age(train: np.ndarray, test: np.ndarray, design: Design, target: str, seed: int = 0
                ) -> np.ndarray:
    """Predict the age of scans outside the target site by ridge regression.

    Features are standardized. The regression is fitted on the target's rows of `train` and applied
    to `test`. The scans of a subject are never predicted by a fit that contains the subject (folds
    by subject).

    Parameters
    ----------
    train, test : ndarray, shape (n, F)
        Features for training and prediction, of the same scans.
    design : Design
        Site, subject and age of each scan.
    target : str
        Site to train on.
    seed : int
        Seed of the folds.

    Returns
    -------
    ndarray, shape (n,)
        In years; NaN for scans of the target.
    """
    ages, sites = design.ages, np.asarray(design.sites)
    known = np.isfinite(ages) & np.isfinite(train).all(axis=1) & np.isfinite(test).all(axis=1)
    learn, look = known & (sites == target), known & (sites != target)
    predicted = np.full(len(design), math.nan)
    for group in _test_groups(design, learn, look, seed):
        fit_rows = learn & ~np.isin(design.subjects, group)
        rows = look & np.isin(design.subjects, group)
        if fit_rows.sum() >= 2 and rows.any():
            predicted[rows] = _ridge().fit(train[fit_rows], ages[fit_rows]).predict(test[rows])
    return predicted


def _test_groups(design: Design, learn: np.ndarray, look: np.ndarray, seed: int
              ) -> Iterator[list[str]]:
    """Yield groups of subjects to predict: those not at the target, then folds of the others."""
    subjects = np.asarray(design.subjects)
    train, tested = set(subjects[learn]), set(subjects[look])
    yield sorted(tested - train)
    both = np.random.default_rng(seed).permutation(sorted(tested & train))
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
    """Compute R2 and mean absolute error of age predicted at other sites.

    Parameters
    ----------
    train : ndarray, shape (n, F)
        Features of the unharmonized images; the target's rows are used.
    test : ndarray, shape (n, F)
        Features of the evaluated images, of the same scans.
    design : Design
        Site, subject and age of each scan.
    target : str
        Site to train on.
    seed : int
        Seed of folds and bootstrap.

    Returns
    -------
    tuple of Test
        ``age_r2`` = 1 - SSE / SST, with SST about the mean age of the tested subjects, and
        ``age_mae`` in years.
    """
    n_train, n_test = _count_subjects(train, test, design, target)
    context: dict[str, Any] = {"question": "biology", "reference": "age"}
    if n_train < MIN_TRAIN_SUBJECTS or n_test < MIN_TEST_SUBJECTS:
        why = (f"{n_train} subjects with an age at the target '{target}' and {n_test} elsewhere; "
               f"{MIN_TRAIN_SUBJECTS} and {MIN_TEST_SUBJECTS} are needed")
        return tuple(not_possible(name, why, n_test, **context) for name in ("age_r2", "age_mae"))
    if not all(np.ptp(design.ages[rows & np.isfinite(design.ages)]) > 0 for rows in _two_sides(
            design, target)):
        return tuple(not_possible(
            name, "all subjects at the target, or elsewhere, have the same age",
            n_test, **context) for name in ("age_r2", "age_mae"))
    predicted = predict_age(train, test, design, target, seed)
    rows = np.flatnonzero(np.isfinite(predicted))
    ages, predictions = design.ages[rows], predicted[rows]
    who = [design.subjects[i] for i in rows]
    method = f"ridge on {train.shape[1]} features of {n_train} subjects; bootstrap over subjects"
    scores = {"age_r2": lambda r, w: _r2(ages[r], predictions[r]),
              "age_mae": lambda r, w: float(np.abs(ages[r] - predictions[r]).mean())}
    every = np.arange(len(rows))
    return tuple(
        Test(name, len(set(who)), score(every, every),
             *bootstrap_interval(score, who, draws=BOOTSTRAP_DRAWS, seed=seed), method=method,
             unit="1" if name == "age_r2" else "years", **context)
        for name, score in scores.items())


def _two_sides(design: Design, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which scans are at the target, and which elsewhere, bool of shape (n,)."""
    at = np.asarray(design.sites) == target
    return at, ~at


def _count_subjects(train: np.ndarray, test: np.ndarray, design: Design, target: str
                    ) -> tuple[int, int]:
    """Return the number of subjects with age and all features at the target, and elsewhere."""
    finite = np.isfinite(train).all(axis=1) & np.isfinite(test).all(axis=1)
    known = np.isfinite(design.ages) & finite
    at = np.asarray(design.sites) == target
    subjects = np.asarray(design.subjects)
    return len(set(subjects[known & at])), len(set(subjects[known & ~at]))


def _r2_of_rows(ages: np.ndarray, predicted: np.ndarray, rows: np.ndarray) -> float:
    return _r2(ages[rows], predicted[rows])


def _r2(ages: np.ndarray, predicted: np.ndarray) -> float:
    total = np.sum((ages - ages.mean()) ** 2)
    return float(1 - np.sum((ages - predicted) ** 2) / total) if total > 0 else math.nan


def age_loss(train: np.ndarray, bases: Mapping[str, np.ndarray], after: np.ndarray, design: Design,
             target: str, seed: int = 0) -> Test:
    """Compute the fraction of the R2 of age that is lost by harmonization.

    Parameters
    ----------
    train, after : ndarray, shape (n, F)
        As `train` and `test` of `age_tests`.
    bases : mapping of str to ndarray, shape (n, F)
        Features of unharmonized and of linearly rescaled images. The loss is against the first from
        which age can be predicted: the interval of R2 lies above 0.
    design, target, seed
        As in `age_tests`.

    Returns
    -------
    Test
        ``age_r2_loss``; a row without a number if age cannot be predicted from any base.
    """
    context: dict[str, Any] = {"question": "biology", "reference": "age"}
    for name, base in bases.items():
        before = age_tests(train, base, design, target, seed)[0]
        if not before.known:
            return not_possible("age_r2_loss", before.note, before.n, **context)
        if before.low is None or not before.low > 0:
            continue
        predicted = [predict_age(train, table, design, target, seed) for table in (base, after)]
        rows = np.flatnonzero(np.isfinite(predicted[0]) & np.isfinite(predicted[1]))
        before_r2, after_r2 = (partial(_r2_of_rows, design.ages[rows], one[rows])
                               for one in predicted)
        return _loss_test("age_r2_loss", before_r2, after_r2,
                          [design.subjects[i] for i in rows], name, context, seed)
    return not_possible("age_r2_loss", "age cannot be predicted before harmonization (the interval "
                        "of R2 contains 0)", design.n_subjects, **context)


def _loss_test(name: str, before: Callable[[np.ndarray], float],
               after: Callable[[np.ndarray], float], subjects: Sequence[str], base: str,
               context: Mapping[str, Any], seed: int) -> Test:
    """Return 1 - after / before of two statistics of the same rows."""
    every = np.arange(len(subjects))
    draws = np.array([1 - after(rows) / before(rows) if before(rows) else math.nan
                      for rows, _ in resample_subjects(subjects, BOOTSTRAP_DRAWS, seed)])
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) > 1 else (math.nan, math.nan)
    return Test(name, len(set(subjects)), 1 - after(every) / before(every), float(low), float(high),
                margin=RETENTION_MARGIN, detectable=smallest_detectable(
                    float(np.diff(np.quantile(known, [0.16, 0.84]))[0]) / 2
                    if len(known) > 1 else math.nan),
                method=f"1 - after / {base}; paired bootstrap over subjects", **context)


def effect_losses(bases: Mapping[str, Mapping[str, Sequence[float]]],
                  after: Mapping[str, Sequence[float]], design: Design, covariates: Sequence[str],
                  *, seed: int = 0) -> tuple[Test, ...]:
    """Compute the fraction of each effect of a covariate on a feature that is lost.

    Parameters
    ----------
    bases : mapping of str to mapping of str to sequence of float
        Features before, by stage ("before", "rescaled"). The loss is against the first whose effect
        is established: its interval excludes zero.
    after : mapping of str to sequence of float
        Features of harmonized images.
    design, covariates, seed
        As in `effect_tests`.

    Returns
    -------
    tuple of Test
        ``effect_loss`` of the effects that are established before.
    """
    tests = []
    for covariate in covariates:
        known = design.known(covariate)
        for feature in after:
            tests += _effect_loss(bases, after, feature, covariate, design, known, seed)
    return tuple(tests)


def _effect_loss(bases: Mapping[str, Mapping[str, Sequence[float]]],
                 after: Mapping[str, Sequence[float]], feature: str, covariate: str,
                 design: Design, known: np.ndarray, seed: int) -> list[Test]:
    for base, features in bases.items():
        if feature not in features:
            continue
        one, two = (np.asarray(table[feature], float) for table in (features, after))
        rows = np.flatnonzero(known & np.isfinite(one))
        if not len(rows):
            continue
        test = _effect_test(one[rows], design.select_rows(rows), covariate, feature, seed)
        if not test.known or test.name == "partial_eta_squared" or not test.excludes_zero:
            continue
        rows = rows[np.isfinite(two[rows])]
        part = design.select_rows(rows)
        if part.n_subjects < MIN_EFFECT_SUBJECTS:
            return [Test("effect_loss", test.n, 1.0, 1.0, 1.0, margin=RETENTION_MARGIN,
                         question="biology", reference=test.reference,
                         method=f"{part.n_subjects} subjects have the feature after harmonization, "
                         "so the effect is lost")]
        blocks = _blocks(part, covariate)
        return [_loss_test(
            "effect_loss", partial(_effect_of_rows, one[rows], blocks),
            partial(_effect_of_rows, two[rows], blocks), part.subjects, base,
            {"question": "biology", "reference": test.reference}, seed)]
    return []


def _effect_of_rows(y: np.ndarray, blocks: tuple[str, np.ndarray, np.ndarray], rows: np.ndarray
                    ) -> float:
    """Return the effect in some rows; 0 for a feature that is constant."""
    kind, x, rest = blocks
    return _effect(kind, y[rows], x[rows], rest[rows]) if np.ptp(y[rows]) > 0 else 0.0


def age_by_scanner(volume: Sequence[float], design: Design, reference: str) -> tuple[Test, ...]:
    """Test whether the slope of age on tissue volume depends on the site: age ~ volume x site [1]_.

    With several scans of a subject, the errors of the slopes are clustered by subject.

    Parameters
    ----------
    volume : sequence of float, length n
        Tissue ratio, standardized here.
    design : Design
        Site, subject and age of each scan.
    reference : str
        Reference site.

    Returns
    -------
    tuple of Test
        The F test of all interactions, the residual standard error in years, and a t test per site
        in years per standard deviation of the volume.

    References
    ----------
    .. [1] Caldera et al. 2025, DISARM++. arXiv:2505.03715
    """
    y, x, sites, subjects = _complete(volume, design)
    names = sorted(set(sites), key=lambda site: (site != reference, site))
    few = [name for name in names if len(set(subjects[sites == name])) < 3]
    context: dict[str, Any] = {"question": "biology"}
    if len(names) < 2 or few or len(y) <= 2 * len(names) + 1 or not np.ptp(y) > 0 or not (
            x.std() > 1e-6 * abs(x.mean())):
        why = (f"fewer than 3 subjects with an age at {', '.join(few)}" if few else
               "one site, one age or volume for all, or fewer scans than slopes")
        return (not_possible("age_interaction_any", why, len(set(subjects)), **context),)
    z = (x - x.mean()) / x.std(ddof=1)
    site = dummies(sites, first=names[0])
    slopes = site * z[:, None]
    rest, df = residual_squares(y, z, site, slopes)
    _, p = partial_eta_squared_test(y, slopes, np.column_stack([z, site]))
    repeated = len(set(subjects)) < len(y)
    n = len(set(subjects))
    tests = [Test("age_interaction_any", n, (residual_squares(y, z, site)[0] - rest)
                  / residual_squares(y)[0], p=None if repeated else p,
                  method="change of R2; F test", **context,
                  note="no p: subjects have several scans" if repeated else ""),
             Test("age_rmse", n, math.sqrt(rest / df), unit="years",
                  method="residual standard error", **context)]
    return tuple(tests + _slope_tests(y, z, site, slopes, names, subjects, repeated, context))


def _complete(volume: Sequence[float], design: Design
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return age, volume, site and subject of the scans that have age and volume."""
    x = np.asarray(volume, float)
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(design.ages))
    return (design.ages[rows], x[rows], np.asarray(design.sites)[rows],
            np.asarray(design.subjects)[rows])


def _slope_tests(y: np.ndarray, z: np.ndarray, site: np.ndarray, slopes: np.ndarray,
                 names: Sequence[str], subjects: np.ndarray, repeated: bool,
                 context: Mapping[str, Any]) -> list[Test]:
    """Return one t test per interaction term."""
    import statsmodels.api as sm

    table = np.column_stack([np.ones(len(y)), z, site, slopes])
    groups = np.unique(subjects, return_inverse=True)[1]
    fit = (sm.OLS(y, table).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
           if repeated else sm.OLS(y, table).fit())
    interval = np.asarray(fit.conf_int(0.05))
    first = 2 + site.shape[1]
    words = "t test" + (", errors clustered by subject" if repeated else "")
    return [Test("age_interaction", len(set(subjects)), float(fit.params[first + i]),
                 float(interval[first + i, 0]), float(interval[first + i, 1]),
                 float(fit.pvalues[first + i]), method=words, unit="years", site=name,
                 reference=names[0], **context)
            for i, name in enumerate(names[1:])]


def effect_size(values: Sequence[float] | np.ndarray, design: Design, covariate: str
                ) -> tuple[str, float, float]:
    """Compute the effect of a covariate on a feature, adjusted for site, age and sex.

    Two groups give Cohen's d (second group by name minus the first, over the residual standard
    deviation), a number a standardized slope, and more groups partial eta squared.

    Parameters
    ----------
    values : sequence of float, length n
        Feature.
    design : Design
        Design of the scans; age and sex are used if known for all.
    covariate : str
        Covariate to test.

    Returns
    -------
    kind : str
        "cohens_d", "standardized_beta" or "partial_eta_squared".
    effect : float
        NaN if the covariate is a combination of the others.
    p : float
        NaN if a subject has several scans.
    """
    y = np.asarray(values, float)
    kind, x, rest = _blocks(design, covariate)
    p = partial_eta_squared_test(y, x, rest)[1] if design.n_subjects == len(design) else math.nan
    return kind, _effect(kind, y, x, rest), p


def _blocks(design: Design, covariate: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the kind of effect, the columns of the covariate, and those of site, age and sex."""
    column = design.column(covariate)
    others, _ = design.adjusting([name for name in ("age", "sex") if name != covariate])
    rest = np.hstack([dummies(design.sites), others])
    if column.dtype.kind == "f":
        return "standardized_beta", column[:, None], rest
    groups = dummies(column)
    return ("cohens_d" if groups.shape[1] == 1 else "partial_eta_squared"), groups, rest


def _effect(kind: str, y: np.ndarray, x: np.ndarray, rest: np.ndarray) -> float:
    """Return the effect of columns x, shape (n, k), on y; NaN if it is not defined."""
    if kind == "partial_eta_squared":
        return partial_eta_squared(y, x, rest)
    slope = _coefficient(y, x[:, 0], rest)
    if kind == "standardized_beta":
        return slope * x[:, 0].std(ddof=1) / _or_nan(y.std(ddof=1))
    squares, df = residual_squares(y, x, rest)
    return slope / _or_nan(math.sqrt(squares / df)) if df > 0 else math.nan


def _or_nan(number: float) -> float:
    return number if number > 0 else math.nan


def _coefficient(y: np.ndarray, x: np.ndarray, rest: np.ndarray) -> float:
    """Return the coefficient of x in y ~ 1 + x + rest; NaN if x is a combination of the others."""
    table = np.column_stack([np.ones(len(y)), rest])
    residual = x - table @ np.linalg.lstsq(table, x, rcond=None)[0]
    if not np.sum(residual**2) > 1e-10 * np.sum((x - x.mean()) ** 2):
        return math.nan
    return float(residual @ y / (residual @ residual))


def effect_tests(features: Mapping[str, Sequence[float]], design: Design,
                 covariates: Sequence[str], *, seed: int = 0) -> tuple[Test, ...]:
    """Test the effect of every covariate on every feature.

    Parameters
    ----------
    features : mapping of str to sequence of float
        One value per scan.
    design : Design
        Design of the scans; rows with an unknown covariate are left out.
    covariates : sequence of str
        Covariates to test.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        p is missing if subjects have several scans, which are not independent. The interval is over
        subjects.
    """
    tests = []
    for covariate in covariates:
        known = design.known(covariate)
        for name, values in features.items():
            rows = np.flatnonzero(known & np.isfinite(np.asarray(values, float)))
            tests.append(_effect_test(np.asarray(values, float)[rows], design.select_rows(rows),
                                      covariate, name, seed))
    return tuple(tests)


def _effect_test(y: np.ndarray, design: Design, covariate: str, name: str, seed: int) -> Test:
    reference = f"{name} | {covariate}"
    column = design.column(covariate)
    reason = _confounded_with_site(design, covariate) or _no_effect(y, column, design)
    if reason:
        return not_possible("effect_size", reason, design.n_subjects, reference=reference,
                            question="biology")
    kind, effect, p = effect_size(y, design, covariate)
    if kind == "cohens_d":
        one, two = sorted(set(column))
        reference += f": {two} - {one}"
    if not math.isfinite(effect):
        return not_possible(kind, f"{covariate} cannot be told from site, age or sex here",
                            design.n_subjects, reference=reference, question="biology")

    _, x, rest = _blocks(design, covariate)
    low, high = bootstrap_interval(lambda rows, who: _effect(kind, y[rows], x[rows], rest[rows]),
                                   design.subjects, draws=BOOTSTRAP_DRAWS, seed=seed)
    return Test(kind, design.n_subjects, effect, low, high, p if math.isfinite(p) else None,
                method="adjusted for site, age and sex; F test; bootstrap over subjects",
                reference=reference, question="biology",
                note="" if math.isfinite(p) else "no p: subjects have several scans")


def _confounded_with_site(design: Design, covariate: str) -> str:
    """Return a reason if a covariate varies between sites only, else ""."""
    column = np.asarray(design.column(covariate))
    within = {site: set(column[np.asarray(design.sites) == site].tolist()) for site in design.sites}
    varies = len(set().union(*within.values())) > 1
    if not varies or any(len(values) > 1 for values in within.values()) or (
            design.n_subjects <= len(within)):
        return ""
    return f"{covariate} cannot be told from site: all scans of a site have the same value"


def _no_effect(y: np.ndarray, column: np.ndarray, design: Design) -> str:
    """Return the reason why an effect cannot be estimated, else ""."""
    if design.n_subjects < MIN_EFFECT_SUBJECTS:
        return f"{design.n_subjects} subjects have a value; {MIN_EFFECT_SUBJECTS} are needed"
    if len(set(column)) < 2:
        return "all subjects have the same value"
    if not np.std(y) > 1e-6 * abs(np.mean(y)):
        return f"the feature is the same in every scan: {NO_SUBJECT_INFORMATION}"
    if column.dtype.kind != "f":
        counts = {value: len({w for w, v in zip(design.subjects, column) if v == value})
                  for value in set(column)}
        if min(counts.values()) < 2:
            return "a group has one subject only"
    return ""
