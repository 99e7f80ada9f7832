"""Residual blocks with time and style modulation, attention and pixel shuffling, in 2D and 3D.

After the second normalization, h <- h (1 + scale_t) + shift_t (time), then h <- h (1 + scale_c)
[+ shift_c] (style). The last convolution of a block starts at zero, so that a new block is its own
skip connection. Only GroupNorm is used: nothing keeps running statistics, so weights can be
averaged, and a batch of N gives the same result as N batches of one.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from .convolution import Conv3d

__all__ = ["conv", "norm", "zero_module", "timestep_embedding", "TimeEmbedding", "ResidualBlock",
           "Attention", "check_sides", "masked_mean", "pixel_shuffle", "pixel_unshuffle",
           "to_channels_last"]

Network = TypeVar("Network", bound=nn.Module)
MIN_GROUP_CHANNELS = 4
MAX_PERIOD = 10_000  # of the timestep embedding, in units of 2 pi


def conv(dims: int, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1
         ) -> nn.Module:
    """Make a 2D or 3D convolution that divides the size by its stride."""
    kind = {2: nn.Conv2d, 3: Conv3d}[dims]
    return kind(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)


def norm(channels: int, max_groups: int = 32) -> nn.GroupNorm:
    """Make a GroupNorm with as many groups as possible of at least 4 channels."""
    fits = [g for g in range(2, max_groups + 1)
            if channels % g == 0 and channels // g >= MIN_GROUP_CHANNELS]
    count = max(fits, default=1)
    return nn.GroupNorm(count, channels)


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to zero, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: torch.Tensor, size: int) -> torch.Tensor:
    """Return sinusoidal features of timesteps, (N,) -> (N, size), as in Ho et al. 2020."""
    half = size // 2
    rates = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Learned embedding of timesteps: sinusoidal features and two linear layers.

    Parameters
    ----------
    base : int
        Number of sinusoidal features.
    width : int
        Size of the embedding.
    """

    def __init__(self, base: int, width: int) -> None:
        super().__init__()
        self.base = base
        self.layers = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Embed (N,) timesteps as (N, width)."""
        return self.layers(timestep_embedding(t, self.base))


class ResidualBlock(nn.Module):
    """Pre-activation residual block: norm, SiLU, conv, norm, modulation, SiLU, dropout, conv.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    in_channels, out_channels : int
        Channels; if they differ the skip connection is a 1x1 convolution.
    time : int
        Size of the time embedding, 0 for none.
    style : int
        Size of the style vector, 0 for none.
    style_shift : bool
        Whether the style also adds; otherwise it only scales.
    dropout : float
        Dropout probability.
    resample : {"", "down", "up"}
        Resampling inside the block: mean of 2^dims voxels, or nearest neighbor.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, *, time: int = 0,
                 style: int = 0, style_shift: bool = False, dropout: float = 0.0,
                 resample: str = "") -> None:
        super().__init__()
        self.dims, self.resample = dims, resample
        self.first = nn.Sequential(norm(in_channels), nn.SiLU())
        self.conv1 = conv(dims, in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.time = nn.Linear(time, 2 * out_channels) if time else None
        self.style = nn.Linear(style, (1 + style_shift) * out_channels) if style else None
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(dropout),
                                  zero_module(conv(dims, out_channels, out_channels)))
        self.skip = (nn.Identity() if in_channels == out_channels
                     else conv(dims, in_channels, out_channels, 1))

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None,
                style: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the block.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, ...)
        time : Tensor, shape (N, time), optional
        style : Tensor, shape (N, style), optional
        """
        h = self.conv1(self._resampled(self.first(x)))
        h = self.norm2(h)
        if self.time is not None:
            assert time is not None
            scale, shift = self.time(functional.silu(time)).chunk(2, dim=1)
            h = h * (1 + _broadcast(scale, h)) + _broadcast(shift, h)
        if self.style is not None:
            assert style is not None
            parts = self.style(functional.silu(style)).split(h.shape[1], dim=1)
            h = h * (1 + _broadcast(parts[0], h))
            h = h + _broadcast(parts[1], h) if len(parts) > 1 else h
        return self.skip(self._resampled(x)) + self.last(h)

    def _resampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == "down":
            return (functional.avg_pool2d if self.dims == 2 else functional.avg_pool3d)(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.resample == "up" else x


def _broadcast(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape (N, C) to (N, C, 1, ...) in the dtype of `like`."""
    return vector.reshape(vector.shape + (1,) * (like.ndim - 2)).to(like.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over all positions; the identity before training.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    channels : int
        Channels of the feature map.
    head : int
        Channels of a head.
    """

    def __init__(self, dims: int, channels: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.qkv = conv(dims, channels, 3 * channels, 1)
        self.out = zero_module(conv(dims, channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply attention to a feature map of shape (N, C, ...)."""
        q, k, v = (p.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
                   for p in self.qkv(self.norm(x)).chunk(3, dim=1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


def check_sides(x: torch.Tensor, multiple: int) -> None:
    """Raise ValueError unless each side of images (N, C, ...) is a multiple of a number."""
    if any(n % multiple for n in x.shape[2:]):
        raise ValueError(f"expected sides that are multiples of {multiple}, got "
                         f"{tuple(x.shape[2:])}.")


def masked_mean(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Average features over positions, weighted by the brain in each.

    Parameters
    ----------
    h : Tensor, shape (N, C, ...)
        Features.
    mask : Tensor, shape (N, 1, ...), optional
        Brain mask of any size. Default: all positions count equally.

    Returns
    -------
    Tensor, shape (N, C)
    """
    if mask is None:
        return h.flatten(2).mean(2)
    pool: Any = functional.adaptive_avg_pool2d if h.ndim == 4 else functional.adaptive_avg_pool3d
    weight = pool(mask.to(h.dtype), h.shape[2:]) + 1e-6
    return (h * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)


def pixel_unshuffle(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Move blocks of factor^dims voxels into channels, in 2D or 3D.

    Parameters
    ----------
    x : Tensor, shape (N, C, ...)
        Sides are multiples of `factor`.

    Returns
    -------
    Tensor, shape (N, C factor^dims, ... / factor)
    """
    if factor == 1:
        return x
    dims = x.ndim - 2
    for axis in range(2, 2 + 2 * dims, 2):
        x = x.unflatten(axis, (-1, factor))
    inner = [3 + 2 * d for d in range(dims)]
    return x.permute(0, 1, *inner, *[2 + 2 * d for d in range(dims)]).flatten(1, 1 + dims)


def pixel_shuffle(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Move channels into blocks of factor^dims voxels; the inverse of `pixel_unshuffle`."""
    if factor == 1:
        return x
    dims = x.ndim - 2
    x = x.unflatten(1, (-1, *[factor] * dims))
    order = [axis for d in range(dims) for axis in (2 + dims + d, 2 + d)]
    x = x.permute(0, 1, *order)
    for axis in range(2, 2 + dims):
        x = x.flatten(axis, axis + 1)
    return x


def to_channels_last(network: Network) -> Network:
    """Convert the convolutions of a network to the channels_last layout, and return it."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            layout = torch.channels_last if module.weight.ndim == 4 else torch.channels_last_3d
            module.weight.data = module.weight.data.to(memory_format=layout)
    return network
