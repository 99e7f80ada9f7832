"""The first layers of VGG-19, as IHF-Harmony describes artefacts by them, for given weights.

Simonyan and Zisserman 2015 (arXiv:1409.1556), configuration E up to relu4_1. The weights were
learned on photographs and are not ours to ship; nothing is downloaded. Whoever wants them names a
safetensors file with torchvision's names (`features.0.weight` to `features.19.bias`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ...errors import InputError

__all__ = ["VggFeatures", "WIDTHS", "read_vgg"]

WIDTHS = (64, 128, 256, 512)  # channels of relu1_1, relu2_1, relu3_1, relu4_1
LAYERS = ((0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256),
          (14, 256, 256), (16, 256, 256), (19, 256, 512))  # torchvision's number, channels in, out
POOLED = (5, 10, 19)  # convolutions after a pooling by 2
SEEN = (0, 5, 10, 19)  # convolutions whose rectified answers are features
HOW = "docs/usage.md says how it is made."
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of photographs in 0 to 1


class VggFeatures(nn.Module):
    """(N, 3, H, W) in [-1, 1] -> features of four levels, halved from level to level.

    Three neighbouring slices stand for red, green and blue; [-1, 1] becomes [0, 1] and is
    normalised as photographs are. New weights are zero: they are to be loaded.
    """

    widths = WIDTHS

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({
            str(number): nn.Conv2d(before, after, 3, padding=1)
            for number, before, after in LAYERS})
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor, levels: int | None = None) -> list[torch.Tensor]:
        """The first `levels` of them; None = all."""
        found: list[torch.Tensor] = []
        with torch.autocast(x.device.type, enabled=False):  # statistics differ by hundredths
            x = ((x.float() + 1) / 2 - self.mean) / self.spread
            for number, _, _ in LAYERS:
                if number in POOLED:
                    x = functional.max_pool2d(x, 2)
                x = functional.relu(self.features[str(number)](x))
                if number in SEEN:
                    found.append(x)
                    if len(found) == (levels or len(WIDTHS)):
                        break
        return found


def read_vgg(path: Path) -> dict[str, torch.Tensor]:
    """Weights of `VggFeatures` from a file; further arrays in it are left alone.

    Raises
    ------
    InputError
        If the file is no safetensors file, or lacks an array, or one has another shape or NaN.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name, parameter in VggFeatures().state_dict().items():
                array = file.get_tensor(name).float() if name in names else None
                if array is None or array.shape != parameter.shape or not array.isfinite().all():
                    got = "no such array" if array is None else f"shape {tuple(array.shape)}"
                    raise InputError(f"{path}: expected finite {name} of shape "
                                     f"{tuple(parameter.shape)}, got {got}. {HOW}")
                found[name] = array
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a safetensors file with torchvision's VGG-19, got "
                         f"{error}. {HOW}") from None
    return found
