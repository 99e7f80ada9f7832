"""Settings and presets of IHF-Harmony."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....deep.networks.hierarchy_flow import FUSIONS
from ...config import setting
from ..config import AS_PUBLISHED, NONE, TINY_BASELINE, LearnedConfig

__all__ = ["IhfConfig", "NEIGHBORS", "PRESETS"]

NEIGHBORS = 1  # slices on either side of a slab
MAX_HEIGHTS = 256  # of the slices of a target
MAX_PYRAMID_WIDTH = 4096  # filters are drawn from a seed, whatever a config claims


@dataclass(frozen=True)
class IhfConfig(LearnedConfig):
    """Settings of IHF-Harmony; the defaults are the preset ``small``.

    Attributes
    ----------
    squeezes, splits, hidden : tuple of int
        One number for each stage of the flow; see `harmonizer.deep.networks.hierarchy_flow.Stage`.
    fusion : {"exact", "paper"}
        Formula of the reverse pass.
    instance : bool
        Instance norm in the affine-nets (the paper); otherwise a norm of each position.
    anchored : bool
        The normalization is the identity for the image's own statistics, and a scan of the target
        site is returned unchanged (the paper: neither).
    heights : int
        0: statistics of features are those of whole volumes. Otherwise they are those of each slab
        (the paper), and a target has the mean z_s of its slabs at so many heights in the brain.
    equalized : bool
        The anatomy loss compares images after equalization (the paper: as they are).
    style : int
        Size of the normalization's projections.
    pyramid : tuple of int
        Channels of each level of the fixed features.
    vgg : str
        Safetensors file with VGG-19, whose features replace the pyramid (the paper), or ``none``.
    pairs, slices : int
        Pairs of a batch, and slices of each volume.
    cross_site_fraction, same_site_fraction : float
        Fractions of real pairs of two sites and of one; the rest is simulated.
    anatomy_weight, artifact_weight, kept_fraction : float
        Weights of the paper's losses, and its k in (0, 1].
    identity_weight : float
        L1 on pairs of one site.
    truth_weight, gradient_weight : float
        L1 of intensities and of their gradients on simulated pairs.
    patch, patches, points : int
        Side, number and points of the patches of the anatomy loss.
    gamma, bias, blur, noise : float
        Largest strengths of simulated contrasts.
    learning_rate : float
        Of Adam.
    batch_slices : int
        Slices processed at once in inference; changes memory alone.
    """

    squeezes: tuple[int, ...] = setting((2, 2), low=1)
    splits: tuple[int, ...] = setting((4, 2), low=1)
    hidden: tuple[int, ...] = setting((48, 96), low=1)
    fusion: str = setting("exact", choices=FUSIONS)
    instance: bool = False
    anchored: bool = True
    heights: int = setting(0, low=0, high=MAX_HEIGHTS)
    equalized: bool = True
    style: int = setting(64, low=1)
    pyramid: tuple[int, ...] = setting((16, 32, 48, 64), low=1, high=MAX_PYRAMID_WIDTH)
    vgg: str = NONE
    pairs: int = setting(2, low=1)
    slices: int = setting(4, low=1)
    cross_site_fraction: float = setting(0.25, low=0, high=1)
    same_site_fraction: float = setting(0.1, low=0, high=1)
    anatomy_weight: float = 1.0
    artifact_weight: float = 2.0
    kept_fraction: float = setting(0.9, above=0, high=1)
    identity_weight: float = 1.0
    truth_weight: float = 10.0
    gradient_weight: float = 5.0
    patch: int = setting(32, low=1)
    patches: int = setting(4, low=1)
    points: int = setting(64, low=1)
    gamma: float = 0.5
    bias: float = 0.2
    blur: float = 0.6
    noise: float = 0.03
    learning_rate: float = setting(1e-3, low=0)
    batch_slices: int = setting(8, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.squeezes) == len(self.splits) == len(self.hidden):
            raise ValueError("squeezes, splits and hidden: expected one number for each stage.")
        if self.cross_site_fraction + self.same_site_fraction > 1:
            raise ValueError("cross_site_fraction and same_site_fraction: expected a sum of at "
                             "most 1.")


TINY = dict(
    baseline=TINY_BASELINE,
    squeezes=(2,), splits=(2,), hidden=(8,), style=8, pyramid=(4, 8), pairs=2, slices=2, patch=8,
    patches=2, points=8, steps=20, log_every=10, validate_every=20, validation_cases=1,
    save_every=100, learning_rate=1e-3,
)
PAPER = dict(  # 300 epochs of 50 volumes with 150 slices (SRPBS) are 70,000 steps
    AS_PUBLISHED,
    squeezes=(1, 2), splits=(10, 4), hidden=(64, 128), fusion="paper", instance=True,
    anchored=False, heights=8, equalized=False, style=128, pyramid=(64, 128, 256, 512), pairs=32,
    slices=1, cross_site_fraction=1.0, same_site_fraction=0.0, identity_weight=0.0,
    truth_weight=0.0, gradient_weight=0.0, learning_rate=1e-4, steps=70_000, save_every=2_000,
    log_every=200,
)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
    "paper": {"preset": "paper", **PAPER}}
