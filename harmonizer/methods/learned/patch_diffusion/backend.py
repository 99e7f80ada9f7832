"""Patch diffusion: a 3D diffusion model told the anatomy by a map of borders, the site by tokens.

Hache et al. 2026, patch-level anatomy- and style-guided 3D diffusion. A U-Net denoises 3D patches;
it sees the anatomical prior A of the patch and of the whole volume
(harmonizer.methods.learned.patch_diffusion.anatomy_prior) and
the style of a site. To harmonize, patches are sampled under the target's style with CFG++.

Theirs (preset ``paper``, and by what it is said): patches of 80 x 96 x 80 in 160 x 192 x 160, four
levels, attention at two of them, one vector of 512 for each site, null style at 15 %, contrast bins
by log-gamma, eps, 50 DDIM steps from noise, CFG++ 0.6, every patch by itself, blended at the end.
Left open by them: widths (ours 64, 128, 256, 512), schedule (T = 1000, linear), bins and prior.

Ours, each a setting, and why:

* `begin` = ``inversion`` and `strength` < 1: the image is inverted part of the way and sampled from
  there. From pure noise (paper) absolute intensities are made up anew from borders, which is where
  the paper loses 3.5 dB against doing nothing;
* `residual`: what is added is decode(target) - decode(null style), from the same latent: what the
  way there and back loses is not lost, and guidance 0 changes nothing at all;
* `start`: the image is first brought to the target by local tissue matching
  (harmonizer.methods.learned.base);
* `fusion` = ``step``: patches are blended at every step; the noise is one volume, drawn once;
* `guidance` means the same with any number of steps (harmonizer.deep.diffusion.guidance);
* several `tokens` for a style: cross-attention to one is a constant;
* `coordinates`: the coarse map is not aligned with the patch, so the network is told where it is;
* `brain_only`: the loss is the brain's, and sampling knows that the background is background;
* `warp` is off: interpolation changes resolution, which is part of what a scanner looks like;
* unseen sites: `enroll` fits the tokens of a new site to its scans with the network frozen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ....cohort import Scan
from ....deep.patches import PatchGrid
from ....deep.training.task import Batch, Game, Player
from ....volume import Volume
from ...base import Capabilities
from ...ranges import WIDEST, at_least, at_most, check_sampling
from ..base import NONE, SIMPLE, START, LearnedBackend, LearnedConfig, read_checked
from ..network_input import Shown
from ..validation import Case
from .anatomy_prior import AnatomyPrior, coarse, places

if TYPE_CHECKING:
    import torch

    from ....deep.diffusion.fusion import Fusion
    from ....deep.diffusion.samplers import PartsOf, Walk
    from ....deep.diffusion.schedules import Schedule
    from ....deep.training.data import VolumeStore

__all__ = ["PatchDiffusion", "PatchDiffusionConfig"]

CHOICES = {
    "prediction": ("eps", "x0", "v"),
    "schedule": ("linear", "cosine"),
    "spacing": ("leading", "even", "quadratic"),
    "begin": ("inversion", "noise"),
    "fusion": ("step", "end"),
}
VIEW_BYTES = 1 << 30  # of images and priors kept in memory while training
SAME = 1e-6  # relative difference of a site's numbers below which scans are those of the fit


@dataclass(frozen=True)
class PatchDiffusionConfig(LearnedConfig):
    """Settings of patch diffusion; the defaults are the preset ``small`` (2 mm, CPU).

    Attributes
    ----------
    widths, blocks, fold, attention, dropout : of the U-Net; attention for each level
    tokens, token_width : of a style
    patch : sides, voxels, multiples of fold 2^(levels - 1); `overlap`: least share of neighbours
    coordinates : whether the network is told where a patch lies
    share, sigma : of the prior
    (`harmonizer.methods.learned.patch_diffusion.anatomy_prior.AnatomyPrior`)
    prior_gamma : largest log-gamma of its perturbation in training
    views : perturbations (and warps) of each scan; they are kept in memory
    bins : log-gammas of the contrast bins; 0 must be among them
    null_share : how often training hides the style
    flip, warp : mirrored half of the time; affine and elastic in all views but the first
    brain_only : loss over the brain, background known in sampling
    batch : patches of a step
    times, schedule, prediction : of the diffusion
    learning_rate, clip : of Adam
    begin, strength : ``inversion`` up to the share `strength` of the times, or ``noise`` as far (at
        strength 1 nothing of the image is left)
    sampling_steps, spacing, corrections : of inversion and sampling
    guidance : CFG++, as at 50 even steps
    residual : add decode(target) - decode(null) instead of decode(target) - image
    clip_sampling : whether x0 is held in [-1, 1]
    fusion : patches are blended at every ``step``, or at the ``end`` (paper)
    seeds : noise volumes that a result is the mean of, where it begins with noise; of several their
        standard deviation is kept as well (`Backend.spread_`)
    enroll_steps, enroll_rate : of Adam on the tokens of a new site
    """

    validation_cases: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    fold: int = 2
    attention: tuple[bool, ...] = (False, False, True)
    dropout: float = 0.0
    tokens: int = 4
    token_width: int = 64
    patch: tuple[int, int, int] = (40, 48, 40)
    overlap: float = 0.25
    coordinates: bool = True
    share: float = 0.5
    sigma: float = 1.5
    prior_gamma: float = 0.5
    views: int = 4
    bins: tuple[float, ...] = (-0.3, 0.0, 0.3)
    null_share: float = 0.15
    flip: bool = True
    warp: bool = False
    brain_only: bool = True
    batch: int = 4
    times: int = 1000
    schedule: str = "linear"
    prediction: str = "v"
    learning_rate: float = 1e-3
    clip: float = 1.0
    begin: str = "inversion"
    strength: float = 0.4
    sampling_steps: int = 4
    spacing: str = "quadratic"
    corrections: int = 1
    guidance: float = 0.2
    residual: bool = True
    clip_sampling: bool = False
    fusion: str = "step"
    seeds: int = 1
    enroll_steps: int = 100
    enroll_rate: float = 2e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "widths", "blocks", "fold", "tokens", "token_width", "patch", "views",
                 "batch", "seeds")
        at_least(self, 0, "corrections", "enroll_steps")
        at_most(self, WIDEST, "sigma")
        check_sampling(self.times, self.sampling_steps)
        if not 0 <= self.share <= 1 or not self.sigma > 0:
            raise ValueError(f"share lies in [0, 1] and sigma is above 0, got {self.share} and "
                             f"{self.sigma}.")
        if not 0 <= self.dropout < 1 or not 0 <= self.null_share <= 1:
            raise ValueError("dropout lies in [0, 1) and null_share in [0, 1], got "
                             f"{self.dropout} and {self.null_share}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if not 0 < self.strength <= 1 or not 0 <= self.overlap < 1:
            raise ValueError("strength lies in (0, 1] and overlap in [0, 1), got "
                             f"{self.strength} and {self.overlap}.")
        if any(side % self.multiple for side in self.patch):
            raise ValueError(f"sides of a patch are multiples of {self.multiple}, got "
                             f"{self.patch}.")
        if 0.0 not in self.bins:
            raise ValueError(f"bins hold 0, the contrast of the scans, got {self.bins}.")

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return self.fold * 2 ** (len(self.widths) - 1)


TINY = dict(
    start=SIMPLE, widths=(8, 16), fold=1, attention=(False, True), tokens=2, token_width=8,
    patch=(12, 12, 8), overlap=0.0, views=1, batch=2, times=50, sampling_steps=2, enroll_steps=3,
    steps=10, log_every=5, validate_every=10, validation_cases=1, save_every=100,
)
PAPER = dict(
    widths=(64, 128, 256, 512), blocks=2, fold=1, attention=(False, False, True, True), tokens=1,
    token_width=512, patch=(80, 96, 80), overlap=0.5, coordinates=False, warp=True, views=2,
    brain_only=False, batch=5, prediction="eps", learning_rate=1e-4, steps=411_600, begin="noise",
    strength=1.0, sampling_steps=50, spacing="leading", corrections=0, guidance=0.6,
    residual=False, clip_sampling=True, fusion="end", start=NONE, validate_every=10_000,
    save_every=5_000, log_every=500,
)


class PatchDiffusion(LearnedBackend):
    """Any source; targets are sites of the fit, or new ones whose tokens `enroll` fits."""

    name = "patch_diffusion"
    version = "4"
    reference = "Hache et al. 2026, Patch-level anatomy- and style-guided 3D diffusion"
    summary = ("Volumes were inverted part of the way to noise by a 3D diffusion model that sees "
               "overlapping patches and a map of tissue borders, and sampled under the style of "
               "the target with CFG++ guidance.")
    capabilities = Capabilities(trained=True)
    Config = PatchDiffusionConfig
    presets = {"tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
               "paper": {"preset": "paper", **PAPER}}

    @property
    def multiple(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Sides of the canvas are multiples of what the network needs."""
        return (self.config.multiple,) * 3

    # Networks -------------------------------------------------------------------------------

    def _build(self) -> dict[str, Any]:
        from ....deep.networks.tokens import StyleTokens, TokenUNet

        c = self.config
        return {
            "denoiser": TokenUNet(3, 3 + 3 * c.coordinates, 1, c.widths, c.blocks,
                                  time=max(4 * c.widths[0], c.token_width), style=c.token_width,
                                  attention=c.attention, fold=c.fold, dropout=c.dropout),
            "style": StyleTokens(len(self.labels_), c.tokens, c.token_width, len(c.bins)),
        }

    def _game(self, store: VolumeStore, trained: tuple[int, ...], seed: int) -> Game:
        return _PatchGame(self.config, self.networks_, self.labels_, store, trained, seed)

    def _style_for(self, case: Case) -> Mapping[str, np.ndarray]:
        return {"tokens": self.tokens(case.site)}

    # Styles ---------------------------------------------------------------------------------

    def _describe(self, shown: Shown) -> dict[str, np.ndarray]:
        return {}

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {}

    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        return {**self.styles_[label], "tokens": self.tokens(label)}

    def tokens(self, label: str) -> np.ndarray:
        """(tokens, width) float32: the style of a site of the fit, in its own contrast."""
        table = self.networks_["style"]
        style = table.sites[self.labels_.index(label)] + table.bins[self.config.bins.index(0.0)]
        return style.detach().float().cpu().numpy()

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        shape = (self.config.tokens, self.config.token_width)
        if style["tokens"].shape != shape:
            raise ValueError(f"tokens of shape {style['tokens'].shape}, expected {shape}")
        super()._check_style(style)

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        """The numbers of the scans, and tokens: a known site's own, or fitted ones."""
        style = super()._enroll(scans)
        numbers = START + "percentiles"
        for label, known in self.styles_.items():
            if np.allclose(style[numbers], known[numbers], rtol=SAME, atol=0):
                return self._site_style(label)  # the very scans of the fit: it learned more
        volumes = [read_checked(scan) for scan in scans]
        return {**style, "tokens": self._within_memory(lambda: self.fit_tokens(volumes))}

    def fit_tokens(self, volumes: Sequence[Volume], seed: int = 0) -> np.ndarray:
        """(tokens, width) style of a new site: the network is frozen, the tokens learn.

        They begin as the mean of the known sites and are averaged over the second half of the way.
        """
        import torch

        c = self.config
        table = self.networks_["style"]
        tokens = (table.sites.mean(dim=0) + table.bins[c.bins.index(0.0)]).detach().clone()
        tokens.requires_grad_(True)
        seen = [_view(c, shown.unit, shown.mask, self._patch_in(shown.unit.shape))
                for shown in map(self._shown, volumes)]
        optimiser = torch.optim.Adam([tokens], lr=c.enroll_rate)
        mean, half = torch.zeros_like(tokens), c.enroll_steps // 2
        for step in range(c.enroll_steps):
            with torch.enable_grad():
                loss = self._enroll_loss(seen, tokens, np.random.default_rng([seed, step, 5]))
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            if step >= half:
                mean += tokens.detach() / (c.enroll_steps - half)
        return (mean if c.enroll_steps else tokens).detach().float().cpu().numpy()

    def _enroll_loss(self, seen: Sequence[_View], tokens: torch.Tensor, rng: np.random.Generator
                     ) -> torch.Tensor:
        import torch

        c, device = self.config, self.resources.device
        drawn = [_patch_of(c, seen[int(n)], _corner(rng, seen[int(n)]))
                 for n in rng.integers(len(seen), size=c.batch)]
        x, mask, channels = (torch.from_numpy(np.stack(a)).to(device) for a in zip(*drawn))
        t = torch.from_numpy(rng.integers(c.times, size=len(x))).to(device)
        eps = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(device)
        style = tokens.expand(len(x), *tokens.shape)
        return _denoising(c, self.networks_["denoiser"], x, mask, channels, style, t, eps)

    # Change ---------------------------------------------------------------------------------

    def _change(self, shown: Shown, style: Mapping[str, np.ndarray], rng: np.random.Generator
                ) -> np.ndarray:
        import torch

        c, device = self.config, self.resources.device
        unit, mask, source = shown.unit, shown.mask, shown.source
        x = torch.from_numpy(np.ascontiguousarray(unit))[None, None].to(device)
        goal = torch.from_numpy(np.asarray(style["tokens"], np.float32)).to(device)
        own = None
        if c.start == NONE and source in self.labels_:
            own = torch.from_numpy(self.tokens(str(source))).to(device)
        field, walk = self._field(unit, mask), self._walk()
        drawn = []
        for _ in range(c.seeds if c.begin == "noise" else 1):
            noise = None
            if c.begin == "noise":
                noise = torch.from_numpy(rng.standard_normal(unit.shape, dtype=np.float32))
                noise = noise[None, None].to(device)
            with torch.no_grad():
                drawn.append(self._fused_change(field, x, noise, goal, own, walk)[0, 0]
                             .cpu().numpy())
        if len(drawn) > 1:
            self._spread = np.std(drawn, axis=0, dtype=np.float64).astype(np.float32)
        return np.mean(drawn, axis=0, dtype=np.float64).astype(np.float32)

    def _walk(self) -> Walk:
        """What makes the steps of sampling: with a `scratch` folder they outlive the process."""
        from ....deep.diffusion.sampler_checkpoint import KeptSteps
        from ....deep.diffusion.samplers import straight

        return straight if self.scratch is None else KeptSteps(self.scratch).walk

    def _field(self, unit: np.ndarray, mask: np.ndarray) -> _Field:
        """Patches of a volume and what the network is told of each."""
        import torch

        from ....deep.diffusion.fusion import Fusion

        c = self.config
        patch = self._patch_in(unit.shape)
        stride = tuple(max(1, int(side * (1 - c.overlap))) for side in patch)
        fusion = Fusion(PatchGrid(unit.shape, patch, stride), mask)
        view = _view(c, unit, mask, patch)
        told = [_patch_of(c, view, corner)[2] for corner in fusion.corners]
        inside = torch.from_numpy(mask)[None, None].to(self.resources.device)
        return _Field(fusion, torch.from_numpy(np.stack(told)).to(self.resources.device), inside)

    def _patch_in(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(min(side, n) for side, n in zip(self.config.patch, shape))

    def _fused_change(self, field: _Field, x: torch.Tensor, noise: torch.Tensor | None,
                      goal: torch.Tensor, own: torch.Tensor | None, walk: Walk) -> torch.Tensor:
        """The change of a (1, 1, I, J, K) volume, patches blended at every step or at the end."""
        import torch

        if self.config.fusion == "step":
            return self.swap(field, x, noise, goal, own, walk)
        grid, out = field.fusion.grid, torch.zeros_like(x)
        for number, corner in enumerate(field.fusion.corners):
            at = (..., *grid.at(corner))
            change = self.swap(field.alone(number), x[at], None if noise is None else noise[at],
                               goal, own, walk)
            out[at] += change * torch.from_numpy(grid.weight(corner)).to(x)
        return out

    def swap(self, field: _Field, x: torch.Tensor, noise: torch.Tensor | None,
             goal: torch.Tensor, own: torch.Tensor | None, walk: Walk) -> torch.Tensor:
        """The change of (1, 1, I, J, K) in [-1, 1] from the style `own` (None: null) to `goal`."""
        from ....deep.diffusion.guidance import cfg_plus, scales_of
        from ....deep.diffusion.process import noised
        from ....deep.diffusion.samplers import ddim, ddim_inversion

        c, schedule = self.config, self._schedule
        grid = schedule.grid(c.sampling_steps, c.spacing, c.strength)
        null, clip = self.networks_["style"].null, 1.0 if c.clip_sampling else None
        own = null if own is None else own
        if noise is None:
            latent = ddim_inversion(self._parts(field, own), schedule, x, grid, c.corrections, walk)
        elif c.strength == 1:
            latent = noise
        else:
            latent = noised(schedule, x, _times(x, grid[-1]), noise)
        after = cfg_plus(self._parts(field, goal, clip), self._parts(field, null, clip),
                         scales_of(schedule, grid, c.guidance), schedule, clip)
        y = ddim(after, schedule, latent, grid, walk)
        if not c.residual:
            return y - x
        return y - ddim(self._parts(field, own, clip), schedule, latent, grid, walk)

    def _parts(self, field: _Field, tokens: torch.Tensor, clip: float | None = None) -> PartsOf:
        """Image and noise of a whole volume, from its patches."""
        import torch

        from ....deep.diffusion.fusion import outside_known
        from ....deep.diffusion.samplers import parts_of

        network = self.networks_["denoiser"]

        def patchwise(patch: torch.Tensor, t: torch.Tensor, number: int) -> torch.Tensor:
            told = field.channels[number:number + 1]
            return network(torch.cat([patch, told], dim=1), t, tokens[None])

        parts = parts_of(field.fusion.denoiser(patchwise), self._schedule, self.config.prediction,
                         clip)
        return outside_known(parts, field.mask, self._schedule) if self.config.brain_only else parts

    @property
    def _schedule(self) -> Schedule:
        return _schedule(self.config)


# Inputs of the network ------------------------------------------------------------------------


class _View(NamedTuple):
    """A scan as training or sampling sees it; float16 where it is kept."""

    image: np.ndarray  # (I, J, K) in [-1, 1]
    mask: np.ndarray  # (I, J, K) bool
    prior: np.ndarray  # (I, J, K) in [-1, 1]
    coarse: np.ndarray  # (i, j, k), all of the prior at the size of a patch

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


class _Field(NamedTuple):
    """Patches of a volume, (n, C, i, j, k) of what is told of each, (1, 1, I, J, K) mask."""

    fusion: Fusion
    channels: torch.Tensor
    mask: torch.Tensor

    def alone(self, number: int) -> _Field:
        """One of the patches as if it were all of the volume."""
        from ....deep.diffusion.fusion import Fusion

        at = self.fusion.grid.at(self.fusion.corners[number])
        grid = PatchGrid(self.fusion.grid.patch, self.fusion.grid.patch)
        return _Field(Fusion(grid, self.fusion.mask[at]), self.channels[number:number + 1],
                      self.mask[(..., *at)])


def _view(config: PatchDiffusionConfig, unit: np.ndarray, mask: np.ndarray,
          patch: tuple[int, ...], log_gamma: float = 0.0) -> _View:
    prior = AnatomyPrior(config.share, config.sigma)
    a = prior((np.float32(1) + unit) / 2, mask, log_gamma)
    return _View(unit, mask, a, coarse(a, patch))


def _patch_of(config: PatchDiffusionConfig, view: _View, corner: Sequence[int],
              flip: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1, i, j, k) image and mask of a patch, (C, i, j, k) of what the network is told of it."""
    patch = view.coarse.shape
    at = tuple(slice(c, c + p) for c, p in zip(corner, patch))
    told = [view.prior[at][None], view.coarse[None]]
    if config.coordinates:
        told.append(_places(view.image.shape)[(slice(None), *at)])
    parts = [view.image[at][None], view.mask[at][None], np.concatenate(told)]
    if flip:  # the image and its maps; where left and right are is still told
        parts = [p[:, ::-1] for p in parts]
        if config.coordinates:
            parts[2] = np.concatenate([parts[2][:2], -parts[2][2:3], parts[2][3:]])
    image, mask, channels = (np.ascontiguousarray(p, np.float32) for p in parts)
    return image, mask, channels


_places = lru_cache(maxsize=1)(places)


def _corner(rng: np.random.Generator, view: _View) -> tuple[int, ...]:
    """A patch at a random place within the brain's box."""
    corner = []
    for axis, (side, n) in enumerate(zip(view.coarse.shape, view.mask.shape)):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(view.mask.any(axis=others))
        first = int(np.clip(hits[0], 0, n - side))
        last = int(np.clip(hits[-1] + 1 - side, first, n - side))
        corner.append(int(rng.integers(first, last + 1)))
    return tuple(corner)


def _schedule(config: PatchDiffusionConfig) -> Schedule:
    from ....deep.diffusion.schedules import Schedule

    return Schedule(config.times, config.schedule)  # type: ignore[arg-type]


def _times(x: torch.Tensor, t: int) -> torch.Tensor:
    import torch

    return torch.full((len(x),), t, device=x.device)


def _denoising(config: PatchDiffusionConfig, network: Any, x: torch.Tensor, mask: torch.Tensor,
               channels: torch.Tensor, tokens: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
               ) -> torch.Tensor:
    """Mean squared error of the prediction, over the brain or everywhere."""
    import torch

    from ....deep.diffusion.process import goal, noised

    schedule = _schedule(config)
    said = network(torch.cat([noised(schedule, x, t, eps), channels], dim=1), t, tokens)
    truth = goal(schedule, config.prediction, x, t, eps)
    weight = mask if config.brain_only else torch.ones_like(mask)
    return ((said.float() - truth) ** 2 * weight).sum() / weight.sum().clamp(min=1)


# Training -------------------------------------------------------------------------------------


class _PatchGame(Game):
    """One player: the denoiser and the tokens, on denoising alone."""

    def __init__(self, config: PatchDiffusionConfig, networks: dict[str, Any],
                 labels: tuple[str, ...], store: VolumeStore, trained: tuple[int, ...],
                 seed: int) -> None:
        from ....deep.training.data import PatchDraw

        self.config, self.networks, self.identity = config, networks, {}
        self.labels, self.store, self.seed = labels, store, seed
        patch = tuple(min(side, n) for side, n in zip(config.patch, store.canvas.shape))
        self.draw = PatchDraw(store, trained, config.batch, seed, patch)  # type: ignore[arg-type]
        self._kept: OrderedDict[tuple[int, int], _View] = OrderedDict()

    def players(self) -> tuple[Player, ...]:
        """Denoiser and tokens are one player."""
        return (Player("patch_diffusion", ("denoiser", "style"), self.loss,
                       self.config.learning_rate, clip=self.config.clip),)

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Patches of views, in a contrast bin each; channels; site, bin and whether it is told."""
        import torch

        c = self.config
        drawn = self.draw(step, rank)
        rng, count = drawn["rng"], len(drawn["scan"])
        patches = [_patch_of(c, self.view(scan, int(rng.integers(c.views))), corner,
                             bool(c.flip and rng.uniform() < 0.5))
                   for scan, corner in zip(drawn["scan"], drawn["corner"])]
        image, mask, channels = (torch.from_numpy(np.stack(a)) for a in zip(*patches))
        bins = rng.integers(len(c.bins), size=count)
        power = torch.tensor([c.bins[b] for b in bins]).exp().reshape(-1, 1, 1, 1, 1)
        return {"x": 2 * ((image + 1) / 2).clamp(0, 1) ** power - 1, "mask": mask,
                "channels": channels, "bin": torch.from_numpy(bins),
                "site": torch.tensor([self.labels.index(site) for site in drawn["site"]]),
                "known": torch.from_numpy(rng.uniform(size=count) >= c.null_share)}

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Denoising."""
        import torch

        c, x = self.config, batch["x"]
        tokens = self.networks["style"](batch["site"], batch["bin"], batch["known"])
        t = torch.randint(c.times, (len(x),), device=x.device)
        return {"denoise": _denoising(c, self.networks["denoiser"], x, batch["mask"],
                                      batch["channels"], tokens, t, torch.randn_like(x))}

    def view(self, scan: int, number: int) -> _View:
        """One of a scan's views: drawn from the seed, kept as long as there is room."""
        key = (scan, number)
        if key not in self._kept:
            self._kept[key] = self._make_view(scan, number)
            while len(self._kept) > 1 and sum(v.nbytes for v in self._kept.values()) > VIEW_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _make_view(self, scan: int, number: int) -> _View:
        c = self.config
        rng = np.random.default_rng([self.seed, scan, number, 4])
        log_gamma = float(rng.uniform(-c.prior_gamma, c.prior_gamma))
        unit = self.store.image(scan).astype(np.float32)
        mask = self.store.mask(scan) > 0
        if c.warp and number:
            unit, mask = _warped(rng, unit, mask)
        view = _view(c, unit, mask, self.draw.patch, log_gamma)
        return _View(view.image.astype(np.float16), mask, view.prior.astype(np.float16),
                     view.coarse.astype(np.float16))


def _warped(rng: np.random.Generator, unit: np.ndarray, mask: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask under one affine and elastic warp; if nothing of the brain is left, as before.
    """
    import torch

    from ....deep.augmentation.spatial import SpatialSettings, draw_spatial

    spatial = draw_spatial(rng, SpatialSettings(flip=0.0), 3)
    inside = torch.from_numpy(mask.astype(np.float32))[None, None]
    moved = spatial.apply(inside, fill=0.0, nearest=True)[0, 0].numpy() > 0.5
    image = spatial.apply(torch.from_numpy(unit)[None, None])[0, 0].numpy()
    return (np.where(moved, image, -1).astype(np.float32), moved) if moved.any() else (unit, mask)
