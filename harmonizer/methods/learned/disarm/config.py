"""Settings and presets of DISARM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config import setting
from ..config import AS_PUBLISHED, TINY_BASELINE, LearnedConfig

__all__ = ["DisarmConfig", "PRESETS", "REGIONS"]

REGIONS = ("brain", "head")


@dataclass(frozen=True)
class DisarmConfig(LearnedConfig):
    """Settings of DISARM; the defaults are the preset ``small``.

    Attributes
    ----------
    code, style : int
        Channels of the anatomy code, and length of the scanner code.
    width, blocks : int
        Channels and residual blocks of the anatomy encoder.
    generator_width, generator_blocks : int
        The same of the generator.
    unshuffle : bool
        Halve the size by pixel unshuffling instead of by convolutions.
    scanner_widths, image_widths, content_widths : tuple of int
        Channels of the scanner encoder, and of the discriminators of images and of codes.
    noise : float
        Standard deviation of the noise on the anatomy code in training.
    patch : tuple of int, optional
        Even sides of what the networks see at once, voxels. None: the whole box.
    batch, simulated : int
        Images of a step, and how many of them are put under simulated scanners too.
    elastic : float
        Largest displacement of elastic augmentation, voxels; 0 for none.
    label_dropout : float
        Probability that an image comes without its label, 0..1.
    self_weight, cycle_weight : float
        L1 of reconstruction, and of exchange there and back.
    realness_weight, content_weight, critic_weight : float
        Adversarial losses of images and of codes, and of the discriminators of images.
    generated_label_weight, real_label_weight : float
        Naming the scanner of generated and of real images.
    kl_weight, latent_weight : float
        KL divergence of the scanner code, and recovery of a random code.
    anatomy_weight, same_weight, simulated_weight : float
        See the package; 0 omits a loss.
    inverse_content : bool
        Use the authors' target against the code discriminator.
    learning_rate, content_rate : float
        Of Adam, and of Adam for the code discriminator.
    alternate : bool
        Update the code discriminator in even steps and the other networks in odd ones (the
        authors' code). Otherwise all of them in every step.
    residual, label_at_target, sample_codes : bool
        See the package.
    window : int
        Steps of the running means that detect divergence.
    region : {"brain", "head"}
        What is harmonized.
    """

    code: int = setting(8, low=1)
    style: int = setting(8, low=1)
    width: int = setting(16, low=1)
    blocks: int = setting(3, low=1)
    generator_width: int = setting(24, low=1)
    generator_blocks: int = setting(3, low=1)
    unshuffle: bool = True
    scanner_widths: tuple[int, ...] = setting((8, 16, 24, 32), low=1)
    image_widths: tuple[int, ...] = setting((8, 16, 32, 64), low=1)
    content_widths: tuple[int, ...] = setting((8, 16, 16), low=1)
    noise: float = setting(0.1, low=0)
    patch: tuple[int, int, int] | None = (40, 48, 40)
    batch: int = setting(4, low=1)
    simulated: int = setting(1, low=1)
    elastic: float = setting(4.0, low=0)
    label_dropout: float = setting(0.5, low=0, high=1)
    self_weight: float = 10.0
    cycle_weight: float = 10.0
    realness_weight: float = 0.3
    content_weight: float = 0.3
    critic_weight: float = 0.5
    generated_label_weight: float = 1.0
    real_label_weight: float = 3.0
    kl_weight: float = 0.01
    latent_weight: float = 1.0
    anatomy_weight: float = 1.0
    same_weight: float = 1.0
    simulated_weight: float = 10.0
    inverse_content: bool = False
    learning_rate: float = setting(5e-4, low=0)
    content_rate: float = setting(2e-4, low=0)
    clip: float = setting(5.0, above=0)
    alternate: bool = False
    residual: bool = True
    label_at_target: bool = False
    sample_codes: bool = False
    window: int = setting(200, low=1)
    patience: int = setting(10, low=0)
    region: str = setting("brain", choices=REGIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch is not None and any(side < 2 or side % 2 for side in self.patch):
            raise ValueError(f"patch: expected three even sides of 2 or more, got {self.patch}.")
        if self.residual and not self.simulated_weight:
            raise ValueError("residual: is learned from simulated scanners; expected a "
                             "simulated_weight above 0, or residual=false.")
        if self.region == "head" and self.baseline == "tissue_matching":
            raise ValueError("baseline: whole heads have other tissues than brains; with "
                             "region=head use histogram_matching, moment_matching or none.")


TINY = dict(
    baseline=TINY_BASELINE,
    width=8, blocks=1, generator_width=8, generator_blocks=1, code=4, style=4,
    scanner_widths=(4, 8), image_widths=(4, 8), content_widths=(4,), patch=(12, 12, 8), batch=2,
    elastic=0.0, steps=12, log_every=6, validate_every=12, validation_cases=1, save_every=100,
    window=50, learning_rate=1e-3,
)
PAPER = dict(  # adversarial losses and KL are summed over the batch of 2 in the authors' code
    AS_PUBLISHED,
    width=8, blocks=4, generator_width=24, generator_blocks=4, unshuffle=False,
    image_widths=(8, 16, 32, 64, 128, 128), content_widths=(6, 6, 6, 6, 8), noise=1.0, patch=None,
    batch=2, elastic=8.0, label_dropout=0.0, realness_weight=2.0, content_weight=1.0,
    critic_weight=2.0, generated_label_weight=10.0, kl_weight=0.02, latent_weight=8.0,
    anatomy_weight=0.0, same_weight=0.0, simulated_weight=0.0, inverse_content=True,
    learning_rate=1e-4, content_rate=4e-5, clip=5.0, alternate=True, residual=False,
    label_at_target=True, sample_codes=True, steps=200_000, save_every=1_000, log_every=200,
)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
    "paper": {"preset": "paper", **PAPER}}
