"""Where a head lies: native world -> template world, as one affine matrix.

Mutual information is the measure throughout, so any contrast will do. Three steps:

1. *search*: some hundred poses (rotations to 30 degrees, shifts about the centre of the head) are
   scored at 5 mm and the best few are followed downhill; this is what survives a tilted or shifted
   head, where a single start falls into the wrong valley;
2. *rigid* at 2 mm; 3. *affine* from there. Affine at once lets the template grow onto the scalp.

The template is brain-only and large; the search starts from a brain of typical size instead
(`TYPICAL_SCALE`). Matrices are (4, 4), RAS mm, and move native points to template points.
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
    "template_neighbourhood",
]

TYPICAL_SCALE = 1.1  # template size over typical brain size, per axis
SEARCH_SPACING_MM = 5
WORKING_SPACING_MM = 2
BINS = 32
TILT_DEG = 25.0  # between the starting poses; the valley of each is wider than half of this
HEAD_HEIGHT_MM = 170.0  # from the crown to below the brain; what lies lower is neck


@dataclass(frozen=True, eq=False)
class Registration:
    """An affine to the template and how well it fits.

    Attributes
    ----------
    matrix : (4, 4) float64, native world -> template world, RAS mm
    mutual_information : nats, inside the template's brain mask at 2 mm; 0 for no relation
    scales : (3,) singular values of the matrix: how much the brain was stretched
    overlap : Dice of the brain mask brought along and the template's mask, None without a mask
    """

    matrix: np.ndarray
    mutual_information: float
    scales: tuple[float, float, float]
    overlap: float | None


def register_to_template(
    volume: Volume, initial: np.ndarray | None = None, *, seed: int = 0, sloppy: bool = False
) -> Registration:
    """Affine registration of a brain (volume with mask) to the template.

    Parameters
    ----------
    volume : bias-corrected image with its brain mask; outside the mask nothing is looked at
    initial : (4, 4) matrix to start from (that of the brain extraction); None searches the pose
    seed : of ANTs' sampling; same seed, same bits
    sloppy : 4 mm and few iterations, for tests

    Raises
    ------
    InputError
        If the volume has no mask, or an empty one.
    """
    if volume.mask is None or not volume.mask.any():
        raise InputError("registration needs a brain mask, not an empty one. Extract it first.")
    brain = volume.with_data(np.where(volume.mask, np.maximum(volume.data, 0), 0))
    moving = working_copy(brain, 4 if sloppy else WORKING_SPACING_MM)
    template = load_template(4 if sloppy else WORKING_SPACING_MM)
    matrix = search_pose(brain, sloppy=sloppy) if initial is None else np.asarray(initial, float)
    near = template_neighbourhood(template, 6.0)
    matrix = refine_linear("Affine", moving, template, near, matrix, seed=seed, sloppy=sloppy)
    moved = resample(moving, template, matrix)
    overlap = 2 * (moved.mask & template.mask).sum() / (moved.mask.sum() + template.mask.sum())
    return Registration(
        matrix,
        mutual_information(template.data[template.mask], moved.data[template.mask]),
        affine_scales(matrix),
        float(overlap),
    )


def affine_scales(matrix: np.ndarray) -> tuple[float, float, float]:
    """Singular values of the matrix, large to small: stretch of the brain along three axes."""
    values = np.linalg.svd(np.asarray(matrix)[:3, :3], compute_uv=False)
    return tuple(float(v) for v in values)  # type: ignore[return-value]


def working_copy(volume: Volume, spacing_mm: float, *, clip: bool = True) -> Volume:
    """The volume on cubic voxels of `spacing_mm`, anti-aliased; intensities cut at 0.5 and 99.5 %
    of the positive ones and scaled to 0..1, so that hot vessels do not eat the histogram.
    """
    small = resample(volume, isotropic_grid(volume, spacing_mm), antialias=True)
    if not clip:
        return small
    positive = small.data[small.data > 0]
    low, high = np.percentile(positive, (0.5, 99.5)) if positive.size else (0.0, 1.0)
    scaled = (small.data - low) / max(float(high - low), 1e-12)
    return small.with_data(np.clip(scaled, 0, 1))


def mutual_information(first: np.ndarray, second: np.ndarray, bins: int = BINS) -> float:
    """Mutual information of two equally long samples, nats, from a `bins` x `bins` histogram."""
    one, two = _quantised(first, bins), _quantised(second, bins)
    return _information(np.bincount(one * bins + two, minlength=bins * bins), bins)


def search_pose(volume: Volume, *, sloppy: bool = False) -> np.ndarray:
    """(4, 4) native -> template matrix (rotation, shift, one scale) found from many starts.

    Works on whole heads and on brains, at any contrast. Survives tilts to 30 degrees and shifts of
    any size: the start lies at the centre of the head, not of the grid. Deterministic, no seed.
    """
    moving = working_copy(volume, SEARCH_SPACING_MM)
    score = _PoseScore(load_template(SEARCH_SPACING_MM), moving)
    starts = [np.r_[rotation, shift] for rotation in _rotations(sloppy) for shift in _shifts()]
    values = [score(start) for start in starts]
    chosen = _apart([starts[i] for i in np.argsort(values, kind="stable")], 2 if sloppy else 5)
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
    """One ANTs stage from `initial`: kind 'Rigid' or 'Affine', metric inside `mask` (template).

    Returns the (4, 4) native -> template matrix.
    """
    ants = ants_module()
    seed_ants(seed)
    levels = dict(aff_iterations=(30, 10), aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0))
    if not sloppy:
        levels = dict(
            aff_iterations=(500, 200, 50), aff_shrink_factors=(2, 2, 1),
            aff_smoothing_sigmas=(2, 1, 0),
        )
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
    """An ANTs matrix transform (template -> native points, LPS) as a native -> template matrix."""
    numbers, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)[:3]
    inner = np.eye(4)
    inner[:3, :3] = numbers[:9].reshape(3, 3)
    inner[:3, 3] = numbers[9:12] + centre - inner[:3, :3] @ centre
    return LPS @ np.linalg.inv(inner) @ LPS


class _PoseScore:
    """Minus the mutual information of template and head for a pose (rotvec rad, shift mm).

    A pose moves template points about the template's centre, shrinks them by the typical scale and
    puts them at the head's centre plus the shift. A seventh number, where given, is the logarithm
    of a further scale.
    """

    def __init__(self, template: Volume, moving: Volume) -> None:
        near = np.argwhere(template_neighbourhood(template, 8.0))
        self.points = (template.affine @ np.c_[near, np.ones(len(near))].T)[:3]
        values = template.data[tuple(near.T)]
        self.template_bins = _quantised(values, BINS) * BINS
        self.template_centre = self.points[:, values > 0].mean(axis=1)
        self.head_centre = _head_centre(moving)
        self.data = ndimage.gaussian_filter(moving.data, 0.7)
        self.to_voxels = np.linalg.inv(moving.affine)

    def matrix(self, pose: np.ndarray) -> np.ndarray:
        """(4, 4) template world -> native world."""
        scale = np.exp(pose[6]) if len(pose) > 6 else 1.0
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(pose[:3]).as_matrix() * scale / TYPICAL_SCALE
        matrix[:3, 3] = self.head_centre + pose[3:6] - matrix[:3, :3] @ self.template_centre
        return matrix

    def __call__(self, pose: np.ndarray) -> float:
        place = self.to_voxels @ self.matrix(pose)
        where = place[:3, :3] @ self.points + place[:3, 3:]
        values = ndimage.map_coordinates(self.data, where, order=1, mode="constant", cval=0.0)
        joint = np.bincount(
            self.template_bins + (np.clip(values, 0, 1) * (BINS - 1) + 0.5).astype(np.intp),
            minlength=BINS * BINS,
        )
        return -_information(joint, BINS)


def _descend(score: _PoseScore, start: np.ndarray, evaluations: int) -> tuple[np.ndarray, float]:
    """Nelder-Mead from a start with steps of some degrees and millimetres: (pose, score)."""
    steps = np.diag([0.15, 0.15, 0.15, 10.0, 10.0, 10.0])
    simplex = np.vstack([start, start + steps])
    result = minimize(
        score, start, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": evaluations, "xatol": 1e-3, "fatol": 1e-5},
    )
    return result.x, float(result.fun)


def _rotations(sloppy: bool) -> list[np.ndarray]:
    """Rotation vectors (rad): none, one axis, and (not sloppy) the eight mixed ones."""
    tilt = np.deg2rad(TILT_DEG)
    single = [sign * tilt * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
    mixed = [0.7 * tilt * np.array(signs) for signs in itertools.product((1, -1), repeat=3)]
    return [np.zeros(3), *single, *([] if sloppy else mixed)]


def _shifts() -> list[np.ndarray]:
    """Shifts of the brain's centre from the head's, mm: up and down, forth and back."""
    return [np.array([0.0, y, z]) for y in (-15.0, 5.0) for z in (-20.0, 0.0, 20.0, 40.0)]


def _apart(poses: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The first `count` poses that differ in rotation, in order."""
    chosen: list[np.ndarray] = []
    for pose in poses:
        if all(np.linalg.norm(pose[:3] - other[:3]) > 0.1 for other in chosen):
            chosen.append(pose)
        if len(chosen) == count:
            break
    return chosen


