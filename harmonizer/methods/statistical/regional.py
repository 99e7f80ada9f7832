"""Whose is a regional pattern: the scanner's, or that of the people who were scanned?

Local maps of a tissue differ from what is usual in an offset, the same everywhere (contrast), and
in a pattern over places. A coil or a sequence has a pattern; so has each person. Of few people, or
one scan of an unseen site, most of the pattern is theirs, and to take it for the scanner's would
carry people's regions over. With s^2 the variance of patterns between sites, t^2 between people of
a site, and v t^2 the error of a map (v = 1 for one scan, 1 / n for n people), the best estimate of
the scanner's pattern is s^2 / (s^2 + v t^2) of the map's (empirical Bayes, as ComBat shrinks the
effects of batches: Johnson, Li and Rabinovic 2007, doi:10.1093/biostatistics/kxj037).

Half of what that asks for is done: a scanner that is unlike the others is not one of their kind,
and its pattern is then taken for people's (limited translation: Efron and Morris 1972,
doi:10.1080/01621459.1972.10481215). Offsets are left alone. Measured:
docs/concepts/tissue-matching.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...contrast.local_statistics import LocalStatistics

__all__ = ["Regional", "pattern_of", "mean_square", "place_weights", "without_pattern"]


@dataclass(frozen=True)
class Regional:
    """Variances of patterns, squares of relative differences.

    Attributes
    ----------
    between : s^2, of sites
    within : t^2, of people of one site; 0: neither is known
    """

    between: float = 0.0
    within: float = 0.0

    def kept(self, noise: float) -> float:
        """0.5 to 1: how much of the pattern of a map with this v is kept; all if nothing is known.
        """
        theirs = noise * self.within
        return (1 + self.between / (self.between + theirs)) / 2 if theirs > 0 else 1.0

    def freed(self, own: LocalStatistics, usual: LocalStatistics, noise: float) -> LocalStatistics:
        """Maps without that part of their pattern, by which they differ from `usual`, that is held
        to be people's; means and spreads alike.
        """
        return without_pattern(own, usual, 1 - self.kept(noise))


def without_pattern(own: LocalStatistics, usual: LocalStatistics, part: float = 1.0
                    ) -> LocalStatistics:
    """Return maps without ``part`` (0 to 1) of the pattern by which they differ from ``usual``.

    Without all of it, a tissue's maps are ``usual`` times one number.
    """
    if part == 0:
        return own
    means, stds = (np.exp(-part * pattern_of(*pair, own, usual)).astype(np.float32)
                      for pair in ((own.mean, usual.mean), (own.std, usual.std)))
    return replace(own, mean=own.mean * means, std=own.std * stds)


def pattern_of(one: np.ndarray, other: np.ndarray, own: LocalStatistics, usual: LocalStatistics
               ) -> np.ndarray:
    """(3, I, J, K) log of the ratio of two maps, less its mean over the places of each tissue."""
    weight = place_weights(own, usual)
    ratio = np.log(one.astype(np.float64) / other)
    return ratio - (weight * ratio).sum(axis=(1, 2, 3), keepdims=True)


def mean_square(own: LocalStatistics, usual: LocalStatistics) -> float:
    """Of the pattern of the means, tissues counting alike."""
    pattern = pattern_of(own.mean, usual.mean, own, usual)
    return float((place_weights(own, usual) * pattern ** 2).sum() / len(pattern))


def place_weights(own: LocalStatistics, usual: LocalStatistics) -> np.ndarray:
    """(3, I, J, K), of each tissue adding up to one: where both have it."""
    mass = np.minimum(own.mass, usual.mass).astype(np.float64)
    return mass / np.maximum(mass.sum(axis=(1, 2, 3), keepdims=True), 1e-30)
