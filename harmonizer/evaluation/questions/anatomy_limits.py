"""Limits of anatomical change, and the images that exceed them.

A harmonized image may differ from its source in contrast. Its anatomy may differ only as much as
that of two scans of one subject on one scanner. The limits come from the rescans of the cohort.
Rescans are simulated if there are none, or if their limits would not detect a shift of one voxel.
In a simulated rescan, the scan is moved by the registration error and gets the noise of a second
visit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ...cohort import Cohort, Scan
from ...errors import InputError
from ...segmentation.segmentations import Segment
from ..cache import cached_summary
from ..statistics.equivalence import DETECTION_POWER
from .anatomy import GUARDED, compare_anatomy
from .rescans import REGISTRATION_ERROR_DEGREES, REGISTRATION_ERROR_MM, simulated_rescan
from .traveling import Pair, rescans

__all__ = ["AnatomyCheck", "Tolerance", "chance_of_flags", "check_anatomy",
           "detectable_flags", "learn_tolerance", "misses_a_voxel", "tolerance_from_pairs"]

ROUNDING_TOLERANCE = 1e-3  # in the unit of any measure
SIGNIFICANCE_LEVEL = 0.05
FLAGGED_FRACTION = 0.05  # expected fraction of rescans beyond the limits
MAX_RESCAN_PAIRS = 20
MIN_RESCAN_PAIRS = 3  # with fewer real rescans, simulated ones are used
N_SHIFTED_SCANS = 3  # by one voxel, one along each axis; limits must flag them


@dataclass(frozen=True)
class Tolerance:
    """Limits of the anatomy guard.

    Attributes
    ----------
    limits : mapping of str to float
        Limit by measure, see `GUARDED`.
    origin : str
        Where the limits come from.
    pairs : int
        Number of pairs of scans that they come from.
    flagged : float
        Expected fraction of faithful images that exceed any limit.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    origin: str = ""
    pairs: int = 0
    flagged: float = math.nan


def tolerance_from_pairs(pairs: Sequence[Mapping[str, float]], origin: str) -> Tolerance:
    """Compute limits from pairs of scans that differ by scanner noise only.

    One level holds for all measures together: six limits that one faithful pair in twenty exceeds
    each would flag up to a quarter of all images. The score of a pair is its distance from perfect
    relative to the largest distance of the other pairs, in the measure where this is largest. The
    limits are c times the largest distances, where c is the k-th largest of n scores and k = max(1,
    floor(0.05 (n + 1))). A further pair then exceeds any limit with probability of about k / (n +
    1): conformal prediction by leaving out [1]_, [2]_.

    Parameters
    ----------
    pairs : sequence of mapping of str to float
        Results of `compare_anatomy`.
    origin : str
        Where the pairs come from.

    Returns
    -------
    Tolerance
        A limit for each measure that has values.

    Raises
    ------
    InputError
        If there are no pairs.

    References
    ----------
    .. [1] Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World.
       doi:10.1007/b106715
    .. [2] Barber et al. 2021, Predictive inference with the jackknife+. doi:10.1214/20-AOS1965
    """
    if not pairs:
        raise InputError("expected pairs of scans of one subject on one scanner, or simulated "
                         "ones, to compute limits; got none.")
    rank = max(int(FLAGGED_FRACTION * (len(pairs) + 1)), 1)
    distance = {name: np.maximum(np.abs(np.array([v.get(name, math.nan) for v in pairs]) - higher),
                             ROUNDING_TOLERANCE)
            for name, (_, higher) in GUARDED.items()}  # 1 is perfect where higher is better
    distance = {name: part for name, part in distance.items() if np.isfinite(part).any()}
    scores = np.fmax.reduce([_relative_to_others(part) for part in distance.values()])
    factor = np.sort(scores)[::-1][rank - 1]
    largest = {name: float(factor * np.nanmax(part)) for name, part in distance.items()}
    limits = {name: 1 - value if GUARDED[name][1] else value for name, value in largest.items()}
    return Tolerance(limits, origin, len(pairs), rank / (len(pairs) + 1))


