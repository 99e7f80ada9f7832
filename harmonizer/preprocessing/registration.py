"""Affine registration of native space to template space.

Mutual information is the metric of all steps, so images of any contrast can be registered:

1. *Search*: about a hundred poses (rotations to 30 degrees, shifts about the center of the head)
   are scored at 5 mm, and the best few are optimized. A single start would end in a local optimum
   for tilted or shifted heads.
2. *Rigid* registration at 2 mm.
3. *Affine* registration from there. Without the rigid step, the template grows onto the scalp.

The template shows a brain only and is large; the search therefore assumes a brain of typical size
(`TYPICAL_SCALE`). Matrices are (4, 4), RAS mm, and map native points to template points.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from ..errors import InputError
from ..template import load_template
from ..volume import Volume
from .ants_bridge import LPS, ants_module, seed_ants, to_ants
from .transforms import isotropic_grid, resample, write_itk_affine

__all__ = [
    "Registration",
    "register_to_template",
    "search_pose",
    "refine_linear",
    "mutual_information",
    "affine_scales",
    "working_copy",
    "template_neighborhood",
]

TYPICAL_SCALE = 1.1  # template size over typical brain size, per axis
SEARCH_SPACING_MM = 5
WORKING_SPACING_MM = 2
N_BINS = 32
STARTING_TILT_DEG = 25.0  # between the starting poses, less than the width of an optimum
HEAD_HEIGHT_MM = 170.0  # from the top of the head to below the brain


@dataclass(frozen=True, eq=False)
class Registration:
    """Affine to the template, and measures of its fit.

    Attributes
    ----------
    matrix : (4, 4) float64 ndarray
        Native world to template world, RAS mm.
    mutual_information : float
        Mutual information inside the template's brain mask at 2 mm, nats; 0 or more.
    scales : tuple of float
        Singular values of the matrix: stretch of the brain along three axes.
    overlap : float or None
        Dice coefficient of the registered brain mask and the template's mask, 0 to 1.
    """

    matrix: np.ndarray
    mutual_information: float
    scales: tuple[float, float, float]
    overlap: float | None


def register_to_template(
    volume: Volume, initial: np.ndarray | None = None, *, seed: int = 0, sloppy: bool = False
) -> Registration:
    """Register a brain to the template by an affine.

    Parameters
    ----------
    volume : Volume
        Bias-corrected image with a brain mask; voxels outside the mask are ignored.
    initial : (4, 4) ndarray, optional
        Initial matrix, usually that of the brain extraction; by default the pose is searched.
    seed : int
        Seed of the sampling of ANTs; the same seed gives the same bits.
    sloppy : bool
        4 mm and few iterations, for tests.

    Returns
    -------
    Registration

    Raises
    ------
    InputError
        If the mask is missing or empty.
    """
    if volume.mask is None or not volume.mask.any():
        raise InputError("registration needs a brain mask, got none or an empty one. Extract the "
                         "brain first.")
    brain = volume.with_data(np.where(volume.mask, np.maximum(volume.data, 0), 0))
    moving = working_copy(brain, 4 if sloppy else WORKING_SPACING_MM)
    template = load_template(4 if sloppy else WORKING_SPACING_MM)
    matrix = search_pose(brain, sloppy=sloppy) if initial is None else np.asarray(initial, float)
    near = template_neighborhood(template, 6.0)
    matrix = refine_linear("Affine", moving, template, near, matrix, seed=seed, sloppy=sloppy)
    resampled = resample(moving, template, matrix)
    both = resampled.require_mask() & template.require_mask()
    overlap = 2 * both.sum() / (resampled.require_mask().sum() + template.require_mask().sum())
    return Registration(
        matrix,
        mutual_information(template.data[template.mask], resampled.data[template.mask]),
        affine_scales(matrix),
        float(overlap),
    )


def affine_scales(matrix: np.ndarray) -> tuple[float, float, float]:
    """Return the singular values of a matrix, in descending order: stretch along three axes."""
    values = np.linalg.svd(np.asarray(matrix)[:3, :3], compute_uv=False)
    return tuple(float(v) for v in values)  # type: ignore[return-value]


def working_copy(volume: Volume, spacing_mm: float, *, clip: bool = True) -> Volume:
    """Resample a volume to cubic voxels for registration.

    The 0.5 and 99.5 % quantiles of the positive intensities are scaled to 0..1, so that bright
    vessels do not determine the bins of a histogram.

    Parameters
    ----------
    volume : Volume
        The image; a mask is resampled too.
    spacing_mm : float
        Voxel size, mm.
    clip : bool
        Scale and clip the intensities.

    Returns
    -------
    Volume
    """
    small = resample(volume, isotropic_grid(volume, spacing_mm), antialias=True)
    if not clip:
        return small
    positive = small.data[small.data > 0]
    low, high = np.percentile(positive, (0.5, 99.5)) if positive.size else (0.0, 1.0)
    scaled = (small.data - low) / max(float(high - low), 1e-12)
    return small.with_data(np.clip(scaled, 0, 1))


def mutual_information(first: np.ndarray, second: np.ndarray, bins: int = N_BINS) -> float:
    """Compute the mutual information of two samples from a joint histogram.

    Parameters
    ----------
    first, second : (n,) ndarray
        The samples.
    bins : int
        Bins along each axis of the histogram.

    Returns
    -------
    float
        Nats; 0 or more.
    """
    one, two = _quantize(first, bins), _quantize(second, bins)
    return _joint_information(np.bincount(one * bins + two, minlength=bins * bins), bins)


def search_pose(volume: Volume, *, sloppy: bool = False) -> np.ndarray:
    """Search the pose of a head or brain from many starting points.

    Handles tilts to 30 degrees and shifts of any size, because the starting points lie at the
    center of the head, not of the grid. Deterministic.

    Parameters
    ----------
    volume : Volume
        Whole head or brain, any contrast.
    sloppy : bool
        Use fewer starting points, for tests.

    Returns
    -------
    (4, 4) ndarray
        Native to template: rotation, translation and one scale.
    """
    moving = working_copy(volume, SEARCH_SPACING_MM)
    score = _PoseScore(load_template(SEARCH_SPACING_MM), moving)
    starts = [np.r_[rotation, shift] for rotation in _rotations(sloppy) for shift in _shifts()]
    values = [score(start) for start in starts]
    ordered = [starts[i] for i in np.argsort(values, kind="stable")]
    chosen = _distinct_poses(ordered, 2 if sloppy else 5)
    ends = [_descend(score, start, 60 if sloppy else 250) for start in chosen]
    best = min(ends, key=lambda end: end[1])[0]
    return np.linalg.inv(score.matrix(best))


def refine_linear(
    kind: str,
    moving: Volume,
    template: Volume,
    mask: np.ndarray,
    initial: np.ndarray,
    *,
    seed: int = 0,
    sloppy: bool = False,
) -> np.ndarray:
    """Run one linear ANTs registration from an initial matrix.

    Parameters
    ----------
    kind : str
        'Rigid' or 'Affine'.
    moving, template : Volume
        Moving and fixed image.
    mask : (I, J, K) bool ndarray
        Region of the metric, on the grid of `template`.
    initial : (4, 4) ndarray
        Initial matrix, moving to fixed, RAS mm.
    seed : int
        Seed of the sampling of ANTs.
    sloppy : bool
        Few iterations, for tests.

    Returns
    -------
    (4, 4) ndarray
        Moving to fixed, RAS mm.
    """
    ants = ants_module()
    seed_ants(seed)
    levels: dict[str, tuple[int, ...]] = {
        "aff_iterations": (30, 10), "aff_shrink_factors": (2, 1), "aff_smoothing_sigmas": (1, 0),
    } if sloppy else {
        "aff_iterations": (500, 200, 50), "aff_shrink_factors": (2, 2, 1),
        "aff_smoothing_sigmas": (2, 1, 0),
    }
    with tempfile.TemporaryDirectory(prefix="harmonizer-") as folder:
        start = write_itk_affine(Path(folder) / "start.txt", initial)
        result = ants.registration(
            fixed=to_ants(template), moving=to_ants(moving), type_of_transform=kind,
            initial_transform=str(start), mask=to_ants(template, mask), mask_all_stages=True,
            outprefix=f"{folder}/", grad_step=0.1, aff_metric="mattes", aff_sampling=32,
            aff_random_sampling_rate=0.25, **levels,
        )
        return _matrix_of(ants.read_transform(result["fwdtransforms"][0]))


def _matrix_of(transform: Any) -> np.ndarray:
    """Convert an ANTs transform (template to native points, LPS) to a native to template matrix."""
    numbers, center = np.array(transform.parameters), np.array(transform.fixed_parameters)[:3]
    inner = np.eye(4)
    inner[:3, :3] = numbers[:9].reshape(3, 3)
    inner[:3, 3] = numbers[9:12] + center - inner[:3, :3] @ center
    return LPS @ np.linalg.inv(inner) @ LPS


class _PoseScore:
    """Negative mutual information of template and head for a pose (rotation vector rad, shift mm).

    A pose rotates template points about the template's center, shrinks them by the typical scale
    and moves them to the head's center plus the shift. An optional seventh parameter is the
    logarithm of a further scale.
    """

    def __init__(self, template: Volume, moving: Volume) -> None:
        near = np.argwhere(template_neighborhood(template, 8.0))
        self.points = (template.affine @ np.c_[near, np.ones(len(near))].T)[:3]
        values = template.data[tuple(near.T)]
        self.template_bins = _quantize(values, N_BINS) * N_BINS
        self.template_center = self.points[:, values > 0].mean(axis=1)
        self.head_center = _head_center(moving)
        self.data = ndimage.gaussian_filter(moving.data, 0.7)
        self.to_voxels = np.linalg.inv(moving.affine)

    def matrix(self, pose: np.ndarray) -> np.ndarray:
        """(4, 4) template world -> native world."""
        scale = np.exp(pose[6]) if len(pose) > 6 else 1.0
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(pose[:3]).as_matrix() * scale / TYPICAL_SCALE
        matrix[:3, 3] = self.head_center + pose[3:6] - matrix[:3, :3] @ self.template_center
        return matrix

    def __call__(self, pose: np.ndarray) -> float:
        place = self.to_voxels @ self.matrix(pose)
        where = place[:3, :3] @ self.points + place[:3, 3:]
        values = ndimage.map_coordinates(self.data, where, order=1, mode="constant", cval=0.0)
        joint = np.bincount(
            self.template_bins + (np.clip(values, 0, 1) * (N_BINS - 1) + 0.5).astype(np.intp),
            minlength=N_BINS * N_BINS,
        )
        return -_joint_information(joint, N_BINS)


def _descend(score: _PoseScore, start: np.ndarray, evaluations: int) -> tuple[np.ndarray, float]:
    """Minimize the score by Nelder-Mead with initial steps of degrees and millimeters."""
    steps = np.diag([0.15, 0.15, 0.15, 10.0, 10.0, 10.0])
    simplex = np.vstack([start, start + steps])
    result = minimize(
        score, start, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": evaluations, "xatol": 1e-3, "fatol": 1e-5},
    )
    return result.x, float(result.fun)


def _rotations(sloppy: bool) -> list[np.ndarray]:
    """Rotation vectors (rad) of the starting points: none, single axes, mixed if not sloppy."""
    tilt = np.deg2rad(STARTING_TILT_DEG)
    single = [sign * tilt * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
    mixed = [0.7 * tilt * np.array(signs) for signs in itertools.product((1, -1), repeat=3)]
    return [np.zeros(3), *single, *([] if sloppy else mixed)]


def _shifts() -> list[np.ndarray]:
    """Shifts (mm) of the brain's center from the head's center: anterior and superior."""
    return [np.array([0.0, y, z]) for y in (-15.0, 5.0) for z in (-20.0, 0.0, 20.0, 40.0)]


def _distinct_poses(poses: list[np.ndarray], count: int) -> list[np.ndarray]:
    """First `count` poses that differ in rotation, in order."""
    chosen: list[np.ndarray] = []
    for pose in poses:
        if all(np.linalg.norm(pose[:3] - other[:3]) > 0.1 for other in chosen):
            chosen.append(pose)
        if len(chosen) == count:
            break
    return chosen


def _head_center(moving: Volume) -> np.ndarray:
    """(3,) world mm: mean of the bright voxels within 170 mm below the top of the head."""
    level = 0.3 * moving.data[moving.data > 0].mean() if (moving.data > 0).any() else 0.0
    voxels = np.argwhere(moving.data > level)
    if not len(voxels):
        raise InputError("registration needs positive voxels, the image has none. Check the "
                         "image.")
    points = (moving.affine @ np.c_[voxels, np.ones(len(voxels))].T)[:3]
    crown = np.percentile(points[2], 99.8)
    return points[:, points[2] > crown - HEAD_HEIGHT_MM].mean(axis=1)


def template_neighborhood(template: Volume, margin_mm: float) -> np.ndarray:
    """Dilate the mask of a volume by a margin.

    Parameters
    ----------
    template : Volume
        Volume with a mask.
    margin_mm : float
        The margin, mm.

    Returns
    -------
    (I, J, K) bool ndarray
    """
    distance = ndimage.distance_transform_edt(~template.require_mask(), sampling=template.spacing)
    return distance <= margin_mm


def _quantize(values: np.ndarray, bins: int) -> np.ndarray:
    """Bin numbers 0..bins-1 between the sample's minimum and maximum."""
    low, high = float(values.min()), float(values.max())
    scaled = (np.asarray(values, np.float64) - low) / max(high - low, 1e-12)
    return (scaled * (bins - 1) + 0.5).astype(np.intp)


def _joint_information(counts: np.ndarray, bins: int) -> float:
    joint = counts.reshape(bins, bins) / max(int(counts.sum()), 1)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / product[some])).sum())
