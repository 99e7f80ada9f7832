"""Match the texture of an image to a target: less noise, and some of the difference in blur.

The image is split into bands (`harmonizer.contrast.texture`). In each band b and voxel v

    out_b = h_b max(1 - phi_b n_b, sqrt(1 - phi_b)) (1 + s_b (1 - n_b)),
    n_b = N_b^2 / (N_b^2 + S_b)

with h_b the band, N_b its standard deviation in pure white matter, S_b its local energy beyond
that, 1 - phi_b the ratio of N_b^2 at the target to that of the scan (at most one), and s_b a
relative gain.

* White matter is nearly flat: what its fine bands hold is noise, however interpolation has colored
  it. Where there is no more than that, S_b = 0, and the band gets the target's energy and no less.
  Where it stands out, at an edge or a vessel, it stays (local Wiener filter: Lee 1980,
  doi:10.1109/TPAMI.1980.4766994). Noise is never added or amplified.
* s_b = a_b log(blur of the target / blur of the scan) applies to what stands out of the noise only.
  The a_b, of one kind where the target is more blurred and of another where it is less, are fitted
  by ridge regression on simulated pairs of scanners (`tools/fit_texture_gains.py`) and shipped with
  the package.
* phi_b and s_b are zero where the numbers of scan and target agree to within what scans of one
  scanner differ by.

The gains come from numbers measured on the template grid, where scan and target went through the
same interpolation. They belong to spatial frequencies in mm and hold on any grid of the same image;
N_b and S_b are measured on the grid that the step runs on. Nothing is resampled but the tissue
probabilities.
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
from ..tissues import TISSUES
from ..volume import Volume
from .intensity_map import IntensityMap
from .texture import BAND_SIGMAS_MM, ScanTexture, pure_voxels, robust_std, smooth, split_bands
from .tissue_map import TissueProbabilities

__all__ = ["TextureGains", "TexturedMap", "blur_change", "blur_coefficients", "match_texture",
           "texture_parts"]

COEFFICIENTS = Path(__file__).parent / "data" / "texture_gains.json"
COEFFICIENTS_FORMAT = "harmonizer texture gains 1"
NOISE_TOLERANCE = 0.05  # log ratio by which the bands of scans of one scanner differ
BLUR_TOLERANCE = 0.06  # the same of their blur
STRUCTURE_GAIN = (-0.5, 0.3)  # limits of s_b
LOCAL_SIGMA_VOXELS = 1.0  # of the window in which a band's energy is taken
NOISE_ENERGY = 2.0  # times its variance, the local energy of noise alone is rarely larger
PEAK_ENERGY = 0.2  # a voxel's own energy counts at least this much: a thin line is no noise
LOWEST = 0.1  # of an intensity is left at least
GRAY, WHITE = TISSUES.index("GM"), TISSUES.index("WM")
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
    noise : (3 bands,) noise of the target over that of the scan, 0 to 1
    structure : (3 bands,) s_b
    """

    noise: np.ndarray
    structure: np.ndarray

    @classmethod
    def between(cls, source: ScanTexture, target: ScanTexture, blur: np.ndarray | None = None
                ) -> TextureGains:
        """From the numbers of a scan, in the target's contrast, and of a target.

        Parameters
        ----------
        source, target : measured on grids of one kind
        blur : (2, 3 bands) a_b; those of the package if None
        """
        tissue = WHITE if (source.bands[:, WHITE] > 0).any() else GRAY
        ratios = np.array([_log_ratio(*pair, NOISE_TOLERANCE) for pair in
                           zip(source.bands[:, tissue], target.bands[:, tissue])])
        change = blur_change(source, target)
        found = blur_coefficients() if blur is None else blur
        gains = np.clip(found[int(change < 0)] * change, *STRUCTURE_GAIN)
        return cls(np.exp(np.minimum(ratios, 0.0)), gains)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is to be done."""
        return bool((self.noise == 1).all() and (self.structure == 0).all())

    def describe(self) -> dict[str, Any]:
        """What a sidecar says; JSON types only."""
        return {"BandSigmasMM": list(BAND_SIGMAS_MM),
                "NoiseRatio": [float(f"{v:.4g}") for v in self.noise],
                "StructureGain": [float(f"{1 + v:.4g}") for v in self.structure]}


def _log_ratio(source: float, target: float, tolerance: float) -> float:
    """log(target / source), drawn towards zero by the tolerance; 0 where one was not measured."""
    if not min(source, target) > 0:
        return 0.0
    ratio = np.log(target / source)
    return float(np.sign(ratio) * max(abs(ratio) - tolerance, 0.0))


def blur_change(source: ScanTexture, target: ScanTexture) -> float:
    """Log ratio of the blur of a target over that of a scan; 0 where they agree."""
    before, after = (float(np.sqrt(np.mean(np.square(one.fwhm_mm)))) for one in (source, target))
    return _log_ratio(before, after, BLUR_TOLERANCE)


@dataclass(frozen=True, eq=False)
class TexturedMap(IntensityMap):
    """A change of contrast, and then a change of texture on the very grid it is applied on.

    Attributes
    ----------
    contrast : the change of contrast
    gains : the change of texture
    probabilities : of the tissues, in the world of the map
    """

    contrast: IntensityMap
    gains: TextureGains
    probabilities: TissueProbabilities

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        after = self.contrast.apply(volume.with_mask(mask), world)
        probabilities = np.zeros((3, *volume.shape), np.float32)
        probabilities[:, mask] = self.probabilities.sample(world @ volume.affine, mask)
        return match_texture(after, probabilities, self.gains)[mask]

    def describe(self) -> dict[str, Any]:
        """That of the change of contrast, and the gains."""
        return {**self.contrast.describe(), "Texture": self.gains.describe()}


def match_texture(volume: Volume, probabilities: np.ndarray, gains: TextureGains) -> np.ndarray:
    """Apply texture gains to an image.

    Parameters
    ----------
    volume : image with a mask, in the target's contrast
    probabilities : (3, I, J, K) tissue probabilities on its grid
    gains : see `TextureGains`

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
    inside = probabilities[(slice(None), *box)]
    for parts, gain in zip(texture_parts(image, mask, volume.spacing, inside, gains),
                           gains.structure):
        changed += parts.less_noise + np.float32(gain) * parts.structure
    kept = np.where(image > 0, np.maximum(changed, np.float32(LOWEST) * image), image)
    data = volume.data.copy()
    data[box] = np.where(mask, kept, data[box])
    return data


