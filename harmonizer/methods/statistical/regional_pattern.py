"""Shrinkage of regional intensity patterns that come from subjects instead of scanners.

The local maps of a tissue differ from the mean over sites by an offset, which is the same
everywhere (contrast), and by a pattern over places. Coils and sequences cause such patterns, and so
does anatomy. With few subjects, or with one scan of an unseen site, most of the pattern is
anatomical; attributing it to the scanner would transfer anatomy between subjects.

Let s^2 be the variance of patterns between sites and t^2 that between subjects of a site. Let v t^2
be the error variance of a map: v = 1 for one scan, v = 1 / n for n subjects. The best estimate of
the scanner's pattern is the fraction s^2 / (s^2 + v t^2) of the map's (empirical Bayes, as in
ComBat [1]_).

Only half of this shrinkage is applied, because an unusual scanner does not follow the distribution
of the others and would be shrunk too far (limited translation [2]_). Offsets are not changed.
docs/concepts/tissue-matching.md describes the method.

References
----------
.. [1] Johnson, W. E., Li, C. and Rabinovic, A. (2007). Adjusting batch effects in microarray
   expression data using empirical Bayes methods. doi:10.1093/biostatistics/kxj037
.. [2] Efron, B. and Morris, C. (1972). Limiting the risk of Bayes and empirical Bayes estimators.
   doi:10.1080/01621459.1972.10481215
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...contrast.local_statistics import LocalStatistics

__all__ = ["PatternVariances", "lattice_weights", "pattern_of", "pattern_variance",
           "without_pattern"]


@dataclass(frozen=True)
class PatternVariances:
    """Variances of regional patterns, as squares of relative differences.

    Attributes
    ----------
    between_sites : float
        s^2, the variance between sites.
    within_sites : float
        t^2, the variance between subjects of one site. Zero if neither variance is known.
    """

    between_sites: float = 0.0
    within_sites: float = 0.0

    def scanner_fraction(self, error_variance: float) -> float:
        """Return the fraction of a pattern that is attributed to the scanner.

        Parameters
        ----------
        error_variance : float
            v, the error variance of the map over the variance between subjects.

        Returns
        -------
        float
            0.5 to 1; 1 if the variances are not known.
        """
        subjects = error_variance * self.within_sites
        if subjects <= 0:
            return 1.0
        return (1 + self.between_sites / (self.between_sites + subjects)) / 2

    def shrink(self, maps: LocalStatistics, reference: LocalStatistics, error_variance: float
               ) -> LocalStatistics:
        """Remove the part of a pattern that is attributed to subjects.

        Parameters
        ----------
        maps : LocalStatistics
            Maps of a site or scan.
        reference : LocalStatistics
            Mean over sites; the pattern is the difference from it.
        error_variance : float
            See `scanner_fraction`.
        """
        return without_pattern(maps, reference, 1 - self.scanner_fraction(error_variance))


def without_pattern(maps: LocalStatistics, reference: LocalStatistics, fraction: float = 1.0
                    ) -> LocalStatistics:
    """Remove a fraction of the pattern by which maps differ from a reference.

    Parameters
    ----------
    maps, reference : LocalStatistics
        Maps on one lattice.
    fraction : float
        0 to 1. With 1, the maps of a tissue become those of the reference times one number.

    Returns
    -------
    LocalStatistics
        Means and standard deviations without the pattern; `maps` itself if `fraction` is 0.
    """
    if fraction == 0:
        return maps
    means, stds = (
        np.exp(-fraction * pattern_of(*pair, maps, reference)).astype(np.float32)
        for pair in ((maps.mean, reference.mean), (maps.std, reference.std)))
    return replace(maps, mean=maps.mean * means, std=maps.std * stds)


def pattern_of(values: np.ndarray, reference_values: np.ndarray, maps: LocalStatistics,
               reference: LocalStatistics) -> np.ndarray:
    """Return the log ratio of two maps, minus its mean over the lattice for each tissue.

    Parameters
    ----------
    values, reference_values : ndarray, shape (3, I, J, K)
        Means, or standard deviations, of `maps` and `reference`.
    maps, reference : LocalStatistics
        Maps that give the weights of the lattice points.

    Returns
    -------
    ndarray, shape (3, I, J, K), float64
    """
    weight = lattice_weights(maps, reference)
    ratio = np.log(values.astype(np.float64) / reference_values)
    return ratio - (weight * ratio).sum(axis=(1, 2, 3), keepdims=True)


def pattern_variance(maps: LocalStatistics, reference: LocalStatistics) -> float:
    """Return the mean square of the pattern of the local means; tissues have equal weight."""
    pattern = pattern_of(maps.mean, reference.mean, maps, reference)
    return float((lattice_weights(maps, reference) * pattern ** 2).sum() / len(pattern))


def lattice_weights(maps: LocalStatistics, reference: LocalStatistics) -> np.ndarray:
    """Return weights of lattice points: the smaller tissue mass, with sum 1 for each tissue.

    Returns
    -------
    ndarray, shape (3, I, J, K), float64
    """
    mass = np.minimum(maps.mass, reference.mass).astype(np.float64)
    return mass / np.maximum(mass.sum(axis=(1, 2, 3), keepdims=True), 1e-30)
