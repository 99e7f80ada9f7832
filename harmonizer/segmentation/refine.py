"""Refine tissue probabilities with the intensities of the image.

A network or an atlas gives prior probabilities that are roughly in place. A mixture of three normal
distributions, one for each tissue, then updates them by expectation maximization. The mean and the
variance of each tissue vary smoothly over the brain, so a bias field or a region's own brightness
does not mislead the classification. This is the idea of unified segmentation [1]_ with a network in
place of the atlas. No order of tissue intensities is assumed.

* The prior is flat for CSF, because the network misses CSF in narrow sulci. At the GM/WM border the
  prior dominates.
* With a network prior, the likelihood has a weight below one: the network has seen the same image,
  so full weight would count the noise twice.
* Where GM has the intensity of CSF or WM in the image, the prior is returned unchanged.
* White matter lesions fit none of the three distributions. Where the prior is certain of WM, an
  outlier of any intensity stays WM and has no weight in the mean and variance of WM, after [2]_.

References
----------
.. [1] Ashburner, J. and Friston, K. J. (2005). Unified segmentation. NeuroImage 26(3), 839-851.
   doi:10.1016/j.neuroimage.2005.02.018
.. [2] Van Leemput, K. et al. (2001). Automated segmentation of multiple sclerosis lesions by model
   outlier detection. IEEE Trans. Med. Imaging 20(8), 677-688. doi:10.1109/42.938237
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["PriorSettings", "NETWORK_PRIOR", "MIN_CONTRAST_TO_NOISE", "contrast_to_noise",
           "refine", "unmask"]

REVISION = 9  # part of the cache key: increase it when results change
EM_ITERATIONS = 10  # ten more change a probability by 0.0001 on average
NEIGHBORHOOD_SIGMA_MM = 8.0  # Gaussian neighborhood of the local means and variances
BLOCK_VOXELS = 3  # along each axis; the voxels of a block share one mean and variance
MIN_TISSUE_PROBABILITY = 0.3  # below it, a voxel has no weight in the tissue's mean and variance
# Below it, a segmentation has low confidence (docs/concepts/segmentation.md).
MIN_CONTRAST_TO_NOISE = 1.0
GLOBAL_STATISTICS_WEIGHT = 0.02  # of the whole brain's moments, relative to the fullest block


@dataclass(frozen=True)
class PriorSettings:
    """How far prior probabilities are trusted, and where.

    Attributes
    ----------
    contrast_to_noise_range : (float, float)
        Contrast-to-noise ratios of GM and its neighbors, see `contrast_to_noise`. Up to the first,
        the image is ignored; from the second, it has full weight.
    blur_mm : float
        Standard deviation of the Gaussian that blurs the prior, voxels of 1 mm. It limits how far
        the image can move a border.
    csf_floor : float
        Added to the prior of CSF outside white matter. It flattens the prior there.
    csf_floor_in_wm : float
        Added to the prior of CSF where the prior of WM is one.
    csf_logit : float
        Added to the log prior of CSF.
    likelihood_weight : float
        Exponent of the image's likelihood, 0 to 1.
    outlier_density : float
        Density of outliers where the prior is certain of WM, relative to a uniform density over
        the brain's intensities. 0 disables the outlier class.
    gm_wm_floor : float
        Added to the prior odds of GM and WM among non-CSF.
    gm_logit : float
        Added to the log odds of GM over WM; the network is biased toward WM.
    """

    contrast_to_noise_range: tuple[float, float]
    blur_mm: float
    csf_floor: float
    csf_floor_in_wm: float
    csf_logit: float
    likelihood_weight: float
    outlier_density: float
    gm_wm_floor: float = 0.02
    gm_logit: float = 0.3


NETWORK_PRIOR = PriorSettings(
    contrast_to_noise_range=(0.6, 1.2), blur_mm=0.4, csf_floor=0.6, csf_floor_in_wm=0.02,
    csf_logit=0.2, likelihood_weight=0.6, outlier_density=0.3)


def refine(data: np.ndarray, mask: np.ndarray, probabilities: np.ndarray,
           settings: PriorSettings = NETWORK_PRIOR) -> np.ndarray:
    """Update prior tissue probabilities with the image's intensities.

    Parameters
    ----------
    data : (I, J, K) ndarray
        The image, in any unit, with voxels of 1 mm.
    mask : (I, J, K) bool ndarray
        Brain mask.
    probabilities : (3, I, J, K) ndarray
        Prior probabilities of CSF, GM and WM, 0 to 1.
    settings : PriorSettings
        How far the prior is trusted.

    Returns
    -------
    (3, I, J, K) float32 ndarray
        Posterior probabilities. They sum to one inside the mask and are zero outside.
    """
    blurred = _normalize(np.stack([ndimage.gaussian_filter(p, settings.blur_mm)[mask]
                                   for p in probabilities]))
    log_prior = _log_prior(blurred, settings)
    prior = _normalize(np.stack([p[mask] for p in probabilities]))
    values = _standardize(data[mask])
    blocks = _Blocks(mask)
    posterior = prior
    image_weight = _image_weight(values, prior, settings.contrast_to_noise_range)
    if image_weight == 0:
        return unmask(prior, mask)
    log_outlier = _log_outlier(values, blurred[2], settings)
    inlier = 1.0
    for _ in range(EM_ITERATIONS):
        logs = np.stack([blocks.log_likelihood(values, w)
                         for w in (posterior[0], posterior[1], posterior[2] * inlier)])
        wm = _log_add(logs[2], log_outlier)
        inlier, logs[2] = np.exp(logs[2] - wm), wm
        logs *= settings.likelihood_weight
        logs += log_prior
        logs -= logs.max(axis=0)
        posterior = np.exp(logs, out=logs)
        posterior /= posterior.sum(axis=0)
    return unmask(image_weight * posterior + (1 - image_weight) * prior, mask)


def _standardize(values: np.ndarray) -> np.ndarray:
    """(n,) float32 with mean 0 and std 1, so that single precision suffices for any unit."""
    values = values.astype(np.float64)
    return ((values - values.mean()) / max(values.std(), 1e-12)).astype(np.float32)


def _log_add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """log(exp(one) + exp(other)), in a third of the time of `numpy.logaddexp`."""
    difference = np.minimum(other - one, 80)  # beyond 80, exp exceeds float32; the sum is `other`
    np.exp(difference, out=difference)
    difference += 1
    np.log(difference, out=difference)
    difference += one
    return np.maximum(difference, other, out=difference)


def _normalize(probabilities: np.ndarray) -> np.ndarray:
    """(3, n) probabilities divided by their sum."""
    return probabilities / np.maximum(probabilities.sum(axis=0), 1e-6)


def _log_prior(probabilities: np.ndarray, settings: PriorSettings) -> np.ndarray:
    """(3, n) log prior, up to a constant, from normalized probabilities.

    The prior is a tree: CSF or not, then GM or WM.
    """
    floor = (settings.csf_floor
             + (settings.csf_floor_in_wm - settings.csf_floor) * probabilities[2])
    csf = (probabilities[0] + floor) / (1 + 3 * floor)
    odds = np.exp(settings.gm_logit) * (probabilities[1] + 1e-3) / (probabilities[2] + 1e-3)
    gm = (odds / (1 + odds) + settings.gm_wm_floor) / (1 + 2 * settings.gm_wm_floor)
    return np.stack([np.log(csf) + settings.csf_logit, np.log((1 - csf) * gm),
                     np.log((1 - csf) * (1 - gm))])


def _log_outlier(values: np.ndarray, wm: np.ndarray, settings: PriorSettings) -> np.ndarray:
    """(n,) log density of WM outliers, in the unit of `_Blocks.log_likelihood`."""
    low, high = np.percentile(values, (0.5, 99.5))
    uniform = np.sqrt(2 * np.pi) / max(high - low, 1e-12)
    with np.errstate(divide="ignore"):
        return np.log(settings.outlier_density * wm**3 * uniform)


def unmask(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Write values of masked voxels into full volumes, as `nilearn.masking.unmask` does.

    Parameters
    ----------
    values : (C, n) ndarray
        Values of C channels at the n True voxels of the mask.
    mask : (I, J, K) bool ndarray
        The mask.

    Returns
    -------
    (C, I, J, K) float32 ndarray
        Zero outside the mask.
    """
    out = np.zeros((len(values), *mask.shape), np.float32)
    out[:, mask] = values
    return out