class TextureParts(NamedTuple):
    """Of one band, (I, J, K): what the noise step adds, and what then stands out of the noise."""

    less_noise: np.ndarray
    structure: np.ndarray


def texture_parts(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray,
                  probabilities: np.ndarray, gains: TextureGains) -> Iterator[TextureParts]:
    """Split an image into bands, and each band into noise and structure; finest band first."""
    pure = pure_voxels(ndimage.binary_erosion(mask, iterations=2), probabilities)
    flat = pure[WHITE] if pure[WHITE].any() else pure[GRAY]
    sigma = np.full(3, LOCAL_SIGMA_VOXELS)
    inside = np.maximum(smooth(mask.astype(np.float32), sigma), np.float32(1e-3))
    for band, ratio in zip(split_bands(image, mask, spacing)[0], gains.noise):
        noise = np.float32(max(robust_std(band[flat]) ** 2, 1e-30))
        energy = band * band
        local = np.maximum(smooth(energy * mask, sigma) / inside, np.float32(PEAK_ENERGY) * energy)
        part = noise / (np.maximum(local - np.float32(NOISE_ENERGY) * noise, 0) + noise)
        quiet = band * np.maximum(1 - np.float32(1 - ratio ** 2) * part, np.float32(ratio))
        yield TextureParts(quiet - band, quiet * (1 - part))
