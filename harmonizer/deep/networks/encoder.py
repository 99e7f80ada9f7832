"""Semantic encoder of a diffusion autoencoder: an image in, one vector for each head out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .blocks import ResidualBlock, conv, masked_mean, norm, pixel_unshuffle

__all__ = ["SemanticEncoder"]


class SemanticEncoder(nn.Module):
    """Residual encoder, a pool over positions, and a linear layer for each output vector.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    in_channels : int
        Channels of the image.
    widths : tuple of int
        Channels of each level; every level but the last ends with halving the size.
    blocks : int
        Residual blocks of each level.
    heads : mapping of str to int
        Name -> size of each output vector.
    dropout : float
        Dropout probability.
    unshuffle : int
        Factor of the pixel unshuffling at the input.
    """

    def __init__(self, dims: int = 2, in_channels: int = 1,
                 widths: tuple[int, ...] = (32, 64, 128, 256, 256), blocks: int = 2, *,
                 heads: Mapping[str, int], dropout: float = 0.0, unshuffle: int = 1) -> None:
        super().__init__()
        self.dims, self.unshuffle, self.levels = dims, unshuffle, len(widths)
        self.entrance = conv(dims, in_channels * unshuffle ** dims, widths[0])
        self.blocks = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.blocks.append(ResidualBlock(dims, channels, width, dropout=dropout))
                channels = width
            if level < len(widths) - 1:
                self.blocks.append(ResidualBlock(dims, channels, channels, dropout=dropout,
                                                 resample="down"))
        self.blocks.extend(ResidualBlock(dims, channels, channels, dropout=dropout)
                           for _ in range(2))
        self.last = nn.Sequential(norm(channels), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(channels, size)
                                    for name, size in heads.items()})

    @property
    def multiple(self) -> int:
        """Each side of an image must be a multiple of this many voxels."""
        return self.unshuffle * 2 ** (self.levels - 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None
                ) -> dict[str, torch.Tensor]:
        """Encode images.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, ...)
        mask : Tensor, shape (N, 1, ...), optional
            Weights of the pool. Default: all positions count equally, as in the CACD paper; then a
            vector depends on how much of the slice is air.

        Returns
        -------
        dict of str to Tensor, shape (N, size)
        """
        h = self.entrance(pixel_unshuffle(x, self.unshuffle))
        for block in self.blocks:
            h = block(h)
        pooled = masked_mean(self.last(h), mask)
        return {name: head(pooled) for name, head in self.heads.items()}
