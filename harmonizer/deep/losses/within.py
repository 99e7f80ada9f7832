"""Differences within the brain: of intensities, and of the steps between neighbours."""

from __future__ import annotations

import torch

__all__ = ["absolute", "steps"]


def absolute(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N,) mean absolute difference over the mask of each; all (N, C, H, W)."""
    weight = mask.float()
    apart = ((ours.float() - theirs.float()).abs() * weight).flatten(1).sum(1)
    return apart / weight.flatten(1).sum(1).clamp(min=1)


def steps(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N,) `absolute` of the differences of neighbours, both in the mask, along both axes.

    Zero where the two images differ by a constant alone: what it sees is sharpness.
    """
    total = torch.zeros(len(ours), device=ours.device)
    apart = ours.float() - theirs.float()
    for axis in (2, 3):
        n = apart.shape[axis]
        one, two = apart.narrow(axis, 1, n - 1), apart.narrow(axis, 0, n - 1)
        both = mask.narrow(axis, 1, n - 1) * mask.narrow(axis, 0, n - 1)
        total = total + absolute(one, two, both)
    return total / 2
