"""A U-Net of residual blocks: denoiser of the diffusion methods, or, without time, a translator.

With `fold` = 2, blocks of 2^dims voxels become channels at the entrance and voxels again at the
exit: nothing of the image is thrown away while all convolutions run on a fraction of the places,
the way to a full slice in milliseconds on a CPU.
"""

from __future__ import annotations

import torch
from torch import nn

from .blocks import Attention, ResidualBlock, TimeEmbedding, conv, fold, norm, unfold, zeroed

__all__ = ["UNet"]


class UNet(nn.Module):
    """(N, before, ...) image, time and style -> (N, after, ...), zero at the start of training.

    Parameters
    ----------
    dims : 2 or 3
    before, after : channels in and out
    widths : channels of each level; each level but the first halves the size
    blocks : residual blocks per level on the way down (one more on the way up)
    time : width of the time embedding, 0 for a network without time
    style : width of the style vector, 0 for none
    style_shift : whether the style also adds
    attention : per level, whether its blocks are followed by self-attention
    fold : factor of the folding at the entrance
    """

    def __init__(self, dims: int = 2, before: int = 1, after: int = 1,
                 widths: tuple[int, ...] = (32, 64, 128, 256), blocks: int = 2, *, time: int = 512,
                 style: int = 0, style_shift: bool = False, dropout: float = 0.0,
                 attention: tuple[bool, ...] = (), fold: int = 1) -> None:
        super().__init__()
        self.dims, self.folding, self.levels = dims, fold, len(widths)
        attends = (*attention, *[False] * len(widths))
        inner = fold ** dims
        self.time = TimeEmbedding(widths[0], time) if time else None
        common = dict(time=time, style=style, style_shift=style_shift, dropout=dropout)
        self.entrance = conv(dims, before * inner, widths[0])
        self.down = nn.ModuleList()
        kept = [widths[0]]
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Step(ResidualBlock(dims, channels, width, **common),
                                       Attention(dims, width) if attends[level] else None))
                channels = width
                kept.append(channels)
            if level < len(widths) - 1:
                self.down.append(_Step(ResidualBlock(dims, channels, channels, resample="down",
                                                     **common)))
                kept.append(channels)
        middle = Attention(dims, channels) if attends[len(widths) - 1] else None
        self.middle = nn.ModuleList([
            _Step(ResidualBlock(dims, channels, channels, **common), middle),
            _Step(ResidualBlock(dims, channels, channels, **common)),
        ])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                self.up.append(_Step(ResidualBlock(dims, channels + kept.pop(), width, **common),
                                     Attention(dims, width) if attends[level] else None,
                                     joins=True))
                channels = width
            if level:
                self.up.append(_Step(ResidualBlock(dims, channels, channels, resample="up",
                                                   **common)))
        self.exit = nn.Sequential(norm(channels), nn.SiLU(),
                                  zeroed(conv(dims, channels, after * inner)))

    @property
    def multiple(self) -> int:
        """Each side of an image must be a multiple of this many voxels."""
        return self.folding * 2 ** (self.levels - 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None,
                style: torch.Tensor | None = None) -> torch.Tensor:
        """x: (N, before, ...); t: (N,) times; style: (N, style)."""
        if any(n % self.multiple for n in x.shape[2:]):
            raise ValueError(f"sides {tuple(x.shape[2:])} must be multiples of {self.multiple}.")
        time = None if self.time is None else self.time(t)
        h = self.entrance(fold(x, self.folding))
        kept = [h]
        for step in self.down:
            h = step(h, time, style)
            kept.append(h)
        for step in self.middle:
            h = step(h, time, style)
        for step in self.up:
            h = step(torch.cat([h, kept.pop()], dim=1) if step.joins else h, time, style)
        return unfold(self.exit(h), self.folding)


class _Step(nn.Module):
    """A block, perhaps attention after it; `joins` if it takes a kept feature map along."""

    def __init__(self, block: ResidualBlock, attention: Attention | None = None,
                 joins: bool = False) -> None:
        super().__init__()
        self.block, self.attention, self.joins = block, attention, joins

    def forward(self, x: torch.Tensor, time: torch.Tensor | None, style: torch.Tensor | None
                ) -> torch.Tensor:
        x = self.block(x, time, style)
        return x if self.attention is None else self.attention(x)
