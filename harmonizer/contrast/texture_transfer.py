"""Match the texture of an image to a target: less noise, and some of the difference in blur.

The image is split into bands (`harmonizer.contrast.texture`). In each band b and voxel v

    out_b = h_b sqrt(1 - phi n_b) (1 + s_b (1 - n_b)),   n_b = N_b^2 / (N_b^2 + S_b)

with h_b the band, N_b the standard deviation of noise in it, S_b its local energy beyond that of
noise, phi the fraction of the noise's variance that the target does not have, and s_b a relative
gain.

* Where there is nothing but noise, S_b = 0: the noise becomes the target's, and no less. Where
  a band stands out of the noise, at an edge or a vessel, it stays (local Wiener filter: Lee 1980,
  doi:10.1109/TPAMI.1980.4766994). Noise is never added or amplified.
* s_b = a_b log(blur of the target / blur of the scan) applies to what stands out of the noise only.
  The a_b, of one kind where the target is more blurred and of another where it is less, are fitted
  by ridge regression on simulated pairs of scanners
  (`tools/fit_texture_gains.py`) and shipped with the package.
* phi and s_b are zero where the numbers of scan and target agree to within what scans of one
  scanner differ by.

The gains come from numbers measured on the template grid, where scan and target went through the
same interpolation. They belong to spatial frequencies in mm and hold on any grid of the same image;
N_b and S_b are measured on the grid that the step runs on; N_b is no larger than what pure tissue
shows there. Nothing is resampled but the tissue probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from ..files import read_json
from ..volume import Volume
from .intensity_map import IntensityMap
from .texture import (
    BAND_SIGMAS_MM,
    ScanTexture,
    band_responses,
    noise_of,
    pure_voxels,
    robust_std,
    smooth,
    split_bands,
)
from .tissue_map import Shares

__all__ = ["TextureGains", "TexturedMap", "blur_change", "blur_coefficients", "match_texture",
           "texture_parts"]

COEFFICIENTS = Path(__file__).parent / "data" / "texture_gains.json"
COEFFICIENTS_FORMAT = "harmonizer texture gains 1"
NOISE_TOLERANCE = 0.1  # log ratio by which the noise of scans of one scanner differs
BLUR_TOLERANCE = 0.06  # the same of their blur
STRUCTURE_GAIN = (-0.5, 0.3)  # limits of s_b
LOCAL_SIGMA_VOXELS = 1.0  # of the window in which a band's energy is taken
NOISE_ENERGY = 2.0  # times its variance, the local energy of noise alone is rarely larger
PEAK_ENERGY = 0.2  # a voxel's own energy counts at least this much: a thin line is no noise
LOWEST = 0.1  # of an intensity is left at least
MARGIN = 2  # voxels about the mask


@cache
def blur_coefficients() -> np.ndarray:
    """(2, 3 bands) the a_b that are shipped with the package: target more blurred, and less."""
    content = read_json(COEFFICIENTS)
    if content["Format"] != COEFFICIENTS_FORMAT:
        raise ValueError(f"{COEFFICIENTS}: is no {COEFFICIENTS_FORMAT}")
    return np.array([content["TargetMoreBlurred"], content["TargetLessBlurred"]], np.float64)


@dataclass(frozen=True, eq=False)
class TextureGains:
    """What a scan's texture needs to become a target's.

    Attributes
    ----------
    noise : (3 tissues,) noise of the target over that of the scan, 0 to 1
    structure : (3 bands,) s_b
    color : (3 bands,) noise in a band over the number of `noise_of`, on the template grid
    """

    noise: np.ndarray
    structure: np.ndarray
    color: np.ndarray

    @classmethod
    def between(cls, source: ScanTexture, target: ScanTexture, spacing: np.ndarray,
                blur: np.ndarray | None = None) -> TextureGains:
        """From the numbers of a scan, in the target's contrast, and of a target.

        Parameters
        ----------
        source, target : measured on grids of one kind
        spacing : (3,) voxel size of that grid, mm
        blur : (2, 3 bands) a_b; those of the package if None
        """
        ratios = np.array([_log_ratio(*pair, NOISE_TOLERANCE)
                           for pair in zip(source.noise, target.noise)])
        ratios[0] = ratios[1]  # magnitude noise of dark fluid is another one
        change = blur_change(source, target)
        found = blur_coefficients() if blur is None else blur
        gains = np.clip(found[int(change < 0)] * change, *STRUCTURE_GAIN)
        return cls(np.exp(np.minimum(ratios, 0.0)), gains, _noise_color(source, target, spacing))

    @property
    def is_identity(self) -> bool:
        """Whether nothing is to be done."""
        return bool((self.noise == 1).all() and (self.structure == 0).all())

    def describe(self) -> dict[str, Any]:
        """What a sidecar says; JSON types only."""
        return {"NoiseRatioCSF_GM_WM": [float(f"{v:.4g}") for v in self.noise],
                "BandSigmasMM": list(BAND_SIGMAS_MM),
                "StructureGain": [float(f"{1 + v:.4g}") for v in self.structure]}


def _log_ratio(source: float, target: float, tolerance: float) -> float:
    """log(target / source), drawn towards zero by the tolerance; 0 where one was not measured."""
    if not min(source, target) > 0:
        return 0.0
    ratio = np.log(target / source)
    return float(np.sign(ratio) * max(abs(ratio) - tolerance, 0.0))


def blur_change(source: ScanTexture, target: ScanTexture) -> float:
    """Log ratio of the blur of a target over that of a scan; 0 where they agree."""
    blur = [float(np.sqrt(np.mean(np.square(one.fwhm_mm)))) for one in (source, target)]
    return _log_ratio(*blur, BLUR_TOLERANCE)


def _noise_color(source: ScanTexture, target: ScanTexture, spacing: np.ndarray) -> np.ndarray:
    """(3 bands,) noise in a band over the number of `noise_of`.

    Scan and target differ in white matter by their noise, in the bands as in the high-pass.
    Interpolation takes away most of the high-pass and less of the bands: the ratio lies between
    that of white noise and, with room for other interpolations, twice that after a linear one.
    """
    low, high = band_responses(spacing), 4 * band_responses(spacing, interpolated=True)
    excess = source.noise[2] ** 2 - target.noise[2] ** 2
    if not excess > 0 or not target.noise[2] > 0:
        return np.sqrt(low)
    return np.sqrt(np.clip((source.bands[:, 2] ** 2 - target.bands[:, 2] ** 2) / excess, low,
                           np.maximum(high, low)))


@dataclass(frozen=True, eq=False)
class TexturedMap(IntensityMap):
    """A change of contrast, and then a change of texture on the very grid it is applied on.

    Attributes
    ----------
    contrast : the change of contrast
    gains : the change of texture
    shares : tissue probabilities, in the world of the map
    template : affine of the grid that the gains were measured on
    """

    contrast: IntensityMap
    gains: TextureGains
    shares: Shares
    template: np.ndarray

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        after = self.contrast.apply(volume.with_mask(mask), world)
        shares = np.zeros((3, *volume.shape), np.float32)
        shares[:, mask] = self.shares.sample(world @ volume.affine, mask)
        own = not np.allclose(volume.affine, self.template, atol=1e-4)
        return match_texture(after, shares, self.gains, scanner_grid=own)[mask]

    def describe(self) -> dict[str, Any]:
        """That of the change of contrast, and the gains."""
        return {**self.contrast.describe(), "Texture": self.gains.describe()}


def match_texture(volume: Volume, shares: np.ndarray, gains: TextureGains, *,
                  scanner_grid: bool = False) -> np.ndarray:
    """Apply texture gains to an image.

    Parameters
    ----------
    volume : image with a mask, in the target's contrast
    shares : (3, I, J, K) tissue probabilities on its grid
    gains : see `TextureGains`
    scanner_grid : the noise is white, as on the scanner's own grid; else as after interpolation

    Returns
    -------
    numpy.ndarray
        (I, J, K) float32; voxels outside the mask are the input's. Positive voxels stay positive.
    """
    if gains.is_identity or not np.ptp(volume.in_mask()) > 0:
        return volume.data
    assert volume.mask is not None
    box = tuple(slice(max(s.start - MARGIN, 0), s.stop + MARGIN)
                for s in ndimage.find_objects(volume.mask.astype(np.uint8))[0])
    mask, image = volume.mask[box], volume.data[box] * volume.mask[box]
    changed = image.copy()
    for parts, gain in zip(texture_parts(image, mask, volume.spacing, shares[(slice(None), *box)],
                                         gains, scanner_grid), gains.structure):
        changed += parts.less_noise + np.float32(gain) * parts.structure
    kept = np.where(image > 0, np.maximum(changed, np.float32(LOWEST) * image), image)
    data = volume.data.copy()
    data[box] = np.where(mask, kept, data[box])
    return data


class TextureParts(NamedTuple):
    """Of one band, (I, J, K): what the noise step adds, and what then stands out of the noise."""

    less_noise: np.ndarray
    structure: np.ndarray


def texture_parts(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray, shares: np.ndarray,
                  gains: TextureGains, scanner_grid: bool) -> Iterator[TextureParts]:
    """Split an image into bands, and each band into noise and structure; finest band first."""
    color = np.sqrt(band_responses(spacing)) if scanner_grid else gains.color
    pure = pure_voxels(ndimage.binary_erosion(mask, iterations=2), shares)
    white = noise_of(image, pure)
    # the part of the noise's variance that the target does not have
    surplus = np.einsum("c,cijk->ijk", (1 - gains.noise ** 2).astype(np.float32), shares)
    sigma = np.full(3, LOCAL_SIGMA_VOXELS)
    inside = np.maximum(smooth(mask.astype(np.float32), sigma), np.float32(1e-3))
    for band, width in zip(split_bands(image, mask, spacing)[0], color):
        std = np.minimum(width * white, [robust_std(band[one]) for one in pure])
        noise = np.maximum(_mixed_variance(std, shares), np.float32(1e-30))
        energy = band * band
        local = np.maximum(smooth(energy * mask, sigma) / inside, np.float32(PEAK_ENERGY) * energy)
        signal = np.maximum(local - np.float32(NOISE_ENERGY) * noise, 0)
        part = noise / (signal + noise)  # of the local energy that is noise
        quiet = band * np.sqrt(np.maximum(1 - surplus * part, 0))
        yield TextureParts(quiet - band, quiet * (1 - part))


def _mixed_variance(noise: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(I, J, K) variance of the noise; the other tissues' mean where one was not measured."""
    known = noise[1:][noise[1:] > 0]
    filled = np.where(noise > 0, noise, known.mean() if known.size else 0.0)
    filled[0] = filled[1]  # magnitude noise of dark fluid is another one
    return np.einsum("c,cijk->ijk", (filled ** 2).astype(np.float32), shares)
