"""U-Net of the segmenter: it takes voxels of 1 mm and convolves at 2 mm.

Blocks of 2 x 2 x 2 voxels are rearranged into channels at the input and back at the output (pixel
unshuffle and shuffle). No information of the 1 mm image is lost, while all convolutions run on an
eighth of the voxels. This gives a cortex at 1 mm in seconds on two CPU cores. Features are
normalized in groups of channels over the image (group normalization). Normalizing the channels of
each voxel (layer normalization) removes the voxel's brightness and prevented the network from
learning tissues.

Whether white matter is bright or dark is a property of the whole image and changes every local
decision. The mean of the deepest features therefore serves as a contrast code that scales and
shifts the features of each decoder block.

The network shares blocks with `harmonizer.deep.networks.unet.UNet` and is a class of its own. Its
levels have plain convolutions, max pooling and a fused upsampling instead of residual blocks.
Trained weights can therefore not be converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..deep.networks.blocks import check_sides, pixel_unshuffle, zero_module
from ..deep.networks.convolution import Conv3d, conv3d

__all__ = ["SegmenterNet", "DEFAULT_WIDTHS", "BLOCK_VOXELS"]

DEFAULT_WIDTHS = (32, 64, 128, 128)
BLOCK_VOXELS = 2  # voxels along each axis that are rearranged into channels
NORM_GROUPS = 8


class SegmenterNet(nn.Module):
    """3D U-Net over blocks of 2 x 2 x 2 voxels, with a global contrast code.

    Parameters
    ----------
    classes : int
        Classes of the output.
    widths : tuple of int
        Channels at 2, 4, 8, ... mm; multiples of 8.
    """

    def __init__(self, classes: int = 9, widths: tuple[int, ...] = DEFAULT_WIDTHS) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"classes": int(classes), "widths": [int(w) for w in widths]}
        self.classes = classes
        self.encoder = nn.ModuleList(
            nn.Sequential(_ConvBlock(in_channels, width), _ConvBlock(width, width))
            for in_channels, width in zip((BLOCK_VOXELS**3, *widths[:-1]), widths)
        )
        self.decoder = nn.ModuleList(
            _DecoderBlock(width + below, width, code=widths[-1])
            for width, below in zip(widths[:-1], widths[1:])
        )
        self.code = nn.Sequential(nn.Linear(widths[-1], widths[-1]), nn.ReLU())
        self.head = nn.Conv3d(widths[0], BLOCK_VOXELS**3 * classes, 1)

    @property
    def multiple(self) -> int:
        """Number of voxels of which each side of an image must be a multiple."""
        return 2 ** len(self.encoder)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the features before the output layer.

        Parameters
        ----------
        image : (N, 1, I, J, K) Tensor
            Images with values 0 to 1.

        Returns
        -------
        (N, widths[0], I/2, J/2, K/2) Tensor
        """
        x = pixel_unshuffle(image, BLOCK_VOXELS).to(memory_format=torch.channels_last_3d)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else functional.max_pool3d(x, 2))
            skips.append(x)
        code = self.code(x.mean(dim=(2, 3, 4)))
        for block, skip in zip(reversed(self.decoder), reversed(skips[:-1])):
            x = block(skip, x, code)
        return x

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the logits of each voxel.

        Parameters
        ----------
        image : (N, 1, I, J, K) Tensor
            Images with values 0 to 1.

        Returns
        -------
        (N, classes, 8, I/2, J/2, K/2) Tensor
            Logits; the third axis holds the voxels of a block in the order of `pixel_unshuffle`.

        Raises
        ------
        ValueError
            If a side of the image is no multiple of `multiple`.
        """
        check_sides(image, self.multiple)
        return self.head(self.features(image)).unflatten(1, (self.classes, BLOCK_VOXELS**3))


class _ConvBlock(nn.Module):
    """Convolution, group normalization and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class _DecoderBlock(nn.Module):
    """Two convolutions on the encoder's skip features and the features of the coarser level.

    The contrast code scales and shifts the features after the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, code: int) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.modulation = zero_module(nn.Linear(code, 2 * out_channels))
        self.second = _ConvBlock(out_channels, out_channels)

    def forward(self, skip: torch.Tensor, coarser: torch.Tensor, code: torch.Tensor
                ) -> torch.Tensor:
        scale, shift = self.modulation(code)[..., None, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift, self.norm(self._conv_concatenated(skip, coarser)), 1 + scale)
        return self.second(functional.relu(x, inplace=True))

    def _conv_concatenated(self, skip: torch.Tensor, coarser: torch.Tensor) -> torch.Tensor:
        """Convolve the skip features concatenated with the upsampled coarser ones.

        Computed as a sum of two convolutions, which avoids both copies.
        """
        of_skip, of_coarser = self.conv.weight.split([skip.shape[1], coarser.shape[1]], dim=1)
        kernel = _upsampling_kernel(of_coarser)
        x = functional.conv_transpose3d(coarser, kernel, stride=2, padding=1)
        return x.add_(conv3d(skip, of_skip, padding=1))


def _upsampling_kernel(weight: torch.Tensor) -> torch.Tensor:
    """Fuse nearest-neighbor upsampling with a convolution into one transposed convolution.

    An (A, B, 3, 3, 3) kernel on voxels that are repeated twice along each axis equals the returned
    (B, A, 4, 4, 4) kernel of a transposed convolution with stride 2 and padding 1. It needs 8
    instead of 27 products a voxel.
    """
    kernel = weight.flip(2, 3, 4).transpose(0, 1)
    for axis in range(3):
        before, after = [0, 0] * 3, [0, 0] * 3
        before[2 * axis], after[2 * axis + 1] = 1, 1
        kernel = functional.pad(kernel, before) + functional.pad(kernel, after)
    return kernel
