"""Networks that take an image apart into anatomy and scanner, and put it together again (DISARM).

Caldera 2024 (a 3D DRIT++): anatomy encoder with noise on its code, variational scanner encoder,
generator, image discriminators with a head for the scanner, a discriminator of anatomy codes.
Roles, code sizes and depths are theirs. What is different, and why:

* theirs gives the generator z and label as constant planes before convolutions that an instance
  norm follows: it subtracts what a constant plane adds, so that the style is heard at the borders
  and in the last layer alone. Here the style scales and shifts after each norm (`ResidualBlock`);
* group norm instead of instance norm: the brightness of a tissue survives it;
* vectors are pooled over the brain, where a mask is given, and discriminators end in a mean over
  places: patches and volumes of any size.

Labels are (N, c) rows, one-hot, or all zero where the scanner is not told (or none is meant).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .blocks import ResidualBlock, conv, fold, norm, unfold, zeroed

__all__ = ["AnatomyEncoder", "ScannerEncoder", "Generator", "ImageDiscriminator",
           "CodeDiscriminator", "brain_mean"]


def brain_mean(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(N, C, ...) features -> (N, C), their mean over places, weighted by brain in each."""
    if mask is None:
        return h.flatten(2).mean(2)
    pool = functional.adaptive_avg_pool2d if h.ndim == 4 else functional.adaptive_avg_pool3d
    weight = pool(mask.to(h.dtype), h.shape[2:]) + 1e-6
    return (h * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)


class AnatomyEncoder(nn.Module):
    """(N, 1, ...) image -> (N, code, ... / 2) anatomy code; noise is added while training.

    Parameters
    ----------
    dims : 2 or 3
    width, blocks : channels and residual blocks at half the size
    code : channels of the code
    noise : standard deviation of what is added to the code (theirs: 1)
    folded : whether blocks of 2^dims voxels become channels at the entrance; without, a
        convolution with kernel 7 and one with stride 2, as theirs
    """

    def __init__(self, dims: int = 3, width: int = 8, blocks: int = 4, *, code: int = 8,
                 noise: float = 1.0, folded: bool = False) -> None:
        super().__init__()
        self.noise, self.folding = noise, 2 if folded else 1
        self.entrance = conv(dims, 2 ** dims, width) if folded else nn.Sequential(
            conv(dims, 1, max(1, width // 2), 7), nn.LeakyReLU(0.01),
            conv(dims, max(1, width // 2), width, 3, 2))
        self.blocks = nn.Sequential(*(ResidualBlock(dims, width, width) for _ in range(blocks)))
        self.exit = nn.Sequential(norm(width), nn.SiLU(), conv(dims, width, code, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, 1, ...) in [-1, 1]."""
        code = self.code(x)
        return code + self.noise * torch.randn_like(code) if self.training else code

    def code(self, x: torch.Tensor) -> torch.Tensor:
        """The code without noise."""
        return self.exit(self.blocks(self.entrance(fold(x, self.folding))))


class ScannerEncoder(nn.Module):
    """(N, 1, ...) image and its label -> (mean, log variance) of the scanner code, (N, code) each.

    The widths' first is reached by a convolution of stride 2, each further one halves the size.
    """

    def __init__(self, dims: int = 3, labels: int = 2,
                 widths: tuple[int, ...] = (8, 16, 24, 32), *, code: int = 8) -> None:
        super().__init__()
        self.entrance = conv(dims, 1 + labels, widths[0], 3, 2)
        self.steps = nn.ModuleList(_Halving(dims, a, b) for a, b in itertools.pairwise(widths))
        self.mean = nn.Linear(widths[-1], code)
        self.logvar = nn.Linear(widths[-1], code)

    def forward(self, x: torch.Tensor, label: torch.Tensor, mask: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, mask: (N, 1, ...); label: (N, c)."""
        planes = label.reshape(label.shape + (1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        h = self.entrance(torch.cat([x, planes.to(x.dtype)], dim=1))
        for step in self.steps:
            h = step(h)
        pooled = brain_mean(functional.leaky_relu(h, 0.2), mask)
        return self.mean(pooled), self.logvar(pooled).clamp(-10, 10)


class _Halving(nn.Module):
    """Two convolutions before which LeakyReLU 0.2 stands, a mean pool, and a pooled 1x1 skip."""

    def __init__(self, dims: int, before: int, after: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LeakyReLU(0.2), conv(dims, before, before),
                                   nn.LeakyReLU(0.2), conv(dims, before, after))
        self.skip = conv(dims, before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _halved(self.inner(x)) + self.skip(_halved(x))


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Means of 2^dims voxels; a side of one voxel stays, an odd side loses its last voxel."""
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    return pool(x, [min(2, side) for side in x.shape[2:]])


class Generator(nn.Module):
    """(N, code, ... / 2) anatomy, (N, style) scanner code, (N, c) label -> (N, 1, ...) image.

    In (-1, 1), and 0 everywhere before training.

    Parameters
    ----------
    dims, code, folded : as of the anatomy encoder
    style, labels : lengths of scanner code and label
    width, blocks : channels and residual blocks at half the size
    """

    def __init__(self, dims: int = 3, code: int = 8, style: int = 8, labels: int = 2,
                 width: int = 24, blocks: int = 4, *, folded: bool = False) -> None:
        super().__init__()
        self.folding = 2 if folded else 1
        told: dict[str, Any] = dict(style=style + labels, style_shift=True)
        self.entrance = conv(dims, code, width)
        self.blocks = nn.ModuleList(ResidualBlock(dims, width, width, **told)
                                    for _ in range(blocks))
        channels = width
        if not folded:
            channels = max(4, width // 2)
            self.blocks.append(ResidualBlock(dims, width, channels, resample="up", **told))
        self.exit = nn.Sequential(norm(channels), nn.SiLU(),
                                  zeroed(conv(dims, channels, self.folding ** dims)))

    def forward(self, anatomy: torch.Tensor, scanner: torch.Tensor, label: torch.Tensor
                ) -> torch.Tensor:
        """See the class."""
        told = torch.cat([scanner.float(), label.float()], dim=1)
        h = self.entrance(anatomy)
        for block in self.blocks:
            h = block(h, style=told)
        return unfold(self.exit(h), self.folding).tanh()


class ImageDiscriminator(nn.Module):
    """(N, 1, ...) image -> (map of logits of being real, (N, c) logits of its scanner)."""

    def __init__(self, dims: int = 3, labels: int = 2,
                 widths: tuple[int, ...] = (8, 16, 32, 64, 128, 128)) -> None:
        super().__init__()
        self.layers = _striding(dims, (1, *widths))
        self.real = conv(dims, widths[-1], 1, 1)
        self.scanner = nn.Linear(widths[-1], labels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, mask: (N, 1, ...)."""
        h = self.layers(x)
        return self.real(h), self.scanner(brain_mean(h, mask))


class CodeDiscriminator(nn.Module):
    """(N, code, ...) anatomy code -> (N, c) logits of the scanner that it came from."""

    def __init__(self, dims: int = 3, code: int = 8, labels: int = 2,
                 widths: tuple[int, ...] = (6, 6, 6, 6, 8)) -> None:
        super().__init__()
        self.layers = _striding(dims, (code, *widths))
        self.scanner = nn.Linear(widths[-1], labels)

    def forward(self, code: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """code: (N, code, ...); mask: (N, 1, ...), of any size."""
        return self.scanner(brain_mean(self.layers(code), mask))


def _striding(dims: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Convolutions of stride 2, LeakyReLU 0.01 after each (theirs; no norm)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [conv(dims, before, after, 3, 2), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)
