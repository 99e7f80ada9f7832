"""Intensity map of the backend `unet`: tissue map plus the residual of the network.

The network runs on the grid to which the map is applied. Baseline, tissue probabilities and mask
are computed on that grid, so the output of the network is never resampled. For the network, arrays
are reoriented to the axes nearest to RAS+, and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from ....contrast.intensity_map import IntensityMap
from ....contrast.tissue_map import TissueMap
from ....deep.processor import torch_threads
from ....volume import Volume
from .channels import condition, levels_of, map_numbers, stack_channels

if TYPE_CHECKING:
    from .network import ResidualUNet

__all__ = ["ResidualMap"]

DARKEST = 0.1  # smallest result relative to the baseline, so that no voxel becomes negative
MARGIN = 4  # voxels around the brain that the network sees
SLAB, OVERLAP = 128, 32  # voxels; slabs of large volumes start at multiples of 8
WHOLE = 6_000_000  # voxels of the largest volume that is not divided into slabs


@dataclass(frozen=True, eq=False)
class ResidualMap(IntensityMap):
    """Tissue map plus weighted residual.

    Attributes
    ----------
    change : the baseline
    network : predicts the residual
    target_card, scan_card : numbers of target and scan, see `scan_card`
    template_mm : voxel size of the grid on which the cards were measured
    weight : 0..1 of the residual
    facts : what else a sidecar says of the map
    """

    change: TissueMap
    network: ResidualUNet
    target_card: np.ndarray
    scan_card: np.ndarray
    template_mm: float
    weight: float
    facts: dict[str, Any] = field(default_factory=dict)

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        baseline = self.change.apply(volume.with_mask(mask), world).data
        values = baseline[mask]
        if self.weight == 0:
            return values
        residual = self._residual(volume, baseline, mask, world)[mask]
        unit = np.float32(self.weight * levels_of(self.change)[1])
        corrected = np.maximum(values + unit * residual, np.float32(DARKEST) * values)
        return np.where(values > 0, corrected, values).astype(np.float32)

    def _residual(self, volume: Volume, baseline: np.ndarray, mask: np.ndarray, world: np.ndarray
                  ) -> np.ndarray:
        """Return (I, J, K) in units of the target's level, zero outside the box of the mask."""
        box = _box(mask)
        before, after = levels_of(self.change)
        probabilities = np.zeros((3, *volume.shape), np.float32)
        probabilities[:, mask] = self.change.probabilities.sample(world @ volume.affine, mask)
        stack = stack_channels(baseline[box] / np.float32(after),
                               volume.data[box] / np.float32(before),
                               probabilities[(slice(None), *box)], mask[box])
        affine = world @ volume.affine
        turn = io_orientation(affine)
        spacing = np.empty(3)
        spacing[turn[:, 0].astype(int)] = volume.spacing
        numbers = condition(self.target_card, self.scan_card, map_numbers(self.change), spacing,
                            self.template_mm)
        turned = np.stack([apply_orientation(one, turn) for one in stack])
        found = _predict(self.network, turned, numbers)
        back = io_orientation(inv_ornt_aff(turn, stack.shape[1:]))
        out = np.zeros(volume.shape, np.float32)
        out[box] = apply_orientation(found, back)
        return out

    def describe(self) -> dict[str, Any]:
        """Return the description of the baseline and the weight of the residual; JSON types."""
        return {"Type": "local tissue map and network residual", **self.facts,
                "ResidualWeight": round(self.weight, 4), "Baseline": self.change.describe()}


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the bounding box of the mask plus a margin."""
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = (int(found[0]), int(found[-1]) + 1) if found.size else (0, 1)
        box.append(slice(max(low - MARGIN, 0), min(high + MARGIN, mask.shape[axis])))
    return tuple(box)


def _predict(network: ResidualUNet, stack: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Predict the residual (I, J, K), as a whole or in slabs along the first axis."""
    if stack[0].size <= WHOLE or stack.shape[1] <= SLAB:
        return _forward(network, stack, numbers)
    out = np.zeros(stack.shape[1:], np.float32)
    step = SLAB - 2 * OVERLAP
    for start in range(0, stack.shape[1], step):
        low, high = max(start - OVERLAP, 0), min(start + step + OVERLAP, stack.shape[1])
        part = _forward(network, stack[:, low:high], numbers)
        stop = min(start + step, stack.shape[1])
        out[start:stop] = part[start - low:stop - low]
    return out


def _forward(network: ResidualUNet, stack: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    import torch

    padding = [(0, 0)] + [(0, -n % network.multiple) for n in stack.shape[1:]]
    device = next(network.parameters()).device
    with torch_threads(1), torch.inference_mode():
        x = torch.from_numpy(np.pad(stack, padding))[None].to(device)
        y = network(x, torch.from_numpy(numbers)[None].to(device))[0, 0].cpu().numpy()
    return y[tuple(slice(0, n) for n in stack.shape[1:])]
