"""The anatomy loss of IHF-Harmony: how alike places of an image are to one another must stay.

L_ac = | G(x) - G(x_hat) |_1,   G = f^T f   (eq. 3; spatially-correlative loss of Zheng et al. 2021,
arXiv:2104.00854), f the (C, N_p) features at N_p points of a patch. Points are drawn once and
shared by both images. Features are of unit length at each point, else G is brightness as much as
anatomy.

Features still change with contrast. So images are `equalised` first: each by its own distribution
of intensities to even ranks, after which an image and any rising curve of it are one and the same.
The loss is then blind to every monotone change of contrast, and to nothing else.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["equalised", "draw_points", "correlations", "spatial_correlation"]

KNOTS = 129
MOST = 100_000  # values that quantiles are taken of


def equalised(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The image with its in-mask distribution made even on [-1, 1]; -1 outside.

    image, mask: (...), one distribution for all of it (the slices of one volume). Piecewise linear
    between 129 quantiles that are taken as constants: the gradient is that of the curve.
    """
    inside = mask > 0
    values = image[inside].detach().float()
    if values.numel() < 2:
        return torch.full_like(image, -1.0)
    values = values[::max(1, values.numel() // MOST)]
    ranks = torch.linspace(0, 1, KNOTS, device=image.device)
    knots = torch.quantile(values, ranks)
    x = image.float().contiguous()
    at = torch.searchsorted(knots, x.detach(), right=True).clamp(1, KNOTS - 1)
    low, high = knots[at - 1], knots[at]
    share = ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    even = 2 * (ranks[at - 1] + share * (ranks[1] - ranks[0])) - 1
    return torch.where(inside, even, torch.full_like(even, -1.0))


def draw_points(mask: torch.Tensor, patch: int, patches: int, points: int) -> torch.Tensor:
    """(N, patches, points, 2) places (row, column) of the mask in random square patches around it.

    mask: (N, 1, H, W); patch: side in voxels; torch's generator is drawn from. Points beyond the
    mask are replaced by the patch's centre, which lies in it.
    """
    n, _, height, width = mask.shape
    inside = mask[:, 0].flatten(1) > 0
    weight = inside.float() + 1e-9
    centre = torch.multinomial(weight, patches, replacement=True)
    centre = torch.stack([centre // width, centre % width], dim=-1)[:, :, None]
    spread = torch.randint(-(patch // 2), patch // 2 + 1, (n, patches, points, 2),
                           device=mask.device)
    top = torch.tensor([height - 1, width - 1], device=mask.device)
    places = torch.minimum((centre + spread).clamp(min=0), top)
    good = inside.gather(1, (places[..., 0] * width + places[..., 1]).flatten(1))
    return torch.where(good.reshape(places.shape[:-1])[..., None], places, centre)


def correlations(features: torch.Tensor, places: torch.Tensor, size: tuple[int, int]
                 ) -> torch.Tensor:
    """(N, patches, points, points) cosines between points; places in voxels of an image of `size`.
    """
    n, _, height, width = features.shape
    row = places[..., 0] * height // size[0]
    column = places[..., 1] * width // size[1]
    index = (row * width + column).flatten(1)[:, None].expand(-1, features.shape[1], -1)
    f = features.float().flatten(2).gather(2, index).unflatten(2, tuple(places.shape[1:3]))
    f = functional.normalize(f, dim=1, eps=1e-4)
    return torch.einsum("ncpa,ncpb->npab", f, f)


def spatial_correlation(ours: list[torch.Tensor], theirs: list[torch.Tensor],
                        places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mean over levels and pairs of points of the absolute difference of correlations (eq. 3).

    ours, theirs: features of the two images, level by level, (N, C, h, w) of an image of `size`.
    """
    terms = [(correlations(a, places, size) - correlations(b, places, size)).abs().mean()
             for a, b in zip(ours, theirs)]
    return torch.stack(terms).mean()
