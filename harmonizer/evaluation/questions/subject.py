"""Can the person still be told? Likeness to oneself says nothing where everybody looks alike.

A fingerprint is the brain in blocks of 8 mm, freed of its gain and offset and of what all people of
the same site have in common. A person is identified where, of all people at another site, the most
similar fingerprint is his own (Finn et al. 2015, doi:10.1038/nn.4135); how far the own one stands
out is identifiability (Amico and Goni 2018, doi:10.1038/s41598-018-25089-1). Without travelling
people the harmonized image is looked for among the sources of its site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...cohort import Scan
from ...volume import Volume
from ..statistics.resampling import Test, bootstrap_interval, not_possible

__all__ = ["fingerprint", "identify", "source_identity", "travelling_identity"]

BLOCK_MM = 8.0
FEWEST_PEOPLE = 3  # to be looked for among
FEWEST_BLOCKS = 20
GONE = 1e-3  # spread between people over spread within a fingerprint, below which all are the same
NAMES = ("identification", "identifiability")


def fingerprint(volume: Volume, block_mm: float = BLOCK_MM) -> np.ndarray:
    """Mean intensity in the mask of each block, 1D float32; NaN where less than half is inside.

    Two volumes on one grid have blocks at the same places.
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
    """Look for each row of ``first`` (n, blocks) among the rows of ``second``, same people.

    Returns (found, margin), both (n,): 1 where the own row is the most similar (a share where
    several are), and the own correlation less the mean one with other people, -2 to 2. None where
    people cannot be told apart by either table at all, or with too few blocks in common.
    """
    common = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    if common.sum() < FEWEST_BLOCKS:
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
    """Each person's unit vector of deviations from the mean person; None where nobody deviates."""
    table = table - table.mean(axis=1, keepdims=True)
    spread = table.std(axis=1, keepdims=True)
    table = table / np.where(spread > 0, spread, 1)
    rest = table - table.mean(axis=0)
    rest -= rest.mean(axis=1, keepdims=True)
    size = np.linalg.norm(rest, axis=1, keepdims=True)
    if not (size > GONE * math.sqrt(table.shape[1])).all():
        return None
    return rest / size


def travelling_identity(prints: Mapping[str, np.ndarray], scans: Sequence[Scan], seed: int = 0
                        ) -> tuple[Test, ...]:
    """Identification and identifiability from site to site; ``prints`` by scan_id.

    Every ordered pair of sites that three or more people share, one scan of a person per site.
    identification: share found, 0 to 1, higher is better, chance 1 over the people looked among.
    """
    at: dict[str, dict[str, str]] = {}
    for scan in scans:
        at.setdefault(scan.site, {}).setdefault(scan.subject, scan.scan_id)
    pairs = []
    for one in sorted(at):
        for two in sorted(at):
            people = sorted(set(at[one]) & set(at[two]))
            if one != two and len(people) >= FEWEST_PEOPLE:
                pairs.append((people, [at[one][who] for who in people],
                              [at[two][who] for who in people]))
    return _tests(pairs, prints, prints, NAMES, "from site to site", seed)


def source_identity(sources: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray],
                    scans: Sequence[Scan], seed: int = 0) -> tuple[Test, ...]:
    """Is the harmonized image still nearest to its own source, among the sources of its site?

    ``sources``, ``results``: fingerprints by scan_id. Names ``source_identification`` and
    ``source_identifiability``; ranges as in :func:`travelling_identity`.
    """
    at: dict[str, dict[str, str]] = {}
    for scan in scans:
        at.setdefault(scan.site, {}).setdefault(scan.subject, scan.scan_id)
    pairs = []
    for here in at.values():
        people = sorted(here)
        if len(people) >= FEWEST_PEOPLE:
            pairs.append((people, [here[who] for who in people], [here[who] for who in people]))
    return _tests(pairs, results, sources, tuple(f"source_{name}" for name in NAMES),
                  "among the sources of the site", seed)


def _tests(pairs: Sequence[tuple[list[str], list[str], list[str]]],
           first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray],
           names: tuple[str, ...], words: str, seed: int) -> tuple[Test, ...]:
    """Means over people of their means over pairs of sites."""
    people = sorted({who for pair in pairs for who in pair[0]})
    if not pairs:
        return _nothing(names, f"{FEWEST_PEOPLE} people are needed to be told apart, at a site or "
                        "at the same two sites", 0)
    scores: dict[str, list[tuple[float, float]]] = {who: [] for who in people}
    chance = []
    for group, ones, twos in pairs:
        tables = [[prints[key] for key in keys] for prints, keys in ((first, ones), (second, twos))]
        if len({row.shape for table in tables for row in table}) > 1:
            return _nothing(names, "images on different grids", len(people))
        found = identify(*(np.stack(table) for table in tables))
        if found is None:
            return _nothing(names, "images do not tell people apart: whatever it told of people is "
                            "gone", len(people))
        chance.append(1 / len(group))
        for i, who in enumerate(group):
            scores[who].append((found[0][i], found[1][i]))
    means = np.array([np.mean(scores[who], axis=0) for who in people])
    method = (f"fingerprints of {BLOCK_MM:g} mm blocks, {words}; chance {np.mean(chance):.2g}; "
              "bootstrap over people")
    return tuple(
        Test(name, len(people), float(column.mean()),
             *bootstrap_interval(lambda rows, who: float(column[rows].mean()), people, seed=seed),
             method=method if i == 0 else method.replace(f"; chance {np.mean(chance):.2g}", ""),
             question="person")
        for i, (name, column) in enumerate(zip(names, means.T)))


def _nothing(names: Sequence[str], why: str, n: int) -> tuple[Test, ...]:
    return tuple(not_possible(name, why, n, question="person") for name in names)
