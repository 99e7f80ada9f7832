"""How bright is a tissue where? Local means and spreads of the tissues on a coarse lattice.

    S_c(v) = sum_u G(v - u) w_c(u) x(u) / sum_u G(v - u) w_c(u)

is a normalised convolution (Knutsson and Westin 1993, doi:10.1109/CVPR.1993.341081) with a
Gaussian G of some 8 mm. The weights w are the squared memberships, for a voxel shared by two
tissues speaks for neither, times a weight that falls to zero 2.5 local spreads from S: a lesion or
a vessel does not count. Where a tissue is rare, wider Gaussians take over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..tissues import TISSUES
from ..volume import Volume

__all__ = ["Lattice", "LocalStatistics", "measure", "relative_gain", "pool",
           "world_points", "shares_of"]

ENOUGH = 400_000  # voxels of a brain
ROUNDS = 3  # of reweighting
REACH = 2.5  # spreads beyond which a voxel does not count
WIDER = (3.0, 0.02)  # a Gaussian this many times as wide helps out with this weight
LEAST_SHARE = 0.05  # memberships below it say nothing of the tissue
TRUNCATED = 1.1  # the spread of a normal distribution over that of its part within REACH


@dataclass(frozen=True, eq=False)
class Lattice:
    """A coarse grid of points in a world, on which smooth maps live.

    Attributes
    ----------
    shape : (3,) points along each axis
    affine : (4, 4) lattice indices -> world, mm
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def around(cls, volume: Volume, step_mm: float = 4.0, margin_mm: float = 12.0) -> Lattice:
        """A lattice along the world's axes over the mask of a volume and a margin.

        Places further out are read and counted at its edge.
        """
        world = world_points(volume).T
        low = np.floor(world.min(axis=1) - margin_mm)
        steps = np.ceil((world.max(axis=1) + margin_mm - low) / step_mm).astype(int) + 1
        affine = np.diag([step_mm, step_mm, step_mm, 1.0])
        affine[:3, 3] = low
        return cls((int(steps[0]), int(steps[1]), int(steps[2])), affine)

    @property
    def step_mm(self) -> float:
        """Distance of neighbouring points, mm."""
        return float(self.affine[0, 0])

    def indices(self, points: np.ndarray) -> np.ndarray:
        """(3, n) fractional indices of (n, 3) world points."""
        return ((points - self.affine[:3, 3]) / self.step_mm).T

    def cells(self, points: np.ndarray) -> np.ndarray:
        """(n,) flat index of the nearest lattice point of (n, 3) world points."""
        top = np.array(self.shape)[:, None] - 1
        nearest = np.clip(np.rint(self.indices(points)).astype(np.intp), 0, top)
        return np.ravel_multi_index(tuple(nearest), self.shape)

    def gather(self, cells: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Map of the sums of (n,) values over the points that are nearest to each cell."""
        return np.bincount(cells, values, int(np.prod(self.shape))).reshape(self.shape)

    def sample(self, maps: np.ndarray, points: np.ndarray) -> np.ndarray:
        """(m, n) float32 linear readings of (m, I, J, K) maps at (n, 3) world points."""
        at = self.indices(points)
        return np.stack([ndimage.map_coordinates(one, at, order=1, mode="nearest",
                                                 output=np.float32) for one in maps])

    def smooth(self, array: np.ndarray, sigma_mm: float) -> np.ndarray:
        """A map under a Gaussian, with a wider one and the mean as faint helpers where it is zero.

        Numerator and denominator of a normalised convolution get the same treatment.
        """
        wide, share = WIDER
        sigma = sigma_mm / self.step_mm
        near = ndimage.gaussian_filter(array, sigma, mode="constant")
        far = ndimage.gaussian_filter(array, wide * sigma, mode="constant", truncate=2.0)
        return near + share * far + share ** 2 * array.mean()


@dataclass(frozen=True, eq=False)
class LocalStatistics:
    """Of each tissue (first axis, in the order of `TISSUES`) at each lattice point.

    Attributes
    ----------
    mean, spread : (3, I, J, K) float32, intensity units; > 0
    mass : (3, I, J, K) float32, how much tissue is near; unit arbitrary, the same for all scans of
        one grid
    """

    mean: np.ndarray
    spread: np.ndarray
    mass: np.ndarray

    def scaled(self, gain: float) -> LocalStatistics:
        """Those of an image that is `gain` times as bright."""
        return replace(self, mean=self.mean * np.float32(gain),
                       spread=self.spread * np.float32(gain))

    def towards(self, other: LocalStatistics, weight: float) -> LocalStatistics:
        """(1 - weight) of these and weight of the other ones."""
        part = np.float32(weight)
        return replace(self, mean=self.mean + part * (other.mean - self.mean),
                       spread=self.spread + part * (other.spread - self.spread))


def world_points(volume: Volume, matrix: np.ndarray | None = None,
                 mask: np.ndarray | None = None) -> np.ndarray:
    """(n, 3) float32 world mm, after `matrix`, of the voxels of `mask` (the volume's own if None).
    """
    affine = volume.affine if matrix is None else np.asarray(matrix, np.float64) @ volume.affine
    voxels = np.argwhere(volume.mask if mask is None else mask)
    return (voxels @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def shares_of(maps: Mapping[str, np.ndarray], volume: Volume) -> np.ndarray:
    """(3, I, J, K) float32 memberships in the order of `TISSUES`, checked against the grid.

    Raises
    ------
    InputError
        If a tissue is missing, lies on another grid, or there is no tissue in the mask at all.
    """
    for name in TISSUES:
        if name not in maps or maps[name].shape != volume.shape:
            came = maps[name].shape if name in maps else "nothing"
            raise InputError(f"expected memberships of {name} on the image's grid {volume.shape}, "
                             f"got {came}. Segment the image on its own grid.")
    shares = np.stack([np.asarray(maps[name], np.float32) for name in TISSUES])
    if not shares[:, volume.mask].any():
        raise InputError("the segmentation found no tissue inside the brain mask. Look at the "
                         "image and its mask.")
    return shares


def measure(volume: Volume, shares: np.ndarray, lattice: Lattice, sigma_mm: float = 8.0
            ) -> LocalStatistics:
    """Local statistics of one image.

    Parameters
    ----------
    volume : image with a mask, in the lattice's world
    shares : (3, I, J, K) memberships 0..1 on the volume's grid
    sigma_mm : standard deviation of the Gaussian
    """
    every = _stride(np.count_nonzero(volume.mask))
    points, values = world_points(volume)[::every], volume.in_mask()[::every]
    overall = max(float(np.median(np.abs(values))), 1e-30)
    found = [_one_tissue(values, one[volume.mask][::every], points, lattice, sigma_mm, overall)
             for one in shares]
    mean, spread, mass = (np.stack(maps).astype(np.float32) for maps in zip(*found))
    return LocalStatistics(mean, spread, mass * np.float32(every))


def _stride(voxels: int) -> int:
    """Which n-th voxels are enough; odd, so that all rows and slices take part."""
    return max(1, voxels // ENOUGH) | 1


def _one_tissue(
    values: np.ndarray, share: np.ndarray, points: np.ndarray, lattice: Lattice, sigma_mm: float,
    overall: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, spread, mass) maps of one tissue; a tissue that is not there looks like the brain."""
    chosen = share > LEAST_SHARE
    if np.count_nonzero(chosen) < 10:
        chosen = np.ones_like(chosen)
        share = np.full_like(share, LEAST_SHARE)
    x, at = values[chosen].astype(np.float64), points[chosen]
    weight = share[chosen].astype(np.float64) ** 2
    pure = x[weight >= 0.25] if (weight >= 0.25).any() else x
    centre = np.full_like(x, np.median(pure))
    floor = 1e-4 * overall
    width = np.full_like(x, 2 * 1.4826 * np.median(np.abs(pure - centre[0])) + floor)
    for _ in range(ROUNDS):
        mean, variance = _reweighted(x, weight, at, centre, width, lattice, sigma_mm)
        centre, spread = lattice.sample(np.stack([mean, TRUNCATED * np.sqrt(variance)]), at)
        width = np.maximum(spread, floor).astype(np.float64)
    gathered = lattice.gather(lattice.cells(at), weight)
    mass = ndimage.gaussian_filter(gathered, sigma_mm / lattice.step_mm)
    return (np.maximum(mean, 0.01 * overall), np.maximum(TRUNCATED * np.sqrt(variance), floor),
            mass)


def _reweighted(
    x: np.ndarray, weight: np.ndarray, at: np.ndarray, centre: np.ndarray, width: np.ndarray,
    lattice: Lattice, sigma_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, variance) maps under Tukey's weights about the last centre and width."""
    cells = lattice.cells(at)
    far = (x - centre) / (REACH * width)
    trusted = weight * np.clip(1 - far ** 2, 0, 1)
    near = weight * (np.abs(far) < 1)
    total, first = (lattice.smooth(lattice.gather(cells, part), sigma_mm)
                    for part in (trusted, trusted * x))
    mean = first / total
    off = x - lattice.sample(mean[None], at)[0]
    count, second = (lattice.smooth(lattice.gather(cells, part), sigma_mm)
                     for part in (near, near * off ** 2))
    return mean, second / count


def relative_gain(own: LocalStatistics, reference: LocalStatistics) -> float:
    """How many times as bright one is as the other: weighted median over places and tissues.

    CSF is left out: how much of it lies in the mask is a matter of the mask.
    """
    ratio = (own.mean[1:] / reference.mean[1:]).ravel()
    weight = np.minimum(own.mass[1:], reference.mass[1:]).ravel().astype(np.float64)
    order = np.argsort(ratio, kind="stable")
    heap = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(heap, heap[-1] / 2)])


def pool(each: list[LocalStatistics]) -> tuple[LocalStatistics, list[float]]:
    """Statistics of a site, and the gain of each of its scans relative to them.

    Each scan is first freed of its own gain; the geometric mean of the gains is put back.
    """
    site, gains = each[0], [1.0] * len(each)
    for _ in range(3):
        gains = [relative_gain(one, site) for one in each]
        site = _mean([one.scaled(1 / gain) for one, gain in zip(each, gains)])
    middle = float(np.exp(np.mean(np.log(gains))))
    return site.scaled(middle), [gain / middle for gain in gains]


def _mean(each: list[LocalStatistics]) -> LocalStatistics:
    """The mean, each scan weighing as much as it has tissue near the place."""
    tiny = 1e-6 * max(float(one.mass.max()) for one in each)
    weights = np.stack([one.mass for one in each]) + np.float32(tiny)
    weights /= weights.sum(axis=0)
    mean, spread = (np.einsum("s...,s...->...", weights, np.stack(maps)) for maps in
                    ([one.mean for one in each], [one.spread for one in each]))
    return LocalStatistics(mean, spread, np.mean([one.mass for one in each], axis=0))
