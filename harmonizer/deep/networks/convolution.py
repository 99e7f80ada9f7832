"""3D convolutions of a single small image on the CPU, without torch's slow fallback.

torch passes a float32 convolution to oneDNN unless it has one image whose channels times the first
two sides are at most 20,480 (`use_mkldnn` in its Convolution.cpp). Such an image it unrolls into 27
copies, which is 2 to 9 times slower. Deep levels of a U-Net, and patches, are such images.
`conv3d` splits the image into two overlapping halves, since a batch of two always goes to oneDNN.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Conv3d", "conv3d"]

MAX_UNROLLED_SIZE = 20_480  # channels times the first two sides, in torch's Convolution.cpp


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` with a cubic kernel and zero padding, computed by `conv3d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1,
                 padding: int = 0, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding,
                         bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve images of shape (N, C, I, J, K)."""
        return conv3d(x, self.weight, self.bias, stride=self.stride[0],
                      padding=int(self.padding[0]))


def conv3d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *,
           stride: int = 1, padding: int = 0) -> torch.Tensor:
    """Return the result of `torch.nn.functional.conv3d` up to rounding, faster for small images.

    Parameters
    ----------
    x : Tensor, shape (N, C, I, J, K)
    weight : Tensor, shape (D, C, ...)
    bias : Tensor, shape (D,), optional
    stride, padding : int
        The same along each axis.
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
    """Return whether torch would not pass this convolution to oneDNN."""
    narrow = max(weight.shape[2:]) > 1 and min(weight.shape[3:]) <= 3
    return (len(x) == 1 and narrow and x.device.type == "cpu" and x.dtype == torch.float32
            and x[0, ..., 0].numel() <= MAX_UNROLLED_SIZE and x.shape[2] > 1
            and not torch.is_autocast_enabled("cpu"))
