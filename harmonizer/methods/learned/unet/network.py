"""A residual 3D U-Net that corrects a baseline, conditioned on cards by feature-wise modulation.

Blocks of 2 x 2 x 2 voxels become channels at the entrance and voxels again at the exit, as in
FFDNet (Zhang, Zuo and Zhang 2018, doi:10.1109/TIP.2018.2839891): nothing of the image is lost, and
all convolutions run on an eighth of the voxels. There is no normalization, which would remove
intensity. The output is a free residual plus the baseline's own bands of detail, weighted by gains:
of the whole volume, from the cards, and of each voxel. So denoising and sharpening need little
training. The last layers start at zero: an untrained network returns the baseline.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ....deep.networks.blocks import pixel_shuffle, pixel_unshuffle, zero_module
from ....deep.networks.convolution import Conv3d

__all__ = ["ResidualUNet", "local_mean", "without_local_mean"]

RESIDUAL_SCALE = 0.03  # usual size of a residual: else the last layer's first steps overshoot
GAIN_SCALE = 0.2  # of the local gains, for the same reason
BANDS = 7  # channels of fine detail that are derived from baseline and scan, see `detail_of`
GAINS = 5  # the first bands, the baseline's, are also weighted by gains and added to the output
FINE_GAIN = 20.0  # brings the bands near unit variance
MIDDLE = 0.6  # of the intensities of a brain, relative to its brightest tissue
LOCAL = 7  # voxels along the side of the cube whose mean is taken out of the residual
BLOCK = 2  # voxels along each side of what becomes channels


class ResidualUNet(nn.Module):
    """Predict what to add to the baseline.

    Parameters
    ----------
    channels : of the input; the first is the baseline
    conditions : length of the conditioning vector
    widths : channels at 1/2, 1/4, 1/8 of the resolution
    embedding : width of the embedding of the conditioning
    blocks : residual blocks of the encoder at each resolution
    """

    center: torch.Tensor
    scale: torch.Tensor

    def __init__(self, channels: int, conditions: int, widths: tuple[int, ...] = (48, 48, 48),
                 embedding: int = 64, blocks: tuple[int, ...] = (2, 1, 1)) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels, "conditions": conditions, "widths": list(widths),
            "embedding": embedding, "blocks": list(blocks)}
        self.register_buffer("center", torch.zeros(conditions))
        self.register_buffer("scale", torch.ones(conditions))
        self.embed = nn.Sequential(nn.Linear(conditions, embedding), nn.SiLU(),
                                   nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = Conv3d((channels + BANDS) * BLOCK ** 3, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.ModuleList(ModulatedBlock(w, embedding) for _ in range(n))
            for w, n in zip(widths, blocks))
        self.down = nn.ModuleList(nn.Conv3d(a, b, 2, stride=2)
                                  for a, b in zip(widths[:-1], widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2)
                                for a, b in zip(widths[:-1], widths[1:]))
        self.decoder = nn.ModuleList(ModulatedBlock(w, embedding) for w in widths[:-1])
        self.gains = zero_module(nn.Linear(embedding, GAINS))
        self.head = zero_module(Conv3d(widths[0], (1 + GAINS) * BLOCK ** 3, 3, padding=1))

    @property
    def multiple(self) -> int:
        """Each side of an input must be a multiple of this many voxels."""
        return BLOCK * 2 ** len(self.down)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(N, 1, I, J, K) residual of (N, channels, I, J, K) inputs and (N, conditions) numbers."""
        code = self.embed(((condition - self.center) / self.scale).clamp(-4, 4))
        images, bands = detail_of(x)
        h = self.stem(pixel_unshuffle(torch.cat([images, x[:, 2:], bands], dim=1), BLOCK))
        kept = []
        for level, blocks in enumerate(self.encoder):
            for block in blocks.children():
                h = block(h, code)
            if level < len(self.down):
                kept.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.up))):
            h = self.decoder[level](kept[level] + self.up[level](h), code)
        out = pixel_shuffle(self.head(functional.silu(h)).float(), BLOCK)
        gains = self.gains(code).float()[..., None, None, None] + GAIN_SCALE * out[:, 1:]
        detail = (gains * bands[:, :GAINS] / FINE_GAIN).sum(dim=1, keepdim=True)
        return without_local_mean(RESIDUAL_SCALE * out[:, :1] + detail, x[:, -1:])


def detail_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centered intensities (N, 2, ...) and bands of fine detail (N, BANDS, ...), amplified.

    Noise and sharpness are a few per cent of the intensities; without bands of their own, gradient
    descent learns them last. The bands are, of the baseline: what a mean along each axis takes
    away, what a mean over 3 voxels cubed takes away, and the next band; the last two of the scan.

    Parameters
    ----------
    x : (N, channels, I, J, K); baseline and scan first, the mask last
    """
    with torch.autocast(x.device.type, enabled=False):
        images, mask = x[:, :2].float(), x[:, -1:].float()
        near = local_mean(images, mask, (3, 3, 3))
        wide = local_mean(near, mask, (5, 5, 5))
        along = [images[:, :1] - local_mean(images[:, :1], mask, width)
                 for width in ((3, 1, 1), (1, 3, 1), (1, 1, 3))]
        fine, coarse = images - near, near - wide
        bands = torch.cat([*along, fine[:, :1], coarse[:, :1], fine[:, 1:], coarse[:, 1:]], dim=1)
        return 2 * (images - MIDDLE) * mask, FINE_GAIN * bands * mask


def without_local_mean(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Take the mean over a cube of `LOCAL` voxels, of voxels in the mask, out of (N, C, I, J, K).

    Smooth differences are levels of tissues and regions. They belong to the subject, not to the
    scanner, and no card tells them: the baseline alone sets them.
    """
    return (images - local_mean(images, mask, (LOCAL,) * 3)) * mask


def local_mean(images: torch.Tensor, mask: torch.Tensor, widths: tuple[int, int, int]
               ) -> torch.Tensor:
    """Mean over a box of `widths` voxels (odd), of voxels in the mask; (N, C, I, J, K)."""
    both = torch.cat([images * mask, mask], dim=1)
    for axis, width in enumerate(widths):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = width, width // 2
        both = functional.avg_pool3d(both, kernel, 1, padding)
    return both[:, :-1] / both[:, -1:].clamp_min(1e-3)


class ModulatedBlock(nn.Module):
    """Two convolutions with modulation in between, added to the input; starts as the identity."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = Conv3d(width, width, 3, padding=1)
        self.second = zero_module(Conv3d(width, width, 3, padding=1))
        self.modulation = zero_module(nn.Linear(embedding, 2 * width))

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """x: (N, width, I, J, K); code: (N, embedding)."""
        scale, shift = self.modulation(code)[..., None, None, None].chunk(2, dim=1)
        h = self.first(functional.silu(x))
        return x + self.second(functional.silu(h * (1 + scale) + shift))
