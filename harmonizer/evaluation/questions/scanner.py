"""Classification of the site from texture features of images.

The input of a support vector machine is the first-order statistics and the gray-level co-occurrence
texture of each tissue, standardized in the training folds. It is tested on other subjects. There
are three results:

* trained on unharmonized images, applied to harmonized ones: does a known site effect remain?
* trained and tested on harmonized images: does any information about the site remain? This is the
  strictest question.
* target fidelity: does the first classifier assign the images to the target?

The chance level is the score of the same procedure with site labels permuted between subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, NotEstimableError
from ...tissues import TISSUE_LABELS
from ...volume import Volume
from ..statistics.equivalence import (
    CLASSIFICATION_MARGIN,
    interval_of_draws,
    needed_words,
    smallest_detectable,
    subjects_needed,
)
from ..statistics.resampling import (
    Chance,
    Test,
    bootstrap_interval,
    chance_level,
    not_possible,
    resample_subjects,
)
from ..table import stage_of

__all__ = ["SiteClassification", "classify_sites", "macro_f1", "reason_not_classifiable",
           "site_tests", "texture_features"]

GRAY_LEVELS = 16
MIN_SUBJECTS_PER_SITE = 3  # with fewer, a fold would train on one subject
MIN_TISSUE_VOXELS = 50
FOLDS = 5
PERMUTATIONS = 200
BOOTSTRAP_FITS = 100  # for the standard error of the F1
TEXTURES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")


def texture_features(volume: Volume, labels: np.ndarray | None, gray_range: tuple[float, float],
                     step: int = 1) -> dict[str, float]:
    """Compute first-order and texture features of each tissue, with names such as ``gm_contrast``.

    First order: mean, standard deviation, skewness, kurtosis, entropy of the bins (bit), 10th and
    90th percentile, of intensities scaled to 0-1 over the gray range. Texture: contrast,
    dissimilarity, homogeneity, energy and correlation of neighbors in a slice [1]_, mean over four
    directions.

    Parameters
    ----------
    volume : Volume
        Image with its mask.
    labels : ndarray, shape (I, J, K), or None
        1 CSF, 2 GM, 3 WM, 0 elsewhere. None computes features of the whole brain.
    gray_range : tuple of float
        Lowest and highest intensity of the study; 16 bins between them.
    step : int
        Texture is computed on every `step`-th slice along the last axis.

    Returns
    -------
    dict of str to float
        A tissue with fewer than 50 voxels has no features.

    Raises
    ------
    InputError
        If the gray range is empty.

    References
    ----------
    .. [1] Haralick, Shanmugam and Dinstein 1973, Textural features for image classification.
       doi:10.1109/TSMC.1973.4309314
    """
    low, high = gray_range
    if not high > low:
        raise InputError(f"expected a gray range with high above low, got {gray_range}.")
    scaled = (volume.data - low) / (high - low)
    bins = np.clip((scaled * GRAY_LEVELS).astype(int), 0, GRAY_LEVELS - 1) + 1
    features: dict[str, float] = {}
    inside = np.ones(volume.shape, bool) if volume.mask is None else volume.mask
    parts = ({"brain": inside} if labels is None else
             {name: inside & (labels == code) for name, code in TISSUE_LABELS.items()})
    for name, where in parts.items():
        if np.count_nonzero(where) >= MIN_TISSUE_VOXELS:
            numbers = _first_order(scaled[where].astype(np.float64), bins[where])
            numbers |= _texture(bins, where, step)
            features |= {f"{name.lower()}_{key}": value for key, value in numbers.items()}
    return features


def _first_order(values: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    std = values.std()
    z = (values - values.mean()) / std if std > 0 else np.zeros_like(values)
    p = np.bincount(bins, minlength=GRAY_LEVELS + 1) / bins.size
    p = p[p > 0]
    return {"mean": float(values.mean()), "sd": float(std), "skewness": float((z**3).mean()),
            "kurtosis": float((z**4).mean()), "entropy": float(-(p * np.log2(p)).sum()),
            "p10": float(np.percentile(values, 10)), "p90": float(np.percentile(values, 90))}


def _texture(bins: np.ndarray, where: np.ndarray, step: int) -> dict[str, float]:
    """Return co-occurrence features of neighbors that both lie in `where`, summed over slices."""
    from scipy import ndimage
    from skimage.feature import graycomatrix, graycoprops

    box = ndimage.find_objects(where.astype(np.uint8))[0]
    image = np.where(where[box], bins[box], 0).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    counts = sum(graycomatrix(image[:, :, k], [1], angles, GRAY_LEVELS + 1, symmetric=True)
                 .astype(np.float64) for k in range(0, image.shape[2], step))
    inside = counts[1:, 1:]
    return {name: float(np.mean(graycoprops(inside, name))) for name in TEXTURES}


def macro_f1(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Compute the mean F1 = 2 TP / (2 TP + FP + FN) over labels.

    Parameters
    ----------
    true, predicted : sequence of str, length n
        Labels.
    labels : sequence of str
        Labels to average over; one that neither occurs nor is predicted is left out.

    Returns
    -------
    float
        0 to 1; NaN if no label is left.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, labels=list(labels), average="macro",
                          zero_division=np.nan))


@dataclass(frozen=True)
class SiteClassification:
    """Predictions of a cross-validated classifier of the site.

    Attributes
    ----------
    sites, predicted : tuple of str, length n
        True and predicted site of each scan; "" if no fold tested the scan.
    subjects : tuple of str, length n
        Subject of each scan.
    """

    sites: tuple[str, ...]
    predicted: tuple[str, ...]
    subjects: tuple[str, ...]

    @property
    def f1(self) -> float:
        """Macro F1 over all sites, 0 to 1."""
        return macro_f1(self.sites, self.predicted, sorted(set(self.sites)))



def reason_not_classifiable(sites: Sequence[str], subjects: Sequence[str]) -> str:
    """Return the reason why sites cannot be classified, or "".

    Parameters
    ----------
    sites, subjects : sequence of str, length n
        Site and subject of each scan; two sites with three subjects each are needed.

    Returns
    -------
    str
        For the note of a test.
    """
    counts = {site: len({w for w, s in zip(subjects, sites) if s == site}) for site in set(sites)}
    if len(counts) < 2:
        return "there is one site only"
    small = [f"{site} ({count})" for site, count in sorted(counts.items())
             if count < MIN_SUBJECTS_PER_SITE]
    return (f"a classifier needs {MIN_SUBJECTS_PER_SITE} subjects per site to be trained on some "
            f"and tested on others; too few at {', '.join(small)}") if small else ""


def classify_sites(
    train: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    *,
    test: np.ndarray | None = None,
    seed: int = 0,
) -> SiteClassification:
    """Predict the site of each scan by a classifier trained on other subjects.

    Folds are grouped by subject and stratified by site. Features are standardized on the training
    scans. The classifier is a support vector machine with a Gaussian kernel and balanced classes.

    Parameters
    ----------
    train : ndarray, shape (n, F)
        Features for training.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.
    test : ndarray, shape (n, F), optional
        Features of the same scans for prediction; default: `train`.
    seed : int
        Seed of the folds.

    Returns
    -------
    SiteClassification
        Predictions.

    Raises
    ------
    NotEstimableError
        If there are too few sites or subjects, or a feature is not finite.
    """
    reason = reason_not_classifiable(sites, subjects)
    test = train if test is None else test
    if reason or not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise NotEstimableError("sites cannot be classified: "
                                f"{reason or 'a feature is not finite'}.")
    labels = np.asarray(sites)
    predicted = np.full(len(labels), "", dtype=object)
    for train_rows, test_rows in _folds(labels, subjects, seed):
        if len(set(labels[train_rows])) > 1:
            model = _classifier().fit(train[train_rows], labels[train_rows])
            predicted[test_rows] = model.predict(test[test_rows])
    return SiteClassification(tuple(sites), tuple(predicted), tuple(subjects))


def _folds(labels: np.ndarray, subjects: Sequence[str], seed: int
           ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    counts = [len(set(np.asarray(subjects)[labels == site])) for site in set(labels)]
    folds = max(2, min(FOLDS, min(counts), len(set(subjects))))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    yield from split.split(labels, labels, subjects)


def _classifier() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(class_weight="balanced"))


def site_tests(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    sites: Sequence[str],
    subjects: Sequence[str],
    target: str,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> tuple[Test, ...]:
    """Classify the site before harmonization and after each method.

    Parameters
    ----------
    before : ndarray, shape (n, F)
        Features of unharmonized images.
    after : mapping of str to ndarray, shape (n, F)
        Features of the same scans by method; scans with a missing feature are left out.
    sites, subjects : sequence of str, length n
        Site and subject of each scan.
    target : str
        Site harmonized to.
    permutations : int
        Permutations for the chance level.
    seed : int
        Seed of folds, permutations and bootstrap.

    Returns
    -------
    tuple of Test
        ``site_f1_retrained``, ``site_chance``, ``site_f1_excess``, ``site_f1_trained_on_raw``,
        ``target_fidelity``.
    """
    tests = _before_tests(np.asarray(before), sites, subjects, permutations, seed)
    for backend, features in after.items():
        tests += _after_tests(np.asarray(before), np.asarray(features), sites, subjects, target,
                              backend, permutations, seed)
    return tuple(tests)


def _context(method: str) -> dict[str, Any]:
    return {"question": "scanner", **stage_of(method)}


def _before_tests(before: np.ndarray, sites: Sequence[str], subjects: Sequence[str],
                  permutations: int, seed: int) -> list[Test]:
    rows, who, where = _complete(before, before, sites, subjects)
    reason = reason_not_classifiable(where, who)
    if reason:
        return [not_possible("site_f1_retrained", reason, len(set(who)), **_context(""))]
    return _f1_tests(before[rows], before[rows], where, who, "site_f1_retrained",
                    _context(""), permutations, seed)


def _after_tests(before: np.ndarray, after: np.ndarray, sites: Sequence[str],
                 subjects: Sequence[str], target: str, backend: str, permutations: int, seed: int
                 ) -> list[Test]:
    rows, who, where = _complete(before, after, sites, subjects)
    reason = reason_not_classifiable(where, who)
    context = _context(backend)
    if reason:
        return [not_possible(name, reason, len(set(who)), **context)
                for name in ("site_f1_trained_on_raw", "site_f1_retrained", "target_fidelity")]
    raw, new = before[rows], after[rows]
    tests = _f1_tests(new, new, where, who, "site_f1_retrained", context, permutations, seed)
    tests += _f1_tests(raw, new, where, who, "site_f1_trained_on_raw", context, 0, seed)
    return tests + [_fidelity(classify_sites(raw, where, who, test=new, seed=seed), target, context,
                              seed)]


def _complete(before: np.ndarray, after: np.ndarray, sites: Sequence[str],
              subjects: Sequence[str]) -> tuple[np.ndarray, list[str], list[str]]:
    """Return rows without missing features, and their subjects and sites."""
    rows = np.flatnonzero(np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1))
    return rows, [subjects[i] for i in rows], [sites[i] for i in rows]


def _f1_tests(train: np.ndarray, test: np.ndarray, sites: Sequence[str], subjects: Sequence[str],
             name: str, context: Mapping[str, Any], permutations: int, seed: int) -> list[Test]:
    """Return the F1 of one classifier and, with permutations, its chance level."""
    result = classify_sites(train, sites, subjects, test=test, seed=seed)
    n_sites = len(set(sites))
    low, high = bootstrap_interval(_f1_of_rows(np.array(sites), np.array(result.predicted)),
                                   subjects, seed=seed)
    method = (f"support vector machine, folds grouped by subject ({n_sites} sites, "
              f"{len(sites)} scans); bootstrap over subjects")
    n = len(set(subjects))
    if not permutations:
        return [Test(name, n, result.f1, low, high, method=method, **context)]
    chance = _chance(train, subjects, sites, result.f1, permutations, seed)
    words = (f"{permutations} permutations of the subjects' sites, classifier trained again each "
             "time")
    return [Test(name, n, result.f1, low, high, chance.p, method=f"{method}; p: {words}",
                 **context),
            Test("site_chance", n, chance.mean, chance.low, chance.high, method=words,
                 reference=name, **context),
            _excess_test(train, sites, subjects, result.f1, chance, context, seed)]


def _excess_test(features: np.ndarray, sites: Sequence[str], subjects: Sequence[str], f1: float,
                 chance: Chance, context: Mapping[str, Any], seed: int) -> Test:
    """Return the F1 beyond chance with an interval from classifiers of resampled subjects."""
    if not chance.permutations:
        return not_possible("site_f1_excess", "no permutation leaves enough subjects at each site",
                            len(set(subjects)), **context)
    names, who = np.asarray(sites), np.asarray(subjects)
    draws = []
    for rows, _ in resample_subjects(subjects, min(BOOTSTRAP_FITS, chance.permutations), seed):
        part = names[rows].tolist(), who[rows].tolist()
        draws.append(float("nan") if reason_not_classifiable(*part) else
                     classify_sites(features[rows], *part, seed=seed).f1)
    effect, n = f1 - chance.mean, len(set(subjects))
    low, high = interval_of_draws(effect, draws, chance.std)
    needed = subjects_needed(n, (high - low) / 2 / 1.96, CLASSIFICATION_MARGIN)
    return Test("site_f1_excess", n, effect, low, high, margin=CLASSIFICATION_MARGIN,
                detectable=smallest_detectable(chance.std),
                method="macro F1 minus the mean of permuted labels; interval: standard error of "
                f"{len(draws)} classifiers of resampled subjects, and at least that of the "
                "permutations" + needed_words(needed), **context)


def _f1_of_rows(true: np.ndarray, predicted: np.ndarray
                ) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return a function of rows that computes their macro F1, for the draws of a bootstrap.

    `macro_f1` takes 1.5 ms, most of it to check its input: 3 s for the draws of one interval.
    """
    names = np.unique(true)
    actual, assigned = true[:, None] == names, predicted[:, None] == names
    hits = actual & assigned

    def score(rows: np.ndarray, who: np.ndarray) -> float:
        sizes = actual[rows].sum(axis=0) + assigned[rows].sum(axis=0)
        found = sizes > 0
        return float((2 * hits[rows].sum(axis=0)[found] / sizes[found]).mean())

    return score


def _chance(features: np.ndarray, subjects: Sequence[str], sites: Sequence[str], observed: float,
            permutations: int, seed: int) -> Chance:
    return chance_level(
        lambda labels: classify_sites(features, labels.tolist(), subjects, seed=seed).f1
        if not reason_not_classifiable(labels.tolist(), subjects) else float("nan"),
        sites, subjects, observed, permutations=permutations, seed=seed)


def _fidelity(result: SiteClassification, target: str, context: Mapping[str, Any], seed: int
              ) -> Test:
    """Return the fraction of scans of other sites that are classified as the target's."""
    away = [i for i, site in enumerate(result.sites) if site != target]
    who = [result.subjects[i] for i in away]
    if target not in result.sites or not away:
        return not_possible("target_fidelity", f"the target '{target}' is not a site of these "
                            "scans, so no classifier was trained on it", len(set(who)),
                            **context)
    hits = np.array([result.predicted[i] == target for i in away], dtype=float)
    low, high = bootstrap_interval(lambda rows, _: float(hits[rows].mean()), who, seed=seed)
    return Test("target_fidelity", len(set(who)), float(hits.mean()), low, high,
                method="classifier trained on unharmonized images of other subjects; "
                "bootstrap over subjects", reference=target, **context)
