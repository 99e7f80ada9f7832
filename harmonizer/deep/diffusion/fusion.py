"""Denoise a volume with a network that sees patches, blended at every sampling step.

Sampling every patch separately and blending the results leaves seams: neighbors disagree about
everything that the condition leaves open. Blending at every step removes them at the same number
of network evaluations, because all patches then share the same noisy volume.

References
----------
Bar-Tal et al. 2023, "MultiDiffusion: Fusing diffusion paths for controlled image generation",
arXiv:2302.08113.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..patches import PatchGrid
from .samplers import Denoised, Denoiser, Predictor
from .schedules import Schedule

__all__ = ["PatchPredictor", "PatchFusion", "with_known_background"]

PatchPredictor = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""((1, 1, i, j, k) patch, (1,) timestep, index of the patch) -> prediction, the same shape."""


@dataclass(frozen=True, eq=False)
class PatchFusion:
    """Patches of a volume that contain brain, and their blend.

    Attributes
    ----------
    grid : PatchGrid
        Positions of the patches.
    mask : ndarray, shape (I, J, K), bool
        Brain; patches without any of it are skipped.
    """

    grid: PatchGrid
    mask: np.ndarray

    @cached_property
    def corners(self) -> tuple[tuple[int, ...], ...]:
        """Lowest voxel of each patch, in lexicographic order."""
        return tuple(c for c in self.grid.corners if self.mask[self.grid.slices(c)].any())

    def predictor(self, predict_patch: PatchPredictor, order: Sequence[int] | None = None
                  ) -> Predictor:
        """Make a predictor of (1, 1, I, J, K) volumes from one of patches.

        Parameters
        ----------
        predict_patch : PatchPredictor
            Network of one patch.
        order : sequence of int, optional
            Order of evaluation. The result does not depend on it: floating-point sums depend on
            their order and convolutions on the batch size, so patches are always added in the
            order of `corners` and evaluated one by one.
        """
        indices = list(range(len(self.corners)) if order is None else order)
        weights = [torch.from_numpy(self.grid.weight(c)) for c in self.corners]

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            outputs = {n: predict_patch(x[(..., *self.grid.slices(self.corners[n]))], t, n)
                       for n in indices}
            blended = torch.zeros_like(x)
            for n, corner in enumerate(self.corners):
                blended[(..., *self.grid.slices(corner))] += outputs[n] * weights[n].to(x)
            return blended

        return predict


def with_known_background(denoise: Denoiser, mask: torch.Tensor, schedule: Schedule,
                          value: float = -1.0) -> Denoiser:
    """Fix the clean image outside the brain to a constant.

    Parameters
    ----------
    mask : Tensor, shape (1, 1, I, J, K), bool
        Brain; here the estimates of `denoise` are used.
    value : float
        Clean intensity of the background. Its noise is the remainder of x.
    """

    def denoise_brain(x: torch.Tensor, t: int) -> Denoised:
        x0, eps = denoise(x, t)
        bar = schedule.abar(t, x)
        rest = (x - bar.sqrt() * value) / (1 - bar).sqrt()
        flat = torch.full_like(x0, value)
        return Denoised(torch.where(mask, x0, flat), torch.where(mask, eps, rest))

    return denoise_brain
