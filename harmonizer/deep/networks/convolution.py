"""3D convolutions of a single small image, as fast on a CPU as those of two.

torch hands a convolution in single precision to oneDNN, except where it is of one image of which
channels times the first two sides are 20,480 or less (`use_mkldnn` in its Convolution.cpp): that
one it unrolls into columns, 27 copies of the image, and is 2 to 9 times slower. Deep levels of a
U-Net and patches are such images. Two images are never too few, and half an image is an image too.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Conv3d", "conv3d"]

FEW = 20_480  # torch's limit


class Conv3d(nn.Conv3d):
    """torch's through `conv3d`: a cubic kernel, zeros around the image, weights as in torch's."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, padding: int = 0,
                 bias: bool = True) -> None:
        super().__init__(before, after, kernel, stride=stride, padding=padding, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, I, J, K)."""
        return conv3d(x, self.weight, self.bias, stride=self.stride[0], padding=self.padding[0])


def conv3d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *,
           stride: int = 1, padding: int = 0) -> torch.Tensor:
    """What `torch.nn.functional.conv3d` returns, but for rounding.

    Parameters
    ----------
    x : (N, C, I, J, K)
    weight : (D, C, ...) kernel
    bias : (D,)
    stride, padding : along each axis
    """
    if not _is_unrolled(x, weight):
        return functional.conv3d(x, weight, bias, stride=stride, padding=padding)
    wide, reach = functional.pad(x, (0, 0, 0, 0, padding, padding)), weight.shape[2]
    count = (wide.shape[2] - reach) // stride + 1
    half = (count + 1) // 2
    length, start = (half - 1) * stride + reach, (count - half) * stride
    halves = torch.cat([wide[:, :, :length], wide[:, :, start:start + length]])
    y = functional.conv3d(halves, weight, bias, stride=stride, padding=(0, padding, padding))
    return torch.cat([y[:1], y[1:, :, 2 * half - count:]], dim=2)


def _is_unrolled(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether torch would not leave this convolution to oneDNN."""
    narrow = 1 < max(weight.shape[2:]) and min(weight.shape[3:]) <= 3
    return (len(x) == 1 and narrow and x.device.type == "cpu" and x.dtype == torch.float32
            and x[0, ..., 0].numel() <= FEW and x.shape[2] > 1
            and not torch.is_autocast_enabled("cpu"))
