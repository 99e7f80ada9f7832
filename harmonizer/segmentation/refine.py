"""The image's own brightness decides where exactly one tissue ends and the next begins.

The network says roughly what lies where, at any contrast; it was never shown this scanner. A
mixture of three normal distributions, one for each tissue, then asks the image: mean and variance
of each vary smoothly over the brain (so neither a bias field nor a region's own brightness
misleads), and the network's shares, blurred, are the prior (the idea of Ashburner and Friston 2005,
doi:10.1016/j.neuroimage.2005.02.018, with a network in the place of an atlas). The prior is flatter
for fluid, which the network misses in narrow sulci; between grey and white matter the network is
heard. The image weighs less than a likelihood would, since an atlas has not seen the image and the
network has: its noise would count twice. No order of brightness is assumed. Where grey matter looks
like fluid, or like white matter, the image has nothing to say and the network's shares are kept.

White matter may hold what looks like none of the three: lesions. Where the shares are sure of white
matter, an outlier, of any brightness, is as much white matter as the shares say, and counts
for nothing in its mean and variance (the idea of Van Leemput 2001, doi:10.1109/42.938237).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["Advice", "OF_NETWORK", "LEAST_SUPPORT", "contrast_between", "refine", "spread_out"]

REVISION = 9  # counted up when the answer changes: kept segmentations are then made anew
ITERATIONS = 10  # ten more change a share by .0001 on average
WIDTH_MM = 8.0  # of the neighbourhood in which a tissue has one mean
BLOCK = 3  # voxels along an axis that share the neighbourhood's numbers
SURE = 0.3  # voxels with less than this share of a tissue say nothing about its brightness
LEAST_SUPPORT = 1.0  # contrast below which the tissues are in doubt: docs/segmentation.md
BORROWED = 0.02  # weight of the whole brain's numbers where a neighbourhood holds little


@dataclass(frozen=True)
class Advice:
    """How far rough shares are to be listened to.

    Attributes
    ----------
    contrast : |difference of means| / spread of grey matter and its neighbours by the shares: with
        less than the first the image has no say, with more than the second all of it
    blur_mm : how far a border may be moved by the image
    fluid_floor : of each tissue: of fluid too little is found in narrow sulci, so it only advises
    fluid_in_white : the same in white matter, where no sulci are
    grey_floor : of grey and of white matter, of what is no fluid
    grey_logit : added to the log odds of grey to white matter: the network leans to white
    fluid_logit : added to fluid's, which else loses where the shares are sure of another tissue
    image_weight : of the image's log likelihood; below 1 where the shares come from it as well
    lesions : density of outliers where the shares are sure of white matter, over one of all
        brightnesses of the brain alike
    """

    contrast: tuple[float, float]
    blur_mm: float
    fluid_floor: float
    fluid_in_white: float
    fluid_logit: float
    image_weight: float
    lesions: float
    grey_floor: float = 0.02
    grey_logit: float = 0.3


OF_NETWORK = Advice(contrast=(0.6, 1.2), blur_mm=0.4, fluid_floor=0.6, fluid_in_white=0.02,
                    fluid_logit=0.2, image_weight=0.6, lesions=0.3)


def refine(data: np.ndarray, inside: np.ndarray, shares: np.ndarray,
           advice: Advice = OF_NETWORK) -> np.ndarray:
    """Posterior shares of three tissues.

    Parameters
    ----------
    data : (I, J, K) float, any unit, voxels of 1 mm
    inside : (I, J, K) bool: the brain
    shares : (3, I, J, K) roughly what lies where, 0..1
    advice : whose they are

    Returns
    -------
    (3, I, J, K) float32, summing to one inside, zero outside
    """
    blurred = _summing_to_one(np.stack([ndimage.gaussian_filter(s, advice.blur_mm)[inside]
                                        for s in shares]))
    log_prior = _log_prior(blurred, advice)
    found = _summing_to_one(np.stack([s[inside] for s in shares]))
    values = _standardised(data[inside])
    blocks = _Blocks(inside)
    rough, trust = found, _trust(values, found, advice.contrast)
    if trust == 0:
        return spread_out(rough, inside)
    log_outlier = _log_outlier(values, blurred[2], advice)
    typical = 1.0
    for _ in range(ITERATIONS):
        logs = np.stack([blocks.log_likelihood(values, w)
                         for w in (found[0], found[1], found[2] * typical)])
        white = _log_sum(logs[2], log_outlier)
        typical, logs[2] = np.exp(logs[2] - white), white
        logs *= advice.image_weight
        logs += log_prior
        logs -= logs.max(axis=0)
        found = np.exp(logs, out=logs)
        found /= found.sum(axis=0)
    return spread_out(trust * found + (1 - trust) * rough, inside)


def _standardised(values: np.ndarray) -> np.ndarray:
    """(n,) float32: mean 0 and standard deviation 1, so that no unit asks for double precision."""
    values = values.astype(np.float64)
    return ((values - values.mean()) / max(values.std(), 1e-12)).astype(np.float32)


def _log_sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """log(exp(one) + exp(other)): what `numpy.logaddexp` does, in a third of the time."""
    apart = np.minimum(other - one, 80)  # beyond, the larger is the sum, and single precision ends
    np.exp(apart, out=apart)
    apart += 1
    np.log(apart, out=apart)
    apart += one
    return np.maximum(apart, other, out=apart)


def _summing_to_one(shares: np.ndarray) -> np.ndarray:
    """(3, n) shares over their sum."""
    return shares / np.maximum(shares.sum(axis=0), 1e-6)


def _log_prior(shares: np.ndarray, advice: Advice) -> np.ndarray:
    """(3, n) up to a constant: fluid or not, and of what is not, grey or white matter; ``shares``
    sum to one.
    """
    floor = advice.fluid_floor + (advice.fluid_in_white - advice.fluid_floor) * shares[2]
    fluid = (shares[0] + floor) / (1 + 3 * floor)
    odds = np.exp(advice.grey_logit) * (shares[1] + 1e-3) / (shares[2] + 1e-3)
    grey = (odds / (1 + odds) + advice.grey_floor) / (1 + 2 * advice.grey_floor)
    return np.stack([np.log(fluid) + advice.fluid_logit, np.log((1 - fluid) * grey),
                     np.log((1 - fluid) * (1 - grey))])


def _log_outlier(values: np.ndarray, white: np.ndarray, advice: Advice) -> np.ndarray:
    """(n,) log density of an outlier in white matter, in the unit of `_Blocks.log_likelihood`."""
    darkest, brightest = np.percentile(values, (0.5, 99.5))
    alike = np.sqrt(2 * np.pi) / max(brightest - darkest, 1e-12)
    with np.errstate(divide="ignore"):
        return np.log(advice.lesions * white**3 * alike)


def spread_out(found: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(C, I, J, K) float32 of (C, n) values in the mask `inside`; zero elsewhere."""
    out = np.zeros((len(found), *inside.shape), np.float32)
    out[:, inside] = found
    return out


