"""A residual 3D U-Net that corrects a baseline, conditioned on cards by feature-wise modulation.

Blocks of 2 x 2 x 2 voxels become channels at the entrance and voxels again at the exit, as in
FFDNet (Zhang, Zuo and Zhang 2018, doi:10.1109/TIP.2018.2839891): nothing of the image is lost, and
all convolutions run on an eighth of the voxels. There is no normalization, which would remove
intensity. The last layer starts at zero, so an untrained network returns the baseline.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ....deep.networks.blocks import fold, unfold, zeroed
from ....deep.networks.convolution import Conv3d

__all__ = ["ResidualUNet"]

RESIDUAL_SCALE = 0.03  # usual size of a residual: without it, the last layer's first steps overshoot
BANDS = 4  # channels of fine detail that are derived from baseline and scan
FINE_GAIN, COARSE_GAIN = 20.0, 10.0  # bring the bands near unit variance
MIDDLE = 0.6  # of the intensities of a brain, relative to its brightest tissue
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
        self.head = zeroed(Conv3d(widths[0], BLOCK ** 3, 3, padding=1))

    @property
    def multiple(self) -> int:
        """Each side of an input must be a multiple of this many voxels."""
        return BLOCK * 2 ** len(self.down)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(N, 1, I, J, K) residual of (N, channels, I, J, K) inputs and (N, conditions) numbers."""
        code = self.embed(((condition - self.center) / self.scale).clamp(-4, 4))
        h = self.stem(fold(conditioned(x), BLOCK))
        kept = []
        for level, blocks in enumerate(self.encoder):
            for block in blocks:
                h = block(h, code)
            if level < len(self.down):
                kept.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.up))):
            h = self.decoder[level](kept[level] + self.up[level](h), code)
        return RESIDUAL_SCALE * unfold(self.head(functional.silu(h)).float(), BLOCK)


def conditioned(x: torch.Tensor) -> torch.Tensor:
    """(N, channels + BANDS, I, J, K): intensities centered, and fine bands of both amplified.

    Noise and sharpness are a few per cent of the intensities; without bands of their own, gradient
    descent learns them last.

    Parameters
    ----------
    x : (N, channels, I, J, K); baseline and scan first, the mask last
    """
    with torch.autocast(x.device.type, enabled=False):
        images, mask = x[:, :2].float(), x[:, -1:].float()
        near = _local_mean(images, mask, 3)
        wide = _local_mean(near, mask, 5)
        bands = torch.cat([FINE_GAIN * (images - near), COARSE_GAIN * (near - wide)], dim=1) * mask
        return torch.cat([2 * (images - MIDDLE) * mask, x[:, 2:], bands], dim=1)


def _local_mean(images: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    """Mean over a cube of `width` voxels, of voxels in the mask."""
    total = functional.avg_pool3d(images * mask, width, stride=1, padding=width // 2)
    count = functional.avg_pool3d(mask, width, stride=1, padding=width // 2)
    return total / count.clamp_min(1e-3)


class ModulatedBlock(nn.Module):
    """Two convolutions with modulation in between, added to the input; starts as the identity."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = Conv3d(width, width, 3, padding=1)
        self.second = zeroed(Conv3d(width, width, 3, padding=1))
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """x: (N, width, I, J, K); code: (N, embedding)."""
        scale, shift = self.modulation(code)[..., None, None, None].chunk(2, dim=1)
        h = self.first(functional.silu(x))
        return x + self.second(functional.silu(h * (1 + scale) + shift))
