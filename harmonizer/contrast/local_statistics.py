"""Local mean and standard deviation of each tissue, as smooth maps on a coarse lattice.

The local mean S_c of tissue c at place v is a normalized convolution [1]_ with a Gaussian G,

    S_c(v) = sum_u G(v - u) w_c(u) x(u) / sum_u G(v - u) w_c(u).

The weight w_c of a voxel is its squared tissue probability times Tukey's bisquare weight. The
square reduces the influence of partial-volume voxels. The bisquare weight is zero beyond
`OUTLIER_CUTOFF_STD` local standard deviations and excludes lesions and vessels. Where a tissue is
rare, a wider Gaussian and the mean over the brain dominate.

References
----------
.. [1] Knutsson, H. and Westin, C.-F. (1993). Normalized and differential convolution. CVPR.
   doi:10.1109/CVPR.1993.341081
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..tissues import TISSUES
from ..volume import Volume

__all__ = ["Lattice", "LocalStatistics", "measure", "relative_gain", "pool", "world_points",
           "stack_probabilities"]

MAX_SAMPLED_VOXELS = 400_000  # of a brain; more do not improve the maps
REWEIGHTING_ITERATIONS = 3
OUTLIER_CUTOFF_STD = 2.5  # local standard deviations beyond which a voxel has no weight
WIDE_SIGMA_FACTOR = 3.0  # width of the second Gaussian over that of the first
WIDE_WEIGHT = 0.02  # weight of the second Gaussian
MIN_TISSUE_PROBABILITY = 0.05  # below it, a voxel does not represent the tissue
TRUNCATED_STD_CORRECTION = 1.1  # std of a normal distribution over that of its part in the cutoff


@dataclass(frozen=True, eq=False)
class Lattice:
    """Coarse grid of points in world space, on which smooth maps are stored.

    Attributes
    ----------
    shape : tuple of int
        Points along each of the three axes.
    affine : (4, 4) ndarray
        Lattice indices to world, mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def around(cls, volume: Volume, step_mm: float = 4.0, margin_mm: float = 12.0) -> Lattice:
        """Create a lattice along the world axes that covers a brain.

        Parameters
        ----------
        volume : Volume
            Image with a brain mask.
        step_mm, margin_mm : float
            Distance of neighboring points, and margin around the mask, mm. Places beyond the
            margin are assigned to the edge of the lattice.

        Returns
        -------
        Lattice
        """
        world = world_points(volume).T
        low = np.floor(world.min(axis=1) - margin_mm)
        steps = np.ceil((world.max(axis=1) + margin_mm - low) / step_mm).astype(int) + 1
        affine = np.diag([step_mm, step_mm, step_mm, 1.0])
        affine[:3, 3] = low
        return cls((int(steps[0]), int(steps[1]), int(steps[2])), affine)

    @property
    def step_mm(self) -> float:
        """Distance of neighboring points, mm."""
        return float(self.affine[0, 0])

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Convert (n, 3) world points to (3, n) fractional lattice indices."""
        return ((points - self.affine[:3, 3]) / self.step_mm).T

    def cells(self, points: np.ndarray) -> np.ndarray:
        """Find the (n,) flat index of the lattice point nearest to each of (n, 3) world points."""
        top = np.array(self.shape)[:, None] - 1
        nearest = np.clip(np.rint(self.indices(points)).astype(np.intp), 0, top)
        return np.ravel_multi_index(tuple(nearest), self.shape)

    def gather(self, cells: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sum (n,) values by lattice point.

        Parameters
        ----------
        cells : (n,) int ndarray
            Flat lattice indices, see `cells`.
        values : (n,) ndarray
            Values to sum.

        Returns
        -------
        (I, J, K) float64 ndarray
        """
        return np.bincount(cells, values, int(np.prod(self.shape))).reshape(self.shape)

    def sample(self, maps: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Interpolate maps linearly at world points.

        Parameters
        ----------
        maps : (m, I, J, K) ndarray
            Maps on this lattice.
        points : (n, 3) ndarray
            World coordinates, mm.

        Returns
        -------
        (m, n) float32 ndarray
        """
        at = self.indices(points)
        return np.stack([ndimage.map_coordinates(one, at, order=1, mode="nearest",
                                                 output=np.float32) for one in maps])

    def smooth(self, array: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Smooth a map by a Gaussian, plus a wide Gaussian and the mean with small weights.

        The additions keep the map positive far from all data. Numerator and denominator of a
        normalized convolution must be smoothed alike.

        Parameters
        ----------
        array : (I, J, K) ndarray
            Map on this lattice.
        sigma_mm : float
            Standard deviation of the Gaussian, mm.

        Returns
        -------
        (I, J, K) ndarray
        """
        sigma = sigma_mm / self.step_mm
        near = ndimage.gaussian_filter(array, sigma, mode="constant")
        far = ndimage.gaussian_filter(array, WIDE_SIGMA_FACTOR * sigma, mode="constant",
                                      truncate=2.0)
        return near + WIDE_WEIGHT * far + WIDE_WEIGHT ** 2 * array.mean()


@dataclass(frozen=True, eq=False)
class LocalStatistics:
    """Local statistics of each tissue at each lattice point.

    The first axis of all arrays is the tissue, in the order of `TISSUES`.

    Attributes
    ----------
    mean, std : (3, I, J, K) float32 ndarray
        Local mean and standard deviation, intensity units; > 0.
    mass : (3, I, J, K) float32 ndarray
        Amount of tissue near the point, in an arbitrary unit that all scans of one grid share.
    """

    mean: np.ndarray
    std: np.ndarray
    mass: np.ndarray

    def scaled(self, gain: float) -> LocalStatistics:
        """Return the statistics of an image that is `gain` times as bright."""
        return replace(self, mean=self.mean * np.float32(gain), std=self.std * np.float32(gain))


def world_points(volume: Volume, matrix: np.ndarray | None = None,
                 mask: np.ndarray | None = None) -> np.ndarray:
    """Compute the world coordinates of voxels.

    Parameters
    ----------
    volume : Volume
        Image whose grid is used.
    matrix : (4, 4) ndarray, optional
        Transform of the world coordinates, mm; identity by default.
    mask : (I, J, K) bool ndarray, optional
        Voxels to return; the volume's own mask by default.

    Returns
    -------
    (n, 3) float32 ndarray
        World coordinates, mm.
    """
    affine = volume.affine if matrix is None else np.asarray(matrix, np.float64) @ volume.affine
    voxels = np.argwhere(volume.require_mask() if mask is None else mask)
    return (voxels @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def stack_probabilities(maps: Mapping[str, np.ndarray], volume: Volume) -> np.ndarray:
    """Stack tissue probability maps in the order of `TISSUES` and check them against an image.

    Parameters
    ----------
    maps : mapping of str to (I, J, K) ndarray
        Probabilities of "CSF", "GM" and "WM", 0 to 1.
    volume : Volume
        The segmented image, with a brain mask.

    Returns
    -------
    (3, I, J, K) float32 ndarray

    Raises
    ------
    InputError
        If a tissue is missing or on another grid, or if the mask holds no tissue.
    """
    for name in TISSUES:
        if name not in maps or maps[name].shape != volume.shape:
            found = maps[name].shape if name in maps else "nothing"
            raise InputError(f"expected probabilities of {name} on the image's grid "
                             f"{volume.shape}, got {found}. Segment the image on its own grid.")
    probabilities = np.stack([np.asarray(maps[name], np.float32) for name in TISSUES])
    if not probabilities[:, volume.mask].any():
        raise InputError("expected tissue inside the brain mask, but the segmentation found none. "
                         "Check the image and its mask.")
    return probabilities


def measure(volume: Volume, probabilities: np.ndarray, lattice: Lattice, sigma_mm: float = 8.0
            ) -> LocalStatistics:
    """Estimate the local statistics of one image.

    Parameters
    ----------
    volume : Volume
        Image with a brain mask, in the world space of the lattice.
    probabilities : (3, I, J, K) ndarray
        Tissue probabilities on the volume's grid, 0 to 1.
    lattice : Lattice
        Grid of the result.
    sigma_mm : float
        Standard deviation of the Gaussian neighborhood, mm.

    Returns
    -------
    LocalStatistics
    """
    step = _sampling_step(int(np.count_nonzero(volume.require_mask())))
    points, values = world_points(volume)[::step], volume.in_mask()[::step]
    scale = max(float(np.median(np.abs(values))), 1e-30)
    maps = [_measure_tissue(values, one[volume.mask][::step], points, lattice, sigma_mm, scale)
            for one in probabilities]
    mean, std, mass = (np.stack(part).astype(np.float32) for part in zip(*maps))
    return LocalStatistics(mean, std, mass * np.float32(step))


def _sampling_step(voxels: int) -> int:
    """Use every n-th voxel; n is odd, so that all rows and slices take part."""
    return max(1, voxels // MAX_SAMPLED_VOXELS) | 1


def _measure_tissue(
    values: np.ndarray, probability: np.ndarray, points: np.ndarray, lattice: Lattice,
    sigma_mm: float, scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, std, mass) maps of one tissue; an absent tissue gets those of the whole brain."""
    chosen = probability > MIN_TISSUE_PROBABILITY
    if np.count_nonzero(chosen) < 10:
        chosen = np.ones_like(chosen)
        probability = np.full_like(probability, MIN_TISSUE_PROBABILITY)
    x, at = values[chosen].astype(np.float64), points[chosen]
    weight = probability[chosen].astype(np.float64) ** 2
    pure = x[weight >= 0.25] if (weight >= 0.25).any() else x
    center = np.full_like(x, np.median(pure))
    floor = 1e-4 * scale
    width = np.full_like(x, 2 * 1.4826 * np.median(np.abs(pure - center[0])) + floor)
    for _ in range(REWEIGHTING_ITERATIONS):
        mean, variance = _reweighted_moments(x, weight, at, center, width, lattice, sigma_mm)
        center, std = lattice.sample(
            np.stack([mean, TRUNCATED_STD_CORRECTION * np.sqrt(variance)]), at)
        width = np.maximum(std, floor).astype(np.float64)
    gathered = lattice.gather(lattice.cells(at), weight)
    mass = ndimage.gaussian_filter(gathered, sigma_mm / lattice.step_mm)
    return (np.maximum(mean, 0.01 * scale),
            np.maximum(TRUNCATED_STD_CORRECTION * np.sqrt(variance), floor), mass)


def _reweighted_moments(
    x: np.ndarray, weight: np.ndarray, at: np.ndarray, center: np.ndarray, width: np.ndarray,
    lattice: Lattice, sigma_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, variance) maps with bisquare weights about the last center and width."""
    cells = lattice.cells(at)
    distance = (x - center) / (OUTLIER_CUTOFF_STD * width)
    bisquare = weight * np.clip(1 - distance ** 2, 0, 1)
    near = weight * (np.abs(distance) < 1)
    total, first = (lattice.smooth(lattice.gather(cells, part), sigma_mm)
                    for part in (bisquare, bisquare * x))
    mean = first / total
    offset = x - lattice.sample(mean[None], at)[0]
    count, second = (lattice.smooth(lattice.gather(cells, part), sigma_mm)
                     for part in (near, near * offset ** 2))
    return mean, second / count


def relative_gain(own: LocalStatistics, reference: LocalStatistics) -> float:
    """Estimate the overall brightness of one image relative to another.

    The estimate is the weighted median of the ratio of local means, over GM and WM. CSF is left
    out because its amount depends on the brain mask.

    Parameters
    ----------
    own, reference : LocalStatistics
        Statistics on one lattice.

    Returns
    -------
    float
        Brightness of `own` over that of `reference`; > 0.
    """
    ratio = (own.mean[1:] / reference.mean[1:]).ravel()
    weight = np.minimum(own.mass[1:], reference.mass[1:]).ravel().astype(np.float64)
    order = np.argsort(ratio, kind="stable")
    cumulative = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(cumulative, cumulative[-1] / 2)])


def pool(scans: list[LocalStatistics]) -> tuple[LocalStatistics, list[float]]:
    """Average the statistics of a site's scans after removing each scan's gain.

    Parameters
    ----------
    scans : list of LocalStatistics
        Statistics of each scan on one lattice; at least one.

    Returns
    -------
    site : LocalStatistics
        Their mean, at the geometric mean of the scans' brightness.
    gains : list of float
        Brightness of each scan relative to the mean.
    """
    site, gains = scans[0], [1.0] * len(scans)
    for _ in range(3):
        gains = [relative_gain(one, site) for one in scans]
        site = _weighted_mean([one.scaled(1 / gain) for one, gain in zip(scans, gains)])
    mean_gain = float(np.exp(np.mean(np.log(gains))))
    return site.scaled(mean_gain), [gain / mean_gain for gain in gains]


def _weighted_mean(scans: list[LocalStatistics]) -> LocalStatistics:
    """Average statistics, weighting each scan by the tissue it has near the place."""
    tiny = 1e-6 * max(float(one.mass.max()) for one in scans)
    weights = np.stack([one.mass for one in scans]) + np.float32(tiny)
    weights /= weights.sum(axis=0)
    mean, std = (np.einsum("s...,s...->...", weights, np.stack(maps)) for maps in
                 ([one.mean for one in scans], [one.std for one in scans]))
    return LocalStatistics(mean, std, np.mean([one.mass for one in scans], axis=0))
