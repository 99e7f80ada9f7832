"""Match the texture of an image to a target: reduce noise, and correct part of the blur.

The image is split into bands (`harmonizer.contrast.texture`). In each band b and voxel v

    out_b = h_b max(1 - phi_b n_b, sqrt(1 - phi_b)) (1 + s_b (1 - n_b)),
    n_b = N_b^2 / (N_b^2 + S_b).

Here h_b is the band, N_b its standard deviation in pure white matter, and S_b its local energy
beyond N_b^2. 1 - phi_b is the ratio of N_b^2 in the target to that in the scan (at most one), and
s_b is a relative gain.

* **Noise.** White matter is nearly flat, so its fine bands contain noise, even if interpolation
  changed its spectrum. Where a band has only the energy of noise, S_b = 0 and the band is reduced
  to the energy of the target. Where it has more, at an edge or a vessel, it is preserved (local
  Wiener filter [1]_). Noise is never added or amplified.
* **Blur.** s_b = a_b log(blur of the target / blur of the scan) applies only to what exceeds the
  noise. The coefficients a_b differ for more and for less blurred targets. They are fitted by ridge
  regression on simulated pairs of scanners (`tools/fit_texture_gains.py`) and are part of the
  package.
* phi_b and s_b are zero if the numbers of scan and target differ only as much as those of scans of
  one scanner.

phi_b and s_b come from numbers measured on the template grid, where scan and target were
interpolated in the same way. They belong to spatial frequencies in mm and are valid on any grid of
the same image. N_b and S_b are measured on the grid to which the step is applied. Only tissue
probabilities are resampled.

References
----------
.. [1] Lee, J.-S. (1980). Digital image enhancement and noise filtering by use of local statistics.
   doi:10.1109/TPAMI.1980.4766994
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

COEFFICIENTS_FILE = Path(__file__).parent / "data" / "texture_gains.json"
COEFFICIENTS_FORMAT = "harmonizer texture gains 1"
NOISE_TOLERANCE = 0.05  # log ratio of bands between scans of one scanner
BLUR_TOLERANCE = 0.06  # log ratio of blur between scans of one scanner
STRUCTURE_GAIN = (-0.5, 0.3)  # limits of s_b
LOCAL_SIGMA_VOXELS = 1.0  # of the Gaussian window of a local energy
NOISE_ENERGY = 2.0  # local energy over variance that noise alone rarely exceeds
PEAK_ENERGY = 0.2  # smallest weight of the energy of the voxel itself, to preserve thin lines
MIN_INTENSITY_FRACTION = 0.1  # of an intensity that remains at least
GM_INDEX, WM_INDEX = TISSUES.index("GM"), TISSUES.index("WM")
MARGIN_VOXELS = 2  # voxels about the mask


@cache
def blur_coefficients() -> np.ndarray:
    """Load the coefficients a_b, shape (2, 3): for more and for less blurred targets."""
    content = read_json(COEFFICIENTS_FILE)
    if content["Format"] != COEFFICIENTS_FORMAT:
        raise ValueError(f"{COEFFICIENTS_FILE}: is no {COEFFICIENTS_FORMAT}")
    return np.array([content["TargetMoreBlurred"], content["TargetLessBlurred"]], np.float64)


@dataclass(frozen=True, eq=False)
class TextureGains:
    """Gains that match the texture of a scan to that of a target.

    Attributes
    ----------
    noise : ndarray, shape (3,)
        Noise of the target over that of the scan in each band, 0 to 1.
    structure : ndarray, shape (3,)
        s_b of each band.
    """

    noise: np.ndarray
    structure: np.ndarray

    @classmethod
    def between(cls, source: ScanTexture, target: ScanTexture, blur: np.ndarray | None = None
                ) -> TextureGains:
        """Compute the gains from the texture of a scan, in the target's contrast, and a target.

        Parameters
        ----------
        source, target : measured on grids of one kind
        blur : (2, 3 bands) a_b; those of the package if None
        """
        tissue = WM_INDEX if (source.bands[:, WM_INDEX] > 0).any() else GM_INDEX
        ratios = np.array([_log_ratio(*pair, NOISE_TOLERANCE) for pair in
                           zip(source.bands[:, tissue], target.bands[:, tissue])])
        change = blur_change(source, target)
        found = blur_coefficients() if blur is None else blur
        gains = np.clip(found[int(change < 0)] * change, *STRUCTURE_GAIN)
        return cls(np.exp(np.minimum(ratios, 0.0)), gains)

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return bool((self.noise == 1).all() and (self.structure == 0).all())

    def describe(self) -> dict[str, Any]:
        """Summarize the gains for a sidecar, in JSON types only."""
        return {"BandSigmasMM": list(BAND_SIGMAS_MM),
                "NoiseRatio": [float(f"{v:.4g}") for v in self.noise],
                "StructureGain": [float(f"{1 + v:.4g}") for v in self.structure]}


def _log_ratio(source: float, target: float, tolerance: float) -> float:
    """Return log(target / source), shrunk by the tolerance; 0 if one was not measured."""
    if not min(source, target) > 0:
        return 0.0
    ratio = np.log(target / source)
    return float(np.sign(ratio) * max(abs(ratio) - tolerance, 0.0))


def blur_change(source: ScanTexture, target: ScanTexture) -> float:
    """Return the log ratio of the blur of a target over that of a scan; 0 if they agree."""
    before, after = (float(np.sqrt(np.mean(np.square(one.fwhm_mm)))) for one in (source, target))
    return _log_ratio(before, after, BLUR_TOLERANCE)


@dataclass(frozen=True, eq=False)
class TexturedMap(IntensityMap):
    """Change of contrast, followed by a change of texture on the grid to which it is applied.

    Attributes
    ----------
    contrast : IntensityMap
        Change of contrast.
    gains : TextureGains
        Change of texture.
    probabilities : TissueProbabilities
        Tissue probabilities, in the world of the map.
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
        """Summarize the map for a sidecar: change of contrast, and gains."""
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
    box = tuple(slice(max(s.start - MARGIN_VOXELS, 0), s.stop + MARGIN_VOXELS)
                for s in ndimage.find_objects(volume.mask.astype(np.uint8))[0])
    mask, image = volume.mask[box], volume.data[box] * volume.mask[box]
    changed = image.copy()
    inside = probabilities[(slice(None), *box)]
    for parts, gain in zip(texture_parts(image, mask, volume.spacing, inside, gains),
                           gains.structure):
        changed += parts.less_noise + np.float32(gain) * parts.structure
    lowest = np.float32(MIN_INTENSITY_FRACTION) * image
    result = np.where(image > 0, np.maximum(changed, lowest), image)
    data = volume.data.copy()
    data[box] = np.where(mask, result, data[box])
    return data


