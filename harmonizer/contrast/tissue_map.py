"""Local tissue map: an intensity curve at each place of the brain, from a source to a target.

Let m_c be the probability of tissue c in a voxel. S_c and T_c are the local means of the tissue in
source and target, and r_c is the ratio of its local standard deviations, target over source. With

    X = sum_c m_c S_c,   Y = sum_c m_c T_c,   r = sum_c m_c r_c,

an intensity x becomes y = Y + r (x - X). In a voxel of one tissue this is T_c + (x - S_c) r_c. In a
partial-volume voxel, the weighted means of both tissues are matched.

The line holds within `LINEAR_RANGE_STD` standard deviations of X. Beyond it, the curve follows the
line through the origin. Vessels and lesions therefore keep their contrast to their surroundings, no
intensity becomes negative, and zero stays zero. Each curve passes through the origin and three
knots, increases strictly, and can be inverted (`TissueMap.undo`).

S, T and r are stored as smooth maps on a coarse lattice. Applying the map to another grid resamples
these maps and the probabilities, never the image.
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

__all__ = ["TissueMap", "TissueProbabilities", "clip_std_ratio", "std_ratio"]

LINEAR_RANGE_STD = 3.0  # local standard deviations about the local mean
MAX_STD_RATIO = 4.0  # a ratio of standard deviations, relative to the ratio of the means
MIN_KNOT_FRACTION = 0.1  # of the local mean: the lowest intensity of the first knot
FILL_SIGMA_MM = 4.0  # Gaussian that fills voxels without tissue from their neighbors


@dataclass(frozen=True, eq=False)
class TissueProbabilities:
    """Tissue probabilities of one brain, which can be sampled on any grid.

    Attributes
    ----------
    maps : (3, I, J, K) float32 ndarray
        Probabilities in the order of `TISSUES`; they sum to one in every voxel.
    affine : (4, 4) ndarray
        Voxel indices of the maps to world, mm.
    """

    maps: np.ndarray
    affine: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, volume: Volume) -> TissueProbabilities:
        """Crop probabilities to the brain and fill voxels without tissue from their neighbors.

        Parameters
        ----------
        probabilities : (3, I, J, K) ndarray
            Probabilities on the volume's grid, 0 to 1.
        volume : Volume
            Image with a brain mask. The maps are cropped to the mask and a margin; sampling
            beyond them returns the values at their edge.

        Returns
        -------
        TissueProbabilities
        """
        low, high = _bounds(volume.require_mask(), 3)
        cut = tuple(slice(a, b) for a, b in zip(low, high))
        inside = np.asarray(probabilities[(slice(None), *cut)], np.float32)
        sigma = FILL_SIGMA_MM / volume.spacing
        total = inside.sum(axis=0)
        mean = probabilities[:, volume.mask].mean(axis=1, dtype=np.float64).astype(np.float32)
        near = [ndimage.gaussian_filter(one, sigma) + 1e-3 * part
                for one, part in zip(inside, mean)]
        known = total > 0.5
        norm = np.where(known, total, sum(near))
        maps = np.stack([np.where(known, one, other) / norm for one, other in zip(inside, near)])
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        return cls(maps, affine)

    def sample(self, affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Interpolate the probabilities linearly at the voxels of another grid.

        Parameters
        ----------
        affine : (4, 4) ndarray
            Voxel indices of the other grid to the world of the maps, mm.
        mask : (I, J, K) bool ndarray
            Voxels of the other grid to sample.

        Returns
        -------
        (3, n) float32 ndarray
            One column for each True voxel of the mask.
        """
        step = np.linalg.inv(self.affine) @ affine
        if np.allclose(step[:3, :3], np.eye(3), atol=1e-6):
            shift = np.rint(step[:3, 3]).astype(int)
            if np.allclose(step[:3, 3], shift, atol=1e-4):
                at = tuple(np.clip(i + o, 0, n - 1)
                           for i, o, n in zip(np.nonzero(mask), shift, self.maps.shape[1:]))
                return self.maps[(slice(None), *at)]
        at = (np.argwhere(mask) @ step[:3, :3].T + step[:3, 3]).T
        return np.stack([ndimage.map_coordinates(one, at, order=1, mode="nearest",
                                                 output=np.float32) for one in self.maps])


