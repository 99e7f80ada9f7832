"""Changes of place for those methods that want them: flip, affine, elastic; contrast stays.

One `Spatial` is a drawn value: applied to an image and its mask with the same result each time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Spatial", "SpatialSettings", "draw_spatial"]


@dataclass(frozen=True)
class SpatialSettings:
    """What is drawn from.

    Attributes
    ----------
    flip : probability of mirroring the first spatial axis (left-right in RAS volumes and in slices)
    turn : standard deviation of rotations, degrees
    scale : standard deviation of log scalings along each axis
    shift : standard deviation of shifts, of half the side
    elastic : standard deviation of the elastic nodes, of half the side
    nodes : control points along each axis
    """

    flip: float = 0.5
    turn: float = 5.0
    scale: float = 0.05
    shift: float = 0.02
    elastic: float = 0.02
    nodes: int = 5


@dataclass(frozen=True)
class Spatial:
    """A drawn warp: output voxel u shows the image at matrix u + elastic(u); sides are [-1, 1].

    Attributes
    ----------
    flip : mirror the first spatial axis
    matrix : rows of the (dims, dims + 1) affine, in units of half the side, axes first to last
    seed, elastic, nodes : of the elastic field; its border does not move
    """

    flip: bool
    matrix: tuple[tuple[float, ...], ...]
    seed: int
    elastic: float
    nodes: int

    def apply(self, image: torch.Tensor, fill: float = -1.0, nearest: bool = False
              ) -> torch.Tensor:
        """(N, C, ...) -> the same shape, linear (masks: nearest); `fill` from beyond the border."""
        if self.flip:
            image = image.flip(2)
        dims = image.ndim - 2
        axes = [torch.linspace(-1, 1, n, device=image.device) for n in image.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        matrix = torch.tensor(self.matrix, device=image.device, dtype=torch.float32)
        moved = places @ matrix[:, :dims].T + matrix[:, dims]
        if self.elastic:
            moved = moved + self._field(tuple(image.shape[2:])).to(moved)
        grid = moved.flip(-1)[None].expand(len(image), *moved.shape)  # grid_sample: last axis first
        mode = "nearest" if nearest else "bilinear"
        y = functional.grid_sample(image.float() - fill, grid, mode=mode, align_corners=True)
        return (y + fill).to(image.dtype)

    def _field(self, shape: tuple[int, ...]) -> torch.Tensor:
        """(..., dims) displacement in units of half the side."""
        dims = len(shape)
        rng = np.random.default_rng(self.seed)
        nodes = rng.standard_normal((1, dims, *[self.nodes] * dims)) * self.elastic
        inner = (slice(None), slice(None), *[slice(1, -1)] * dims)
        still = np.zeros_like(nodes)
        still[inner] = nodes[inner]
        mode = "bilinear" if dims == 2 else "trilinear"
        field = functional.interpolate(torch.as_tensor(still, dtype=torch.float32), size=shape,
                                       mode=mode, align_corners=True)
        return field[0].movedim(0, -1)

    def describe(self) -> dict[str, Any]:
        """What was drawn, as JSON types."""
        return asdict(self)


def draw_spatial(rng: np.random.Generator, settings: SpatialSettings, dims: int) -> Spatial:
    """One warp."""
    matrix = np.eye(dims)
    for i in range(dims):
        for j in range(i + 1, dims):
            angle = np.deg2rad(rng.normal(0, settings.turn))
            turn = np.eye(dims)
            turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), \
                np.cos(angle)
            matrix = matrix @ turn
    matrix = matrix @ np.diag(np.exp(rng.normal(0, settings.scale, dims)))
    whole = np.hstack([matrix, rng.normal(0, settings.shift, (dims, 1))])
    rows = tuple(tuple(float(v) for v in row) for row in whole)
    return Spatial(bool(rng.uniform() < settings.flip), rows, int(rng.integers(2 ** 31)),
                   settings.elastic, settings.nodes)
