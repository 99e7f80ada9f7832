"""Networks of DISARM: disentangle an image into anatomy and scanner codes, and generate images.

A 3D DRIT++: anatomy encoder with noise on its code, variational scanner encoder, generator, image
discriminators with a classification head for the scanner, and a discriminator of anatomy codes.
Roles, code sizes and depths are the paper's. Differences:

* The paper concatenates scanner code and label as constant planes before convolutions that an
  instance norm follows. The norm subtracts what a constant plane adds, so the style acts only at
  the borders and in the last layer. Here the style scales and shifts after each norm.
* Group norm instead of instance norm keeps the brightness of a tissue.
* Vectors are pooled over the brain where a mask is given, and discriminators end in a mean over
  positions, so patches and volumes of any size can be used.

Labels are (N, c) rows: one-hot, or all zero where the scanner is hidden or none is meant.

References
----------
Caldera et al. 2024, "DISARM: Disentangled Scanner-Free Image Generation via Unsupervised
Image2Image Translation", doi:10.1007/978-3-031-78761-4_10.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .blocks import (
    ResidualBlock,
    conv,
    masked_mean,
    norm,
    pixel_shuffle,
    pixel_unshuffle,
    zero_module,
)

__all__ = ["AnatomyEncoder", "ScannerEncoder", "Generator", "ImageDiscriminator",
           "CodeDiscriminator"]

MAX_LOG_VARIANCE = 10.0
RESIDUAL_SCALE = 0.1  # order of magnitude of a residual in [-1, 1]; the first steps stay small


class AnatomyEncoder(nn.Module):
    """Encoder of anatomy codes, (N, 1, ...) -> (N, code, ... / 2); adds noise while training.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    width, blocks : int
        Channels and residual blocks at half the size.
    code : int
        Channels of the code.
    noise : float
        Standard deviation of the noise on the code (the paper: 1).
    unshuffle : bool
        Halve the size by pixel unshuffling. Otherwise by a convolution of kernel 7 and one of
        stride 2, as in the paper.
    """

    def __init__(self, dims: int = 3, width: int = 8, blocks: int = 4, *, code: int = 8,
                 noise: float = 1.0, unshuffle: bool = False) -> None:
        super().__init__()
        self.noise, self.factor = noise, 2 if unshuffle else 1
        self.entrance = conv(dims, 2 ** dims, width) if unshuffle else nn.Sequential(
            conv(dims, 1, max(1, width // 2), 7), nn.LeakyReLU(0.01),
            conv(dims, max(1, width // 2), width, 3, 2))
        self.blocks = nn.Sequential(*(ResidualBlock(dims, width, width) for _ in range(blocks)))
        self.exit = nn.Sequential(norm(width), nn.SiLU(), conv(dims, width, code, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode (N, 1, ...) images in [-1, 1]; with noise in training mode."""
        code = self.code(x)
        return code + self.noise * torch.randn_like(code) if self.training else code

    def code(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images without noise."""
        return self.exit(self.blocks(self.entrance(pixel_unshuffle(x, self.factor))))


class ScannerEncoder(nn.Module):
    """Variational encoder of an image and its label: mean and log variance of the scanner code.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    labels : int
        Length of a label.
    widths : tuple of int
        Channels of each level; each level halves the size.
    code : int
        Length of the scanner code.
    """

    def __init__(self, dims: int = 3, labels: int = 2,
                 widths: tuple[int, ...] = (8, 16, 24, 32), *, code: int = 8) -> None:
        super().__init__()
        self.entrance = conv(dims, 1 + labels, widths[0], 3, 2)
        self.blocks = nn.ModuleList(_HalvingBlock(dims, a, b)
                                    for a, b in itertools.pairwise(widths))
        self.mean = nn.Linear(widths[-1], code)
        self.logvar = nn.Linear(widths[-1], code)

    def forward(self, x: torch.Tensor, label: torch.Tensor, mask: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images.

        Parameters
        ----------
        x, mask : Tensor, shape (N, 1, ...)
        label : Tensor, shape (N, c)

        Returns
        -------
        mean, logvar : Tensor, shape (N, code)
        """
        planes = label.reshape(label.shape + (1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        h = self.entrance(torch.cat([x, planes.to(x.dtype)], dim=1))
        for block in self.blocks:
            h = block(h)
        pooled = masked_mean(functional.leaky_relu(h, 0.2), mask)
        return self.mean(pooled), self.logvar(pooled).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)


class _HalvingBlock(nn.Module):
    """Two convolutions, each after LeakyReLU 0.2, a mean pool, and a pooled 1x1 skip."""

    def __init__(self, dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LeakyReLU(0.2), conv(dims, in_channels, in_channels),
                                   nn.LeakyReLU(0.2), conv(dims, in_channels, out_channels))
        self.skip = conv(dims, in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _halved(self.inner(x)) + self.skip(_halved(x))


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Average 2^dims voxels; a side of one voxel stays, an odd side loses its last voxel."""
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    return pool(x, [min(2, side) for side in x.shape[2:]])


class Generator(nn.Module):
    """Generator of images from anatomy code, scanner code and label.

    The image lies in (-1, 1), and is 0 everywhere before training. A second output, `residual`, is
    a change to be added to the image that was encoded; it is 0 before training too.

    Parameters
    ----------
    dims, code, unshuffle
        As in `AnatomyEncoder`.
    residual : bool
        Whether the second output exists.
    style, labels : int
        Lengths of scanner code and label.
    width, blocks : int
        Channels and residual blocks at half the size.
    """

    def __init__(self, dims: int = 3, code: int = 8, style: int = 8, labels: int = 2,
                 width: int = 24, blocks: int = 4, *, unshuffle: bool = False,
                 residual: bool = False) -> None:
        super().__init__()
        self.factor = 2 if unshuffle else 1
        conditioning: dict[str, Any] = dict(style=style + labels, style_shift=True)
        self.entrance = conv(dims, code, width)
        self.blocks = nn.ModuleList(ResidualBlock(dims, width, width, **conditioning)
                                    for _ in range(blocks))
        channels = width
        if not unshuffle:
            channels = max(4, width // 2)
            self.blocks.append(ResidualBlock(dims, width, channels, resample="up", **conditioning))
        exits = [nn.Sequential(norm(channels), nn.SiLU(),
                               zero_module(conv(dims, channels, self.factor ** dims)))
                 for _ in range(1 + residual)]
        self.exit, self.residual_exit = exits[0], exits[1] if residual else None

    def forward(self, anatomy: torch.Tensor, scanner: torch.Tensor, label: torch.Tensor
                ) -> torch.Tensor:
        """Generate images.

        Parameters
        ----------
        anatomy : Tensor, shape (N, code, ... / 2)
        scanner : Tensor, shape (N, style)
        label : Tensor, shape (N, c)

        Returns
        -------
        Tensor, shape (N, 1, ...)
        """
        return pixel_shuffle(self.exit(self._features(anatomy, scanner, label)),
                             self.factor).tanh()

    def residual(self, anatomy: torch.Tensor, scanner: torch.Tensor, label: torch.Tensor
                 ) -> torch.Tensor:
        """Return the change of the encoded images, (N, 1, ...); parameters as in `forward`."""
        assert self.residual_exit is not None
        features = self._features(anatomy, scanner, label)
        return RESIDUAL_SCALE * pixel_shuffle(self.residual_exit(features), self.factor)

    def _features(self, anatomy: torch.Tensor, scanner: torch.Tensor, label: torch.Tensor
                  ) -> torch.Tensor:
        conditioning = torch.cat([scanner.float(), label.float()], dim=1)
        h = self.entrance(anatomy)
        for block in self.blocks:
            h = block(h, style=conditioning)
        return h


class ImageDiscriminator(nn.Module):
    """Discriminator of images: a map of logits of being real, and logits of the scanner.

    Parameters
    ----------
    dims : {2, 3}
        Spatial dimensions.
    labels : int
        Number of scanners.
    widths : tuple of int
        Channels of each level; each level halves the size.
    """

    def __init__(self, dims: int = 3, labels: int = 2,
                 widths: tuple[int, ...] = (8, 16, 32, 64, 128, 128)) -> None:
        super().__init__()
        self.layers = _strided_layers(dims, (1, *widths))
        self.real = conv(dims, widths[-1], 1, 1)
        self.scanner = nn.Linear(widths[-1], labels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, 1, ...) realness logits and (N, c) scanner logits of (N, 1, ...) images."""
        h = self.layers(x)
        return self.real(h), self.scanner(masked_mean(h, mask))


class CodeDiscriminator(nn.Module):
    """Discriminator of anatomy codes: logits of the scanner that a code came from.

    Parameters
    ----------
    dims, code, labels, widths
        As in `AnatomyEncoder` and `ImageDiscriminator`.
    """

    def __init__(self, dims: int = 3, code: int = 8, labels: int = 2,
                 widths: tuple[int, ...] = (6, 6, 6, 6, 8)) -> None:
        super().__init__()
        self.layers = _strided_layers(dims, (code, *widths))
        self.scanner = nn.Linear(widths[-1], labels)

    def forward(self, code: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return (N, c) logits of (N, code, ...) codes; the (N, 1, ...) mask has any size."""
        return self.scanner(masked_mean(self.layers(code), mask))


def _strided_layers(dims: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Make convolutions of stride 2, each followed by LeakyReLU 0.01, without norm (the paper)."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in itertools.pairwise(widths):
        layers += [conv(dims, in_channels, out_channels, 3, 2), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)
