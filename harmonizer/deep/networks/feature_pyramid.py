"""Pyramid of fixed random filters that replaces VGG-19 features.

IHF-Harmony describes artifacts by statistics of VGG-19 features. Those weights may not be
redistributed, and hospital networks often block downloads. Texture statistics need a bank of
oriented filters with rectifiers on several scales; random filters suffice (Ustyuzhaninov et al.
2017).

Levels 1 to 4 replace relu1_1, relu2_1, relu3_1 and relu4_1. Filters are drawn by numpy, not torch,
so that they are the same in every version; they are not part of the model's weights. The first two
filters of the first level are the intensity itself and its negative, so that brightness is among
the statistics.

References
----------
Ustyuzhaninov et al. 2017, "What does it take to generate natural textures?", arXiv:1606.00021.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["FeaturePyramid"]

FILTER_SEED = (0, 20)


class FeaturePyramid(nn.Module):
    """Features on several levels, each of half the size of the one before.

    Parameters
    ----------
    in_channels : int
        Slices of a slab.
    widths : tuple of int
        Channels of each level.
    """

    def __init__(self, in_channels: int = 3, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        rng = np.random.default_rng(FILTER_SEED)
        self.widths = widths
        for level, width in enumerate(widths):
            channels = in_channels if level == 0 else widths[level - 1]
            filters = _filters(rng, channels, width, first=level == 0)
            shifts = rng.normal(0, 0.3, width) * (level > 0 or np.arange(width) >= 2)
            for name, value in (("filters", filters), ("shifts", shifts)):
                self.register_buffer(f"{name}{level}", torch.as_tensor(value, dtype=torch.float32),
                                     persistent=False)

    def forward(self, x: torch.Tensor, levels: int | None = None) -> list[torch.Tensor]:
        """Return the features of the first `levels` levels (default: all).

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, H, W)
            In [-1, 1].
        """
        features = []
        with torch.autocast(x.device.type, enabled=False):  # statistics differ by hundredths
            for level in range(len(self.widths) if levels is None else levels):
                x = functional.avg_pool2d(x, 2) if level else x.float()
                x = self._level(x, level)
                features.append(x)
        return features

    def _level(self, x: torch.Tensor, level: int) -> torch.Tensor:
        x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.relu(functional.conv2d(x, getattr(self, f"filters{level}"),
                                                 getattr(self, f"shifts{level}")))


def _filters(rng: np.random.Generator, in_channels: int, out_channels: int, first: bool
             ) -> np.ndarray:
    """Draw (out, in, 3, 3) filters of He's variance; on the first level, edge filters."""
    filters = rng.standard_normal((out_channels, in_channels, 3, 3))
    if first:
        filters -= filters.mean(axis=(1, 2, 3), keepdims=True)
    filters *= np.sqrt(2 / (9 * in_channels)) / filters.std(axis=(1, 2, 3), keepdims=True)
    if first:
        filters[:2] = 0
        filters[:2, :, 1, 1] = np.array([1, -1])[:, None] / in_channels
    return filters
