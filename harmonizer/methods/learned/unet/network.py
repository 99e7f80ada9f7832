"""Residual 3D U-Net that corrects a baseline, with cards as conditioning (FiLM [1]_).

Blocks of 2 x 2 x 2 voxels are rearranged to channels before the first convolution and back after
the last, as in FFDNet [2]_. No information is lost, and all convolutions run on an eighth of the
voxels. There are no normalization layers, because they would remove intensity.

The output is the sum of a residual and of frequency bands of the baseline. Each band is multiplied
by a gain for the whole volume, from the cards, plus a gain for each voxel. Denoising and sharpening
therefore need little training. The last layers are initialized with zeros: an untrained network
returns the baseline.

References
----------
.. [1] Perez et al. (2018). FiLM: visual reasoning with a general conditioning layer.
   arXiv:1709.07871
.. [2] Zhang, Zuo and Zhang (2018). FFDNet: toward a fast and flexible solution for CNN-based image
   denoising. doi:10.1109/TIP.2018.2839891
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ....deep.networks.blocks import pixel_shuffle, pixel_unshuffle, zero_module
from ....deep.networks.convolution import Conv3d

__all__ = ["ResidualUNet", "local_mean", "without_local_mean"]

RESIDUAL_SCALE = 0.03  # typical residual; without it, the first steps of training overshoot
GAIN_SCALE = 0.2  # the same for the gains of voxels
BANDS = 7  # frequency bands of baseline and scan; see `detail_of`
GAINS = 5  # the first bands, which are those of the baseline, are also added to the output
FINE_GAIN = 20.0  # scales the bands to about unit variance
MIDDLE = 0.6  # mean intensity of a brain relative to its brightest tissue
LOCAL = 7  # side of the cube whose mean is subtracted from the residual, voxels
BLOCK = 2  # voxels along each side of a block that becomes channels


class ResidualUNet(nn.Module):
    """Predict the residual of a baseline.

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
        """Divisor of the length of each side of an input, voxels."""
        return BLOCK * 2 ** len(self.down)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the residual (N, 1, I, J, K) of inputs (N, channels, I, J, K).

        `condition` has shape (N, conditions).
        """
        code = self.embed(((condition - self.center) / self.scale).clamp(-4, 4))
        images, bands = detail_of(x)
        h = self.stem(pixel_unshuffle(torch.cat([images, x[:, 2:], bands], dim=1), BLOCK))
        skips = []
        for level, blocks in enumerate(self.encoder):
            for block in blocks.children():
                h = block(h, code)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.up))):
            h = self.decoder[level](skips[level] + self.up[level](h), code)
        out = pixel_shuffle(self.head(functional.silu(h)).float(), BLOCK)
        gains = self.gains(code).float()[..., None, None, None] + GAIN_SCALE * out[:, 1:]
        detail = (gains * bands[:, :GAINS] / FINE_GAIN).sum(dim=1, keepdim=True)
        return without_local_mean(RESIDUAL_SCALE * out[:, :1] + detail, x[:, -1:])


def detail_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centered intensities (N, 2, ...) and amplified frequency bands (N, BANDS, ...).

    Noise and sharpness are a few percent of the intensities. Without separate channels, gradient
    descent learns them last. With m_k the mean over k voxels, the bands are

    * of the baseline: x - m_3 along each of the three axes, x - m_3 in 3D, and the next band;
    * of the scan: the last two.

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
    """Average images (N, C, I, J, K) over boxes of `widths` (odd) voxels, inside the mask."""
    both = torch.cat([images * mask, mask], dim=1)
    for axis, width in enumerate(widths):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = width, width // 2
        both = functional.avg_pool3d(both, kernel, 1, padding)
    return both[:, :-1] / both[:, -1:].clamp_min(1e-3)


class ModulatedBlock(nn.Module):
    """Residual block of two convolutions with feature-wise modulation; initially the identity."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = Conv3d(width, width, 3, padding=1)
        self.second = zero_module(Conv3d(width, width, 3, padding=1))
        self.modulation = zero_module(nn.Linear(embedding, 2 * width))

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Apply the block to x (N, width, I, J, K) with code (N, embedding)."""
        scale, shift = self.modulation(code)[..., None, None, None].chunk(2, dim=1)
        h = self.first(functional.silu(x))
        return x + self.second(functional.silu(h * (1 + scale) + shift))
