"""CACD: contrastive anatomy-contrast disentanglement with a diffusion autoencoder.

Scholz et al. 2025, "Contrastive Anatomy-Contrast Disentanglement: A Domain-General MRI
Harmonization Method". An encoder gives each slice a contrast vector z_c and an anatomy vector z_a;
contrastive losses over contrast views (GIN, bias field, gamma) pull them apart; a diffusion model,
conditioned on both, makes the slice. To harmonize, a slice is inverted to noise under its own
vectors and decoded under the target's mean z_c and its own z_a.

Theirs (preset ``paper``, and by what it is said): 2D U-Net of 20.3 M parameters without attention,
256-d heads, style as a scale only, T = 1000 linear, eps, 9 subjects x 9 views that are also the
targets, tau 0.07, both weights 0.5, Adam 1e-4, clip 1, EMA 0.999, plain mean of the target's z_c,
DDIM with 20 steps (250 in the paper's tables).

Ours, each a setting, and why:

* intensities are scaled per volume, z_c is one vector for a volume, and z_a is smoothed along the
  axis (`anatomy_smoothing`): per-slice numbers make slices flicker;
* all brain slices are trained on (`middle` restricts them): top and bottom must be harmonized too;
* pools over the brain, not over air (`masked_pool`): a vertex slice has the contrast of its scan;
* inversion without clipping, on a quadratic grid, with fixed-point corrections (`clip_inversion`,
  `spacing`, `corrections`): clipping makes the way back inexact; with a perfect network 50 plain
  steps reach 32 dB, 10 of these with 2 corrections 41 (tests);
* `strength` < 1 inverts part of the way only: detail is then the source's by construction;
* `residual`: what is added to the image is decode(target) - decode(source) and not decode(target)
  alone, so that what the round trip loses is not lost, and the same contrast in and out changes
  nothing at all;
* `start`: the image is first brought to the target by local tissue matching
  (harmonizer.methods.learned.base);
* `gin` is our network of random convolutions, also in preset ``paper``; ``release`` is their
  code's;
* `change_smoothing` along the slice axis, of the change alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from ....deep.training.task import Batch, Game, Player
from ...base import Capabilities
from ...ranges import WIDEST, at_least, at_most, check_sampling
from ...target import Target
from ..base import SIMPLE, LearnedBackend, LearnedConfig
from ..network_input import Shown

if TYPE_CHECKING:
    import torch

    from ....deep.training.data import VolumeStore

__all__ = ["Cacd", "CacdConfig"]

CHOICES = {
    "prediction": ("eps", "x0", "v"),
    "schedule": ("linear", "cosine"),
    "spacing": ("leading", "even", "quadratic"),
    "gin": ("ours", "release"),
    "target_mean": ("plain", "direction"),
}


@dataclass(frozen=True)
class CacdConfig(LearnedConfig):
    """Settings of CACD; the defaults are the preset ``small``.

    Attributes
    ----------
    widths, blocks, fold : of the U-Net; `encoder_widths` of the encoder
    contrast, anatomy : sizes of z_c and z_a
    dropout : in both networks
    style_shift : whether the vectors also add (the paper: scale only)
    masked_pool : the encoder pools over the brain (the paper: over the whole slice)
    times, schedule, prediction : of the diffusion
    subjects, views : per batch; their product is the number of slices
    middle : train on slices within so many of the middle one (the paper: 10); None = all
    gin : ``ours`` or ``release`` (as the paper's code); `gamma`, `bias`: strengths
    blur, noise : further changes of a view (the paper: none)
    tau, weight_contrast, weight_anatomy : of the contrastive losses
    learning_rate, clip : of Adam
    sampling_steps, spacing, strength, corrections : of inversion and sampling
    clip_inversion, clip_sampling : whether x0 is held in [-1, 1] (the paper: both)
    residual : add decode(target) - decode(source) instead of decode(target) - image
    anatomy_smoothing, change_smoothing : sigma across slices, in slices
    target_mean : ``plain`` mean of z_c, or ``direction``: mean of unit vectors, mean norm
    batch_slices : at once in inference; changes memory alone
    """

    widths: tuple[int, ...] = (64, 96)
    encoder_widths: tuple[int, ...] = (32, 64, 96, 96)
    blocks: int = 1
    fold: int = 4
    contrast: int = 64
    anatomy: int = 64
    dropout: float = 0.0
    style_shift: bool = False
    masked_pool: bool = True
    times: int = 1000
    schedule: str = "linear"
    prediction: str = "v"
    subjects: int = 4
    views: int = 3
    middle: int | None = None
    gin: str = "ours"
    gamma: float = 0.5
    bias: float = 0.5
    blur: float = 0.0
    noise: float = 0.0
    tau: float = 0.07
    weight_contrast: float = 0.5
    weight_anatomy: float = 0.5
    learning_rate: float = 5e-4
    clip: float = 1.0
    sampling_steps: int = 6
    spacing: str = "quadratic"
    strength: float = 0.6
    corrections: int = 1
    clip_inversion: bool = False
    clip_sampling: bool = False
    residual: bool = True
    anatomy_smoothing: float = 2.0
    change_smoothing: float = 1.0
    target_mean: str = "plain"
    batch_slices: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength lies in (0, 1], got {self.strength}.")
        at_least(self, 1, "widths", "encoder_widths", "blocks", "fold", "contrast", "anatomy",
                 "subjects", "views", "batch_slices")
        at_least(self, 0, "corrections", "anatomy_smoothing", "change_smoothing")
        at_most(self, WIDEST, "anatomy_smoothing", "change_smoothing")
        check_sampling(self.times, self.sampling_steps)
        if not (0 <= self.dropout < 1 and self.tau > 0):
            raise ValueError("dropout lies in [0, 1) and tau is above 0, got "
                             f"{self.dropout} and {self.tau}.")
        if self.middle is not None:
            at_least(self, 1, "middle")


TINY = dict(
    start=SIMPLE,
    widths=(8, 16), encoder_widths=(8, 16), contrast=8, anatomy=8, times=50, subjects=2, views=2,
    sampling_steps=3, corrections=1, steps=20, log_every=10, validate_every=20,
    validation_cases=1, save_every=100, fold=1, learning_rate=1e-3,
)
PAPER = dict(
    widths=(32, 64, 128, 256), encoder_widths=(32, 64, 128, 256, 256), blocks=2, fold=1,
    contrast=256, anatomy=256, dropout=0.1, masked_pool=False, prediction="eps", subjects=9,
    views=9, middle=10, learning_rate=1e-4, steps=2_500_000, sampling_steps=20, spacing="leading",
    strength=1.0, corrections=0, clip_inversion=True, clip_sampling=True, residual=False,
    anatomy_smoothing=0.0, change_smoothing=0.0, start="none", validate_every=10_000,
    save_every=5_000, log_every=500,
)


class Cacd(LearnedBackend):
    """Unseen scanners on both sides: nothing in the networks knows a site."""

    name = "cacd"
    reference = ("Scholz et al. 2025, Contrastive Anatomy-Contrast Disentanglement: A "
                 "Domain-General MRI Harmonization Method, github.com/daniel-scholz/cacd")
    summary = ("Slices were inverted to noise by a diffusion autoencoder under their own contrast "
               "and anatomy vectors, and decoded under the mean contrast vector of the target.")
    capabilities = Capabilities(trained=True)
    Config = CacdConfig
    presets = {"tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
               "paper": {"preset": "paper", **PAPER}}

    @property
    def multiple(self) -> tuple[int, int, int]:  # type: ignore[override]
        """In-plane sides of the canvas are multiples of what both networks need."""
        c = self.config
        side = c.fold * 2 ** (max(len(c.widths), len(c.encoder_widths)) - 1)
        return side, side, 1

    def _build(self) -> dict[str, Any]:
        from ....deep.networks.encoder import SemanticEncoder
        from ....deep.networks.unet import UNet

        c = self.config
        style = c.contrast + c.anatomy
        return {
            "denoiser": UNet(2, 1, 1, c.widths, c.blocks, time=max(4 * c.widths[0], style),
                             style=style, style_shift=c.style_shift, dropout=c.dropout,
                             fold=c.fold),
            "encoder": SemanticEncoder(2, 1, c.encoder_widths, c.blocks, dropout=c.dropout,
                                       heads={"contrast": c.contrast, "anatomy": c.anatomy},
                                       fold=c.fold),
        }

    def _game(self, store: VolumeStore, trained: tuple[int, ...], seed: int) -> Game:
        return _CacdGame(self.config, self.networks_, store, trained, seed)

    # Styles ---------------------------------------------------------------------------------

    def _describe(self, shown: Shown) -> dict[str, np.ndarray]:
        return {"contrast": self._vectors(shown.unit, shown.mask)[0]}

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        z = np.stack([s["contrast"] for s in summaries]).astype(np.float64)
        norms = np.linalg.norm(z, axis=1)
        direction = (z / np.maximum(norms, 1e-12)[:, None]).mean(axis=0)
        length = float(np.linalg.norm(direction))
        mean = z.mean(axis=0)
        if self.config.target_mean == "direction":
            mean = direction / max(length, 1e-12) * norms.mean()
        return {"contrast": mean.astype(np.float32), "homogeneity": np.array([length])}

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        super()._check_style(style)
        if style["contrast"].shape != (self.config.contrast,) or style["homogeneity"].shape != (1,):
            raise ValueError(f"expected {self.config.contrast} numbers as contrast, one as "
                             "homogeneity")

    def describe_target(self, target: Target) -> dict[str, Any]:
        """``TargetHomogeneity``: how alike its scans are in contrast, the mean resultant length of
        their z_c, 0 to 1; one scan has 1."""
        return {"TargetHomogeneity": float(target.style["homogeneity"][0])}

    def training_facts(self) -> list[str]:
        """See `LearnedBackend`; and how alike the scans of each site are."""
        if not (facts := super().training_facts()):
            return []
        alike = ", ".join(f"{site} {style['homogeneity'][0]:.3f}"
                          for site, style in self.styles_.items())
        return [*facts, "How alike the scans of a site are in contrast (mean resultant length of "
                f"their contrast vectors, at most 1): {alike}."]

    def _vectors(self, unit: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(contrast,) mean over brain slices by area, and (K, anatomy) of every slice."""
        import torch

        area = mask.sum(axis=(0, 1))
        contrast = np.zeros((len(area), self.config.contrast), np.float32)
        anatomy = np.zeros((len(area), self.config.anatomy), np.float32)
        encoder = self.networks_["encoder"]
        for at, x, m in self._slices(unit, mask):
            with torch.no_grad():
                said = encoder(x, m if self.config.masked_pool else None)
            contrast[at] = said["contrast"].cpu().numpy()
            anatomy[at] = said["anatomy"].cpu().numpy()
        return np.average(contrast, axis=0, weights=area).astype(np.float32), anatomy

    def _slices(self, unit: np.ndarray, mask: np.ndarray
                ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """(indices, images (n, 1, I, J), masks) of slices with brain, some at a time."""
        import torch

        device = self.resources.device
        places = np.flatnonzero(mask.any(axis=(0, 1)))
        for start in range(0, len(places), self.config.batch_slices):
            at = places[start:start + self.config.batch_slices]
            x = np.ascontiguousarray(unit[:, :, at].transpose(2, 0, 1)[:, None])
            m = np.ascontiguousarray(mask[:, :, at].transpose(2, 0, 1)[:, None], np.float32)
            yield at, torch.from_numpy(x).to(device), torch.from_numpy(m).to(device)

    # Change ---------------------------------------------------------------------------------

    def _change(self, shown: Shown, style: Mapping[str, np.ndarray], rng: np.random.Generator
                ) -> np.ndarray:
        unit, mask = shown.unit, shown.mask
        contrast, anatomy = self._vectors(unit, mask)
        anatomy = _smooth_where(anatomy, mask.any(axis=(0, 1)), self.config.anatomy_smoothing)
        change = np.zeros(unit.shape, np.float32)
        for at, x, _ in self._slices(unit, mask):
            own = self._condition(contrast, anatomy[at])
            goal = self._condition(style["contrast"], anatomy[at])
            changed = self.swap(x, own, goal).cpu().numpy()
            change[:, :, at] = changed[:, 0].transpose(1, 2, 0)
        return _smooth_along_slices(change, mask, self.config.change_smoothing)

    def _condition(self, contrast: np.ndarray, anatomy: np.ndarray) -> torch.Tensor:
        """(n, contrast + anatomy), contrast first as in the paper's code."""
        import torch

        both = np.concatenate([np.repeat(contrast[None], len(anatomy), 0), anatomy], axis=1)
        return torch.from_numpy(both.astype(np.float32)).to(self.resources.device)

    def swap(self, x: torch.Tensor, own: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """The change of (n, 1, I, J) slices in [-1, 1] when one condition takes another's place."""
        latent = self.invert(x, own)
        after = self.decode(latent, goal)
        return after - (self.decode(latent, own) if self.config.residual else x)

    def invert(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Slices to noise maps (to the level `strength` T)."""
        import torch

        from ....deep.diffusion.samplers import ddim_inversion

        c = self.config
        with torch.no_grad():
            return ddim_inversion(self._parts(condition, c.clip_inversion), self._schedule, x,
                                  self._grid, c.corrections)

    def decode(self, latent: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Noise maps to slices."""
        import torch

        from ....deep.diffusion.samplers import ddim

        with torch.no_grad():
            return ddim(self._parts(condition, self.config.clip_sampling), self._schedule, latent,
                        self._grid)

    def _parts(self, condition: torch.Tensor, clip: bool) -> Any:
        from ....deep.diffusion.samplers import parts_of

        network = self.networks_["denoiser"]
        return parts_of(lambda x, t: network(x, t, condition), self._schedule,
                        self.config.prediction, 1.0 if clip else None)

    @property
    def _schedule(self) -> Any:
        from ....deep.diffusion.schedules import Schedule

        return Schedule(self.config.times, self.config.schedule)

    @property
    def _grid(self) -> tuple[int, ...]:
        c = self.config
        return self._schedule.grid(c.sampling_steps, c.spacing, c.strength)


class _CacdGame(Game):
    """One player: encoder and denoiser together, on denoising and the two contrastive losses."""

    def __init__(self, config: CacdConfig, networks: dict[str, Any], store: VolumeStore,
                 trained: tuple[int, ...], seed: int) -> None:
        from ....deep.augmentation.contrast import GIN, RELEASE, ContrastSettings
        from ....deep.diffusion.schedules import Schedule
        from ....deep.training.data import SlabDraw

        self.config, self.networks, self.identity = config, networks, {}
        self.schedule = Schedule(config.times, config.schedule)
        self.draw = SlabDraw(store, trained, config.subjects, seed, middle=config.middle,
                             distinct=True)
        self.contrast = ContrastSettings(
            RELEASE if config.gin == "release" else GIN, gamma=config.gamma, bias=config.bias,
            blur=config.blur, noise=config.noise)

    def players(self) -> tuple[Player, ...]:
        """Encoder and denoiser are one player."""
        return (Player("cacd", ("denoiser", "encoder"), self.loss, self.config.learning_rate,
                       clip=self.config.clip),)

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Views subject by subject: (B V, 1, I, J); one set of views for the whole batch."""
        import torch

        from ....deep.augmentation.contrast import draw_view

        drawn = self.draw(step, rank)
        image, mask = drawn["image"], drawn["mask"]
        views = [draw_view(drawn["rng"], self.contrast) for _ in range(self.config.views)]
        seen = torch.stack([view.apply(image, mask) for view in views], dim=1).flatten(0, 1)
        return {"x": seen, "mask": mask.repeat_interleave(len(views), 0), "subjects": len(image)}

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Denoising, contrast and anatomy (eq. 2 of the paper)."""
        import torch
        from torch.nn import functional

        from ....deep.diffusion.process import goal, noised
        from ....deep.losses.contrastive import contrastive, pairs

        c, x = self.config, batch["x"]
        z = self.networks["encoder"](x, batch["mask"] if c.masked_pool else None)
        condition = torch.cat([z["contrast"], z["anatomy"]], dim=1)
        t = torch.randint(c.times, (len(x),), device=x.device)
        eps = torch.randn_like(x)
        said = self.networks["denoiser"](noised(self.schedule, x, t, eps), t, condition)
        truth = goal(self.schedule, c.prediction, x, t, eps)
        same_subject, same_view = pairs(batch["subjects"], c.views, x.device)
        return {
            "denoise": functional.mse_loss(said.float(), truth),
            "contrast": c.weight_contrast * contrastive(z["contrast"], same_view, same_subject,
                                                        c.tau),
            "anatomy": c.weight_anatomy * contrastive(z["anatomy"], same_subject, same_view,
                                                      c.tau),
        }


def _smooth_where(vectors: np.ndarray, valid: np.ndarray, sigma: float) -> np.ndarray:
    """(K, d) vectors smoothed over the valid slices by a Gaussian of `sigma` slices."""
    if sigma <= 0:
        return vectors
    weight = ndimage.gaussian_filter1d(valid.astype(np.float64), sigma, mode="constant")
    total = ndimage.gaussian_filter1d(vectors * valid[:, None].astype(np.float64), sigma, axis=0,
                                      mode="constant")
    return (total / np.maximum(weight, 1e-9)[:, None]).astype(np.float32)


def _smooth_along_slices(change: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """(I, J, K) change smoothed along its last axis, within the mask."""
    if sigma <= 0:
        return change
    inside = mask.astype(np.float32)
    weight = ndimage.gaussian_filter1d(inside, sigma, axis=2, mode="constant")
    total = ndimage.gaussian_filter1d(change * inside, sigma, axis=2, mode="constant")
    return total / np.maximum(weight, 1e-6)
