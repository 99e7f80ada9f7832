"""Identification of subjects by fingerprints, across sites and after harmonization.

A fingerprint holds the mean intensities of 8 mm blocks, without gain, offset and the mean
fingerprint of the subjects of the site. A subject is identified if, among all subjects at another
site, the most similar fingerprint is its own [1]_. Identifiability is the difference between the
similarity to oneself and to others [2]_: similarity to oneself alone is high where all images are
alike. Without traveling subjects, harmonized images are identified among the sources of their site.

References
----------
.. [1] Finn et al. 2015, Functional connectome fingerprinting. doi:10.1038/nn.4135
.. [2] Amico and Goni 2018, The quest for identifiability in human functional connectomes.
   doi:10.1038/s41598-018-25089-1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...cohort import Scan
from ...volume import Volume
from ..statistics.design import first_rows
from ..statistics.equivalence import (
    DETECTION_POWER,
    IDENTITY_MARGIN,
    exact_fraction_interval,
    interval_of_mean,
    smallest_detectable,
)
from ..statistics.resampling import (
    CONFIDENCE_LEVEL,
    NO_SUBJECT_INFORMATION,
    Test,
    bootstrap_interval,
    not_possible,
)

__all__ = ["fingerprint", "identify", "identity_changes", "source_identity",
           "traveling_identity"]

BLOCK_MM = 8.0
MIN_SUBJECTS = 3  # to identify a subject among
MIN_BLOCKS = 20
MIN_BETWEEN_SUBJECT_STD = 1e-3  # relative to that within a fingerprint
NAMES = ("identification", "identifiability", "own_to_others")
_Group = tuple[list[str], list[str], list[str]]
"""Subjects, and the keys of their first and second fingerprints."""


@dataclass(frozen=True)
class _Scores:
    """Scores of `identify`, shape (subjects, 3), and the chance of identification."""

    subjects: tuple[str, ...]
    table: np.ndarray
    chance: float


def fingerprint(volume: Volume, block_mm: float = BLOCK_MM) -> np.ndarray:
    """Compute the mean intensity of each block inside the mask.

    Parameters
    ----------
    volume : Volume
        Image; volumes on one grid have the same blocks.
    block_mm : float
        Edge length of a block in mm.

    Returns
    -------
    ndarray, shape (blocks,)
        float32; NaN if less than half of the block is inside the mask.
    """
    factor = [max(int(block_mm / step + 1e-6), 1) for step in volume.spacing]
    mask = np.ones(volume.shape, bool) if volume.mask is None else volume.mask
    labels = _block_numbers(volume.shape, factor)
    count = int(labels[-1, -1, -1]) + 1
    inside = np.bincount(labels[mask], minlength=count)
    total = np.bincount(labels[mask], weights=volume.data[mask], minlength=count)
    full = inside >= np.prod(factor) / 2
    return np.where(full, total / np.maximum(inside, 1), math.nan).astype(np.float32)


def _block_numbers(shape: Sequence[int], factor: Sequence[int]) -> np.ndarray:
    i, j, k = (np.arange(size) // step for size, step in zip(shape, factor))
    return (i[:, None, None] * (j[-1] + 1) + j[None, :, None]) * (k[-1] + 1) + k


def identify(first: np.ndarray, second: np.ndarray
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Identify each row of one table of fingerprints among the rows of another.

    Parameters
    ----------
    first, second : ndarray, shape (n, blocks)
        Fingerprints of the same subjects in the same order.

    Returns
    -------
    tuple of ndarray, shape (n,), or None
        Whether the own row is the most similar (0 or 1; a fraction for ties), the own correlation
        minus the mean correlation with other subjects, -2 to 2, and the distance (1 - correlation)
        to the own row over that to others, 0 or more. None if the subjects of a table do not
        differ, or fewer than 20 blocks are common to all.
    """
    common = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    if common.sum() < MIN_BLOCKS:
        return None
    one, two = _deviations(first[:, common]), _deviations(second[:, common])
    if one is None or two is None:
        return None
    likeness = one @ two.T
    best = likeness >= likeness.max(axis=1, keepdims=True) - 1e-9
    own = np.diag(likeness)
    found = np.where(np.diag(best), 1 / best.sum(axis=1), 0.0)
    others = (likeness.sum(axis=1) - own) / (len(own) - 1)
    return found, own - others, (1 - own) / np.maximum(1 - others, 1e-6)


