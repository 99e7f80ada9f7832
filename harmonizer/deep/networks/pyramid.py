"""A pyramid of features that nobody trained and nobody downloads, in VGG's place.

IHF-Harmony describes an artefact by means and spreads of VGG-19 features and compares anatomy in
them. The weights are not ours to ship and a hospital's network lets nothing in. What statistics of
textures need, though, is a bank of oriented filters with rectifiers on several scales, not what the
filters were trained on (Ustyuzhaninov et al. 2017, "What does it take to generate natural
textures?", arXiv:1606.00021: random filters of one layer suffice).

Levels 1 to 4 stand for relu1_1, relu2_1, relu3_1 and relu4_1. Filters are drawn from a seed by
numpy, not by torch, so that they are the same in every version, and are not part of the weights.
The first level sees every slice of a slab by itself and sums: its first two filters are the
intensity itself and its negative, so that plain brightness is among the statistics.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["FeaturePyramid"]


class FeaturePyramid(nn.Module):
    """(N, before, H, W) in [-1, 1] -> features of each level, halved from level to level.

    Parameters
    ----------
    before : slices of a slab
    widths : channels of each level
    seed : of the filters
    """

    def __init__(self, before: int = 3, widths: tuple[int, ...] = (16, 32, 48, 64),
                 seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng([seed, 20])
        self.widths = widths
        for level, width in enumerate(widths):
            channels = before if level == 0 else widths[level - 1]
            filters = _filters(rng, channels, width, first=level == 0)
            shifts = rng.normal(0, 0.3, width) * (level > 0 or np.arange(width) >= 2)
            for name, value in (("filters", filters), ("shifts", shifts)):
                self.register_buffer(f"{name}{level}", torch.as_tensor(value, dtype=torch.float32),
                                     persistent=False)

    @property
    def size(self) -> int:
        """Of z_s: a mean and a spread of every channel."""
        return 2 * sum(self.widths)

    def forward(self, x: torch.Tensor, levels: int | None = None) -> list[torch.Tensor]:
        """The first `levels` of them; None = all."""
        found = []
        with torch.autocast(x.device.type, enabled=False):  # statistics differ by hundredths
            for level in range(len(self.widths) if levels is None else levels):
                x = functional.avg_pool2d(x, 2) if level else x.float()
                x = self._level(x, level)
                found.append(x)
        return found

    def _level(self, x: torch.Tensor, level: int) -> torch.Tensor:
        x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.relu(functional.conv2d(x, getattr(self, f"filters{level}"),
                                                 getattr(self, f"shifts{level}")))


def _filters(rng: np.random.Generator, before: int, after: int, first: bool) -> np.ndarray:
    """(after, before, 3, 3) filters of He's variance; edges, not means, after the first ones."""
    filters = rng.standard_normal((after, before, 3, 3))
    if first:
        filters -= filters.mean(axis=(1, 2, 3), keepdims=True)
    filters *= np.sqrt(2 / (9 * before)) / filters.std(axis=(1, 2, 3), keepdims=True)
    if first:
        filters[:2] = 0
        filters[:2, :, 1, 1] = np.array([1, -1])[:, None] / before
    return filters
