"""One denoiser of a volume made of a denoiser of patches.

The paper (Hache 2026) samples every patch by itself and blends the results, so that neighbours
disagree about everything the condition leaves open. Here patches are blended at every step
(MultiDiffusion, Bar-Tal 2023, arXiv 2302.08113): all see the same x, hence what they predict may be
blended, and x0 and the noise follow from the blend. Same number of network calls, no seams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..patches import PatchGrid
from .samplers import Denoiser, Parts, PartsOf
from .schedules import Schedule

__all__ = ["PatchDenoiser", "Fusion", "outside_known"]

PatchDenoiser = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""((1, 1, i, j, k) patch, (1,) time, number of the patch) -> prediction, the same shape."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """The patches of a volume that have brain in them, and their blend.

    Attributes
    ----------
    grid : where patches lie
    mask : (I, J, K) bool; a patch without any of it is left out (no brain voxel can miss it)
    """

    grid: PatchGrid
    mask: np.ndarray

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """The lowest voxel of each patch, in lexicographic order."""
        return tuple(c for c in self.grid.corners if self.mask[self.grid.at(c)].any())

    def denoiser(self, patchwise: PatchDenoiser, order: Sequence[int] | None = None) -> Denoiser:
        """(1, 1, I, J, K) volumes in and out; patches are asked in `order`, added in their own.

        Sums depend on their order in the last bits, and convolutions on the number of patches that
        they are given at once; so the order of the sum is fixed and patches go one by one.
        """
        asked = list(range(len(self.corners)) if order is None else order)
        weights = [torch.from_numpy(self.grid.weight(c)) for c in self.corners]

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            said = {n: patchwise(x[(..., *self.grid.at(self.corners[n]))], t, n) for n in asked}
            out = torch.zeros_like(x)
            for n, corner in enumerate(self.corners):
                out[(..., *self.grid.at(corner))] += said[n] * weights[n].to(x)
            return out

        return denoise


def outside_known(parts: PartsOf, mask: torch.Tensor, schedule: Schedule, value: float = -1.0
                  ) -> PartsOf:
    """The same parts where (1, 1, I, J, K) `mask` is True; elsewhere the image is `value`.

    What is known needs no network: its noise is whatever is left of x.
    """

    def known(x: torch.Tensor, t: int) -> Parts:
        x0, eps = parts(x, t)
        bar = schedule.abar(t, x)
        rest = (x - bar.sqrt() * value) / (1 - bar).sqrt()
        flat = torch.full_like(x0, value)
        return Parts(torch.where(mask, x0, flat), torch.where(mask, eps, rest))

    return known
