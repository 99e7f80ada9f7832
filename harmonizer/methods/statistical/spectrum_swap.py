"""Spectrum swapping (SSIMH): replace the amplitude of low spatial frequencies, keep their phase.

F(y) = A_target(k) exp(i phase_scan(k)) for |k| <= band, F(x) elsewhere. The amplitude of a target
is the mean over its scans.

Differences from the paper, each with a reason:

1. The scan is first scaled to the target's in-mask mean, because its unit is arbitrary and the
   frequencies above the band would keep it.
2. Amplitudes are relative to that of the zero frequency, which is mean times brain volume, because
   brain size is not a property of the scanner.
3. The swapped part is a band-limited field, added only inside the mask and faded at zero intensity.
   It is smooth and can be applied on the subject's own grid.

References
----------
Guan et al. 2023, DomainATM, doi:10.1016/j.neuroimage.2023.119863; after Yang and Soatto 2020, FDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...contrast.intensity_map import FieldMap
from ...errors import InputError
from ...volume import Volume
from ..base import MAX_INTENSITY, Capabilities, StatisticsBackend
from ..config import Settings, setting

__all__ = ["SpectrumSwap", "SpectrumSwapConfig"]


@dataclass(frozen=True)
class SpectrumSwapConfig(Settings):
    """Settings of spectrum swapping.

    Attributes
    ----------
    band : float
        Highest spatial frequency that is swapped, cycles/mm, in (0, 0.1].
    """

    band: float = setting(0.01, above=0, high=0.1)


class SpectrumSwap(StatisticsBackend):
    """Correct gain, bias field and coarse regional contrast, without tissues."""

    name = "spectrum_swap"
    reference = "Guan et al. 2023, NeuroImage 268, doi:10.1016/j.neuroimage.2023.119863 (SSIMH)"
    summary = ("The amplitude of the low spatial frequencies was replaced by the mean amplitude of "
               "the target, the phase kept.")
    capabilities = Capabilities(intensity_map=True)
    Config = SpectrumSwapConfig

    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        mean = float(volume.in_mask().mean())
        spectrum = _spectrum(volume)
        amplitude = np.abs(spectrum[self._band_of(volume)]) / np.abs(spectrum[0, 0, 0])
        return {"amplitude": amplitude, "mean": np.array([mean]),
                "shape": np.array(volume.shape)}

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        shapes = {tuple(s["shape"].tolist()) for s in summaries}
        if len(shapes) > 1:
            raise InputError(f"spectrum_swap expects scans of one grid, got {sorted(shapes)}.")
        pooled = {name: np.mean([s[name] for s in summaries], axis=0)
                  for name in ("amplitude", "mean")}
        return {**pooled, "shape": summaries[0]["shape"]}

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        shape = style["shape"]
        amplitude, mean = (np.asarray(style[name], np.float64) for name in ("amplitude", "mean"))
        if (mean.shape, shape.shape) != ((1,), (3,)) or amplitude.ndim != 1:
            raise ValueError("expected amplitudes, one mean and the three sides of a grid")
        if not 0 < mean[0] < MAX_INTENSITY or (amplitude < 0).any() or (amplitude > 1e3).any():
            raise ValueError(f"expected amplitudes from 0 to 1000, a mean up to {MAX_INTENSITY:g}")

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> FieldMap:
        if tuple(style["shape"].tolist()) != volume.shape:
            raise InputError(
                f"spectrum_swap works on the grid of its fit, shape {tuple(style['shape'])}; got "
                f"{volume.shape}. Preprocess to the same space and resolution."
            )
        values = volume.in_mask()
        gain = float(style["mean"][0]) / max(float(values.mean()), 1e-12)
        spectrum, band = gain * _spectrum(volume), self._band_of(volume)
        if style["amplitude"].shape != (int(band.sum()),):
            raise InputError(
                f"spectrum_swap expects {int(band.sum())} amplitudes for voxels of "
                f"{np.round(volume.spacing, 3)} mm, got {style['amplitude'].shape}. Fit again."
            )
        change = np.zeros_like(spectrum)
        phase = np.exp(1j * np.angle(spectrum[band]))
        change[band] = style["amplitude"] * np.abs(spectrum[0, 0, 0]) * phase - spectrum[band]
        field = np.fft.irfftn(change, s=volume.shape, axes=(0, 1, 2)).astype(np.float32)
        low = max(float(np.quantile(values, 0.05)), 1e-3 * float(np.abs(values).max()))
        return FieldMap(gain, field, volume.affine, low, f"up to {self.config.band} cycles/mm")

    def _band_of(self, volume: Volume) -> np.ndarray:
        """Return where |k| <= band, in the shape of the half spectrum; k in cycles/mm."""
        axes = [np.fft.fftfreq(n, d) for n, d in zip(volume.shape, volume.spacing)]
        axes[2] = np.fft.rfftfreq(volume.shape[2], volume.spacing[2])
        squares = [k ** 2 for k in np.ix_(*axes)]
        return squares[0] + squares[1] + squares[2] <= self.config.band ** 2


def _spectrum(volume: Volume) -> np.ndarray:
    """Return the half spectrum of the masked image, complex128."""
    return np.fft.rfftn(np.where(volume.require_mask(), volume.data, 0.0), axes=(0, 1, 2))