def _relative_to_others(distance: np.ndarray) -> np.ndarray:
    """Return each distance relative to the largest other one, (n,); 1 if there is no other."""
    others = np.array([np.fmax.reduce(np.delete(distance, i), initial=0.0)
                       for i in range(len(distance))])
    known = (others > 0) & np.isfinite(distance)
    return np.divide(distance, others, out=np.ones(len(distance)), where=known)


def chance_of_flags(flagged: int, images: int, tolerance: Tolerance) -> float:
    """Compute the probability of so many flags or more among faithful images.

    The limits are random themselves: beyond the k-th of n scores lies a fraction with distribution
    Beta(k, n + 1 - k), so the number of flags is beta-binomial.

    Parameters
    ----------
    flagged : int
        Number of flagged images.
    images : int
        Number of images.
    tolerance : Tolerance
        Limits.

    Returns
    -------
    float
        0 to 1.
    """
    from scipy.stats import betabinom

    rank = round(tolerance.flagged * (tolerance.pairs + 1))
    return float(betabinom.sf(flagged - 1, images, rank, tolerance.pairs + 1 - rank))


def detectable_flags(images: int, tolerance: Tolerance) -> float | None:
    """Return the smallest fraction of changed images that is distinguished from faithful ones.

    Parameters
    ----------
    images : int
        Number of images.
    tolerance : Tolerance
        Limits.

    Returns
    -------
    float or None
        Fraction that is found at 5 % with a probability of 80 %; None if no number of flags is
        unlikely among faithful images.
    """
    from scipy.stats import beta

    counts = (count for count in range(1, images + 1)
              if chance_of_flags(count, images, tolerance) < SIGNIFICANCE_LEVEL)
    least = next(counts, None)
    return None if least is None else float(
        beta.ppf(DETECTION_POWER, least, images - least + 1))


def learn_tolerance(
    cohort: Cohort,
    segment: Segment | None = None,
    *,
    seed: int = 0,
    most: int = MAX_RESCAN_PAIRS,
    mapper: Callable[..., Iterable] = map,
    cache: Path | None = None,
) -> Tolerance:
    """Learn the within-scanner variation of a cohort from unharmonized images.

    Rescans are used (see `rescans`). With fewer than 3, or if the limits from them do not detect a
    shift of one voxel, rescans are simulated from scans at equal intervals in the cohort.

    Parameters
    ----------
    cohort : Cohort
        Unharmonized scans.
    segment : callable, optional
        Segmenter of a volume; without it tissue measures have no limit.
    seed : int
        Seed of simulated rescans.
    most : int
        Maximum number of pairs.
    mapper : callable
        ``map``, or a parallel replacement; each job holds two volumes in memory.
    cache : Path, optional
        Folder for the segmentations of the scans.

    Returns
    -------
    Tolerance
        Limits with their origin.
    """
    real = rescans(cohort)
    reason = (f"the cohort has {len(real) or 'no'} {'pair' if len(real) == 1 else 'pairs'} of real "
              f"rescans and {MIN_RESCAN_PAIRS} are needed")
    if len(real) >= MIN_RESCAN_PAIRS:
        chosen = [real[i] for i in np.linspace(0, len(real) - 1, min(most, len(real))).astype(int)]
        found = tolerance_from_pairs(
            list(mapper(partial(_rescanned, segment=segment, cache=cache), chosen)),
            f"{len(chosen)} pairs of rescans of one subject on one scanner")
        if not misses_a_voxel(cohort, found, mapper):
            return found
        reason = (f"the limits from its {len(chosen)} real ones would accept a shift of one "
                  "voxel")
    scans = [cohort.scans[i] for i in
             np.linspace(0, len(cohort) - 1, min(most, len(cohort))).astype(int)]
    jobs = [(scan, range(seed + number, seed + most, len(scans)))
            for number, scan in enumerate(scans)]
    pairs = [pair for found in mapper(partial(_simulated, segment=segment, cache=cache), jobs)
             for pair in found]
    return tolerance_from_pairs(
        pairs, f"{len(pairs)} simulated rescans ({REGISTRATION_ERROR_MM} mm, "
        f"{REGISTRATION_ERROR_DEGREES} degrees, the scan's own noise), because {reason}")