def _bounds(mask: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 index (3,) of the True voxels, with a margin inside the grid."""
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]]
            for axis in range(3)]
    low = np.array([max(e[0] - margin, 0) for e in ends])
    return low, np.array([min(e[1] + 1 + margin, n) for e, n in zip(ends, mask.shape)])


def clip_std_ratio(ratio: np.ndarray | float, gain: np.ndarray | float) -> np.ndarray:
    """Limit ratios of standard deviations to a factor of `MAX_STD_RATIO` about a gain.

    Parameters
    ----------
    ratio : ndarray
        Standard deviation after over before.
    gain : ndarray
        Mean after over before, of the same shape; > 0.

    Returns
    -------
    ndarray
    """
    return np.clip(ratio, gain / MAX_STD_RATIO, gain * MAX_STD_RATIO)


def std_ratio(source: LocalStatistics, target: LocalStatistics) -> np.ndarray:
    """Compute the limited ratio of local standard deviations, target over source.

    Parameters
    ----------
    source, target : LocalStatistics
        Statistics on one lattice.

    Returns
    -------
    (3, I, J, K) ndarray
    """
    return clip_std_ratio(target.std / source.std, target.mean / source.mean)


@dataclass(frozen=True, eq=False)
class TissueMap(IntensityMap):
    """Map intensities by local tissue statistics; see the module for the equations.

    Attributes
    ----------
    lattice : Lattice
        Grid on which the maps are stored.
    source : LocalStatistics
        Local statistics of the scan.
    mean : (3, I, J, K) ndarray
        Local tissue means of the target; > 0.
    ratio : (3, I, J, K) ndarray
        Ratio of local standard deviations, target over source; > 0.
    probabilities : TissueProbabilities
        Tissue probabilities of the scan.
    facts : mapping
        Additional entries for the sidecar.
    """

    lattice: Lattice
    source: LocalStatistics
    mean: np.ndarray
    ratio: np.ndarray
    probabilities: TissueProbabilities
    facts: Mapping[str, Any] = field(default_factory=dict)

    def _values(self, volume: Volume, mask: np.ndarray, world: np.ndarray) -> np.ndarray:
        return _interpolate(volume.data[mask], *self._knots(volume, mask, world))

    def undo(self, volume: Volume, to_map: np.ndarray | None = None) -> Volume:
        """Recover the image before `apply` from the image after it.

        Parameters
        ----------
        volume : Volume
            Result of `apply`, on any grid.
        to_map : (4, 4) ndarray, optional
            World of the volume to the world of the map, mm; identity by default.

        Returns
        -------
        Volume
        """
        world = np.eye(4) if to_map is None else np.asarray(to_map, np.float64)
        mask = volume.mask if volume.mask is not None else np.ones(volume.shape, bool)
        before, after = self._knots(volume, mask, world)
        data = volume.data.copy()
        data[mask] = _interpolate(volume.data[mask], after, before)
        return volume.with_data(data)

    def _knots(self, volume: Volume, mask: np.ndarray, world: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
        """(3, n) intensities before and after, of the three knots at each voxel."""
        probabilities = self.probabilities.sample(world @ volume.affine, mask)
        points = world_points(volume, world, mask)
        mean, after, ratio = (
            np.einsum("cn,cn->n", probabilities, self.lattice.sample(maps, points))
            for maps in (self.source.mean, self.mean, self.ratio))
        width = LINEAR_RANGE_STD * np.sqrt(self._variance(probabilities, points, mean))
        low = np.maximum(mean - width, MIN_KNOT_FRACTION * mean)
        low_after = np.maximum(after - ratio * (mean - low), MIN_KNOT_FRACTION * after)
        return (np.stack([low, mean, mean + width]),
                np.stack([low_after, after, after + ratio * width]))

    def _variance(self, probabilities: np.ndarray, points: np.ndarray, mean: np.ndarray
                  ) -> np.ndarray:
        """(n,) variance of the tissue mixture: within the tissues and between their means."""
        total = np.zeros_like(mean)
        for probability, std, center in zip(probabilities, self.source.std, self.source.mean):
            s, c = self.lattice.sample(np.stack([std, center]), points)
            total += probability * (s ** 2 + (c - mean) ** 2)
        return total

    def describe(self) -> dict[str, Any]:
        """Summarize the map for a sidecar.

        Returns
        -------
        dict
            Type, `facts`, and for each tissue the 5th, 50th and 95th percentile of the gain and
            the median slope, over the places that hold the tissue.
        """
        tissues = {}
        for name, before, after, ratio, mass in zip(
                TISSUES, self.source.mean, self.mean, self.ratio, self.source.mass):
            here = mass > 0.1 * mass.max()
            gains = np.percentile((after / before)[here], [5, 50, 95])
            tissues[name] = {"Gain5_50_95": [float(f"{g:.4g}") for g in gains],
                             "Slope": float(f"{np.median(ratio[here]):.4g}")}
        return {"Type": "local tissue map", **self.facts, "Tissues": tissues}


def _interpolate(x: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n,) float32 values of the curves through the origin and (3, n) knots."""
    x = x.astype(np.float32)
    (x0, x1, x2), (y0, y1, y2) = before, after
    lower = y0 + (x - x0) * ((y1 - y0) / (x1 - x0))
    upper = y1 + (x - x1) * ((y2 - y1) / (x2 - x1))
    return np.where(x < x0, x * (y0 / x0), np.where(
        x < x1, lower, np.where(x < x2, upper, x * (y2 / x2)))).astype(np.float32)
