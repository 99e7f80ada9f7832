"""Networks of DISARM, scanner codes of scans, and the change to another scanner code."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ....deep.networks.disentangling import (
    AnatomyEncoder,
    CodeDiscriminator,
    Generator,
    ImageDiscriminator,
    ScannerEncoder,
)
from ....deep.patches import PatchGrid, fit_patch
from ....deep.training.data import VolumeStore
from ....deep.training.task import TrainingTask
from ..config import InferenceOptions
from ..model import LearnedModel, Residual
from ..network_input import NetworkInput
from .config import DisarmConfig
from .training import DisarmTask

__all__ = ["DisarmModel"]


class DisarmModel(LearnedModel):
    """Encoders, generator and discriminators."""

    config: DisarmConfig
    balances_tissues = True
    recovers_from_divergence = True

    @property
    def multiple(self) -> tuple[int, int, int]:
        """See `LearnedModel.multiple`."""
        return 2, 2, 2

    def build_networks(self) -> dict[str, nn.Module]:
        """See `LearnedModel.build_networks`."""
        c, n = self.config, len(self.sites)
        return {
            "anatomy": AnatomyEncoder(3, c.width, c.blocks, code=c.code, noise=c.noise,
                                      unshuffle=c.unshuffle),
            "scanner": ScannerEncoder(3, n, c.scanner_widths, code=c.style),
            "generator": Generator(3, c.code, c.style, n, c.generator_width, c.generator_blocks,
                                   unshuffle=c.unshuffle, residual=c.residual),
            "exemplar": ImageDiscriminator(3, n, c.image_widths),
            "random": ImageDiscriminator(3, n, c.image_widths),
            "content": CodeDiscriminator(3, c.code, n, c.content_widths),
        }

    def training_task(self, store: VolumeStore, scans: tuple[int, ...], seed: int) -> TrainingTask:
        """See `LearnedModel.training_task`."""
        return DisarmTask(self.config, self.networks, self.sites, store, scans, seed)

    # Styles ---------------------------------------------------------------------------------

    def describe(self, scan: NetworkInput, options: InferenceOptions) -> dict[str, np.ndarray]:
        """Return the scanner code of a scan; with `label_at_target` it depends on its site."""
        label = self.label([scan.source] if scan.source else [])
        return {"code": self.scanner_code(scan.image, scan.mask, label)}

    def pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return mean and standard deviation of the scanner codes, and no label."""
        codes = np.stack([s["code"] for s in summaries]).astype(np.float64)
        return {"code": codes.mean(axis=0).astype(np.float32),
                "std": codes.std(axis=0).astype(np.float32), "label": self.label([])}

    def site_style(self, site: str) -> dict[str, np.ndarray]:
        """Return the label of a site."""
        return {"label": self.label([site])}

    def label(self, sites: list[str]) -> np.ndarray:
        """Return the fraction of each site of the fit in a list, shape (c,).

        Zeros if the generator gets no labels at inference (`label_at_target`).
        """
        label = np.zeros(len(self.sites), np.float32)
        for site in sites:
            if self.config.label_at_target and site in self.sites:
                label[self.sites.index(site)] += 1 / len(sites)
        return label

    def check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """See `LearnedModel.check_style`."""
        for name, count in (("code", self.config.style), ("label", len(self.sites))):
            if style[name].shape != (count,) or not np.isfinite(style[name]).all():
                raise ValueError(f"expected {count} finite numbers as {name}")

    # Inference ------------------------------------------------------------------------------

    def predict_residual(self, scan: NetworkInput, style: Mapping[str, np.ndarray],
                         rng: np.random.Generator, options: InferenceOptions) -> Residual:
        """See `LearnedModel.predict_residual`."""
        code = style["code"]
        if self.config.sample_codes:
            code = (code + style["std"] * rng.standard_normal(code.shape)).astype(np.float32)
        grid = self._grid(scan.image.shape)
        return Residual(grid.blend(
            self._patch_change(x, mask, code, style["label"])
            for x, mask in zip(grid.cut(scan.image), grid.cut(scan.mask))))

    def _patch_change(self, x: np.ndarray, mask: np.ndarray, code: np.ndarray, label: np.ndarray
                      ) -> np.ndarray:
        """Return the change of one patch; zeros where there is no brain."""
        if not mask.any():
            return np.zeros(x.shape, np.float32)
        image, generator = self.tensor(x[None, None]), self.networks["generator"]
        with torch.no_grad():
            codes = (self.networks["anatomy"].code(image), self.tensor(code[None]),
                     self.tensor(label[None]))
            change = generator.residual(*codes) if self.config.residual else \
                generator(*codes) - image
        return change[0, 0].cpu().numpy()

    def scanner_code(self, image: np.ndarray, mask: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Return the scanner code of a whole volume, as in training; shape (style,)."""
        with torch.no_grad():
            code, _ = self.networks["scanner"](*(self.tensor(a) for a in (
                image[None, None], label[None], mask[None, None])))
        return code[0].cpu().numpy()

    def _grid(self, shape: tuple[int, ...]) -> PatchGrid:
        patch = fit_patch(self.config.patch, shape)
        return PatchGrid(shape, patch, () if patch != shape else patch)