def _image_weight(values: np.ndarray, prior: np.ndarray, limits: tuple[float, float]) -> float:
    """Weight of the image, 0 to 1, rising with its contrast-to-noise ratio between the limits."""
    low, high = limits
    return float(np.clip((contrast_to_noise(values, prior) - low) / (high - low), 0, 1))


def contrast_to_noise(values: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the contrast-to-noise ratio between GM and the tissue that is most similar to it.

    The ratio is the difference of the tissue means over their pooled standard deviation, for
    GM/CSF and for GM/WM; the smaller one counts. It is high where the image agrees with the
    segmentation. A high ratio does not prove that the segmentation is correct.

    Parameters
    ----------
    values : (n,) ndarray
        Intensities inside the brain mask, in any unit.
    probabilities : (3, n) ndarray
        Probabilities of CSF, GM and WM, 0 to 1.

    Returns
    -------
    float
        0 or more; unit 1.
    """
    values, probabilities = values.astype(np.float64), _normalize(probabilities)
    means, variances = [], []
    for probability in probabilities:
        weights = np.where(probability > 0.5, probability, 0)
        size = max(float(weights.sum()), 1e-6)
        mean = float((weights * values).sum() / size)
        means.append(mean)
        variances.append(float((weights * (values - mean) ** 2).sum() / size))
    ratios = [abs(means[1] - means[n]) / max(np.sqrt((variances[1] + variances[n]) / 2), 1e-12)
              for n in (0, 2) if (probabilities[n] > 0.5).mean() > 0.01]
    return float(min(ratios, default=0.0))


class _Blocks:
    """Local moments of masked voxels, computed on blocks of `BLOCK_VOXELS` voxels."""

    def __init__(self, mask: np.ndarray) -> None:
        # Equal padding on both sides, so that a mirrored image has mirrored blocks.
        before = [n % BLOCK_VOXELS for n in mask.shape]
        self.shape = tuple((n + 2 * b) // BLOCK_VOXELS for n, b in zip(mask.shape, before))
        where = [(w + b) // BLOCK_VOXELS for w, b in zip(np.nonzero(mask), before)]
        self.of_voxel = np.ravel_multi_index(tuple(where), self.shape)

    def log_likelihood(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(n,) float32 log density under the local normal distribution of one tissue.

        The constant - log(2 pi) / 2 is left out.
        """
        selected = np.flatnonzero(weights > MIN_TISSUE_PROBABILITY)
        if not selected.size:
            return np.full(values.shape, -1e3, np.float32)
        w, v = weights[selected].astype(np.float64), values[selected].astype(np.float64)
        mean = w @ v / w.sum()
        variance = w @ (v - mean) ** 2 / w.sum()
        n, first, second = (self._smooth(selected, w * v**k) for k in range(3))
        extra = GLOBAL_STATISTICS_WEIGHT * n.max()
        local_mean = (first + extra * mean) / (n + extra)
        local_variance = (second + extra * (variance + mean**2)) / (n + extra) - local_mean**2
        local_variance = np.maximum(local_variance, max(1e-2 * variance, 1e-12))
        out = values - self._to_voxels(local_mean)
        out *= out
        out *= self._to_voxels(-0.5 / local_variance)
        out += self._to_voxels(-0.5 * np.log(local_variance))
        return out

    def _smooth(self, voxels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gaussian-weighted sum of the voxels' weights around each block."""
        sums = np.bincount(self.of_voxel[voxels], weights, minlength=int(np.prod(self.shape)))
        return ndimage.gaussian_filter(sums.reshape(self.shape),
                                       NEIGHBORHOOD_SIGMA_MM / BLOCK_VOXELS)

    def _to_voxels(self, block_values: np.ndarray) -> np.ndarray:
        """(n,) float32: the value of each voxel's block."""
        return block_values.astype(np.float32).ravel()[self.of_voxel]
