"""Training of DISARM: discriminators, translation, random styles and simulated scanners."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ....deep.augmentation.contrast import ContrastSettings, draw_view
from ....deep.losses.disentangling import (
    adversarial_loss,
    code_l1,
    kl_to_normal,
    label_accuracy,
    label_confusion_loss,
    label_loss,
    masked_l1,
    realness_accuracy,
)
from ....deep.patches import fit_patch
from ....deep.training.data import BACKGROUND, PatchSampler, VolumeStore
from ....deep.training.stability import StabilityMonitor
from ....deep.training.task import Batch, OptimizerGroup, TrainingTask
from ..config import NONE
from ..patch_baseline import match_patch
from .config import DisarmConfig

__all__ = ["DisarmTask", "match_patches"]

ADAM_BETAS = (0.5, 0.999)
WEIGHT_DECAY = 1e-4
CODE_SQUARE_WEIGHT = 0.01  # of the mean square of the anatomy code
MAX_DISCRIMINATOR_ACCURACY = 0.995
MIN_CODE_STD, MAX_CODE_STD = 0.01, 10.0
SOURCE_SCANNER = ContrastSettings(bias=0.2, blur=0.6, noise=0.03)
TARGET_SCANNER = ContrastSettings(bias=0.0)

Generated = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]


class DisarmTask(TrainingTask):
    """Five optimizer groups over six networks.

    The authors update the code discriminator on a batch of its own between two full steps; here it
    is updated first in every step, on the same batch.

    Parameters
    ----------
    config : DisarmConfig
    networks : dict of str to Module
        See `DisarmModel.build_networks`.
    sites : tuple of str
        Order of the labels.
    store : VolumeStore
    scans : tuple of int
        Indices of the scans that are trained on.
    seed : int
    """

    def __init__(self, config: DisarmConfig, networks: dict[str, Any],
                 sites: tuple[str, ...], store: VolumeStore, scans: tuple[int, ...], seed: int
                 ) -> None:
        self.config, self.networks, self.identity = config, networks, {}
        self.sites, self.store, self.scans = sites, store, scans
        self.sampler = PatchSampler(store, scans, config.batch, seed,
                                    fit_patch(config.patch, store.box.shape))
        self.monitor = StabilityMonitor(config.window)

    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """See `TrainingTask.optimizer_groups`; the order of the authors' full step."""
        c = self.config
        adam: dict[str, Any] = dict(betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY, clip=c.clip)
        all_three = ("anatomy", "scanner", "generator")
        groups = (
            OptimizerGroup("content", ("content",), self.content_loss, c.content_rate, **adam),
            OptimizerGroup("critics", ("exemplar", "random"), self.critics_loss, c.learning_rate,
                           **adam),
            OptimizerGroup("translation", all_three, self.translation_loss, c.learning_rate,
                           **adam),
            OptimizerGroup("random", ("anatomy", "generator"), self.random_loss, c.learning_rate,
                           **adam),
        )
        if not c.simulated_weight and not c.same_weight:
            return groups
        return (*groups, OptimizerGroup("simulation", all_three, self.simulation_loss,
                                        c.learning_rate, **adam))

    # Data -----------------------------------------------------------------------------------

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Return patches, their labels, the labels that the networks see, and random labels.

        ``conditioning`` is ``label`` with some rows dropped; ``random_label`` goes with random
        styles.
        """
        drawn = self.sampler(step, rank)
        rng, n = drawn["rng"], len(drawn["scan"])
        one_hot = np.eye(len(self.sites), dtype=np.float32)
        label = one_hot[[self.sites.index(site) for site in drawn["site"]]]
        random_label = one_hot[rng.integers(len(self.sites), size=n)]
        keep, keep_random = rng.random((2, n, 1)) >= self.config.label_dropout
        batch = {"x": drawn["image"], "mask": drawn["mask"], "label": torch.from_numpy(label),
                 "conditioning": torch.from_numpy(label * keep),
                 "random_label": torch.from_numpy(random_label * keep_random)}
        if self.config.simulated_weight or self.config.same_weight:
            batch |= self._simulate(rng, drawn["scan"], drawn["corner"])
        return batch

    def _simulate(self, rng: np.random.Generator, scans: list[int],
                  corners: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Simulate changes of scanner whose truth is known."""
        rows = [self._simulate_one(rng, i, corner) for i, corner in zip(scans, corners)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _simulate_one(self, rng: np.random.Generator, index: int, corner: tuple[int, ...]
                      ) -> dict[str, torch.Tensor]:
        """Simulate one change of scanner, from two subjects of one site at one place.

        Returns
        -------
        dict
            ``before``: the subject under the source scanner; ``source``: the same after the
            baseline; ``other``: another subject under the target scanner; ``truth``: the subject
            under the target scanner; and masks.
        """
        image, mask = self._patch(index, corner)
        neighbor = self._other_subject(rng, index)
        other, other_mask = self._patch(neighbor, corner)
        source_view = draw_view(rng, SOURCE_SCANNER, 3)
        target_view = draw_view(rng, TARGET_SCANNER, 3)
        before = source = source_view.apply(image, mask)
        truth, target = target_view.apply(torch.cat([image, other]), torch.cat([mask, other_mask])
                                          ).split(1)
        if self.config.baseline != NONE and self.config.simulated_weight:
            tissues = None
            if self.store.has_tissues:
                tissues = tuple(self.store.patch_tissues(i, corner, self.sampler.patch)
                                for i in (index, neighbor))
            source = match_patches(source, mask, target, other_mask, tissues)
        return {"before": before, "source": source, "source_mask": mask, "other": target,
                "other_mask": other_mask, "truth": truth}

    def _other_subject(self, rng: np.random.Generator, index: int) -> int:
        """Draw a scan of another subject, of the same site if possible."""
        scans = self.store.scans
        others = [j for j in self.scans if scans[j].subject != scans[index].subject]
        near = [j for j in others if scans[j].site == scans[index].site] or others or [index]
        return int(rng.choice(near))

    def _patch(self, index: int, corner: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and mask of a patch, (1, 1, i, j, k)."""
        image, mask = self.store.patch(index, corner, self.sampler.patch)
        return torch.from_numpy(image)[None, None], torch.from_numpy(mask)[None, None]

    # Losses ---------------------------------------------------------------------------------

    def content_loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train the code discriminator to name the scanner of an anatomy code."""
        with torch.no_grad():
            code = self.networks["anatomy"](batch["x"])
        logits = self.networks["content"](code, batch["mask"])
        return {"label": label_loss(logits, batch["label"]),
                "accuracy": label_accuracy(logits, batch["label"])}

    def critics_loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train the image discriminators to tell real from generated, and to name the scanner."""
        with torch.no_grad():
            code = self.networks["anatomy"](batch["x"])
            generated = {"exemplar": self.exchange(batch, code)[0],
                         "random": self._with_random_style(batch, code)[0]}
        terms = {}
        for name, image in generated.items():
            real, label_logits = self.networks[name](batch["x"], batch["mask"])
            fake, _ = self.networks[name](image, batch["mask"])
            terms[name] = (adversarial_loss(real, True) + adversarial_loss(fake, False)) / 2
            terms[f"{name}_label"] = self.config.real_label_weight * label_loss(label_logits,
                                                                                batch["label"])
            terms[f"{name}_accuracy"] = realness_accuracy(real, fake)
            self.monitor.warn_outside_range(
                f"accuracy of the discriminator {name!r}", float(terms[f"{name}_accuracy"]), 0.0,
                MAX_DISCRIMINATOR_ACCURACY, "The generator never fools it and learns little from "
                "it. More noise or a lower learning_rate may help.")
        return terms

    def translation_loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train reconstruction, exchange there and back, realness, scanner labels and codes."""
        c, x, mask = self.config, batch["x"], batch["mask"]
        code = self.networks["anatomy"](x)
        generated, (mean, logvar), style = self.exchange(batch, code)
        cycled = self.exchange_back(batch, generated)
        real, label_logits = self.networks["exemplar"](generated, mask)
        label = batch["label"].roll(1, 0)
        reconstruction = masked_l1(self.generate(code, style, batch["conditioning"], mask), x, mask)
        cycle = masked_l1(cycled, x, mask)
        self.monitor.check_divergence("translation/self", float(reconstruction.detach()))
        std = mean.detach().float().std(0, correction=0).mean()
        self.monitor.warn_outside_range(
            "standard deviation of the scanner code", float(std), MIN_CODE_STD, MAX_CODE_STD,
            "The code no longer separates scanners, or it explodes. A lower kl_weight widens it, a "
            "higher one narrows it.")
        return {
            "self": c.self_weight * reconstruction, "cycle": c.cycle_weight * cycle,
            "realness": c.realness_weight * adversarial_loss(real, True),
            "label": c.generated_label_weight * label_loss(label_logits, label),
            "content": c.content_weight * label_confusion_loss(
                self.networks["content"](code, mask), batch["label"], inverse=c.inverse_content),
            "kl": c.kl_weight * kl_to_normal(mean, logvar),
            "code": CODE_SQUARE_WEIGHT * code.float().square().mean(),
            "accuracy": label_accuracy(label_logits, label), "std": std,
        }

    def random_loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train images of random styles: real, named or not, with style and anatomy recovered."""
        c = self.config
        code = self.networks["anatomy"](batch["x"])
        generated, style = self._with_random_style(batch, code)
        real, label_logits = self.networks["random"](generated, batch["mask"])
        recovered, _ = self.networks["scanner"](generated, batch["random_label"], batch["mask"])
        terms = {
            "realness": c.realness_weight * adversarial_loss(real, True),
            "label": c.generated_label_weight * label_loss(label_logits, batch["random_label"]),
            "latent": c.latent_weight * (recovered.float() - style).abs().mean(),
            "accuracy": label_accuracy(label_logits, batch["random_label"]),
        }
        if c.anatomy_weight:
            difference = self.networks["anatomy"].code(generated).float() - code.detach().float()
            terms["anatomy"] = c.anatomy_weight * difference.abs().mean()
        return terms

    def simulation_loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train the residual and the anatomy code on simulated scanners.

        ``baseline`` is the error without the networks; it has no gradient.
        """
        c, same = self.config, {}
        if c.same_weight:
            before, truth = (self.networks["anatomy"].code(batch[k]) for k in ("before", "truth"))
            same["same"] = c.same_weight * code_l1(before, truth, batch["source_mask"])
        if not c.simulated_weight:
            return same
        source, mask = batch["source"], batch["source_mask"]
        label = torch.zeros_like(batch["label"])
        code = self.networks["anatomy"](source)
        target, _ = self.networks["scanner"](batch["other"], label, batch["other_mask"])
        after = self.networks["generator"](code, target, label).float()
        if c.residual:
            style, _ = self.networks["scanner"](source, label, mask)
            after = source + after - self.networks["generator"](code, style, label).float()
        return {"truth": c.simulated_weight * masked_l1(after, batch["truth"], mask),
                "baseline": c.simulated_weight * masked_l1(source, batch["truth"], mask), **same}

    # Generation -----------------------------------------------------------------------------

    def generate(self, code: torch.Tensor, style: torch.Tensor, label: torch.Tensor,
                 mask: torch.Tensor) -> torch.Tensor:
        """Generate an image, with background outside the mask."""
        image = self.networks["generator"](code, style, label)
        return torch.where(mask > 0, image, torch.full_like(image, BACKGROUND))

    def sample_style(self, x: torch.Tensor, label: torch.Tensor, mask: torch.Tensor
                     ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Sample a scanner code; also return the (mean, log variance) of its distribution."""
        mean, logvar = self.networks["scanner"](x, label, mask)
        return mean + torch.randn_like(mean) * (logvar / 2).exp(), (mean, logvar)

    def exchange(self, batch: Batch, code: torch.Tensor) -> Generated:
        """Generate image i in the style of image i - 1.

        Returns
        -------
        images, (mean, logvar), styles
            Distribution and sample of the images' own styles.
        """
        label = batch["conditioning"]
        styles, distribution = self.sample_style(batch["x"], label, batch["mask"])
        images = self.generate(code, styles.roll(1, 0), label.roll(1, 0), batch["mask"])
        return images, distribution, styles

    def exchange_back(self, batch: Batch, generated: torch.Tensor) -> torch.Tensor:
        """Exchange the styles of exchanged images again, which restores image i's own style."""
        label = batch["conditioning"]
        code = self.networks["anatomy"](generated)
        style, _ = self.sample_style(generated, label.roll(1, 0), batch["mask"])
        return self.generate(code, style.roll(-1, 0), label, batch["mask"])

    def _with_random_style(self, batch: Batch, code: torch.Tensor
                           ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate images of styles drawn from N(0, 1); also return the styles."""
        style = torch.randn(len(code), self.config.style, device=code.device)
        return self.generate(code, style, batch["random_label"], batch["mask"]), style


def match_patches(image: torch.Tensor, mask: torch.Tensor, other: torch.Tensor,
                  other_mask: torch.Tensor, tissues: tuple[np.ndarray, ...] | None = None
                  ) -> torch.Tensor:
    """Apply the patch baseline: match a patch to another subject's.

    Parameters
    ----------
    image, mask, other, other_mask : Tensor, shape (1, 1, i, j, k)
        Images in [-1, 1].
    tissues : (ndarray, ndarray), shape (3, i, j, k), optional
        Tissue probabilities of both.
    """
    inside, there = (m[0, 0].numpy() > 0 for m in (mask, other_mask))
    x, y = (a[0, 0].numpy()[at] + np.float32(1) for a, at in ((image, inside), (other, there)))
    if not len(x) or not len(y):
        return image
    values = match_patch(x, y, None if tissues is None
                         else (tissues[0][:, inside], tissues[1][:, there]))
    result = image.clone()
    result[mask > 0] = torch.from_numpy(values - np.float32(1))
    return result