def misses_a_voxel(cohort: Cohort, tolerance: Tolerance,
                   mapper: Callable[..., Iterable] = map) -> bool:
    """Return whether the limits accept a scan that was shifted by one voxel.

    Parameters
    ----------
    cohort : Cohort
        Scans; three are tested, one along each axis.
    tolerance : Tolerance
        Limits.
    mapper : callable
        ``map``, or a parallel replacement.

    Returns
    -------
    bool
        True if any shifted scan is accepted.
    """
    chosen = np.linspace(0, len(cohort) - 1, N_SHIFTED_SCANS).astype(int)
    jobs = [(cohort.scans[i], axis) for axis, i in enumerate(chosen)]
    return any(check_anatomy(values, tolerance).ok for values in mapper(_shifted, jobs))


def _shifted(job: tuple[Scan, int]) -> dict[str, float]:
    """Compare a scan with itself shifted by one voxel along an axis."""
    scan, axis = job
    volume = scan.read()
    return compare_anatomy(volume, volume.with_data(np.roll(volume.data, 1, axis)))


def _rescanned(pair: Pair, segment: Segment | None, cache: Path | None = None
               ) -> dict[str, float]:
    one, two = (scan.read() for scan in (pair.first, pair.second))
    known = [cached_summary(cache, volume, (scan.image, scan.mask), segment)
             for volume, scan in ((one, pair.first), (two, pair.second))]
    return compare_anatomy(one, two, segment, of_source=known[0], of_result=known[1],
                           same_contrast=True)


def _simulated(job: tuple[Scan, Sequence[int]], segment: Segment | None,
               cache: Path | None = None) -> list[dict[str, float]]:
    """Compare one scan with simulated rescans of it, one for each seed."""
    scan, seeds = job
    volume = scan.read()
    known = cached_summary(cache, volume, (scan.image, scan.mask), segment)
    return [compare_anatomy(volume, simulated_rescan(volume, seed), segment, of_source=known,
                            same_contrast=True) for seed in seeds]


@dataclass(frozen=True)
class AnatomyCheck:
    """Result of the anatomy guard for one harmonized image.

    Attributes
    ----------
    ok : bool
        Whether all limits are kept.
    reasons : tuple of str
        Exceeded limits in words.
    values : mapping of str to float
        Anatomy measures.
    limits : mapping of str to float
        Limits by measure.
    origin : str
        Where the limits come from.
    """

    ok: bool
    reasons: tuple[str, ...]
    values: Mapping[str, float]
    limits: Mapping[str, float]
    origin: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the content for a JSON sidecar; a measure that is not defined is None."""
        return {"AnatomyHeld": self.ok, "Reasons": list(self.reasons),
                "Measures": {k: v if math.isfinite(v) else None for k, v in self.values.items()},
                "Limits": dict(self.limits), "LimitsFrom": self.origin}


def check_anatomy(values: Mapping[str, float], tolerance: Tolerance) -> AnatomyCheck:
    """Compare the anatomy measures of an image with the limits; an undefined measure is flagged.

    Parameters
    ----------
    values : mapping of str to float
        Result of `compare_anatomy`.
    tolerance : Tolerance
        Limits.

    Returns
    -------
    AnatomyCheck
        With the reasons.
    """
    reasons = []
    for name, limit in tolerance.limits.items():
        words, higher = GUARDED[name]
        value = values.get(name)
        if value is None:
            continue
        if not math.isfinite(value):
            reasons.append(f"{words}: not defined, because contrast or a tissue is missing")
        elif value < limit if higher else value > limit:
            reasons.append(f"{words}: {value:.3g}, limit {limit:.3g}")
    return AnatomyCheck(not reasons, tuple(reasons), dict(values), dict(tolerance.limits),
                   tolerance.origin)
