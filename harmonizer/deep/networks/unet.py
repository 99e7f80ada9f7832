"""U-Net of residual blocks: denoiser of the diffusion methods, or, without time, a translator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .blocks import (
    Attention,
    ResidualBlock,
    TimeEmbedding,
    check_sides,
    conv,
    norm,
    pixel_shuffle,
    pixel_unshuffle,
    zero_module,
)

__all__ = ["UNet"]


class UNet(nn.Module):
    """Residual U-Net with optional time and style modulation; outputs zeros before training.

    With `unshuffle` > 1 blocks of voxels become channels at the input and voxels again at the
    output. Nothing of the image is lost, and all convolutions run on a fraction of the positions.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    in_channels, out_channels : int
        Channels of input and output.
    widths : tuple of int
        Channels of each level; each level but the first halves the size.
    blocks : int
        Residual blocks of each level on the way down (one more on the way up).
    time : int
        Size of the time embedding, 0 for a network without time.
    style : int
        Size of the style vector, 0 for none.
    style_shift : bool
        Whether the style also adds.
    dropout : float
        Dropout probability.
    attention : tuple of bool
        For each level, whether its blocks are followed by self-attention.
    unshuffle : int
        Factor of the pixel unshuffling at the input.
    checkpointing : bool
        In training, store the features between blocks alone and compute those within blocks again
        for the gradient: less memory, more time, the same result.
    """

    def __init__(self, dims: int = 2, in_channels: int = 1, out_channels: int = 1,
                 widths: tuple[int, ...] = (32, 64, 128, 256), blocks: int = 2, *, time: int = 512,
                 style: int = 0, style_shift: bool = False, dropout: float = 0.0,
                 attention: tuple[bool, ...] = (), unshuffle: int = 1,
                 checkpointing: bool = False) -> None:
        super().__init__()
        self.dims, self.unshuffle, self.levels = dims, unshuffle, len(widths)
        self.checkpointing = checkpointing
        attends = (*attention, *[False] * len(widths))
        inner = unshuffle ** dims
        self.time = TimeEmbedding(widths[0], time) if time else None
        common: dict[str, Any] = dict(time=time, style=style, style_shift=style_shift,
                                      dropout=dropout)
        self.entrance = conv(dims, in_channels * inner, widths[0])
        self.down = nn.ModuleList()
        skips = [widths[0]]
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Step(ResidualBlock(dims, channels, width, **common),
                                       Attention(dims, width) if attends[level] else None))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(_Step(ResidualBlock(dims, channels, channels, resample="down",
                                                     **common)))
                skips.append(channels)
        middle = Attention(dims, channels) if attends[len(widths) - 1] else None
        self.middle = nn.ModuleList([
            _Step(ResidualBlock(dims, channels, channels, **common), middle),
            _Step(ResidualBlock(dims, channels, channels, **common)),
        ])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Step(ResidualBlock(dims, channels + skips.pop(), width, **common),
                                     Attention(dims, width) if attends[level] else None,
                                     has_skip=True))
                channels = width
            if level:
                self.up.append(_Step(ResidualBlock(dims, channels, channels, resample="up",
                                                   **common)))
        self.exit = nn.Sequential(norm(channels), nn.SiLU(),
                                  zero_module(conv(dims, channels, out_channels * inner)))

    @property
    def multiple(self) -> int:
        """Each side of an image must be a multiple of this many voxels."""
        return self.unshuffle * 2 ** (self.levels - 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None,
                style: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the network.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, ...)
        t : Tensor, shape (N,), optional
            Timesteps.
        style : Tensor, shape (N, style), optional

        Returns
        -------
        Tensor, shape (N, out_channels, ...)
        """
        return self._run(x, t, style, lambda name, h: h)

    def _run(self, x: torch.Tensor, t: torch.Tensor | None, style: torch.Tensor | None,
             after_step: Callable[[str, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Apply all steps; `after_step` changes the features after each, by its name."""
        check_sides(x, self.multiple)
        time = None if self.time is None else self.time(t)
        h = self.entrance(pixel_unshuffle(x, self.unshuffle))
        skips = [h]
        for name, step in self._steps():
            inputs = [h, skips.pop()] if step.has_skip else [h]

            def advance(*parts: torch.Tensor, name: str = name, step: nn.Module = step
                        ) -> torch.Tensor:
                x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
                return after_step(name, step(x, time, style))

            if self.checkpointing and self.training:
                h = checkpoint(advance, *inputs, use_reentrant=False)
            else:
                h = advance(*inputs)
            if name.startswith("down"):
                skips.append(h)
        return pixel_shuffle(self.exit(h), self.unshuffle)

    def _steps(self) -> list[tuple[str, _Step]]:
        """Return all steps with their names, in order of execution."""
        return [(f"{part}{number}", step) for part in ("down", "middle", "up")
                for number, step in enumerate(getattr(self, part))]


class _Step(nn.Module):
    """A residual block and optional attention; `has_skip` if it takes a skip connection."""

    def __init__(self, block: ResidualBlock, attention: Attention | None = None,
                 has_skip: bool = False) -> None:
        super().__init__()
        self.block, self.attention, self.has_skip = block, attention, has_skip

    def forward(self, x: torch.Tensor, time: torch.Tensor | None, style: torch.Tensor | None
                ) -> torch.Tensor:
        x = self.block(x, time, style)
        return x if self.attention is None else self.attention(x)