class TextureParts(NamedTuple):
    """Parts of one band, (I, J, K): the change by the noise step, and the band beyond the noise."""

    less_noise: np.ndarray
    structure: np.ndarray


def texture_parts(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray,
                  probabilities: np.ndarray, gains: TextureGains) -> Iterator[TextureParts]:
    """Split an image into bands, and each band into noise and structure; finest band first."""
    pure = pure_voxels(ndimage.binary_erosion(mask, iterations=2), probabilities)
    flat = pure[WM_INDEX] if pure[WM_INDEX].any() else pure[GM_INDEX]
    sigma = np.full(3, LOCAL_SIGMA_VOXELS)
    inside = np.maximum(smooth(mask.astype(np.float32), sigma), np.float32(1e-3))
    for band, ratio in zip(split_bands(image, mask, spacing)[0], gains.noise):
        noise = np.float32(max(robust_std(band[flat]) ** 2, 1e-30))
        energy = band * band
        local = np.maximum(smooth(energy * mask, sigma) / inside, np.float32(PEAK_ENERGY) * energy)
        part = noise / (np.maximum(local - np.float32(NOISE_ENERGY) * noise, 0) + noise)
        quiet = band * np.maximum(1 - np.float32(1 - ratio ** 2) * part, np.float32(ratio))
        yield TextureParts(quiet - band, quiet * (1 - part))
