"""Settings and presets of CACD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config import setting
from ..config import (
    AS_PUBLISHED,
    PREDICTIONS,
    SPACINGS,
    TINY_BASELINE,
    LearnedConfig,
    check_sampling,
)

__all__ = ["CacdConfig", "PRESETS"]

MAX_SMOOTHING_SLICES = 100.0


@dataclass(frozen=True)
class CacdConfig(LearnedConfig):
    """Settings of CACD; the defaults are the preset ``small``.

    Attributes
    ----------
    widths, blocks : tuple of int, int
        Channels of each level of the U-Net, and residual blocks of each.
    encoder_widths : tuple of int
        Channels of each level of the encoder.
    unshuffle : int
        Factor of the pixel unshuffling at the input of both networks.
    contrast, anatomy : int
        Sizes of z_c and z_a.
    dropout : float
        Dropout probability in both networks.
    masked_pool : bool
        The encoder pools over the brain; in the paper over the whole slice.
    timesteps, prediction : int, {"eps", "x0", "v"}
        Diffusion timesteps, and prediction type of the denoiser.
    subjects, views : int
        Subjects of a batch, and contrast views of each slice.
    subjects_per_site : int
        Subjects that are drawn from a site before the next site follows; contrast vectors of two
        subjects are compared within a site.
    anatomy_across_sites : bool
        Whether anatomy vectors are compared across sites too (the authors' code).
    max_offset : int, optional
        Train on slices within so many of the middle one (the paper: 10). None: all.
    gin : {"ours", "release"}
        Settings of GIN; ``release`` are those of the paper's code.
    volume_contrast : bool
        z_c is one vector for a volume; in the paper one for each slice.
    gamma, bias : float
        Strengths of the contrast views.
    temperature, contrast_weight, anatomy_weight : float
        Of the contrastive losses.
    learning_rate : float
        Of Adam.
    sampling_steps, spacing, corrections : int, str, int
        Steps of DDIM, their spacing, and fixed-point corrections of the inversion.
    strength : float
        Fraction of the timesteps that is inverted, in (0, 1]. Below 1, detail stays the source's.
    clip_inversion, clip_sampling : bool
        Whether x0 is clamped to [-1, 1] (the paper: both).
    residual : bool
        Add decode(target) - decode(source) instead of decode(target) - image.
    anatomy_smoothing, change_smoothing : float
        Sigma of the smoothing of z_a and of the change across slices, slices.
    batch_slices : int
        Slices processed at once in inference; changes memory alone.
    """

    widths: tuple[int, ...] = setting((64, 96), low=1)
    encoder_widths: tuple[int, ...] = setting((32, 64, 96, 96), low=1)
    blocks: int = setting(1, low=1)
    unshuffle: int = setting(4, low=1)
    contrast: int = setting(64, low=1)
    anatomy: int = setting(64, low=1)
    dropout: float = setting(0.0, low=0, below=1)
    masked_pool: bool = True
    timesteps: int = setting(1000, low=2)
    prediction: str = setting("v", choices=PREDICTIONS)
    subjects: int = setting(4, low=1)
    subjects_per_site: int = setting(4, low=1)
    anatomy_across_sites: bool = False
    views: int = setting(3, low=1)
    max_offset: int | None = setting(None, low=1)
    gin: str = setting("ours", choices=("ours", "release"))
    volume_contrast: bool = True
    gamma: float = 0.5
    bias: float = 0.5
    temperature: float = setting(0.07, above=0)
    contrast_weight: float = 0.5
    anatomy_weight: float = 0.5
    learning_rate: float = setting(5e-4, low=0)
    sampling_steps: int = setting(6, low=1)
    spacing: str = setting("quadratic", choices=SPACINGS)
    strength: float = setting(0.6, above=0, high=1)
    corrections: int = setting(1, low=0)
    clip_inversion: bool = False
    clip_sampling: bool = False
    residual: bool = True
    anatomy_smoothing: float = setting(2.0, low=0, high=MAX_SMOOTHING_SLICES)
    change_smoothing: float = setting(1.0, low=0, high=MAX_SMOOTHING_SLICES)
    batch_slices: int = setting(16, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(self.timesteps, self.sampling_steps)


TINY = dict(
    baseline=TINY_BASELINE,
    widths=(8, 16), encoder_widths=(8, 16), contrast=8, anatomy=8, timesteps=50, subjects=2,
    subjects_per_site=2, views=2, sampling_steps=3, corrections=1, steps=20, log_every=10,
    validate_every=20, validation_cases=1, save_every=100, unshuffle=1, learning_rate=1e-3,
)
PAPER = dict(
    AS_PUBLISHED,
    widths=(32, 64, 128, 256), encoder_widths=(32, 64, 128, 256, 256), blocks=2, unshuffle=1,
    contrast=256, anatomy=256, dropout=0.1, masked_pool=False, prediction="eps", subjects=9,
    subjects_per_site=3, anatomy_across_sites=True, views=9, max_offset=10, gin="release",
    volume_contrast=False, learning_rate=1e-4, clip=1.0, ema=0.999, steps=2_500_000,
    sampling_steps=250, spacing="leading", strength=1.0, corrections=0, clip_inversion=True,
    clip_sampling=True, residual=False, anatomy_smoothing=0.0, change_smoothing=0.0,
    save_every=5_000, log_every=500,
)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
    "paper": {"preset": "paper", **PAPER}}
