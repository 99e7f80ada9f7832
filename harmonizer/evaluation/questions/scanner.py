"""Can the site still be guessed from the image?

Radiomics-style features of each tissue (first-order statistics and grey-level co-occurrence
texture) go to a classifier with a curved boundary, standardised within the training folds, tested
on people it has not seen. Three questions are kept apart:

* trained on unharmonized, applied to harmonized images: would a reader of the old images be fooled?
* retrained on harmonized images: is any information on the site left? The stricter one.
* target fidelity: does that first reader take the images for the target's?

The chance level is what the same procedure reaches when site labels are shuffled between people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ...volume import Volume
from ..paired_metrics import TISSUE_CODES
from ..statistics.resampling import Chance, Test, bootstrap_interval, chance_level, not_possible

__all__ = ["texture_features", "Guess", "why_not", "guess_sites", "macro_f1", "site_tests"]

GREY_LEVELS = 16
FEWEST_PER_SITE = 3  # people; with fewer, a fold would train on one
FEWEST_VOXELS = 50
FOLDS = 5
PERMUTATIONS = 200
TEXTURES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")


def texture_features(volume: Volume, labels: np.ndarray | None, grey_range: tuple[float, float],
                     step: int = 1) -> dict[str, float]:
    """First-order and texture features of each tissue, names such as ``gm_contrast``.

    Parameters
    ----------
    volume : image with its mask.
    labels : (I, J, K) 1 CSF, 2 GM, 3 WM, 0 elsewhere, on its grid; None takes the brain as one.
    grey_range : lowest and highest grey level of the whole study; 16 bins between them.
    step : every how many slices along the last axis the texture is counted on.

    First order: mean, standard deviation, skewness, kurtosis, entropy of the bins (bit), 10th and
    90th percentile, in grey levels of the study (0 to 1 between its range). Texture: Haralick's
    contrast, dissimilarity, homogeneity, energy and correlation of neighbours in the slice, mean of
    four directions (Haralick 1973, doi:10.1109/TSMC.1973.4309314; scikit-image). A tissue with
    fewer than 50 voxels has none.
    """
    low, high = grey_range
    if not high > low:
        raise InputError(f"expected a grey range with high above low, got {grey_range}.")
    scaled = (volume.data - low) / (high - low)
    bins = np.clip((scaled * GREY_LEVELS).astype(int), 0, GREY_LEVELS - 1) + 1
    features: dict[str, float] = {}
    inside = np.ones(volume.shape, bool) if volume.mask is None else volume.mask
    parts = ({"brain": inside} if labels is None else
             {name: inside & (labels == code) for name, code in TISSUE_CODES.items()})
    for name, where in parts.items():
        if np.count_nonzero(where) >= FEWEST_VOXELS:
            numbers = _first_order(scaled[where].astype(np.float64), bins[where])
            numbers |= _texture(bins, where, step)
            features |= {f"{name.lower()}_{key}": value for key, value in numbers.items()}
    return features


def _first_order(values: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    spread = values.std()
    z = (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
    share = np.bincount(bins, minlength=GREY_LEVELS + 1) / bins.size
    share = share[share > 0]
    return {"mean": float(values.mean()), "sd": float(spread), "skewness": float((z**3).mean()),
            "kurtosis": float((z**4).mean()), "entropy": float(-(share * np.log2(share)).sum()),
            "p10": float(np.percentile(values, 10)), "p90": float(np.percentile(values, 90))}


def _texture(bins: np.ndarray, where: np.ndarray, step: int) -> dict[str, float]:
    """Haralick's features of neighbours that both lie in ``where``, slices taken together."""
    from scipy import ndimage
    from skimage.feature import graycomatrix, graycoprops

    box = ndimage.find_objects(where.astype(np.uint8))[0]
    image = np.where(where[box], bins[box], 0).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    counts = sum(graycomatrix(image[:, :, k], [1], angles, GREY_LEVELS + 1, symmetric=True)
                 .astype(np.float64) for k in range(0, image.shape[2], step))
    inside = counts[1:, 1:]
    return {name: float(np.mean(graycoprops(inside, name))) for name in TEXTURES}


