"""The guard: how much of a change of anatomy is too much, and which image has it.

A harmonized image may differ from its source in contrast, and by no more in anatomy than two scans
of one person on one scanner differ from each other. That is measured, on the cohort's own rescans;
where there are none, or where their limits would miss a shift of one voxel, on simulated ones: the
scan moved by what registration repeats to, and apart from itself by the noise of two visits. An
image that breaks a limit is flagged with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...cohort import Cohort, Scan
from ...errors import InputError
from ...segmentation.segmentations import Segment, summary_of
from .anatomy import GUARDED, compare_anatomy
from .rescans import REGISTRATION_DEGREES, REGISTRATION_MM, simulated_rescan
from .traveling import Pair, rescans

__all__ = ["Tolerance", "Verdict", "tolerance_of", "chance_of_flags", "learn_tolerance",
           "misses_a_voxel", "judge"]

NOTHING = 1e-3  # difference from perfect, in any measure's unit, that rounding can make
MISSED = 0.05  # share of faithful images that may be flagged
MOST_PAIRS = 20
FEWEST_PAIRS = 3  # real rescans, below which simulated ones are added
SHIFTED_SCANS = 3  # scans shifted by one voxel, one along each axis, that limits must flag


@dataclass(frozen=True)
class Tolerance:
    """What may differ: a limit per measure, where it comes from, and how often it errs.

    ``flagged``: expected share of faithful images that break any of the limits.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    origin: str = ""
    pairs: int = 0
    flagged: float = math.nan


def tolerance_of(pairs: Sequence[Mapping[str, float]], origin: str) -> Tolerance:
    """Limits from :func:`compare_anatomy` of pairs of scans that differ by the scanner's noise.

    One level for all measures together, not one for each: six limits that one faithful pair in
    twenty breaks flag up to a quarter of all images. A pair's score is how far it is from perfect,
    as a share of the worst other pair, in the measure where that is most. The limits are c times
    the worst of all pairs, c the k-th largest of n scores, k = 0.05 (n + 1) rounded down but at
    least 1: another such pair breaks any of them with a chance of about k / (n + 1) (conformal
    prediction by leaving out, Vovk et al. 2005, Barber et al. 2021, doi:10.1214/20-AOS1965). Every
    measure keeps its own tail that way. InputError for no pairs.
    """
    if not pairs:
        raise InputError("the guard needs pairs of scans of one person on one scanner, or "
                         "simulated ones, to know what may differ; got none.")
    rank = max(int(MISSED * (len(pairs) + 1)), 1)
    away = {name: np.maximum(np.abs(np.array([v.get(name, math.nan) for v in pairs]) - higher),
                             NOTHING)
            for name, (_, higher) in GUARDED.items()}  # 1 is perfect where higher is better
    away = {name: part for name, part in away.items() if np.isfinite(part).any()}
    scores = np.fmax.reduce([_shares_of_others(part) for part in away.values()])
    factor = np.sort(scores)[::-1][rank - 1]
    furthest = {name: float(factor * np.nanmax(part)) for name, part in away.items()}
    limits = {name: 1 - far if GUARDED[name][1] else far for name, far in furthest.items()}
    return Tolerance(limits, origin, len(pairs), rank / (len(pairs) + 1))


def _shares_of_others(away: np.ndarray) -> np.ndarray:
    """(n,) each distance as a share of the largest other one; 1 where there is no other, or none.
    """
    others = np.array([np.fmax.reduce(np.delete(away, i), initial=0.0) for i in range(len(away))])
    known = (others > 0) & np.isfinite(away)
    return np.divide(away, others, out=np.ones(len(away)), where=known)


def chance_of_flags(flagged: int, images: int, tolerance: Tolerance) -> float:
    """Chance (0 to 1) of so many flags or more among faithful images.

    The limits are a draw themselves: with the k-th of n scores the share beyond them is Beta(k,
    n + 1 - k) distributed, and the flags among all images beta-binomially.
    """
    from scipy.stats import betabinom

    rank = round(tolerance.flagged * (tolerance.pairs + 1))
    return float(betabinom.sf(flagged - 1, images, rank, tolerance.pairs + 1 - rank))