def _head_centre(moving: Volume) -> np.ndarray:
    """(3,) world mm: centre of the bright voxels within 170 mm of the crown."""
    level = 0.3 * moving.data[moving.data > 0].mean() if (moving.data > 0).any() else 0.0
    voxels = np.argwhere(moving.data > level)
    if not len(voxels):
        raise InputError("the image has no positive voxel; nothing can be registered. Check it.")
    points = (moving.affine @ np.c_[voxels, np.ones(len(voxels))].T)[:3]
    crown = np.percentile(points[2], 99.8)
    return points[:, points[2] > crown - HEAD_HEIGHT_MM].mean(axis=1)


def template_neighbourhood(template: Volume, margin_mm: float) -> np.ndarray:
    """The template's mask and all within `margin_mm` of it."""
    distance = ndimage.distance_transform_edt(~template.mask, sampling=template.spacing)
    return distance <= margin_mm


def _quantised(values: np.ndarray, bins: int) -> np.ndarray:
    """Bin numbers 0..bins-1 between the sample's minimum and maximum."""
    low, high = float(values.min()), float(values.max())
    scaled = (np.asarray(values, np.float64) - low) / max(high - low, 1e-12)
    return (scaled * (bins - 1) + 0.5).astype(np.intp)


def _information(counts: np.ndarray, bins: int) -> float:
    joint = counts.reshape(bins, bins) / max(int(counts.sum()), 1)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / product[some])).sum())
