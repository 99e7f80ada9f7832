"""Training of patch diffusion: denoising of patches under style tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ....deep.augmentation.spatial import WarpSettings, draw_warp
from ....deep.patches import fit_patch
from ....deep.training.data import PatchSampler, VolumeStore
from ....deep.training.task import Batch, OptimizerGroup, TrainingTask
from .conditioning import cut_patch, denoising_loss, make_view
from .config import PatchDiffusionConfig

__all__ = ["PatchDiffusionTask"]

MAX_PRIOR_LOG_GAMMA = 0.5  # perturbation of the prior
FLIP_PROBABILITY = 0.5
SPATIAL_CHANGES = ("affine", "elastic", "flip")
NO_AFFINE: dict[str, Any] = dict(rotation=0.0, scale=0.0, shift=0.0)
NO_ELASTIC: dict[str, Any] = dict(elastic=0.0)


class PatchDiffusionTask(TrainingTask):
    """Denoiser and tokens, trained together on denoising.

    Parameters
    ----------
    config : PatchDiffusionConfig
    networks : dict of str to Module
        ``denoiser`` and ``style``.
    sites : tuple of str
        Order of the tokens.
    store : VolumeStore
    scans : tuple of int
        Indices of the scans that are trained on.
    seed : int
    """

    supports_workers = True

    def __init__(self, config: PatchDiffusionConfig, networks: dict[str, nn.Module],
                 sites: tuple[str, ...], store: VolumeStore, scans: tuple[int, ...], seed: int
                 ) -> None:
        self.config, self.networks, self.identity = config, networks, {}
        self.sites, self.store = sites, store
        self.sampler = PatchSampler(store, scans, config.batch, seed,
                                    fit_patch(config.patch, store.box.shape))

    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """See `TrainingTask.optimizer_groups`."""
        return (OptimizerGroup("patch_diffusion", ("denoiser", "style"), self.loss,
                               self.config.learning_rate, clip=self.config.clip),)

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Return patches in a contrast bin each, their conditioning, sites and bins.

        Each patch has its own perturbation of the prior and its own warp. ``has_style`` is False
        where the null style is trained.
        """
        c = self.config
        drawn = self.sampler(step, rank)
        rng, count = drawn["rng"], len(drawn["scan"])
        patches = [self._draw_patch(rng, scan, corner)
                   for scan, corner in zip(drawn["scan"], drawn["corner"])]
        image, mask, channels = (torch.from_numpy(np.stack(a)) for a in zip(*patches))
        bins = rng.integers(len(c.bins), size=count)
        power = torch.tensor([c.bins[b] for b in bins]).exp().reshape(-1, 1, 1, 1, 1)
        has_style = rng.uniform(size=count) >= c.null_probability
        return {"x": 2 * ((image + 1) / 2).clamp(0, 1) ** power - 1, "mask": mask,
                "channels": channels, "bin": torch.from_numpy(bins),
                "site": torch.tensor([self.sites.index(site) for site in drawn["site"]]),
                "has_style": torch.from_numpy(has_style)}

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute the denoising loss."""
        c, x = self.config, batch["x"]
        tokens = self.networks["style"](batch["site"], batch["bin"], batch["has_style"])
        t = torch.randint(c.timesteps, (len(x),), device=x.device)
        return {"denoise": denoising_loss(c, self.networks["denoiser"], x, batch["mask"],
                                          batch["channels"], tokens, t, torch.randn_like(x))}

    def _draw_patch(self, rng: np.random.Generator, scan: int, corner: tuple[int, ...]
                    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut a patch from a warped scan with a perturbed prior; see `cut_patch`."""
        log_gamma = float(rng.uniform(-MAX_PRIOR_LOG_GAMMA, MAX_PRIOR_LOG_GAMMA))
        image = self.store.image(scan).astype(np.float32)
        mask = self.store.mask(scan) > 0
        flip = bool(rng.uniform() < FLIP_PROBABILITY)
        if self.config.warp:
            chosen = rng.choice(SPATIAL_CHANGES, size=rng.integers(1, 3), replace=False)
            flip = "flip" in chosen
            image, mask = _warp(rng, image, mask, WarpSettings(
                flip=0.0, **({} if "affine" in chosen else NO_AFFINE),
                **({} if "elastic" in chosen else NO_ELASTIC)))
        view = make_view(self.config, image, mask, self.sampler.patch, log_gamma)
        return cut_patch(self.config, view, corner, flip)


def _warp(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, settings: WarpSettings
          ) -> tuple[np.ndarray, np.ndarray]:
    """Warp image and mask; unchanged if no brain would be left."""
    warp = draw_warp(rng, settings, 3)
    inside = torch.from_numpy(mask.astype(np.float32))[None, None]
    moved = warp.apply(inside, fill=0.0, nearest=True)[0, 0].numpy() > 0.5
    if not moved.any():
        return image, mask
    warped = warp.apply(torch.from_numpy(image)[None, None])[0, 0].numpy()
    return np.where(moved, warped, -1).astype(np.float32), moved
