"""The semantic encoder: an image in, one vector for each head out.

Residual blocks without time or style, a pool over places, and a linear layer for each head (CACD:
contrast 256, anatomy 256). Over which places the pool goes is a choice: all of them (the paper), or
those of the brain, so that a vector does not depend on how much of a slice is air.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from .blocks import ResidualBlock, conv, fold, norm

__all__ = ["SemanticEncoder"]


class SemanticEncoder(nn.Module):
    """(N, before, ...) image -> {head: (N, size)}.

    Parameters
    ----------
    dims : 2 or 3
    widths : channels of each level; every level ends with a halving but the last
    blocks : residual blocks per level
    heads : name -> size of each output vector
    fold : factor of the folding at the entrance
    """

    def __init__(self, dims: int = 2, before: int = 1,
                 widths: tuple[int, ...] = (32, 64, 128, 256, 256), blocks: int = 2, *,
                 heads: Mapping[str, int], dropout: float = 0.0, fold: int = 1) -> None:
        super().__init__()
        self.dims, self.folding, self.levels = dims, fold, len(widths)
        self.entrance = conv(dims, before * fold ** dims, widths[0])
        self.steps = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.steps.append(ResidualBlock(dims, channels, width, dropout=dropout))
                channels = width
            if level < len(widths) - 1:
                self.steps.append(ResidualBlock(dims, channels, channels, dropout=dropout,
                                                resample="down"))
        self.steps.extend(ResidualBlock(dims, channels, channels, dropout=dropout)
                          for _ in range(2))
        self.last = nn.Sequential(norm(channels), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(channels, size)
                                    for name, size in heads.items()})

    @property
    def multiple(self) -> int:
        """Each side of an image must be a multiple of this many voxels."""
        return self.folding * 2 ** (self.levels - 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None
                ) -> dict[str, torch.Tensor]:
        """x: (N, before, ...); mask: (N, 1, ...) weights of the pool, or None for all places."""
        h = self.entrance(fold(x, self.folding))
        for step in self.steps:
            h = step(h)
        h = self.last(h)
        if mask is None:
            pooled = h.flatten(2).mean(2)
        else:
            weight = functional.adaptive_avg_pool2d if self.dims == 2 \
                else functional.adaptive_avg_pool3d
            w = weight(mask.to(h.dtype), h.shape[2:]) + 1e-6
            pooled = (h * w).flatten(2).sum(2) / w.flatten(2).sum(2)
        return {name: head(pooled) for name, head in self.heads.items()}
