"""Training of DISARM: discriminators, translation, random styles and simulated scanners."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ....contrast.intensity import IntensityScale
from ....deep.augmentation.contrast import ContrastSettings, draw_view
from ....deep.augmentation.spatial import Elastic
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
from ....deep.patches import fit_patch, patch_slices
from ....deep.training.data import BACKGROUND, PatchSampler, VolumeStore
from ....deep.training.stability import StabilityMonitor
from ....deep.training.task import Batch, OptimizerGroup, TrainingTask
from ..config import NONE
from ..patch_baseline import match_patch
from .config import DisarmConfig

__all__ = ["DisarmTask", "match_volumes"]

ADAM_BETAS = (0.5, 0.999)
WEIGHT_DECAY = 1e-4
ELASTIC_PROBABILITY = 0.7
CODE_SQUARE_WEIGHT = 0.01  # of the mean square of the anatomy code
MAX_DISCRIMINATOR_ACCURACY = 0.995
MIN_CODE_STD, MAX_CODE_STD = 0.01, 10.0
SOURCE_SCANNER = ContrastSettings(bias=0.2, blur=0.6, noise=0.03)
TARGET_SCANNER = ContrastSettings(bias=0.0)

Generated = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]


class _Volume(NamedTuple):
    """A whole scan: image in [-1, 1] and mask, (1, 1, I, J, K), and tissues, (3, I, J, K)."""

    image: torch.Tensor
    mask: torch.Tensor
    tissues: torch.Tensor | None


class DisarmTask(TrainingTask):
    """Five optimizer groups over six networks.

    With `alternate`, the code discriminator is updated in even steps and all others in odd ones, as
    in the authors' code. Otherwise it is updated first in every step, on the same batch. Scanner
    codes of scans are computed from whole volumes, as at inference. Those of generated images are
    computed from patches, because only patches are generated.

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

    supports_workers = True

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
        content = {**adam, "every": 2} if c.alternate else adam
        adam = {**adam, "every": 2, "offset": 1} if c.alternate else adam
        all_three = ("anatomy", "scanner", "generator")
        groups = (
            OptimizerGroup("content", ("content",), self.content_loss, c.content_rate, **content),
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
        """Return patches, their volumes, labels, the labels that are seen, and random labels.

        ``conditioning`` is ``label`` with some rows dropped; ``random_label`` goes with random
        styles.
        """
        drawn = self.sampler(step, rank)
        rng, n = drawn["rng"], len(drawn["scan"])
        one_hot = np.eye(len(self.sites), dtype=np.float32)
        label = one_hot[[self.sites.index(site) for site in drawn["site"]]]
        random_label = one_hot[rng.integers(len(self.sites), size=n)]
        keep, keep_random = rng.random((2, n, 1)) >= self.config.label_dropout
        volumes = [self._draw_volume(rng, index) for index in drawn["scan"]]
        image, mask = (torch.cat([getattr(v, name) for v in volumes]) for name in ("image", "mask"))
        patches = [[self._cut(part, corner) for part in (v.image, v.mask)]
                   for v, corner in zip(volumes, drawn["corner"])]
        x, patch_mask = (torch.cat(parts) for parts in zip(*patches))
        batch = {"x": x, "mask": patch_mask, "volume": image, "volume_mask": mask,
                 "label": torch.from_numpy(label),
                 "conditioning": torch.from_numpy(label * keep),
                 "random_label": torch.from_numpy(random_label * keep_random)}
        if self.config.simulated_weight or self.config.same_weight:
            rows = [self._simulate(rng, *row) for row in list(zip(
                drawn["scan"], volumes, drawn["corner"]))[:self.config.simulated]]
            batch |= {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return batch

    def _draw_volume(self, rng: np.random.Generator, index: int) -> _Volume:
        """Read a whole scan, warped in part of the cases."""
        image, mask = (torch.from_numpy(array.astype(np.float32))[None, None]
                       for array in (self.store.image(index), self.store.mask(index)))
        tissues = None
        if self.store.has_tissues and self.config.simulated_weight:
            tissues = torch.from_numpy(self.store.patch_tissues(index, (0, 0, 0), image.shape[2:]))
        warp = Elastic(int(rng.integers(2 ** 31)), self.config.elastic)
        if not self.config.elastic or rng.random() >= ELASTIC_PROBABILITY:
            return _Volume(image, mask, tissues)
        mask = warp.apply(mask, fill=0.0, nearest=True)
        image = torch.where(mask > 0, warp.apply(image), torch.full_like(image, BACKGROUND))
        return _Volume(image, mask, None if tissues is None
                       else warp.apply(tissues[None], fill=0.0)[0])

    def _simulate(self, rng: np.random.Generator, index: int, volume: _Volume,
                  corner: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Simulate one change of scanner with known truth, from two subjects of one site.

        Views and baseline are those of whole volumes, as at inference.

        Returns
        -------
        dict
            Patches ``before``: the subject under the source scanner; ``source``: the same after the
            baseline; ``truth``: the subject under the target scanner; ``source_mask``. Volumes
            ``other``, ``other_mask``: another subject under the target scanner.
        """
        other = self._draw_volume(rng, self._other_subject(rng, index))
        source_view = draw_view(rng, SOURCE_SCANNER, 3)
        target_view = draw_view(rng, TARGET_SCANNER, 3)
        before = source = source_view.apply(volume.image, volume.mask)
        truth, target = target_view.apply(torch.cat([volume.image, other.image]),
                                          torch.cat([volume.mask, other.mask])).split(1)
        if self.config.baseline != NONE and self.config.simulated_weight:
            tissues = None if volume.tissues is None or other.tissues is None else \
                (volume.tissues.numpy(), other.tissues.numpy())
            source = match_volumes(source, volume.mask, target, other.mask, tissues)
            source, truth = _rescale(source, volume.mask, source, truth)
            target, = _rescale(target, other.mask, target)
        cut = {name: self._cut(part, corner) for name, part in (
            ("before", before), ("source", source), ("truth", truth), ("source_mask", volume.mask))}
        return {**cut, "other": target, "other_mask": other.mask}

    def _other_subject(self, rng: np.random.Generator, index: int) -> int:
        """Draw a scan of another subject of the same site; the scan itself if there is none."""
        scans = self.store.scans
        near = [j for j in self.scans if scans[j].subject != scans[index].subject
                and scans[j].site == scans[index].site]
        return int(rng.choice(near or [index]))

    def _cut(self, volume: torch.Tensor, corner: tuple[int, ...]) -> torch.Tensor:
        """Return a patch of a (1, 1, I, J, K) volume."""
        x, y, z = patch_slices(corner, self.sampler.patch)
        return volume[..., x, y, z]

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
            terms[name] = self.config.critic_weight * (adversarial_loss(real, True)
                                                       + adversarial_loss(fake, False))
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
        label = torch.zeros(len(source), len(self.sites), device=source.device)
        target, _ = self.networks["scanner"](batch["other"], label, batch["other_mask"])
        codes = self.networks["anatomy"](source), target, label
        generator = self.networks["generator"]
        after = source + generator.residual(*codes).float() if c.residual else \
            generator(*codes).float()
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
        styles, distribution = self.sample_style(batch["volume"], label, batch["volume_mask"])
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


def match_volumes(image: torch.Tensor, mask: torch.Tensor, other: torch.Tensor,
                  other_mask: torch.Tensor, tissues: tuple[np.ndarray, ...] | None = None
                  ) -> torch.Tensor:
    """Apply the baseline of training: match a volume to another subject's.

    Parameters
    ----------
    image, mask, other, other_mask : Tensor, shape (1, 1, I, J, K)
        Images in [-1, 1].
    tissues : (ndarray, ndarray), shape (3, I, J, K), optional
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


def _rescale(reference: torch.Tensor, mask: torch.Tensor, *images: torch.Tensor
             ) -> tuple[torch.Tensor, ...]:
    """Bring images to the unit in which the networks see the reference; see `Inference`."""
    values = reference[mask > 0].numpy()
    if not len(values) or np.ptp(values) <= 0:
        return images
    scale = IntensityScale.of(values)
    return tuple(torch.from_numpy(np.clip(scale.to_unit(image.numpy()), -1, 1).astype(np.float32)
                                  ).where(mask > 0, torch.tensor(BACKGROUND)) for image in images)
