"""Styles of several tokens each, and a U-Net with cross-attention to them.

Cross-attention to a single token is a constant, since the softmax over one key is 1. A style
therefore has several tokens. Their mean modulates all blocks, as one token could, and at the coarse
levels every position attends to them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .blocks import conv, norm, zero_module
from .unet import UNet

__all__ = ["CrossAttention", "StyleTokens", "TokenUNet"]


class CrossAttention(nn.Module):
    """Multi-head attention of a feature map to tokens; the identity before training.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    channels : int
        Channels of the feature map.
    width : int
        Size of a token.
    head : int
        Channels of a head.
    """

    def __init__(self, dims: int, channels: int, width: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.query = conv(dims, channels, channels, 1)
        self.pair = nn.Linear(width, 2 * channels)
        self.out = zero_module(conv(dims, channels, channels, 1))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Attend from features (N, C, ...) to tokens (N, M, width)."""
        q = self.query(self.norm(x)).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        k, v = (p.unflatten(2, (self.heads, -1)).transpose(1, 2)
                for p in self.pair(tokens).chunk(2, dim=2))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


class StyleTokens(nn.Module):
    """Learned tokens of each site and of the null style, and an offset for each contrast bin.

    Parameters
    ----------
    sites : int
        Number of sites.
    tokens, width : int
        Number and size of the tokens of a style.
    bins : int
        Number of contrast bins; their offsets start at zero.
    """

    def __init__(self, sites: int, tokens: int, width: int, bins: int) -> None:
        super().__init__()
        self.sites = nn.Parameter(0.1 * torch.randn(sites, tokens, width))
        self.null = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.bins = nn.Parameter(torch.zeros(bins, width))

    def forward(self, site: torch.Tensor, bin_: torch.Tensor, has_style: torch.Tensor
                ) -> torch.Tensor:
        """Look up the tokens of a batch.

        Parameters
        ----------
        site, bin_ : Tensor, shape (N,), int64
            Site and contrast bin.
        has_style : Tensor, shape (N,), bool
            Where False, the null style is returned.

        Returns
        -------
        Tensor, shape (N, M, width)
        """
        styles = self.sites[site] + self.bins[bin_][:, None]
        return torch.where(has_style[:, None, None], styles, self.null)


class TokenUNet(UNet):
    """U-Net whose style is a set of tokens.

    Levels with `attention` attend to themselves and then to the tokens. Parameters are those of
    `UNet`; `style` is the size of a token.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, widths: tuple[int, ...],
                 blocks: int, *, time: int, style: int, attention: tuple[bool, ...],
                 unshuffle: int = 1, checkpointing: bool = False) -> None:
        super().__init__(dims, in_channels, out_channels, widths, blocks, time=time, style=style,
                         style_shift=True, attention=attention, unshuffle=unshuffle,
                         checkpointing=checkpointing)
        self.cross = nn.ModuleDict()
        for name, step in self._steps():
            if step.attention is not None:
                channels = step.attention.norm.num_channels
                self.cross[name] = CrossAttention(dims, channels, style)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor  # type: ignore
                ) -> torch.Tensor:
        """Apply the network.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, ...)
        t : Tensor, shape (N,)
            Timesteps.
        tokens : Tensor, shape (N, M, style)

        Returns
        -------
        Tensor, shape (N, out_channels, ...)
        """
        return self._run(x, t, tokens.mean(dim=1), lambda name, h:
                         self.cross[name](h, tokens) if name in self.cross else h)
