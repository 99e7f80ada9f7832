"""Settings and presets of patch diffusion."""

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

__all__ = ["PatchDiffusionConfig", "PRESETS"]

MAX_SIGMA_VOXELS = 100.0


@dataclass(frozen=True)
class PatchDiffusionConfig(LearnedConfig):
    """Settings of patch diffusion; the defaults are the preset ``small`` (2 mm, CPU).

    Attributes
    ----------
    widths, blocks, unshuffle, attention
        Of the U-Net; attention for each level.
    tokens, token_width : int
        Number and size of the tokens of a style.
    patch : tuple of int
        Sides, voxels; multiples of unshuffle 2^(levels - 1).
    overlap : float
        Minimum overlap of neighboring patches, fraction of a side in [0, 1).
    coordinates : bool
        Whether the network gets the position of a patch.
    gradient_fraction, sigma : float
        Of the anatomical prior; see `anatomy_prior.AnatomyPrior`.
    bins : tuple of float
        Log-gammas of the contrast bins; 0 must be among them.
    null_probability : float
        Probability that training hides the style, 0..1.
    warp : bool
        Spatial augmentation by one or two of affine, elastic warp and mirroring (the paper);
        otherwise by mirroring alone.
    brain_only : bool
        Loss over the brain; known background in sampling.
    batch : int
        Patches of a step.
    checkpointing : bool
        Compute features within blocks again for the gradient instead of storing them; changes
        memory and time alone.
    timesteps, schedule, prediction : int, {"linear", "cosine"}, {"eps", "x0", "v"}
        Of the diffusion.
    learning_rate : float
        Of Adam.
    begin, strength : {"inversion", "noise"}, float
        Invert the image up to the fraction `strength` of the timesteps, or add noise as far (at
        strength 1 nothing of the image is left).
    sampling_steps, spacing, corrections : int, str, int
        Of inversion and sampling.
    guidance : float
        CFG++ scale at 50 even steps.
    residual : bool
        With ``begin=inversion``: add decode(target) - decode(null) instead of
        decode(target) - image.
    clip_sampling : bool
        Whether x0 is clamped to [-1, 1].
    fusion : {"step", "end"}
        Blend patches at every step, or at the end (the paper).
    seeds : int
        Noise volumes whose mean is the result, with ``begin=noise``; several also give an
        uncertainty map.
    enroll_steps : int
        Adam steps on the tokens of a new site.
    """

    validation_cases: int = setting(3, low=0)
    widths: tuple[int, ...] = setting((16, 32, 64), low=1)
    blocks: int = setting(1, low=1)
    unshuffle: int = setting(2, low=1)
    attention: tuple[bool, ...] = (False, False, True)
    tokens: int = setting(4, low=1)
    token_width: int = setting(64, low=1)
    patch: tuple[int, int, int] = setting((40, 48, 40), low=1)
    overlap: float = setting(0.25, low=0, below=1)
    coordinates: bool = True
    gradient_fraction: float = setting(0.5, low=0, high=1)
    sigma: float = setting(1.5, above=0, high=MAX_SIGMA_VOXELS)
    bins: tuple[float, ...] = (-0.3, 0.0, 0.3)
    null_probability: float = setting(0.15, low=0, high=1)
    warp: bool = False
    brain_only: bool = True
    batch: int = setting(4, low=1)
    checkpointing: bool = False
    timesteps: int = setting(1000, low=2)
    schedule: str = setting("linear", choices=("linear", "cosine"))
    prediction: str = setting("v", choices=PREDICTIONS)
    learning_rate: float = setting(1e-3, low=0)
    begin: str = setting("inversion", choices=("inversion", "noise"))
    strength: float = setting(0.4, above=0, high=1)
    sampling_steps: int = setting(4, low=1)
    spacing: str = setting("quadratic", choices=SPACINGS)
    corrections: int = setting(1, low=0)
    guidance: float = 0.2
    residual: bool = True
    clip_sampling: bool = False
    fusion: str = setting("step", choices=("step", "end"))
    seeds: int = setting(1, low=1)
    enroll_steps: int = setting(100, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(self.timesteps, self.sampling_steps)
        if any(side % self.multiple for side in self.patch):
            raise ValueError(f"patch: expected sides that are multiples of {self.multiple}, got "
                             f"{self.patch}.")
        if 0.0 not in self.bins:
            raise ValueError(f"bins: expected 0, the contrast of the scans, among them, got "
                             f"{self.bins}.")

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this."""
        return self.unshuffle * 2 ** (len(self.widths) - 1)


TINY = dict(
    baseline=TINY_BASELINE, widths=(8, 16), unshuffle=1, attention=(False, True), tokens=2,
    token_width=8, patch=(12, 12, 8), overlap=0.0, batch=2, timesteps=50,
    sampling_steps=2, enroll_steps=3, steps=10, log_every=5, validate_every=10,
    validation_cases=1, save_every=100,
)
PAPER = dict(
    AS_PUBLISHED,
    widths=(64, 128, 256, 512), blocks=2, unshuffle=1, attention=(False, True, True, False),
    tokens=1, token_width=512, patch=(80, 96, 80), overlap=0.5, coordinates=False, warp=True,
    brain_only=False, batch=5, checkpointing=True, prediction="eps", learning_rate=1e-4,
    steps=411_600, begin="noise", strength=1.0, sampling_steps=50, spacing="leading",
    corrections=0, guidance=0.6, residual=False, clip_sampling=True, fusion="end",
    save_every=5_000, log_every=500,
)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
    "paper": {"preset": "paper", **PAPER}}
