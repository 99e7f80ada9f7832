"""The local tissue map: at each place and in each tissue, a curve from the source to the target.

For tissue c with membership m_c, at place v, with local means S_c and T_c of the tissue in source
and target and the ratio r_c of its local spreads,

    X = sum_c m_c S_c,   Y = sum_c m_c T_c,   r = sum_c m_c r_c,   y = Y + r (x - X).

In a voxel of one tissue this is T_c + (x - S_c) r_c; in a voxel shared by two it asks for the mean
of both, and not for one of them twice. The line holds within REACH spreads of X. Beyond, the curve
goes on along the line from the origin: a vessel, a lesion, anything that is no tissue's business
keeps its contrast to its surroundings, nothing becomes negative, zero stays zero. So at each place
the curve has three knots and the origin, is strictly increasing, and can be undone.

S, T and r are smooth maps on a lattice; only they and the memberships are ever resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from ..tissues import TISSUES
from ..volume import Volume
from .intensity_map import IntensityMap
from .local_statistics import Lattice, LocalStatistics, world_points

__all__ = ["TissueMap", "Shares", "spread_ratio"]

REACH = 3.0  # spreads about the local mean in which the line holds
STEEPEST = 4.0  # a spread ratio may not exceed this times the ratio of the means, nor its inverse
LOWEST = 0.1  # of the local mean: the first knot lies no lower, before and after
FILL_MM = 4.0  # Gaussian by which places without a tissue ask their neighbours


@dataclass(frozen=True, eq=False)
class Shares:
    """Memberships of a brain, to be read on any grid.

    Attributes
    ----------
    maps : (3, I, J, K) float32 in the order of `TISSUES`, adding up to one everywhere
    affine : (4, 4) voxel indices of the maps -> world, mm
    """

    maps: np.ndarray
    affine: np.ndarray

    @classmethod
    def of(cls, shares: np.ndarray, volume: Volume) -> Shares:
        """Memberships (3, I, J, K) on a volume's grid; gaps take after their surroundings.

        The maps are cropped to the mask and a margin; beyond, the edge value is read.
        """
        low, high = _box(volume.mask, 3)
        cut = tuple(slice(a, b) for a, b in zip(low, high))
        inside = np.asarray(shares[(slice(None), *cut)], np.float32)
        sigma = FILL_MM / volume.spacing
        total = inside.sum(axis=0)
        mean = shares[:, volume.mask].mean(axis=1, dtype=np.float64).astype(np.float32)
        near = [ndimage.gaussian_filter(one, sigma) + 1e-3 * part
                for one, part in zip(inside, mean)]
        known = total > 0.5
        norm = np.where(known, total, sum(near))
        maps = np.stack([np.where(known, one, other) / norm for one, other in zip(inside, near)])
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        return cls(maps, affine)

    def sample(self, affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(3, n) at the masked voxels of a grid whose `affine` leads to the world of the maps."""
        step = np.linalg.inv(self.affine) @ affine
        if np.allclose(step[:3, :3], np.eye(3), atol=1e-6):
            start = np.rint(step[:3, 3]).astype(int)
            if np.allclose(step[:3, 3], start, atol=1e-4):
                at = tuple(np.clip(i + o, 0, n - 1)
                           for i, o, n in zip(np.nonzero(mask), start, self.maps.shape[1:]))
                return self.maps[(slice(None), *at)]
        at = (np.argwhere(mask) @ step[:3, :3].T + step[:3, 3]).T
        return np.stack([ndimage.map_coordinates(one, at, order=1, mode="nearest",
                                                 output=np.float32) for one in self.maps])


def _box(mask: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 index (3,) of the True voxels, with a margin inside the grid."""
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]]
            for axis in range(3)]
    low = np.array([max(e[0] - margin, 0) for e in ends])
    return low, np.array([min(e[1] + 1 + margin, n) for e, n in zip(ends, mask.shape)])


def spread_ratio(source: LocalStatistics, target: LocalStatistics) -> np.ndarray:
    """(3, I, J, K) local spread after over before, held near the ratio of the local means."""
    gain = target.mean / source.mean
    return np.clip(target.spread / source.spread, gain / STEEPEST, gain * STEEPEST)


@dataclass(frozen=True, eq=False)
class TissueMap(IntensityMap):
    """y = Y + r (x - X) at each place, along the line from the origin beyond `REACH` spreads.

    Attributes
    ----------
    lattice : where the maps live
    source : local statistics of the scan, as far as they are to be replaced
    mean : (3, I, J, K) local means of the target; > 0
    ratio : (3, I, J, K) r_c; > 0
    shares : memberships of this brain
    facts : what else a sidecar says of the map
    """

    lattice: Lattice
    source: LocalStatistics
    mean: np.ndarray
    ratio: np.ndarray
    shares: Shares
    facts: Mapping[str, Any] = field(default_factory=dict)

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        return _along(volume.data[mask], *self._knots(volume, mask, world))

    def undo(self, volume: Volume, to_map: np.ndarray | None = None) -> Volume:
        """The image before, from the image after; arguments as for `apply`."""
        world = np.eye(4) if to_map is None else np.asarray(to_map, np.float64)
        mask = volume.mask if volume.mask is not None else np.ones(volume.shape, bool)
        before, after = self._knots(volume, mask, world)
        data = volume.data.copy()
        data[mask] = _along(volume.data[mask], after, before)
        return volume.with_data(data)

    def _knots(self, volume: Volume, mask: np.ndarray, world: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
        """(3, n) intensities before and after of the three knots at each voxel."""
        shares = self.shares.sample(world @ volume.affine, mask)
        points = world_points(volume, world, mask)
        mean, after, ratio = (np.einsum("cn,cn->n", shares, self.lattice.sample(maps, points))
                              for maps in (self.source.mean, self.mean, self.ratio))
        reach = REACH * np.sqrt(self._variance(shares, points, mean))
        low = np.maximum(mean - reach, LOWEST * mean)
        return (np.stack([low, mean, mean + reach]),
                np.stack([np.maximum(after - ratio * (mean - low), LOWEST * after), after,
                          after + ratio * reach]))

    def _variance(self, shares: np.ndarray, points: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """(n,) of a mixture: spreads within the tissues, and the distance of their means."""
        total = np.zeros_like(mean)
        for share, spread, centre in zip(shares, self.source.spread, self.source.mean):
            s, c = self.lattice.sample(np.stack([spread, centre]), points)
            total += share * (s ** 2 + (c - mean) ** 2)
        return total

    def describe(self) -> dict[str, Any]:
        """Type, facts of the fit, and per tissue the gain and slope in the middle of its places."""
        tissues = {}
        for name, before, after, ratio, mass in zip(
                TISSUES, self.source.mean, self.mean, self.ratio, self.source.mass):
            here = mass > 0.1 * mass.max()
            gains = np.percentile((after / before)[here], [5, 50, 95])
            tissues[name] = {"Gain5_50_95": [float(f"{g:.4g}") for g in gains],
                             "Slope": float(f"{np.median(ratio[here]):.4g}")}
        return {"Type": "local tissue map", **self.facts, "Tissues": tissues}


def _along(x: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n,) float32 values on the curves through the origin and (3, n) knots."""
    x = x.astype(np.float32)
    (x0, x1, x2), (y0, y1, y2) = before, after
    lower = y0 + (x - x0) * ((y1 - y0) / (x1 - x0))
    upper = y1 + (x - x1) * ((y2 - y1) / (x2 - x1))
    return np.where(x < x0, x * (y0 / x0), np.where(
        x < x1, lower, np.where(x < x2, upper, x * (y2 / x2)))).astype(np.float32)