def _deviations(table: np.ndarray) -> np.ndarray | None:
    """Return the unit vector of each subject's deviation from the mean, or None if one has none."""
    table = table - table.mean(axis=1, keepdims=True)
    std = table.std(axis=1, keepdims=True)
    table = table / np.where(std > 0, std, 1)
    rest = table - table.mean(axis=0)
    rest -= rest.mean(axis=1, keepdims=True)
    size = np.linalg.norm(rest, axis=1, keepdims=True)
    if not (size > MIN_BETWEEN_SUBJECT_STD * math.sqrt(table.shape[1])).all():
        return None
    return rest / size


def traveling_identity(fingerprints: Mapping[str, np.ndarray], scans: Sequence[Scan], seed: int = 0
                        ) -> tuple[Test, ...]:
    """Test identification and identifiability across sites.

    Every ordered pair of sites with three or more common subjects counts, with one scan per subject
    and site.

    Parameters
    ----------
    fingerprints : mapping of str to ndarray, shape (blocks,)
        By scan identifier.
    scans : sequence of Scan
        Scans to compare.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        ``identification``, the fraction of identified subjects, 0 to 1; ``identifiability``, -2 to
        2; ``own_to_others``, 0 or more.
    """
    return _tests(_site_groups(scans), fingerprints, fingerprints, NAMES, "across sites", seed)


def source_identity(sources: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray],
                    scans: Sequence[Scan], seed: int = 0) -> tuple[Test, ...]:
    """Test whether harmonized images are most similar to their own source among those of the site.

    Parameters
    ----------
    sources, results : mapping of str to ndarray, shape (blocks,)
        Fingerprints before and after, by scan identifier.
    scans : sequence of Scan
        Scans to compare.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple of Test
        ``source_identification``, ``source_identifiability`` and ``source_own_to_others``, ranges
        as in `traveling_identity`.
    """
    pairs = []
    for here in first_rows(scans).values():
        shared = sorted(here)
        if len(shared) >= MIN_SUBJECTS:
            names = [scans[here[who]].scan_id for who in shared]
            pairs.append((shared, names, names))
    return _tests(pairs, results, sources, tuple(f"source_{name}" for name in NAMES),
                  "among the sources of the site", seed)


def identity_changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray],
                     scans: Sequence[Scan]) -> tuple[Test, ...]:
    """Compare the identification of traveling subjects across sites with that before.

    Fingerprints have neither gain nor offset, so images before and linearly rescaled images give
    the same numbers.

    Parameters
    ----------
    before, after : mapping of str to ndarray, shape (blocks,)
        Fingerprints by scan identifier.
    scans : sequence of Scan
        Scans to compare.

    Returns
    -------
    tuple of Test
        ``identification_change``, the change of the fraction of identified subjects, and
        ``own_to_others_change``, that of the distance to the own image at another site over the
        distance to other subjects, each with its margin.
    """
    pairs = _site_groups(scans)
    names = ("identification_change", "own_to_others_change")
    first, second = (_scores(pairs, one, one, names) for one in (before, after))
    if isinstance(first, tuple):
        return first
    if isinstance(second, tuple):
        return second
    change = second.table - first.table
    n = len(change)
    low, high, error = interval_of_mean(change[:, 0])
    exact = 1 - ((1 - CONFIDENCE_LEVEL) / 2) ** (1 / n)  # upper end for no loss in n subjects
    mean, half = float(change[:, 0].mean()), max((high - low) / 2, exact)
    ratio = interval_of_mean(change[:, 2])
    context: dict[str, Any] = {"question": "subject", "reference": "rescaled",
                               "margin": IDENTITY_MARGIN}
    return (Test(names[0], n, mean, mean - half, mean + half,
                 detectable=1 - (1 - DETECTION_POWER) ** (1 / n), **context,
                 method="mean over subjects of the change; t interval, and at least the exact one "
                 "of no change; detectable: loss of which one subject at least would be seen"),
            Test(names[1], n, float(change[:, 2].mean()), *ratio[:2],
                 detectable=smallest_detectable(ratio[2]), **context,
                 method="mean over subjects of the change of the ratio of distances (1 - "
                 "correlation of fingerprints); t interval"))


