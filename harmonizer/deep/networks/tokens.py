"""Styles as a few tokens each, and a U-Net that attends to them.

Cross-attention to one token is a constant: softmax over one key is 1, and every voxel gets the same
vector. So a style here is several tokens: their mean scales and shifts all blocks (which is what
one token could do), and at the coarse levels each place chooses among them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .blocks import conv, fold, norm, unfold, zeroed
from .unet import UNet

__all__ = ["CrossAttention", "StyleTokens", "TokenUNet"]


class CrossAttention(nn.Module):
    """Every place of a feature map asks the tokens; starts as the identity.

    Parameters
    ----------
    width : of a token
    head : channels of a head
    """

    def __init__(self, dims: int, channels: int, width: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.query = conv(dims, channels, channels, 1)
        self.pair = nn.Linear(width, 2 * channels)
        self.out = zeroed(conv(dims, channels, channels, 1))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """x: (N, C, ...); tokens: (N, M, width)."""
        q = self.query(self.norm(x)).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        k, v = (p.unflatten(2, (self.heads, -1)).transpose(1, 2)
                for p in self.pair(tokens).chunk(2, dim=2))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


class StyleTokens(nn.Module):
    """Tokens of each site, of no site (null), and an offset for each contrast bin.

    Parameters
    ----------
    sites : number of sites
    tokens, width : of each style
    bins : number of contrast bins; their offsets start at zero
    """

    def __init__(self, sites: int, tokens: int, width: int, bins: int) -> None:
        super().__init__()
        self.sites = nn.Parameter(0.1 * torch.randn(sites, tokens, width))
        self.null = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.bins = nn.Parameter(torch.zeros(bins, width))

    def forward(self, site: torch.Tensor, bin_: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """(N, M, width) of (N,) site and bin numbers; the null style where `known` is False."""
        styles = self.sites[site] + self.bins[bin_][:, None]
        return torch.where(known[:, None, None], styles, self.null)


class TokenUNet(UNet):
    """A U-Net whose style is (N, M, width) tokens; parameters as `UNet`, `style` is the width.

    Levels with `attention` attend to themselves and then to the tokens.
    """

    def __init__(self, dims: int, before: int, after: int, widths: tuple[int, ...], blocks: int,
                 *, time: int, style: int, attention: tuple[bool, ...], fold: int = 1,
                 dropout: float = 0.0) -> None:
        super().__init__(dims, before, after, widths, blocks, time=time, style=style,
                         style_shift=True, attention=attention, fold=fold, dropout=dropout)
        self.cross = nn.ModuleDict()
        for name, step in self._steps():
            if step.attention is not None:
                channels = step.attention.norm.num_channels
                self.cross[name] = CrossAttention(dims, channels, style)

    def _steps(self) -> list[tuple[str, nn.Module]]:
        return [(f"{part}{number}", step) for part in ("down", "middle", "up")
                for number, step in enumerate(getattr(self, part))]

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor  # type: ignore
                ) -> torch.Tensor:
        """x: (N, before, ...); t: (N,) times; tokens: (N, M, width)."""
        if any(n % self.multiple for n in x.shape[2:]):
            raise ValueError(f"sides {tuple(x.shape[2:])} must be multiples of {self.multiple}.")
        time, style = self.time(t), tokens.mean(dim=1)
        h = self.entrance(fold(x, self.folding))
        kept = [h]
        for name, step in self._steps():
            h = step(torch.cat([h, kept.pop()], dim=1) if step.joins else h, time, style)
            h = self.cross[name](h, tokens) if name in self.cross else h
            if name.startswith("down"):
                kept.append(h)
        return unfold(self.exit(h), self.folding)
