"""LPIPS: how different two images look to a network that learned to see photographs.

Zhang et al. 2018, section 3, equation 1 (doi:10.1109/CVPR.2018.00068):

    d(x, y) = sum over layers l of mean over places of sum over channels c of
              w_lc (f_lc(x) - f_lc(y))^2

f_l are AlexNet's features after each rectified convolution, scaled to unit length over channels.
The weights were learned on photographs and are not ours to ship; nothing is downloaded. Whoever
wants the number names a safetensors file with torchvision's AlexNet (`features.0.weight` and so
on) and the published linear layers (`lin0.model.1.weight` to `lin4.model.1.weight`);
docs/evaluation.md says how it is made. It sees slices, not volumes, and photographs, not brains: a
number to compare with papers, not one to rest a verdict on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["Lpips", "load_lpips"]

SHAPES = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3),
          10: (256, 256, 3, 3)}  # of torchvision's AlexNet, by its own numbers
STEPS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # stride, padding
POOLED = (3, 6)  # convolutions after a pooling of 3 with stride 2
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of photographs in -1 to 1
SLICE_MM = 4.0  # between two slices that are looked at
LEAST_SHARE = 0.2  # of the fullest slice of a plane that a slice must hold of the brain
UNIT_FLOOR = 1e-10


class Lpips:
    """The distance, with given weights (numpy arrays by their names in the file)."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        import torch

        self._layers = {number: tuple(torch.from_numpy(np.array(_of_shape(
            weights, f"features.{number}.{kind}", shape if kind == "weight" else shape[:1])))
            for kind in ("weight", "bias")) for number, shape in SHAPES.items()}
        self._linear = [torch.from_numpy(np.array(_of_shape(
            weights, f"lin{i}.model.1.weight", (1, shape[0], 1, 1))))
            for i, shape in enumerate(SHAPES.values())]

    def slices(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """(B,) distances of images (B, 3, H, W), -1 to 1, at least 63 pixels wide and high."""
        import torch

        total = torch.zeros(len(first))
        with torch.no_grad():
            for one, two, weight in zip(self._features(first), self._features(second),
                                        self._linear):
                apart = (_unit(one) - _unit(two)) ** 2
                total = total + (apart * weight).sum(dim=1).mean(dim=(1, 2))
        return total

    def __call__(self, first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float,
                 spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
        """Mean over slices in all three planes, every 4 mm, that hold enough of the brain.

        Arrays (I, J, K) on one grid; 0 to R becomes -1 to 1, what is off the mask -1. 0 to about 1,
        lower is nearer.
        """
        one, two = (np.where(mask, 2 * np.clip(a / data_range, 0, 1) - 1, -1).astype(np.float32)
                    for a in (first, second))
        found: list[float] = []
        for axis in range(3):
            filled = mask.sum(axis=tuple(i for i in range(3) if i != axis))
            step = max(int(round(SLICE_MM / spacing[axis])), 1)
            for index in range(0, len(filled), step):
                if filled[index] >= LEAST_SHARE * filled.max():
                    pair = (_as_photograph(array.take(index, axis)) for array in (one, two))
                    found += self.slices(*pair).tolist()
        return float(np.mean(found))

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """AlexNet's five rectified maps."""
        import torch
        from torch.nn import functional

        shift, scale = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (SHIFT, SCALE))
        maps, found = (image - shift) / scale, []
        for number, (weight, bias) in self._layers.items():
            if number in POOLED:
                maps = functional.max_pool2d(maps, 3, 2)
            stride, padding = STEPS[number]
            maps = functional.relu(functional.conv2d(maps, weight, bias, stride, padding))
            found.append(maps)
        return found


@functools.lru_cache(maxsize=1)
def load_lpips(path: Path) -> Lpips:
    """The distance with the weights of a safetensors file; InputError for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return Lpips(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a safetensors file with AlexNet's and LPIPS's weights, "
                         f"got {error}. docs/evaluation.md says how it is made.") from None


def _of_shape(weights: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = weights.get(name)
    if found is None or tuple(found.shape) != shape or not np.isfinite(found).all():
        got = "no such array" if found is None else f"shape {tuple(found.shape)}"
        raise InputError(f"weights of LPIPS: expected finite {name} of shape {shape}, got {got}. "
                         "docs/evaluation.md says how the file is made.")
    return np.asarray(found, dtype=np.float32)


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Length 1 over channels."""
    return maps / ((maps**2).sum(dim=1, keepdim=True).sqrt() + UNIT_FLOOR)


def _as_photograph(image: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W), three equal channels, padded to the 63 pixels that the layers need."""
    import torch

    wanted = [(0, max(63 - size, 0)) for size in image.shape]
    padded = torch.from_numpy(np.pad(image, wanted, constant_values=-1.0))
    return padded.expand(1, 3, *padded.shape)
