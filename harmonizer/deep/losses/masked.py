"""L1 losses within the brain, of intensities and of their gradients."""

from __future__ import annotations

import torch

__all__ = ["l1", "masked_l1", "gradient_l1"]


def l1(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the mean absolute difference within the mask of each image.

    Parameters
    ----------
    a, b, mask : Tensor, shape (N, C, ...)

    Returns
    -------
    Tensor, shape (N,)
        Zero for an empty mask.
    """
    weight = mask.float()
    total = ((a.float() - b.float()).abs() * weight).flatten(1).sum(1)
    return total / weight.flatten(1).sum(1).clamp(min=1)


def masked_l1(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the mean absolute difference over all masked voxels of a batch, a scalar."""
    return ((a.float() - b.float()).abs() * mask).sum() / mask.sum().clamp(min=1)


def gradient_l1(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the `l1` of the differences of neighbors in the mask, averaged over both axes.

    It is zero where the two images differ by a constant, so it measures sharpness.

    Parameters
    ----------
    a, b, mask : Tensor, shape (N, C, H, W)

    Returns
    -------
    Tensor, shape (N,)
    """
    total = torch.zeros(len(a), device=a.device)
    difference = a.float() - b.float()
    for axis in (2, 3):
        n = difference.shape[axis]
        upper, lower = difference.narrow(axis, 1, n - 1), difference.narrow(axis, 0, n - 1)
        both = mask.narrow(axis, 1, n - 1) * mask.narrow(axis, 0, n - 1)
        total = total + l1(upper, lower, both)
    return total / 2
