"""Residual blocks with time and style modulation, in 2D and 3D.

After the second normalisation, h <- h (1 + scale_t) + shift_t (time) and then h <- h (1 + scale_c)
[+ shift_c] (style). CACD's style is a scale only, so that it can only multiply (methods of the
paper's code); the shift is a choice. The last convolution of a block starts at zero: a new block is
its own skip connection. GroupNorm alone: nothing here keeps running statistics, so weights can be
averaged and a batch of N is N batches of one.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from .convolution import Conv3d

__all__ = ["conv", "norm", "zeroed", "time_features", "TimeEmbedding", "ResidualBlock", "Attention",
           "fold", "unfold", "to_layout"]


def conv(dims: int, before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A 2D or 3D convolution that keeps the size (divides it by the stride)."""
    kind = {2: nn.Conv2d, 3: Conv3d}[dims]
    return kind(before, after, kernel, stride=stride, padding=kernel // 2)


def norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm with the most groups, up to `groups`, that divide the channels by 4 or more."""
    fits = [g for g in range(2, groups + 1) if channels % g == 0 and channels // g >= 4]
    count = max(fits, default=1)
    return nn.GroupNorm(count, channels)


def zeroed(module: nn.Module) -> nn.Module:
    """The same module with all parameters zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def time_features(t: torch.Tensor, size: int) -> torch.Tensor:
    """(N,) times -> (N, size) cosines and sines at wavelengths of 2 pi to 20000 pi steps."""
    half = size // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """(N,) times -> (N, width): `time_features` of size `base`, then two linear layers."""

    def __init__(self, base: int, width: int) -> None:
        super().__init__()
        self.base = base
        self.layers = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t: (N,) int64 or float."""
        return self.layers(time_features(t, self.base))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, modulation, SiLU, dropout, conv, plus the (1x1) skip.

    Parameters
    ----------
    dims : 2 or 3
    before, after : channels
    time : width of the time embedding, 0 for none
    style : width of the style vector, 0 for none
    style_shift : whether the style also adds
    resample : ``""``, ``down`` (mean of 2^dims voxels) or ``up`` (nearest), inside the block
    """

    def __init__(self, dims: int, before: int, after: int, *, time: int = 0, style: int = 0,
                 style_shift: bool = False, dropout: float = 0.0, resample: str = "") -> None:
        super().__init__()
        self.dims, self.resample = dims, resample
        self.first = nn.Sequential(norm(before), nn.SiLU())
        self.conv1 = conv(dims, before, after)
        self.norm2 = norm(after)
        self.time = nn.Linear(time, 2 * after) if time else None
        self.style = nn.Linear(style, (1 + style_shift) * after) if style else None
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zeroed(conv(dims, after, after)))
        self.skip = nn.Identity() if before == after else conv(dims, before, after, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None,
                style: torch.Tensor | None = None) -> torch.Tensor:
        """x: (N, before, ...); time: (N, time); style: (N, style)."""
        h = self.conv1(self._resampled(self.first(x)))
        h = self.norm2(h)
        if self.time is not None:
            scale, shift = self.time(functional.silu(time)).chunk(2, dim=1)
            h = h * (1 + _spread(scale, h)) + _spread(shift, h)
        if self.style is not None:
            parts = self.style(functional.silu(style)).split(h.shape[1], dim=1)
            h = h * (1 + _spread(parts[0], h))
            h = h + _spread(parts[1], h) if len(parts) > 1 else h
        return self.skip(self._resampled(x)) + self.last(h)

    def _resampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == "down":
            return (functional.avg_pool2d if self.dims == 2 else functional.avg_pool3d)(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.resample == "up" else x


def _spread(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(N, C) -> (N, C, 1, ...)."""
    return vector.reshape(vector.shape + (1,) * (like.ndim - 2)).to(like.dtype)


class Attention(nn.Module):
    """Self-attention over all places, heads of 64 channels; starts as the identity."""

    def __init__(self, dims: int, channels: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.qkv = conv(dims, channels, 3 * channels, 1)
        self.out = zeroed(conv(dims, channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, ...)."""
        q, k, v = (p.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
                   for p in self.qkv(self.norm(x)).chunk(3, dim=1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


def fold(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(N, C, ...) -> (N, C factor^dims, ... / factor): blocks of voxels into channels."""
    if factor == 1:
        return x
    dims = x.ndim - 2
    for axis in range(2, 2 + 2 * dims, 2):
        x = x.unflatten(axis, (-1, factor))
    inner = [3 + 2 * d for d in range(dims)]
    return x.permute(0, 1, *inner, *[2 + 2 * d for d in range(dims)]).flatten(1, 1 + dims)


def unfold(x: torch.Tensor, factor: int) -> torch.Tensor:
    """The inverse of `fold`."""
    if factor == 1:
        return x
    dims = x.ndim - 2
    x = x.unflatten(1, (-1, *[factor] * dims))
    order = [axis for d in range(dims) for axis in (2 + dims + d, 2 + d)]
    x = x.permute(0, 1, *order)
    for axis in range(2, 2 + dims):
        x = x.flatten(axis, axis + 1)
    return x


def to_layout(network: nn.Module) -> nn.Module:
    """The same network with its convolutions in channels_last, in which they are fastest."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    return network