def macro_f1(true: Sequence[str], guessed: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over ``labels`` of F1 = 2 TP / (2 TP + FP + FN), 0 for a label nobody guessed.

    0 to 1. Equal to scikit-learn's with ``zero_division=0``; labels absent from both are left out.
    """
    true, guessed = np.asarray(true), np.asarray(guessed)
    scores = []
    for label in labels:
        hits = np.count_nonzero((true == label) & (guessed == label))
        size = np.count_nonzero(true == label) + np.count_nonzero(guessed == label)
        if size:
            scores.append(2 * hits / size)
    return float(np.mean(scores)) if scores else float("nan")


@dataclass(frozen=True)
class Guess:
    """What a cross-validated classifier said of each scan; ``""`` where no fold tested it."""

    sites: tuple[str, ...]
    guessed: tuple[str, ...]
    subjects: tuple[str, ...]

    @property
    def f1(self) -> float:
        """Macro F1 over all sites."""
        return macro_f1(self.sites, self.guessed, sorted(set(self.sites)))

    def share(self, label: str, away: bool = True) -> float:
        """Share of scans taken for ``label``, of those of other sites or of all."""
        rows = [g == label for g, s in zip(self.guessed, self.sites) if not away or s != label]
        return float(np.mean(rows)) if rows else float("nan")


def why_not(sites: Sequence[str], subjects: Sequence[str]) -> str:
    """Why sites cannot be guessed here, or empty; needs 2 sites of 3 people each."""
    people = {site: len({w for w, s in zip(subjects, sites) if s == site}) for site in set(sites)}
    if len(people) < 2:
        return "there is one site only"
    small = [f"{site} ({count})" for site, count in sorted(people.items())
             if count < FEWEST_PER_SITE]
    return (f"a classifier needs {FEWEST_PER_SITE} people per site, to learn from some and be "
            f"tested on others; too few at {', '.join(small)}") if small else ""


def guess_sites(
    train: np.ndarray,
    sites: Sequence[str],
    subjects: Sequence[str],
    *,
    test: np.ndarray | None = None,
    seed: int = 0,
) -> Guess:
    """Guess each scan's site by a classifier that has seen none of that person's scans.

    ``train`` (n, F): features to learn from; ``test`` (n, F): features of the same scans that are
    guessed, by default the same. Folds grouped by person and balanced over sites; standardised on
    the training people; support vector machine with a Gaussian kernel, sites weighted equally.
    InputError where :func:`why_not` has something to say or a feature is not finite.
    """
    reason = why_not(sites, subjects)
    test = train if test is None else test
    if reason or not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise InputError(f"sites cannot be guessed: {reason or 'a feature is not finite'}.")
    labels = np.asarray(sites)
    guessed = np.full(len(labels), "", dtype=object)
    for learn, look in _folds(labels, subjects, seed):
        if len(set(labels[learn])) > 1:
            guessed[look] = _classifier(seed).fit(train[learn], labels[learn]).predict(test[look])
    return Guess(tuple(sites), tuple(guessed), tuple(subjects))


def _folds(labels: np.ndarray, subjects: Sequence[str], seed: int
           ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    people = [len(set(np.asarray(subjects)[labels == site])) for site in set(labels)]
    folds = max(2, min(FOLDS, min(people), len(set(subjects))))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    yield from split.split(labels, labels, subjects)


def _classifier(seed: int) -> Any:
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
    """All three questions before, and after each method.

    ``before`` (n, F); ``after``: method -> (n, F) of the same scans, in the same order. Rows that
    have a gap anywhere are left out for that method and counted in the note.
    """
    tests = _before_tests(np.asarray(before), sites, subjects, permutations, seed)
    for backend, features in after.items():
        tests += _after_tests(np.asarray(before), np.asarray(features), sites, subjects, target,
                              backend, permutations, seed)
    return tuple(tests)


def _context(stage: str, backend: str = "") -> dict[str, str]:
    return {"question": "scanner", "stage": stage, "backend": backend}


def _before_tests(before: np.ndarray, sites: Sequence[str], subjects: Sequence[str],
                  permutations: int, seed: int) -> list[Test]:
    rows, who, where = _complete(before, before, sites, subjects)
    reason = why_not(where, who)
    if reason:
        return [not_possible("site_f1_retrained", reason, len(set(who)), **_context("before"))]
    return _guessed(before[rows], before[rows], where, who, "site_f1_retrained",
                    _context("before"), permutations, seed)


def _after_tests(before: np.ndarray, after: np.ndarray, sites: Sequence[str],
                 subjects: Sequence[str], target: str, backend: str, permutations: int, seed: int
                 ) -> list[Test]:
    rows, who, where = _complete(before, after, sites, subjects)
    reason = why_not(where, who)
    context = _context("after", backend)
    if reason:
        return [not_possible(name, reason, len(set(who)), **context)
                for name in ("site_f1_trained_on_raw", "site_f1_retrained", "target_fidelity")]
    raw, new = before[rows], after[rows]
    tests = _guessed(new, new, where, who, "site_f1_retrained", context, permutations, seed)
    tests += _guessed(raw, new, where, who, "site_f1_trained_on_raw", context, 0, seed)
    return tests + [_fidelity(guess_sites(raw, where, who, test=new, seed=seed), target, context,
                              seed)]


def _complete(before: np.ndarray, after: np.ndarray, sites: Sequence[str],
              subjects: Sequence[str]) -> tuple[np.ndarray, list[str], list[str]]:
    """Rows without gaps, and their people and sites."""
    rows = np.flatnonzero(np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1))
    return rows, [subjects[i] for i in rows], [sites[i] for i in rows]


def _guessed(train: np.ndarray, test: np.ndarray, sites: Sequence[str], subjects: Sequence[str],
             name: str, context: Mapping[str, str], permutations: int, seed: int) -> list[Test]:
    """The F1 of one classifier, and, with ``permutations``, its chance level beside it."""
    guess = guess_sites(train, sites, subjects, test=test, seed=seed)
    labels, guessed = np.array(sites), np.array(guess.guessed)
    names = sorted(set(sites))
    low, high = bootstrap_interval(
        lambda rows, who: macro_f1(labels[rows], guessed[rows], names), subjects, seed=seed)
    method = (f"support vector machine, folds grouped by person ({len(names)} sites, "
              f"{len(sites)} scans); bootstrap over people")
    n = len(set(subjects))
    if not permutations:
        return [Test(name, n, guess.f1, low, high, method=method, **context)]
    chance = _chance(train, subjects, sites, guess.f1, permutations, seed)
    words = f"{permutations} shuffles of people's sites, classifier trained anew each time"
    return [Test(name, n, guess.f1, low, high, chance.p, method=f"{method}; p: {words}", **context),
            Test("site_chance", n, chance.mean, chance.low, chance.high, method=words,
                 reference=name, **context)]


def _chance(features: np.ndarray, subjects: Sequence[str], sites: Sequence[str], observed: float,
            permutations: int, seed: int) -> Chance:
    return chance_level(
        lambda labels: guess_sites(features, labels.tolist(), subjects, seed=seed).f1
        if not why_not(labels.tolist(), subjects) else float("nan"),
        sites, subjects, observed, permutations=permutations, seed=seed)


def _fidelity(guess: Guess, target: str, context: Mapping[str, str], seed: int) -> Test:
    """Share of scans from elsewhere that are taken for the target's."""
    away = [i for i, site in enumerate(guess.sites) if site != target]
    who = [guess.subjects[i] for i in away]
    if target not in guess.sites or not away:
        return not_possible("target_fidelity", f"the target '{target}' is no site of these scans, "
                            "so no classifier can know what it looks like", len(set(who)),
                            **context)
    hits = np.array([guess.guessed[i] == target for i in away], dtype=float)
    low, high = bootstrap_interval(lambda rows, people: float(hits[rows].mean()), who, seed=seed)
    return Test("target_fidelity", len(set(who)), float(hits.mean()), low, high,
                method="classifier trained on unharmonized images of other people; bootstrap over "
                "people", reference=target, **context)
