"""Networks of patch diffusion, style tokens of sites, and the change by guided sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ....deep.diffusion.fusion import PatchFusion, with_known_background
from ....deep.diffusion.guidance import cfg_plus, guidance_scales
from ....deep.diffusion.process import add_noise
from ....deep.diffusion.sampler_checkpoint import SamplerCheckpoint
from ....deep.diffusion.samplers import (
    Denoiser,
    StepRunner,
    ddim,
    ddim_inversion,
    denoiser_of,
    run_steps,
)
from ....deep.networks.tokens import StyleTokens, TokenUNet
from ....deep.patches import PatchGrid, fit_patch
from ....deep.training.data import VolumeStore
from ....deep.training.task import TrainingTask
from ..config import NONE, InferenceOptions
from ..model import LearnedModel, Residual
from ..network_input import NetworkInput
from .conditioning import ScanView, cut_patch, denoising_loss, draw_corner, make_view, schedule_of
from .config import PatchDiffusionConfig
from .training import PatchDiffusionTask

__all__ = ["PatchDiffusionModel", "PatchedVolume"]

ENROLL_LEARNING_RATE = 2e-2


class PatchedVolume(NamedTuple):
    """Patches of a volume with their conditioning.

    Attributes
    ----------
    fusion : PatchFusion
        Positions of the patches.
    channels : Tensor, shape (n, C, i, j, k)
        Conditioning of each patch.
    mask : Tensor, shape (1, 1, I, J, K), bool
    """

    fusion: PatchFusion
    channels: torch.Tensor
    mask: torch.Tensor

    def single(self, number: int) -> PatchedVolume:
        """Return one of the patches as a volume of its own."""
        at = self.fusion.grid.slices(self.fusion.corners[number])
        grid = PatchGrid(self.fusion.grid.patch, self.fusion.grid.patch)
        return PatchedVolume(PatchFusion(grid, self.fusion.mask[at]),
                             self.channels[number:number + 1], self.mask[(..., *at)])


class PatchDiffusionModel(LearnedModel):
    """Token U-Net and a table of style tokens."""

    config: PatchDiffusionConfig

    @property
    def multiple(self) -> tuple[int, int, int]:
        """See `LearnedModel.multiple`."""
        return (self.config.multiple,) * 3

    def build_networks(self) -> dict[str, nn.Module]:
        """See `LearnedModel.build_networks`."""
        c = self.config
        return {
            "denoiser": TokenUNet(3, 3 + 3 * c.coordinates, 1, c.widths, c.blocks,
                                  time=max(4 * c.widths[0], c.token_width), style=c.token_width,
                                  attention=c.attention, unshuffle=c.unshuffle,
                                  checkpointing=c.checkpointing),
            "style": StyleTokens(len(self.sites), c.tokens, c.token_width, len(c.bins)),
        }

    def training_task(self, store: VolumeStore, scans: tuple[int, ...], seed: int) -> TrainingTask:
        """See `LearnedModel.training_task`."""
        return PatchDiffusionTask(self.config, self.networks, self.sites, store, scans, seed)

    # Styles ---------------------------------------------------------------------------------

    def describe(self, scan: NetworkInput, options: InferenceOptions) -> dict[str, np.ndarray]:
        """Return nothing: the style is not made of images, but of learned tokens."""
        return {}

    def pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return nothing; see `site_style`."""
        return {}

    def site_style(self, site: str) -> dict[str, np.ndarray]:
        """Return the tokens of a site in its own contrast, (tokens, width) float32."""
        table = self.networks["style"]
        tokens = table.sites[self.sites.index(site)] + table.bins[self.config.bins.index(0.0)]
        return {"tokens": tokens.detach().float().cpu().numpy()}

    def check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """See `LearnedModel.check_style`."""
        shape = (self.config.tokens, self.config.token_width)
        if style["tokens"].shape != shape:
            raise ValueError(f"tokens of shape {style['tokens'].shape}, expected {shape}")

    def fit_tokens(self, scans: Sequence[NetworkInput], seed: int = 0) -> np.ndarray:
        """Fit the tokens of a new site with frozen networks.

        They start as the mean of the known sites and are averaged over the second half of the
        steps.

        Parameters
        ----------
        scans : sequence of NetworkInput
            Scans of the site.
        seed : int
            Seed of patches, timesteps and noise.

        Returns
        -------
        ndarray, shape (tokens, width), float32
        """
        c = self.config
        table = self.networks["style"]
        tokens = (table.sites.mean(dim=0) + table.bins[c.bins.index(0.0)]).detach().clone()
        tokens.requires_grad_(True)
        views = [make_view(c, scan.image, scan.mask, fit_patch(c.patch, scan.image.shape))
                 for scan in scans]
        optimizer = torch.optim.Adam([tokens], lr=ENROLL_LEARNING_RATE)
        mean, half = torch.zeros_like(tokens), c.enroll_steps // 2
        for step in range(c.enroll_steps):
            with torch.enable_grad():
                loss = self.token_loss(views, tokens, np.random.default_rng([seed, step, 5]))
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            if step >= half:
                mean += tokens.detach() / (c.enroll_steps - half)
        return (mean if c.enroll_steps else tokens).detach().float().cpu().numpy()

    def token_loss(self, views: Sequence[ScanView], tokens: torch.Tensor,
                   rng: np.random.Generator) -> torch.Tensor:
        """Compute the denoising loss of tokens on random patches of views."""
        c = self.config
        drawn = [cut_patch(c, views[int(n)], draw_corner(rng, views[int(n)]))
                 for n in rng.integers(len(views), size=c.batch)]
        x, mask, channels = (torch.from_numpy(np.stack(a)).to(self.device) for a in zip(*drawn))
        t = torch.from_numpy(rng.integers(c.timesteps, size=len(x))).to(self.device)
        eps = self.tensor(rng.standard_normal(x.shape, dtype=np.float32))
        style = tokens.expand(len(x), *tokens.shape)
        return denoising_loss(c, self.networks["denoiser"], x, mask, channels, style, t, eps)

    # Inference ------------------------------------------------------------------------------

    def predict_residual(self, scan: NetworkInput, style: Mapping[str, np.ndarray],
                         rng: np.random.Generator, options: InferenceOptions) -> Residual:
        """See `LearnedModel.predict_residual`."""
        c = self.config
        x = self.tensor(scan.image)[None, None]
        target = self.tensor(style["tokens"])
        source = None
        if c.baseline == NONE and scan.source in self.sites:
            source = self.tensor(self.site_style(str(scan.source))["tokens"])
        runner: StepRunner = run_steps
        if options.checkpoint_folder is not None:
            runner = SamplerCheckpoint(options.checkpoint_folder).run
        patched = self.patched(scan.image, scan.mask)
        samples = []
        for _ in range(c.seeds if c.begin == "noise" else 1):
            noise = None
            if c.begin == "noise":
                noise = self.tensor(rng.standard_normal(scan.image.shape, dtype=np.float32)
                                    )[None, None]
            with torch.no_grad():
                change = self._fused_change(patched, x, noise, target, source, runner)
            samples.append(change[0, 0].cpu().numpy())
        std = None
        if len(samples) > 1:
            std = np.std(samples, axis=0, dtype=np.float64).astype(np.float32)
        return Residual(np.stack(samples).mean(axis=0, dtype=np.float64).astype(np.float32), std)

    def patched(self, image: np.ndarray, mask: np.ndarray) -> PatchedVolume:
        """Cut a volume into patches with their conditioning."""
        c = self.config
        patch = fit_patch(c.patch, image.shape)
        stride = tuple(max(1, int(side * (1 - c.overlap))) for side in patch)
        fusion = PatchFusion(PatchGrid(image.shape, patch, stride), mask)
        view = make_view(c, image, mask, patch)
        channels = [cut_patch(c, view, corner)[2] for corner in fusion.corners]
        return PatchedVolume(fusion, torch.from_numpy(np.stack(channels)).to(self.device),
                             torch.from_numpy(mask)[None, None].to(self.device))

    def _fused_change(self, patched: PatchedVolume, x: torch.Tensor, noise: torch.Tensor | None,
                      target: torch.Tensor, source: torch.Tensor | None, runner: StepRunner
                      ) -> torch.Tensor:
        """Return the change of a volume, with patches blended at every step or at the end."""
        if self.config.fusion == "step":
            return self.swap(patched, x, noise, target, source, runner)
        grid, out = patched.fusion.grid, torch.zeros_like(x)
        for number, corner in enumerate(patched.fusion.corners):
            at = (..., *grid.slices(corner))
            change = self.swap(patched.single(number), x[at], None if noise is None else noise[at],
                               target, source, runner)
            out[at] += change * torch.from_numpy(grid.weight(corner)).to(x)
        return out

    def swap(self, patched: PatchedVolume, x: torch.Tensor, noise: torch.Tensor | None,
             target: torch.Tensor, source: torch.Tensor | None, runner: StepRunner
             ) -> torch.Tensor:
        """Return the change of a volume when its style is replaced.

        Inverted and sampled under one style, an image is itself again but for the error of both,
        whatever was learned; with `residual` this error is subtracted. From noise it is not: then
        the difference of two samples would cancel what the networks restore.

        Parameters
        ----------
        patched : PatchedVolume
        x : Tensor, shape (1, 1, I, J, K)
            In [-1, 1].
        noise : Tensor, shape (1, 1, I, J, K), optional
            Start from noise; None: invert the image.
        target, source : Tensor, shape (M, width)
            Tokens; a source of None is the null style.
        runner : StepRunner
            Executes the sampling steps.
        """
        c, schedule = self.config, schedule_of(self.config)
        grid = schedule.grid(c.sampling_steps, c.spacing, c.strength)  # type: ignore[arg-type]
        null, clip = self.networks["style"].null, 1.0 if c.clip_sampling else None
        source = null if source is None else source
        if noise is None:
            latent = ddim_inversion(self.denoiser(patched, source), schedule, x, grid,
                                    c.corrections, runner)
        elif c.strength == 1:
            latent = noise
        else:
            t = torch.full((len(x),), grid[-1], device=x.device)
            latent = add_noise(schedule, x, t, noise)
        guided = cfg_plus(self.denoiser(patched, target, clip), self.denoiser(patched, null, clip),
                          guidance_scales(schedule, grid, c.guidance), schedule, clip)
        y = ddim(guided, schedule, latent, grid, runner)
        if not c.residual or noise is not None:
            return y - x
        return y - ddim(self.denoiser(patched, source, clip), schedule, latent, grid, runner)

    def denoiser(self, patched: PatchedVolume, tokens: torch.Tensor, clip: float | None = None
                 ) -> Denoiser:
        """Return the denoiser of a whole volume under a style."""
        network = self.networks["denoiser"]

        def predict_patch(patch: torch.Tensor, t: torch.Tensor, number: int) -> torch.Tensor:
            channels = patched.channels[number:number + 1]
            return network(torch.cat([patch, channels], dim=1), t, tokens[None])

        schedule = schedule_of(self.config)
        denoise = denoiser_of(patched.fusion.predictor(predict_patch), schedule,
                              self.config.prediction, clip)  # type: ignore[arg-type]
        if not self.config.brain_only:
            return denoise
        return with_known_background(denoise, patched.mask, schedule)
