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

import numpy as np

from ...cohort import Scan
from ...volume import Volume
from ..statistics.resampling import NO_SUBJECT_INFORMATION, Test, bootstrap_interval, not_possible

__all__ = ["fingerprint", "identify", "source_identity", "traveling_identity"]

BLOCK_MM = 8.0
MIN_SUBJECTS = 3  # to identify a subject among
MIN_BLOCKS = 20
MIN_BETWEEN_SUBJECT_STD = 1e-3  # relative to that within a fingerprint
NAMES = ("identification", "identifiability")


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


def identify(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Identify each row of one table of fingerprints among the rows of another.

    Parameters
    ----------
    first, second : ndarray, shape (n, blocks)
        Fingerprints of the same subjects in the same order.

    Returns
    -------
    tuple of ndarray, shape (n,), or None
        Whether the own row is the most similar (0 or 1; a fraction for ties), and the own
        correlation minus the mean correlation with other subjects, -2 to 2. None if the subjects of
        a table do not differ, or fewer than 20 blocks are common to all.
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
    return found, own - (likeness.sum(axis=1) - own) / (len(own) - 1)


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
        2.
    """
    at: dict[str, dict[str, str]] = {}
    for scan in scans:
        at.setdefault(scan.site, {}).setdefault(scan.subject, scan.scan_id)
    pairs = []
    for one in sorted(at):
        for two in sorted(at):
            shared = sorted(set(at[one]) & set(at[two]))
            if one != two and len(shared) >= MIN_SUBJECTS:
                pairs.append((shared, [at[one][who] for who in shared],
                              [at[two][who] for who in shared]))
    return _tests(pairs, fingerprints, fingerprints, NAMES, "across sites", seed)


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
        ``source_identification`` and ``source_identifiability``, ranges as in `traveling_identity`.
    """
    at: dict[str, dict[str, str]] = {}
    for scan in scans:
        at.setdefault(scan.site, {}).setdefault(scan.subject, scan.scan_id)
    pairs = []
    for here in at.values():
        shared = sorted(here)
        if len(shared) >= MIN_SUBJECTS:
            pairs.append((shared, [here[who] for who in shared], [here[who] for who in shared]))
    return _tests(pairs, results, sources, tuple(f"source_{name}" for name in NAMES),
                  "among the sources of the site", seed)


def _tests(pairs: Sequence[tuple[list[str], list[str], list[str]]],
           first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray],
           names: tuple[str, ...], words: str, seed: int) -> tuple[Test, ...]:
    """Average over the pairs of sites of each subject, then over subjects."""
    subjects = sorted({who for pair in pairs for who in pair[0]})
    if not pairs:
        return _not_possible(names, f"{MIN_SUBJECTS} subjects are needed, at one site or "
                             "at the same two sites", 0)
    scores: dict[str, list[tuple[float, float]]] = {who: [] for who in subjects}
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
            scores[who].append((found[0][i], found[1][i]))
    means = np.array([np.mean(scores[who], axis=0) for who in subjects])
    method = (f"fingerprints of {BLOCK_MM:g} mm blocks, {words}; chance {np.mean(chance):.2g}; "
              "bootstrap over subjects")
    return tuple(
        Test(name, len(subjects), float(column.mean()),
             *bootstrap_interval(lambda rows, who: float(column[rows].mean()), subjects, seed=seed),
             method=method if i == 0 else method.replace(f"; chance {np.mean(chance):.2g}", ""),
             question="subject")
        for i, (name, column) in enumerate(zip(names, means.T)))


def _not_possible(names: Sequence[str], why: str, n: int) -> tuple[Test, ...]:
    return tuple(not_possible(name, why, n, question="subject") for name in names)