def learn_tolerance(cohort: Cohort, segment: Segment | None = None, *, seed: int = 0,
                    most: int = MOST_PAIRS, mapper: Callable[..., Iterable] = map) -> Tolerance:
    """The cohort's own within-scanner noise, from unharmonized images.

    From rescans (see `rescans`), at most ``most`` pairs. With fewer than 3, or if the limits from
    them miss a shift of one voxel, from simulated rescans of scans spread evenly over the cohort.
    Two volumes in memory; ``mapper``: ``map``, or one with its signature that spreads pairs, or
    scans, over processes.
    """
    real = rescans(cohort)
    reason = f"the cohort has {len(real)} real ones"
    if len(real) >= FEWEST_PAIRS:
        chosen = [real[i] for i in np.linspace(0, len(real) - 1, min(most, len(real))).astype(int)]
        found = tolerance_of(list(mapper(partial(_rescanned, segment=segment), chosen)),
                             f"{len(chosen)} pairs of rescans of one person on one scanner")
        if not misses_a_voxel(cohort, found, mapper):
            return found
        reason = (f"the limits from its {len(chosen)} real ones would let a shift of one voxel "
                  "pass")
    scans = [cohort.scans[i] for i in
             np.linspace(0, len(cohort) - 1, min(most, len(cohort))).astype(int)]
    jobs = [(scan, range(seed + number, seed + most, len(scans)))
            for number, scan in enumerate(scans)]
    pairs = [pair for found in mapper(partial(_simulated, segment=segment), jobs) for pair in found]
    return tolerance_of(pairs, f"{len(pairs)} simulated rescans ({REGISTRATION_MM} mm, "
                        f"{REGISTRATION_DEGREES} degrees, the scan's own noise), because "
                        f"{reason}")


def misses_a_voxel(cohort: Cohort, tolerance: Tolerance,
                   mapper: Callable[..., Iterable] = map) -> bool:
    """Whether the limits let pass a scan that is moved by one voxel and is otherwise the same.

    Asked of scans spread evenly over the cohort, one along each axis; one that passes is enough.
    """
    chosen = np.linspace(0, len(cohort) - 1, SHIFTED_SCANS).astype(int)
    jobs = [(cohort.scans[i], axis) for axis, i in enumerate(chosen)]
    return any(judge(values, tolerance).ok for values in mapper(_shifted, jobs))


def _shifted(job: tuple[Scan, int]) -> dict[str, float]:
    """Anatomy measures of a scan against itself moved by one voxel along an axis."""
    scan, axis = job
    volume = scan.read()
    return compare_anatomy(volume, volume.with_data(np.roll(volume.data, 1, axis)))


def _rescanned(pair: Pair, segment: Segment | None) -> dict[str, float]:
    return compare_anatomy(pair.first.read(), pair.second.read(), segment)


def _simulated(job: tuple[Scan, Sequence[int]], segment: Segment | None) -> list[dict[str, float]]:
    """Rescans of one scan, one for each seed."""
    scan, seeds = job
    volume = scan.read()
    known = summary_of(volume, segment)
    return [compare_anatomy(volume, simulated_rescan(volume, seed), segment, of_source=known)
            for seed in seeds]


@dataclass(frozen=True)
class Verdict:
    """Whether anatomy held, the reasons in words where it did not, and the numbers."""

    ok: bool
    reasons: tuple[str, ...]
    values: Mapping[str, float]
    limits: Mapping[str, float]
    origin: str = ""

    def as_dict(self) -> dict[str, object]:
        """For a JSON sidecar; what is not defined is None."""
        return {"AnatomyHeld": self.ok, "Reasons": list(self.reasons),
                "Measures": {k: v if math.isfinite(v) else None for k, v in self.values.items()},
                "Limits": dict(self.limits), "LimitsFrom": self.origin}


def judge(values: Mapping[str, float], tolerance: Tolerance) -> Verdict:
    """Compare a harmonized image's numbers with the limits; an undefined number is a reason too."""
    reasons = []
    for name, limit in tolerance.limits.items():
        words, higher = GUARDED[name]
        value = values.get(name)
        if value is None:
            continue
        if not math.isfinite(value):
            reasons.append(f"{words}: not defined, the image has lost its contrast or its tissues")
        elif value < limit if higher else value > limit:
            reasons.append(f"{words}: {value:.3g}, where rescans reach {limit:.3g}")
    return Verdict(not reasons, tuple(reasons), dict(values), dict(tolerance.limits),
                   tolerance.origin)
