"""First layers of VGG-19, for weights that the user provides.

IHF-Harmony describes artifacts by VGG-19 features up to relu4_1. The weights are not distributed
with this package and nothing is downloaded: the user names a safetensors file with torchvision's
names (`features.0.weight` to `features.19.bias`).

References
----------
Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition",
arXiv:1409.1556, configuration E.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from ...errors import InputError

__all__ = ["VggFeatures", "WIDTHS", "read_vgg"]

WIDTHS = (64, 128, 256, 512)  # channels of relu1_1, relu2_1, relu3_1, relu4_1
LAYERS = ((0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256),
          (14, 256, 256), (16, 256, 256), (19, 256, 512))  # torchvision's number, channels in, out
POOLED_LAYERS = (5, 10, 19)  # convolutions after a pooling by 2
FEATURE_LAYERS = (0, 5, 10, 19)  # convolutions whose rectified outputs are returned
HELP = "docs/how-to/method-options.md says how to make it."
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of photographs in [0, 1]


class VggFeatures(nn.Module):
    """Features of four levels of VGG-19, each of half the size of the one before.

    Three neighboring slices take the place of red, green and blue. New weights are zero; load them.
    """

    widths = WIDTHS
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({
            str(number): nn.Conv2d(in_channels, out_channels, 3, padding=1)
            for number, in_channels, out_channels in LAYERS})
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.requires_grad_(False)
        for name, values in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor, levels: int | None = None) -> list[torch.Tensor]:
        """Return the features of the first `levels` levels (default: all).

        Parameters
        ----------
        x : Tensor, shape (N, 3, H, W)
            In [-1, 1]; normalized here as photographs are.
        """
        features: list[torch.Tensor] = []
        with torch.autocast(x.device.type, enabled=False):  # statistics differ by hundredths
            x = ((x.float() + 1) / 2 - self.mean) / self.std
            for number, _, _ in LAYERS:
                if number in POOLED_LAYERS:
                    x = functional.max_pool2d(x, 2)
                x = functional.relu(self.features[str(number)](x))
                if number in FEATURE_LAYERS:
                    features.append(x)
                    if len(features) == (levels or len(WIDTHS)):
                        break
        return features


def read_vgg(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of `VggFeatures` from a file; further arrays in it are ignored.

    Raises
    ------
    InputError
        If the file is no safetensors file, lacks an array, or one has another shape or NaN.
    """
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, parameter in VggFeatures().state_dict().items():
                array = file.get_tensor(name).float() if name in names else None
                if array is None or array.shape != parameter.shape or not array.isfinite().all():
                    got = "no such array" if array is None else f"shape {tuple(array.shape)}"
                    raise InputError(f"{path}: expected finite {name} of shape "
                                     f"{tuple(parameter.shape)}, got {got}. {HELP}")
                weights[name] = array
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a safetensors file with torchvision's VGG-19, got "
                         f"{error}. {HELP}") from None
    return weights
