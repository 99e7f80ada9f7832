"""The segmenter's network: a small 3D U-Net that sees 1 mm voxels and works at 2 mm.

Blocks of 2 x 2 x 2 voxels are folded into channels at the entrance and unfolded at the exit, so
that nothing of the 1 mm image is thrown away while all convolutions run on an eighth of the voxels:
the way to a cortex at 1 mm in seconds on two cores. Features are normalised in groups of channels
over the image (group normalisation). Normalising each voxel's channels by themselves was tried and
learned where the brain is, but no tissue: it takes a voxel's brightness away.

Whether white matter is the bright or the dark tissue is a question about the whole image, and its
answer turns every local decision around. So the mean of the deepest features, a code of the image's
contrast, scales and shifts the features of each block of the decoder.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..deep.networks.blocks import pixel_unshuffle
from ..deep.networks.convolution import Conv3d, conv3d

__all__ = ["SegmenterNet", "DEFAULT_WIDTHS", "BLOCK"]

DEFAULT_WIDTHS = (32, 64, 128, 128)
BLOCK = 2  # voxels along each side of what is folded into channels
GROUPS = 8


class SegmenterNet(nn.Module):
    """U-Net over 2 mm blocks.

    Parameters
    ----------
    classes : of the output
    widths : channels at 2, 4, 8, ... mm; multiples of 8
    """

    def __init__(self, classes: int = 9, widths: tuple[int, ...] = DEFAULT_WIDTHS) -> None:
        super().__init__()
        self.config = {"classes": int(classes), "widths": [int(w) for w in widths]}
        self.classes = classes
        self.encoder = nn.ModuleList(
            nn.Sequential(_Layer(before, width), _Layer(width, width))
            for before, width in zip((BLOCK**3, *widths[:-1]), widths)
        )
        self.decoder = nn.ModuleList(
            _Block(width + below, width, code=widths[-1])
            for width, below in zip(widths[:-1], widths[1:])
        )
        self.code = nn.Sequential(nn.Linear(widths[-1], widths[-1]), nn.ReLU())
        self.head = nn.Conv3d(widths[0], BLOCK**3 * classes, 1)

    @property
    def multiple(self) -> int:
        """Each side of an image must be a multiple of this many voxels."""
        return 2 ** len(self.encoder)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """(N, widths[0], I/2, J/2, K/2) features of a (N, 1, I, J, K) image with values 0..1."""
        x = pixel_unshuffle(image, BLOCK).to(memory_format=torch.channels_last_3d)
        kept = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else functional.max_pool3d(x, 2))
            kept.append(x)
        code = self.code(x.mean(dim=(2, 3, 4)))
        for block, skip in zip(reversed(self.decoder), reversed(kept[:-1])):
            x = block(skip, x, code)
        return x

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, classes, 8, I/2, J/2, K/2) logits of the voxels of each block, in the order of
        `pixel_unshuffle`.

        Raises `ValueError` if a side of the image is no multiple of `multiple`.
        """
        if any(n % self.multiple for n in image.shape[2:]):
            raise ValueError(f"sides {tuple(image.shape[2:])} must be multiples of {self.multiple}")
        return self.head(self.features(image)).unflatten(1, (self.classes, BLOCK**3))


class _Layer(nn.Module):
    """Convolution, normalisation, rectification."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = Conv3d(before, after, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Two layers on what the encoder kept and what comes from the coarser level.

    The first one's features are scaled and shifted by the image's contrast code.
    """

    def __init__(self, before: int, after: int, code: int) -> None:
        super().__init__()
        self.conv = Conv3d(before, after, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)
        self.modulation = nn.Linear(code, 2 * after)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.second = _Layer(after, after)

    def forward(self, kept: torch.Tensor, coarser: torch.Tensor, code: torch.Tensor
                ) -> torch.Tensor:
        scale, shift = self.modulation(code)[..., None, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift, self.norm(self._joined(kept, coarser)), 1 + scale)
        return self.second(functional.relu(x, inplace=True))

    def _joined(self, kept: torch.Tensor, coarser: torch.Tensor) -> torch.Tensor:
        """Convolution of both, side by side as channels at the finer level, where neither is ever
        copied: not side by side, and the coarser not to the finer level."""
        of_kept, of_coarser = self.conv.weight.split([kept.shape[1], coarser.shape[1]], dim=1)
        x = functional.conv_transpose3d(coarser, _of_doubled(of_coarser), stride=2, padding=1)
        return x.add_(conv3d(kept, of_kept, padding=1))


def _of_doubled(weight: torch.Tensor) -> torch.Tensor:
    """A convolution with (A, B, 3, 3, 3) of voxels that were repeated twice along each axis, as the
    (B, A, 4, 4, 4) kernel of a transposed one (stride 2, padding 1): 8 products a voxel, not 27.
    """
    kernel = weight.flip(2, 3, 4).transpose(0, 1)
    for axis in range(3):
        before, after = [0, 0] * 3, [0, 0] * 3
        before[2 * axis], after[2 * axis + 1] = 1, 1
        kernel = functional.pad(kernel, before) + functional.pad(kernel, after)
    return kernel