def _trust(values: np.ndarray, found: np.ndarray, contrast: tuple[float, float]) -> float:
    """0..1: how much the image is to say, by how well it tells grey matter from its neighbours."""
    low, high = contrast
    return float(np.clip((contrast_between(values, found) - low) / (high - low), 0, 1))


def contrast_between(values: np.ndarray, shares: np.ndarray) -> float:
    """|difference of means| / spread of grey matter and the neighbour that is nearest to it.

    Parameters
    ----------
    values : (n,) the image in the brain, any unit
    shares : (3, n) of CSF, grey and white matter there, 0..1

    Returns
    -------
    float
        0 or more; high where the shares say what the image shows.
    """
    values, found = values.astype(np.float64), _summing_to_one(shares)
    means, variances = [], []
    for share in found:
        weights = np.where(share > 0.5, share, 0)
        size = max(float(weights.sum()), 1e-6)
        mean = float((weights * values).sum() / size)
        means.append(mean)
        variances.append(float((weights * (values - mean) ** 2).sum() / size))
    apart = [abs(means[1] - means[n]) / max(np.sqrt((variances[1] + variances[n]) / 2), 1e-12)
             for n in (0, 2) if (found[n] > 0.5).mean() > 0.01]
    return float(min(apart, default=0.0))


class _Blocks:
    """Local means over the voxels inside, on blocks of a few voxels."""

    def __init__(self, inside: np.ndarray) -> None:
        before = [n % BLOCK for n in inside.shape]  # as much on either side: blocks of 3 mirror
        self.shape = tuple((n + 2 * b) // BLOCK for n, b in zip(inside.shape, before))
        where = [(w + b) // BLOCK for w, b in zip(np.nonzero(inside), before)]
        self.of_voxel = np.ravel_multi_index(tuple(where), self.shape)

    def log_likelihood(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(n,) float32 log density of each voxel under the local normal distribution of one tissue,
        but for - log(2 pi) / 2.
        """
        sure = np.flatnonzero(weights > SURE)
        if not sure.size:
            return np.full(values.shape, -1e3, np.float32)
        w, v = weights[sure].astype(np.float64), values[sure].astype(np.float64)
        mean = w @ v / w.sum()
        variance = w @ (v - mean) ** 2 / w.sum()
        n, first, second = (self._smooth(sure, w * v**k) for k in range(3))
        borrowed = BORROWED * n.max()
        local = (first + borrowed * mean) / (n + borrowed)
        spread = (second + borrowed * (variance + mean**2)) / (n + borrowed) - local**2
        spread = np.maximum(spread, max(1e-2 * variance, 1e-12))
        out = values - self._of_voxels(local)
        out *= out
        out *= self._of_voxels(-0.5 / spread)
        out += self._of_voxels(-0.5 * np.log(spread))
        return out

    def _smooth(self, voxels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sums of these voxels' weights over the neighbourhood of each block."""
        sums = np.bincount(self.of_voxel[voxels], weights, minlength=int(np.prod(self.shape)))
        return ndimage.gaussian_filter(sums.reshape(self.shape), WIDTH_MM / BLOCK)

    def _of_voxels(self, of_block: np.ndarray) -> np.ndarray:
        """(n,) float32: each voxel has its block's number."""
        return of_block.astype(np.float32).ravel()[self.of_voxel]
