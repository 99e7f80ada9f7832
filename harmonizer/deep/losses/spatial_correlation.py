"""Anatomy loss of IHF-Harmony: preserve the correlations between positions of an image.

    L_ac = | G(x) - G(x_hat) |_1,   G = f^T f

f are the (C, N_p) features at N_p points of a patch, normalized to unit length, so that G does not
depend on brightness. The points are the same in both images. Features still change with contrast.
Images are therefore equalized first, so that the loss ignores all monotone changes of contrast.

References
----------
Zhu et al. 2026, "IHF-Harmony", eq. 3; Zheng et al. 2021, "The spatially-correlative loss for
various image translation tasks", arXiv:2104.00854.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["equalize", "draw_points", "correlations", "spatial_correlation_loss"]

QUANTILES = 129
MAX_QUANTILE_VALUES = 100_000


def equalize(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Map the in-mask intensity distribution of an image to a uniform one on [-1, 1].

    The map is piecewise linear between 129 quantiles, which are constants: the gradient is that of
    the curve.

    Parameters
    ----------
    image, mask : Tensor, shape (...)
        One distribution for all of it (the slices of one volume).

    Returns
    -------
    Tensor, shape (...)
        -1 outside the mask.
    """
    inside = mask > 0
    values = image[inside].detach().float()
    if values.numel() < 2:
        return torch.full_like(image, -1.0)
    values = values[::max(1, values.numel() // MAX_QUANTILE_VALUES)]
    ranks = torch.linspace(0, 1, QUANTILES, device=image.device)
    knots = torch.quantile(values, ranks)
    x = image.float().contiguous()
    at = torch.searchsorted(knots, x.detach(), right=True).clamp(1, QUANTILES - 1)
    low, high = knots[at - 1], knots[at]
    fraction = ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    even = 2 * (ranks[at - 1] + fraction * (ranks[1] - ranks[0])) - 1
    return torch.where(inside, even, torch.full_like(even, -1.0))


def draw_points(mask: torch.Tensor, patch: int, patches: int, points: int) -> torch.Tensor:
    """Draw points of the mask in random square patches; uses torch's global generator.

    Parameters
    ----------
    mask : Tensor, shape (N, 1, H, W)
    patch : int
        Side of a patch, voxels.
    patches, points : int
        Patches of an image, and points of a patch.

    Returns
    -------
    Tensor, shape (N, patches, points, 2), int64
        Row and column. Points outside the mask are replaced by the patch's center, which lies in
        it.
    """
    n, _, height, width = mask.shape
    inside = mask[:, 0].flatten(1) > 0
    weight = inside.float() + 1e-9
    center = torch.multinomial(weight, patches, replacement=True)
    center = torch.stack([center // width, center % width], dim=-1)[:, :, None]
    offset = torch.randint(-(patch // 2), patch // 2 + 1, (n, patches, points, 2),
                           device=mask.device)
    top = torch.tensor([height - 1, width - 1], device=mask.device)
    places = torch.minimum((center + offset).clamp(min=0), top)
    good = inside.gather(1, (places[..., 0] * width + places[..., 1]).flatten(1))
    return torch.where(good.reshape(places.shape[:-1])[..., None], places, center)


def correlations(features: torch.Tensor, places: torch.Tensor, size: tuple[int, int]
                 ) -> torch.Tensor:
    """Compute the cosine similarities of features between the points of each patch.

    Parameters
    ----------
    features : Tensor, shape (N, C, h, w)
    places : Tensor, shape (N, patches, points, 2)
        In voxels of an image of `size`.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    Tensor, shape (N, patches, points, points)
    """
    n, _, height, width = features.shape
    row = places[..., 0] * height // size[0]
    column = places[..., 1] * width // size[1]
    index = (row * width + column).flatten(1)[:, None].expand(-1, features.shape[1], -1)
    f = features.float().flatten(2).gather(2, index).unflatten(2, tuple(places.shape[1:3]))
    f = functional.normalize(f, dim=1, eps=1e-4)
    return torch.einsum("ncpa,ncpb->npab", f, f)


def spatial_correlation_loss(a: list[torch.Tensor], b: list[torch.Tensor], places: torch.Tensor,
                             size: tuple[int, int]) -> torch.Tensor:
    """Compute the mean absolute difference of correlations over levels and pairs of points.

    Parameters
    ----------
    a, b : list of Tensor, shape (N, C, h, w)
        Features of the two images, level by level.
    places, size
        As in `correlations`.
    """
    terms = [(correlations(x, places, size) - correlations(y, places, size)).abs().mean()
             for x, y in zip(a, b)]
    return torch.stack(terms).mean()
