"""Training of CACD: denoising and two contrastive losses over contrast views."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ....deep.augmentation.contrast import GIN, GIN_CACD, ContrastSettings, draw_view
from ....deep.diffusion.process import add_noise, training_target
from ....deep.diffusion.schedules import Schedule
from ....deep.losses.contrastive import contrastive_loss, view_pairs
from ....deep.training.data import SlabSampler, VolumeStore
from ....deep.training.task import Batch, OptimizerGroup, TrainingTask
from .config import CacdConfig

__all__ = ["CacdTask"]


class CacdTask(TrainingTask):
    """Encoder and denoiser, trained together.

    Parameters
    ----------
    config : CacdConfig
    networks : dict of str to Module
        ``encoder`` and ``denoiser``.
    store : VolumeStore
    scans : tuple of int
        Indices of the scans that are trained on.
    seed : int
    """

    supports_workers = True

    def __init__(self, config: CacdConfig, networks: dict[str, nn.Module], store: VolumeStore,
                 scans: tuple[int, ...], seed: int) -> None:
        self.config, self.networks, self.identity = config, networks, {}
        self.schedule = Schedule(config.timesteps)
        self.sites = sorted({store.scans[i].site for i in scans})
        self.sampler = SlabSampler(store, scans, config.subjects, seed,
                                   max_offset=config.max_offset, distinct=True,
                                   per_site=config.subjects_per_site)
        self.contrast = ContrastSettings(GIN_CACD if config.gin == "release" else GIN,
                                         gamma=config.gamma, bias=config.bias)

    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """See `TrainingTask.optimizer_groups`."""
        return (OptimizerGroup("cacd", ("denoiser", "encoder"), self.loss,
                               self.config.learning_rate, clip=self.config.clip),)

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Return views subject by subject, (B V, 1, I, J); the same views for all subjects."""
        drawn = self.sampler(step, rank)
        image, mask = drawn["image"], drawn["mask"]
        views = [draw_view(drawn["rng"], self.contrast) for _ in range(self.config.views)]
        x = torch.stack([view.apply(image, mask) for view in views], dim=1).flatten(0, 1)
        return {"x": x, "mask": mask.repeat_interleave(len(views), 0), "subjects": len(image),
                "site": torch.tensor([self.sites.index(site) for site in drawn["site"]])}

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute the denoising, contrast and anatomy losses (eq. 2 of the paper).

        Contrast codes of two subjects are compared within a site. A subject alone at its site adds
        nothing to the contrast loss.
        """
        c, x = self.config, batch["x"]
        z = self.networks["encoder"](x, batch["mask"] if c.masked_pool else None)
        condition = torch.cat([z["contrast"], z["anatomy"]], dim=1)
        t = torch.randint(c.timesteps, (len(x),), device=x.device)
        eps = torch.randn_like(x)
        model_output = self.networks["denoiser"](add_noise(self.schedule, x, t, eps), t, condition)
        target = training_target(self.schedule, c.prediction, x, t, eps)  # type: ignore[arg-type]
        same_subject, same_view = view_pairs(batch["subjects"], c.views, x.device, batch["site"])
        others = same_view if not c.anatomy_across_sites else \
            view_pairs(batch["subjects"], c.views, x.device)[1]
        return {
            "denoise": functional.mse_loss(model_output.float(), target),
            "contrast": c.contrast_weight * contrastive_loss(z["contrast"], same_view,
                                                             same_subject, c.temperature),
            "anatomy": c.anatomy_weight * contrastive_loss(z["anatomy"], same_subject, others,
                                                           c.temperature),
        }