def _site_groups(scans: Sequence[Scan]) -> list[_Group]:
    """Return each ordered pair of sites: common subjects, and their scans at both."""
    at = first_rows(scans)
    pairs = []
    for one in sorted(at):
        for two in sorted(at):
            shared = sorted(set(at[one]) & set(at[two]))
            if one != two and len(shared) >= MIN_SUBJECTS:
                pairs.append((shared, [scans[at[one][who]].scan_id for who in shared],
                              [scans[at[two][who]].scan_id for who in shared]))
    return pairs


def _scores(pairs: Sequence[_Group], first: Mapping[str, np.ndarray],
            second: Mapping[str, np.ndarray], names: tuple[str, ...]
            ) -> _Scores | tuple[Test, ...]:
    """Average the scores of each subject over its pairs; rows with the reason if there are none."""
    subjects = sorted({who for pair in pairs for who in pair[0]})
    if not pairs:
        return _not_possible(names, f"{MIN_SUBJECTS} subjects are needed, at one site or "
                             "at the same two sites", 0)
    scores: dict[str, list[np.ndarray]] = {who: [] for who in subjects}
    chance = []
    for group, ones, twos in pairs:
        tables = [[first[key] for key in ones], [second[key] for key in twos]]
        if len({row.shape for table in tables for row in table}) > 1:
            return _not_possible(names, "images on different grids", len(subjects))
        found = identify(*(np.stack(table) for table in tables))
        if found is None:
            return _not_possible(names, "the fingerprints of subjects do not differ: "
                                 f"{NO_SUBJECT_INFORMATION}", len(subjects))
        chance.append(1 / len(group))
        for i, who in enumerate(group):
            scores[who].append(np.array([column[i] for column in found]))
    return _Scores(tuple(subjects), np.array([np.mean(scores[who], axis=0) for who in subjects]),
                   float(np.mean(chance)))


def _tests(pairs: Sequence[_Group], first: Mapping[str, np.ndarray],
           second: Mapping[str, np.ndarray], names: tuple[str, ...], words: str, seed: int
           ) -> tuple[Test, ...]:
    """Average over the pairs of sites of each subject, then over subjects."""
    scores = _scores(pairs, first, second, names)
    if isinstance(scores, tuple):
        return scores
    method = f"fingerprints of {BLOCK_MM:g} mm blocks, {words}; bootstrap over subjects"
    tests = [Test(name, len(scores.subjects), float(column.mean()),
                  *bootstrap_interval(partial(_mean_of_rows, column), scores.subjects, seed=seed),
                  method=method, question="subject")
             for name, column in zip(names, scores.table.T)]
    first_method = f"{method}; chance {scores.chance:.2g}"
    exact = exact_fraction_interval(round(float(scores.table[:, 0].sum())), len(scores.subjects))
    return (replace(tests[0], method=f"{first_method}; exact interval over subjects".replace(
        "; bootstrap over subjects", ""), low=exact[0], high=exact[1]), *tests[1:])


def _mean_of_rows(values: np.ndarray, rows: np.ndarray, who: np.ndarray) -> float:
    return float(values[rows].mean())


def _not_possible(names: Sequence[str], why: str, n: int) -> tuple[Test, ...]:
    return tuple(not_possible(name, why, n, question="subject") for name in names)
