"""Spatial augmentation: flip, affine and elastic warp; contrast is unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Elastic", "Warp", "WarpSettings", "draw_warp"]


@dataclass(frozen=True)
class WarpSettings:
    """Distribution of warps.

    Attributes
    ----------
    flip : float
        Probability of mirroring the first spatial axis (left-right in RAS volumes and in slices).
    rotation : float
        Standard deviation of rotations, degrees.
    scale : float
        Standard deviation of log scalings along each axis.
    shift : float
        Standard deviation of shifts, of half the side.
    elastic : float
        Standard deviation of the elastic nodes, of half the side.
    nodes : int
        Control points along each axis.
    """

    flip: float = 0.5
    rotation: float = 5.0
    scale: float = 0.05
    shift: float = 0.02
    elastic: float = 0.02
    nodes: int = 5


@dataclass(frozen=True)
class Warp:
    """A drawn warp: output position u shows the image at matrix u + elastic(u), sides [-1, 1].

    Attributes
    ----------
    flip : bool
        Mirror the first spatial axis.
    matrix : tuple of tuple of float
        Rows of the (dims, dims + 1) affine, in units of half the side, axes first to last.
    seed, elastic, nodes
        Seed, standard deviation and control points of the elastic field; its border does not move.
    """

    flip: bool
    matrix: tuple[tuple[float, ...], ...]
    seed: int
    elastic: float
    nodes: int

    def apply(self, image: torch.Tensor, fill: float = -1.0, nearest: bool = False
              ) -> torch.Tensor:
        """Warp images.

        Parameters
        ----------
        image : Tensor, shape (N, C, ...)
        fill : float
            Value beyond the border.
        nearest : bool
            Nearest-neighbor interpolation (masks) instead of linear.
        """
        if self.flip:
            image = image.flip(2)
        dims = image.ndim - 2
        places = _positions(image)
        matrix = torch.tensor(self.matrix, device=image.device, dtype=torch.float32)
        moved = places @ matrix[:, :dims].T + matrix[:, dims]
        if self.elastic:
            moved = moved + self._field(tuple(image.shape[2:])).to(moved)
        return _sample(image, moved, fill, nearest)

    def _field(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the (..., dims) displacement in units of half the side."""
        dims = len(shape)
        rng = np.random.default_rng(self.seed)
        nodes = rng.standard_normal((1, dims, *[self.nodes] * dims)) * self.elastic
        inner = (slice(None), slice(None), *[slice(1, -1)] * dims)
        fixed_border = np.zeros_like(nodes)
        fixed_border[inner] = nodes[inner]
        mode = "bilinear" if dims == 2 else "trilinear"
        field = functional.interpolate(torch.as_tensor(fixed_border, dtype=torch.float32),
                                       size=shape, mode=mode, align_corners=True)
        return field[0].movedim(0, -1)


def draw_warp(rng: np.random.Generator, settings: WarpSettings, dims: int) -> Warp:
    """Draw a warp for images of `dims` spatial dimensions."""
    matrix = np.eye(dims)
    for i in range(dims):
        for j in range(i + 1, dims):
            angle = np.deg2rad(rng.normal(0, settings.rotation))
            rotation = np.eye(dims)
            rotation[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), \
                np.sin(angle), np.cos(angle)
            matrix = matrix @ rotation
    matrix = matrix @ np.diag(np.exp(rng.normal(0, settings.scale, dims)))
    whole = np.hstack([matrix, rng.normal(0, settings.shift, (dims, 1))])
    rows = tuple(tuple(float(v) for v in row) for row in whole)
    return Warp(bool(rng.uniform() < settings.flip), rows, int(rng.integers(2 ** 31)),
                settings.elastic, settings.nodes)


@dataclass(frozen=True)
class Elastic:
    """A drawn elastic warp: cubic B-splines over a grid of random control points.

    The distribution is that of TorchIO's RandomElasticDeformation, which the DISARM authors use:
    each control point moves by U(-max, max) along each axis; those at the border do not.

    Attributes
    ----------
    seed : int
        Seed of the control points.
    max_displacement : float
        Largest displacement of a control point, voxels.
    nodes : int
        Control points along each axis, at least 4.
    locked_borders : int
        Layers of control points at each border that do not move.
    """

    seed: int
    max_displacement: float
    nodes: int = 10
    locked_borders: int = 2

    def apply(self, image: torch.Tensor, fill: float = -1.0, nearest: bool = False
              ) -> torch.Tensor:
        """Warp images; parameters are those of `Warp.apply`."""
        shape = tuple(image.shape[2:])
        half = torch.tensor([max(n - 1, 1) / 2 for n in shape], device=image.device)
        moved = _positions(image) + self.field(shape).to(image.device) / half
        return _sample(image, moved, fill, nearest)

    def field(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the (..., dims) displacement in voxels, float32."""
        dims, n, locked = len(shape), self.nodes, self.locked_borders
        points = np.zeros((dims, *[n] * dims))
        inner = (slice(None), *[slice(locked, n - locked)] * dims)
        rng = np.random.default_rng(self.seed)
        points[inner] = rng.uniform(-self.max_displacement, self.max_displacement,
                                    points[inner].shape)
        for axis, count in enumerate(shape):
            points = np.moveaxis(np.tensordot(points, _spline_basis(count, n), (axis + 1, 1)),
                                 -1, axis + 1)
        return torch.from_numpy(np.moveaxis(points, 0, -1).astype(np.float32))


def _spline_basis(count: int, nodes: int) -> np.ndarray:
    """Return the weights of control points at voxel centers, (count, nodes); rows sum to 1."""
    place = (np.arange(count) + 0.5) / count * (nodes - 3)
    first = np.minimum(place.astype(int), nodes - 4)
    u = place - first
    pieces = np.stack([(1 - u) ** 3, 3 * u ** 3 - 6 * u ** 2 + 4,
                       -3 * u ** 3 + 3 * u ** 2 + 3 * u + 1, u ** 3], axis=1) / 6
    basis = np.zeros((count, nodes))
    np.put_along_axis(basis, first[:, None] + np.arange(4), pieces, axis=1)
    return basis


def _positions(image: torch.Tensor) -> torch.Tensor:
    """Return the positions of voxel centers of (N, C, ...) images, (..., dims), sides [-1, 1]."""
    axes = [torch.linspace(-1, 1, n, device=image.device) for n in image.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _sample(image: torch.Tensor, places: torch.Tensor, fill: float, nearest: bool
            ) -> torch.Tensor:
    """Sample (N, C, ...) images at (..., dims) positions; `fill` beyond the border."""
    grid = places.flip(-1)[None].expand(len(image), *places.shape)  # grid_sample: last axis first
    mode = "nearest" if nearest else "bilinear"
    y = functional.grid_sample(image.float() - fill, grid, mode=mode, align_corners=True)
    return (y + fill).to(image.dtype)
