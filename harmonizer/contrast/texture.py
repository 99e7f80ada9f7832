"""Measure the texture of a scan: noise, sharpness and band energies, free of the scan's gain.

All intensities are divided by the 1 to 99 % range of the brain, so that a gain changes no number.
Lengths are in millimeters, whatever the voxel size.

* **Noise** of a tissue: 1.4826 times the median absolute deviation of a high-pass in voxels that
  hold nothing else. The high-pass is the second difference along all three axes, which smooth
  anatomy passes least (after Immerkaer 1996, doi:10.1006/cviu.1996.0060), of norm one, so that the
  number is the standard deviation of white noise. Interpolation takes away most of what it sees:
  compare scans on grids of one kind only.
* **Sharpness** along an axis: full width at half maximum of the blur of edges. A step under a
  Gaussian blur of standard deviation b has, after a Gaussian derivative of scale s along the axis,
  the energy A / sqrt(b^2 + s^2). Two scales give b^2; a blur below a voxel is given as the voxel.
  Edges that run askew to the axis and folds that are no single steps enlarge it, alike for all
  scanners.
* **Bands** are differences of Gaussians of 0, 0.6, 1.2 and 2.4 mm, normalized convolutions inside
  the mask (Knutsson and Westin 1993, doi:10.1109/CVPR.1993.341081).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

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
MIN_PURE_PROBABILITY = 0.9  # a voxel that speaks for one tissue
MIN_PURE_VOXELS = 60  # with fewer, a tissue's noise is not measured
MIN_RESPONSE = 0.02  # variance of white noise in a band below which the grid does not resolve it
EDGE_SIGMA_MM = 1.0  # the finer scale of the derivatives; the coarser is twice that
EDGE_SIGMA_VOXELS = 0.8  # but no finer than so many voxels
FWHM_PER_SIGMA = 2.3548
FACING_POWER = 4  # of the squared cosine between gradient and axis
MAX_FWHM_MM = 20.0
LARGE = 1e6  # no number of a card is larger
EPSILON = 1e-3  # least denominator of a normalized convolution
FEW_TAPS_SIGMA = 0.7  # voxels; below it three taps have the exact variance


@dataclass(frozen=True, eq=False)
class ScanTexture:
    """Texture numbers of one scan, or their mean over the scans of a site. 0: not measured.

    Attributes
    ----------
    noise : (3,) standard deviation of noise by tissue (CSF, GM, WM), fractions of the range
    fwhm_mm : (3,) blur of edges along the world's x, y and z, mm
    bands : (3 bands, 3 tissues) standard deviation of each band in pure tissue, fractions of the
        range; finest band first
    edges : (3 bands,) standard deviation of each band over the brain beyond that in pure tissue
    quantiles : (11,) intensities at `TEXTURE_QUANTILES`, fractions of the range
    mean, std : (3,) of the tissues, weighted by probability squared, fractions of the range
    """

    noise: np.ndarray
    fwhm_mm: np.ndarray
    bands: np.ndarray
    edges: np.ndarray
    quantiles: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a site card, by name."""
        return {PREFIX + "version": np.array([TEXTURE_VERSION])} | {
            PREFIX + f.name: np.asarray(getattr(self, f.name), np.float64) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ScanTexture | None:
        """The numbers in a site card; None where it holds none.

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
        """What was measured, by names such as ``noise_gm``, ``blur_x`` and ``band1_wm``."""
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
    low = -LARGE if name in ("quantiles", "mean") else 0.0
    if array.shape != _SHAPES[name] or not ((array >= low) & (array <= LARGE)).all():
        raise ValueError(f"expected {_SHAPES[name]} numbers as {PREFIX}{name}, {low:g} to "
                         f"{LARGE:g}")
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
    """Mean texture of the scans of a site: geometric for positive numbers, zeros left out."""
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
    """Split an image into bands and what is smoother than all of them.

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
    """The image under the Gaussian of each band, a normalized convolution, also near the mask."""
    top, weight, last = image, mask.astype(np.float32), 0.0
    for sigma in BAND_SIGMAS_MM:
        step = np.sqrt(sigma ** 2 - last ** 2) / spacing
        top, weight, last = smooth(top, step), smooth(weight, step), sigma
        yield top / np.maximum(weight, EPSILON)


def smooth(array: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian of (3,) standard deviations in voxels; three taps where it is narrow."""
    for axis, width in enumerate(sigma):
        if width < FEW_TAPS_SIGMA:
            side = width ** 2 / 2
            array = ndimage.correlate1d(array, [side, 1 - 2 * side, side], axis, mode="constant")
        else:
            array = ndimage.gaussian_filter1d(array, width, axis, mode="constant", truncate=3.0)
    return array


def band_responses(spacing: np.ndarray) -> np.ndarray:
    """(3 bands,) variance of each band in white noise of variance one.

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
    """Standard deviation of a normal distribution with this median absolute deviation."""
    if not values.size:
        return 0.0
    return float(MAD_TO_STD * np.median(np.abs(values - np.median(values))))


def noise_of(image: np.ndarray, pure: Sequence[np.ndarray]) -> np.ndarray:
    """(3,) standard deviation of white noise by tissue, in the image's unit.

    Parameters
    ----------
    image : (I, J, K) on the grid that the noise is measured on
    pure : for each tissue the (I, J, K) voxels that hold nothing else, see `pure_voxels`
    """
    high = _second_differences(image)
    return np.array([robust_std(high[one]) for one in pure])


def pure_voxels(core: np.ndarray, probabilities: np.ndarray) -> list[np.ndarray]:
    """Voxels of each tissue alone, away from the mask's edge; none where they are too few."""
    pure = [core & (one > MIN_PURE_PROBABILITY) for one in probabilities]
    return [one if np.count_nonzero(one) >= MIN_PURE_VOXELS else np.zeros_like(one)
            for one in pure]


def _band_stds(levels: Sequence[np.ndarray], spacing: np.ndarray, core: np.ndarray,
               pure: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(bands, tissues) robust standard deviations, and (bands,) of the structure beyond them."""
    bands = [above - below for above, below in zip(levels, levels[1:])]
    seen = band_responses(spacing) > MIN_RESPONSE
    stds = np.array([[robust_std(band[one]) * ok for one in pure]
                     for band, ok in zip(bands, seen)])
    squares = np.array([float(np.mean(band[core] ** 2)) if core.any() else 0.0 for band in bands])
    floor = np.array([min((s for s in row if s > 0), default=0.0) for row in stds]) ** 2
    return stds, np.sqrt(np.maximum(squares - floor, 0.0)) * seen


def _tissue_moments(values: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3,) means and standard deviations, weighted by probability squared."""
    weight = probabilities.astype(np.float64) ** 2 + 1e-9
    mean = (weight * values).sum(axis=1) / weight.sum(axis=1)
    square = (weight * (values - mean[:, None]) ** 2).sum(axis=1) / weight.sum(axis=1)
    return mean, np.sqrt(square)


def _blur_widths(image: np.ndarray, volume: Volume, core: np.ndarray, pure: Sequence[np.ndarray]
                 ) -> np.ndarray:
    """(3,) full width at half maximum along the world's axes, mm; 0 where it is not measured."""
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
        variances[axis] = max(blur, float(size) / FWHM_PER_SIGMA) ** 2
    turn = volume.affine[:3, :3] / volume.spacing
    return FWHM_PER_SIGMA * np.sqrt((turn ** 2) @ variances)


def _blur_of_ratio(ratio: float, scales: np.ndarray) -> float:
    """Standard deviation b (mm) of a blurred step whose energies at two scales have this ratio."""
    blur = np.linspace(0.0, MAX_FWHM_MM / FWHM_PER_SIGMA, 400)[:, None]
    width, weight = blur ** 2 + scales ** 2, blur ** 2 + (2 * EDGE_SIGMA_MM) ** 2
    energy = 1 / (width * np.sqrt(1 / width + 1 / weight))
    ratios = energy[:, 0] / energy[:, 1]  # falls with the blur
    return float(np.interp(-ratio, -ratios, blur[:, 0]))


def _facing(image: np.ndarray, spacing: np.ndarray, core: np.ndarray) -> np.ndarray:
    """(3, n) weight of each core voxel along each axis: large at strong edges across it."""
    coarse = smooth(image, 2 * EDGE_SIGMA_MM / spacing)
    squares = np.stack([(np.gradient(coarse, size, axis=axis)[core]) ** 2
                        for axis, size in enumerate(spacing)])
    total = np.maximum(squares.sum(axis=0), 1e-20)
    return total * (squares / total) ** FACING_POWER


def _edge_energy(image: np.ndarray, axis: int, sigma: float, core: np.ndarray,
                 weight: np.ndarray, flat: np.ndarray) -> float:
    """Mean square derivative along an axis at edges across it, less that of noise."""
    slope = ndimage.gaussian_filter1d(image, sigma, axis, order=1, mode="constant", truncate=3.0)
    total = float(weight.sum(dtype=np.float64))
    if not total > 0:
        return 0.0
    noise = robust_std(slope[flat])
    return float((weight * slope[core] ** 2).sum(dtype=np.float64)) / total - noise ** 2
