"""Texture of a scan: noise, sharpness and band energies, independent of the scan's gain.

All intensities are divided by the 1 to 99 % range of the brain, so a gain changes no number.
Lengths are in mm.

* **Noise** of a tissue is 1.4826 times the median absolute deviation of a high-pass filter in
  voxels that hold no other tissue. The filter is the second difference along all three axes, which
  suppresses smooth anatomy (after [1]_). Its norm is one, so the number is the standard deviation
  of white noise. Interpolation removes most of this noise; compare only scans on the same kind of
  grid.
* **Sharpness** along an axis is the full width at half maximum of the blur of edges. For a step
  under a Gaussian blur of standard deviation b, the energy of a Gaussian derivative of scale s is
  A / sqrt(b^2 + s^2). Two scales give b^2. A blur below a voxel is reported as the voxel. Oblique
  edges and folds increase the value, equally for all scanners.
* **Bands** are differences of Gaussians of 0, 0.6, 1.2 and 2.4 mm, computed as normalized
  convolutions inside the mask [2]_.

References
----------
.. [1] Immerkaer, J. (1996). Fast noise variance estimation. doi:10.1006/cviu.1996.0060
.. [2] Knutsson, H. and Westin, C.-F. (1993). Normalized and differential convolution. CVPR.
   doi:10.1109/CVPR.1993.341081
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from ..point_spread import FWHM_PER_STD
from ..tissues import TISSUES
from ..volume import Volume

__all__ = ["BAND_SIGMAS_MM", "TEXTURE_QUANTILES", "ScanTexture", "measure_texture",
           "pool_textures", "split_bands", "band_responses", "noise_of", "pure_voxels", "smooth"]

BAND_SIGMAS_MM = (0.6, 1.2, 2.4)  # upper edges of the bands, standard deviations
TEXTURE_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99)
AXES = ("x", "y", "z")
TEXTURE_VERSION = 1.0
PREFIX = "texture_"  # of the names in a site card
MAD_TO_STD = 1.4826
SECOND_DIFFERENCE = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)  # of norm one
MIN_PURE_PROBABILITY = 0.9  # of a voxel that represents one tissue
MIN_PURE_VOXELS = 60  # with fewer, a tissue's noise is not measured
MIN_RESPONSE = 0.02  # variance of white noise in a band that the grid resolves
EDGE_SIGMA_MM = 1.0  # the finer scale of the derivatives; the coarser is twice that
EDGE_SIGMA_VOXELS = 0.8  # lower bound of that scale, voxels
FACING_POWER = 4  # of the squared cosine between gradient and axis
MAX_FWHM_MM = 20.0
MAX_CARD_NUMBER = 1e6
MIN_MASK_WEIGHT = 1e-3  # smallest denominator of a normalized convolution
FEW_TAPS_SIGMA = 0.7  # voxels; three taps have the exact variance of a narrower Gaussian


@dataclass(frozen=True, eq=False)
class ScanTexture:
    """Texture numbers of one scan, or their mean over the scans of a site; 0 if not measured.

    Attributes
    ----------
    noise : ndarray, shape (3,)
        Standard deviation of noise in CSF, GM and WM, fractions of the range.
    fwhm_mm : ndarray, shape (3,)
        Blur of edges along the world's x, y and z, mm.
    bands : ndarray, shape (3, 3)
        Standard deviation of each band (first axis, finest first) in each pure tissue, fractions of
        the range.
    edges : ndarray, shape (3,)
        Standard deviation of each band over the brain beyond that in pure tissue.
    quantiles : ndarray, shape (11,)
        Intensities at `TEXTURE_QUANTILES`, fractions of the range.
    mean, std : ndarray, shape (3,)
        Mean and standard deviation of the tissues, weighted by squared probability.
    """

    noise: np.ndarray
    fwhm_mm: np.ndarray
    bands: np.ndarray
    edges: np.ndarray
    quantiles: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a site card by name."""
        return {PREFIX + "version": np.array([TEXTURE_VERSION])} | {
            PREFIX + f.name: np.asarray(getattr(self, f.name), np.float64) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ScanTexture | None:
        """Read the numbers of a site card; None if it holds none.

        Raises
        ------
        ValueError
            If the numbers are of another version, shape, or range.
        """
        if PREFIX + "version" not in arrays:
            return None
        version = np.asarray(arrays[PREFIX + "version"]).ravel()
        if version.tolist() != [TEXTURE_VERSION]:
            raise ValueError(f"texture numbers of version {version.tolist()}, expected "
                             f"{TEXTURE_VERSION:g}")
        return cls(*(_checked(arrays, f.name) for f in fields(cls)))

    def numbers(self) -> dict[str, float]:
        """Return the numbers by name, such as ``noise_gm``, ``blur_x`` and ``band1_wm``."""
        named = {f"noise_{name.lower()}": value for name, value in zip(TISSUES, self.noise)}
        named |= {f"blur_{axis}": value for axis, value in zip(AXES, self.fwhm_mm)}
        named |= {f"band{band}_{name.lower()}": value for band, row in enumerate(self.bands, 1)
                  for name, value in zip(TISSUES, row)}
        named |= {f"band{band}": value for band, value in enumerate(self.edges, 1)}
        return {name: float(value) for name, value in named.items() if value > 0}


_SHAPES = {"noise": (3,), "fwhm_mm": (3,), "bands": (len(BAND_SIGMAS_MM), 3),
           "edges": (len(BAND_SIGMAS_MM),), "quantiles": (len(TEXTURE_QUANTILES),), "mean": (3,),
           "std": (3,)}


def _checked(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    array = np.asarray(arrays[PREFIX + name], np.float64)
    low = -MAX_CARD_NUMBER if name in ("quantiles", "mean") else 0.0
    if array.shape != _SHAPES[name] or not ((array >= low) & (array <= MAX_CARD_NUMBER)).all():
        raise ValueError(f"expected {_SHAPES[name]} numbers as {PREFIX}{name}, {low:g} to "
                         f"{MAX_CARD_NUMBER:g}")
    return array


def measure_texture(volume: Volume, probabilities: np.ndarray) -> ScanTexture:
    """Measure the texture numbers of one scan.

    Parameters
    ----------
    volume : image with a mask, on any grid
    probabilities : (3, I, J, K) tissue probabilities 0..1 on that grid, in the order of `TISSUES`

    Returns
    -------
    ScanTexture
        Zeros where a number cannot be measured: in a constant image, in a tissue with too few pure
        voxels, in a band that the grid does not resolve.
    """
    assert volume.mask is not None
    values = volume.in_mask().astype(np.float64)
    low, high = np.quantile(values, [0.01, 0.99])
    if not high > low:
        return ScanTexture(*(np.zeros(_SHAPES[f.name]) for f in fields(ScanTexture)))
    box = ndimage.find_objects(volume.mask.astype(np.uint8))[0]
    mask = np.pad(volume.mask[box], 1)
    image = np.pad(volume.data[box].astype(np.float32) / np.float32(high - low), 1) * mask
    probabilities = np.pad(probabilities[(slice(None), *box)], ((0, 0), *((1, 1),) * 3))
    core = ndimage.binary_erosion(mask, iterations=2)
    pure = pure_voxels(core, probabilities)
    levels = list(_levels(image, mask, volume.spacing))
    bands, edges = _band_stds([image, *levels], volume.spacing, core, pure)
    filled = np.where(mask, image, levels[-1])
    mean, std = _tissue_moments(image[mask], probabilities[:, mask])
    return ScanTexture(
        noise_of(image, pure), _blur_widths(filled, volume, core, pure), bands, edges,
        np.quantile(values, TEXTURE_QUANTILES) / (high - low), mean, std)


def pool_textures(each: Sequence[ScanTexture]) -> ScanTexture:
    """Average the texture of scans: geometric mean of positive numbers, without zeros."""
    def pooled(name: str) -> np.ndarray:
        rows = np.stack([getattr(one, name) for one in each])
        if name in ("quantiles", "mean"):
            return rows.mean(axis=0)
        known = rows > 0
        logs = np.log(np.where(known, rows, 1.0)).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return np.where(known.any(axis=0), np.exp(logs), 0.0)

    return ScanTexture(*(pooled(f.name) for f in fields(ScanTexture)))


def split_bands(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray
                ) -> tuple[list[np.ndarray], np.ndarray]:
    """Split an image into bands and a smooth rest.

    Parameters
    ----------
    image : (I, J, K) float32, zero outside the mask
    mask : (I, J, K) bool
    spacing : (3,) voxel size, mm

    Returns
    -------
    bands : finest first, (I, J, K) float32, zero outside the mask; with the rest they add up to
        the image
    rest : (I, J, K) float32
    """
    bands, above = [], image
    for below in _levels(image, mask, spacing):
        below = np.where(mask, below, np.float32(0))
        bands.append(above - below)
        above = below
    return bands, above


def _levels(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the image smoothed by the Gaussian of each band, normalized inside the mask."""
    top, weight, last = image, mask.astype(np.float32), 0.0
    for sigma in BAND_SIGMAS_MM:
        step = np.sqrt(sigma ** 2 - last ** 2) / spacing
        top, weight, last = smooth(top, step), smooth(weight, step), sigma
        yield top / np.maximum(weight, MIN_MASK_WEIGHT)


def smooth(array: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Smooth by a Gaussian of (3,) standard deviations in voxels; three taps if it is narrow."""
    for axis, width in enumerate(sigma):
        if width < FEW_TAPS_SIGMA:
            side = width ** 2 / 2
            array = ndimage.correlate1d(array, [side, 1 - 2 * side, side], axis, mode="constant")
        else:
            array = ndimage.gaussian_filter1d(array, width, axis, mode="constant", truncate=3.0)
    return array


def band_responses(spacing: np.ndarray) -> np.ndarray:
    """Return the variance of each band for white noise of variance one, shape (3,).

    Parameters
    ----------
    spacing : (3,) voxel size, mm
    """
    above = np.zeros((25,) * 3, np.float32)
    above[12, 12, 12] = 1
    found, last = [], 0.0
    for sigma in BAND_SIGMAS_MM:
        below = smooth(above, np.sqrt(sigma ** 2 - last ** 2) / spacing)
        found.append(float(((above - below) ** 2).sum()))
        above, last = below, sigma
    return np.array(found)


def _second_differences(image: np.ndarray) -> np.ndarray:
    for axis in range(3):
        image = ndimage.correlate1d(image, SECOND_DIFFERENCE, axis, mode="nearest")
    return image


def robust_std(values: np.ndarray) -> float:
    """Estimate a standard deviation from the median absolute deviation."""
    if not values.size:
        return 0.0
    return float(MAD_TO_STD * np.median(np.abs(values - np.median(values))))


def noise_of(image: np.ndarray, pure: Sequence[np.ndarray]) -> np.ndarray:
    """Return the standard deviation of white noise by tissue, (3,), in the unit of the image.

    Parameters
    ----------
    image : (I, J, K) on the grid that the noise is measured on
    pure : for each tissue the (I, J, K) voxels that hold nothing else, see `pure_voxels`
    """
    high = _second_differences(image)
    return np.array([robust_std(high[one]) for one in pure])


def pure_voxels(core: np.ndarray, probabilities: np.ndarray) -> list[np.ndarray]:
    """Select voxels of one tissue alone, away from the mask's border; empty if too few."""
    pure = [core & (one > MIN_PURE_PROBABILITY) for one in probabilities]
    return [one if np.count_nonzero(one) >= MIN_PURE_VOXELS else np.zeros_like(one)
            for one in pure]


def _band_stds(levels: Sequence[np.ndarray], spacing: np.ndarray, core: np.ndarray,
               pure: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return robust standard deviations (bands, tissues), and (bands,) of the structure beyond."""
    bands = [above - below for above, below in zip(levels, levels[1:])]
    seen = band_responses(spacing) > MIN_RESPONSE
    stds = np.array([[robust_std(band[one]) * ok for one in pure]
                     for band, ok in zip(bands, seen)])
    squares = np.array([float(np.mean(band[core] ** 2)) if core.any() else 0.0 for band in bands])
    floor = np.array([min((s for s in row if s > 0), default=0.0) for row in stds]) ** 2
    return stds, np.sqrt(np.maximum(squares - floor, 0.0)) * seen


def _tissue_moments(values: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations (3,), weighted by squared probability."""
    weight = probabilities.astype(np.float64) ** 2 + 1e-9
    mean = (weight * values).sum(axis=1) / weight.sum(axis=1)
    square = (weight * (values - mean[:, None]) ** 2).sum(axis=1) / weight.sum(axis=1)
    return mean, np.sqrt(square)


def _blur_widths(image: np.ndarray, volume: Volume, core: np.ndarray, pure: Sequence[np.ndarray]
                 ) -> np.ndarray:
    """Return the full width at half maximum along the world's axes, (3,), mm; 0 if not measured."""
    flat = np.logical_or(pure[1], pure[2])
    facing = _facing(image, volume.spacing, core)
    variances = np.zeros(3)
    for axis, size in enumerate(volume.spacing):
        scales = np.array([1.0, 2.0]) * max(EDGE_SIGMA_MM, EDGE_SIGMA_VOXELS * size)
        energies = [_edge_energy(image, axis, scale / size, core, facing[axis], flat)
                    for scale in scales]
        if not min(energies) > 0:
            return np.zeros(3)
        blur = _blur_of_ratio(energies[0] / energies[1], scales)
        variances[axis] = max(blur, float(size) / FWHM_PER_STD) ** 2
    turn = volume.affine[:3, :3] / volume.spacing
    return FWHM_PER_STD * np.sqrt((turn ** 2) @ variances)


def _blur_of_ratio(ratio: float, scales: np.ndarray) -> float:
    """Solve for the standard deviation b (mm) of a blur from the energies at two scales."""
    blur = np.linspace(0.0, MAX_FWHM_MM / FWHM_PER_STD, 400)[:, None]
    width, weight = blur ** 2 + scales ** 2, blur ** 2 + (2 * EDGE_SIGMA_MM) ** 2
    energy = 1 / (width * np.sqrt(1 / width + 1 / weight))
    ratios = energy[:, 0] / energy[:, 1]  # decreases with the blur
    return float(np.interp(-ratio, -ratios, blur[:, 0]))


def _facing(image: np.ndarray, spacing: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Return the weight (3, n) of core voxels for each axis: large at edges across the axis."""
    coarse = smooth(image, 2 * EDGE_SIGMA_MM / spacing)
    squares = np.stack([(np.gradient(coarse, size, axis=axis)[core]) ** 2
                        for axis, size in enumerate(spacing)])
    total = np.maximum(squares.sum(axis=0), 1e-20)
    return total * (squares / total) ** FACING_POWER


def _edge_energy(image: np.ndarray, axis: int, sigma: float, core: np.ndarray,
                 weight: np.ndarray, flat: np.ndarray) -> float:
    """Return the mean squared derivative along an axis at edges across it, minus that of noise."""
    slope = ndimage.gaussian_filter1d(image, sigma, axis, order=1, mode="constant", truncate=3.0)
    total = float(weight.sum(dtype=np.float64))
    if not total > 0:
        return 0.0
    noise = robust_std(slope[flat])
    return float((weight * slope[core] ** 2).sum(dtype=np.float64)) / total - noise ** 2
