"""Affine matrices between world spaces, ITK transform files, and resampling.

A *matrix* is (4, 4), RAS mm, and maps **points of the source's world to the target's world**. For
example, `register_to_template(...).matrix` maps native points to template points.

ITK stores the inverse: a transform that resamples an image of the source on the target's grid maps
*target* points to *source* points, in LPS. `write_itk_affine` therefore writes the inverse of the
matrix, and `ants.apply_transforms(fixed=target, moving=source, transformlist=[path])` does what
`resample(source, target, matrix)` does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..bounding_box import BoundingBox
from ..errors import InputError
from ..files import write_text
from ..volume import Volume
from .ants_bridge import LPS

__all__ = [
    "resample",
    "resample_mask",
    "isotropic_grid",
    "write_itk_affine",
    "read_itk_affine",
]

GRID_TOLERANCE_VOXELS = 1e-4  # a grid that is off by less is not interpolated


def resample(
    volume: Volume,
    reference: Volume,
    matrix: np.ndarray | None = None,
    *,
    order: int = 1,
    antialias: bool = False,
) -> Volume:
    """Resample a volume to another grid.

    Uses scipy and is deterministic. No value lies beyond the range of the input and zero.

    Parameters
    ----------
    volume : Volume
        Source image. Its mask, if any, is resampled too (linear, threshold 0.5).
    reference : Volume
        Target grid; its intensities are not used.
    matrix : (4, 4) ndarray, optional
        World of the source to world of the target, RAS mm; identity by default.
    order : int
        0 nearest, 1 linear, 3 cubic. Cubic results are clipped to the input's range.
    antialias : bool
        Smooth first along the axes where the target's voxels are larger.

    Returns
    -------
    Volume
        On the reference's grid; 0 outside the source's field of view.
    """
    to_source = np.linalg.inv(volume.affine) @ _inverse(matrix) @ reference.affine
    data = _antialias(volume.data, to_source) if antialias else volume.data
    out = _resample_array(data, to_source, reference.shape, order)
    if order > 1:
        np.clip(out, min(float(volume.data.min()), 0.0), float(volume.data.max()), out=out)
    mask = None
    if volume.mask is not None:
        mask = _resample_array(volume.mask.astype(np.float32), to_source, reference.shape, 1) > 0.5
    return Volume(out, reference.affine, mask)


def resample_mask(
    mask: np.ndarray,
    affine: np.ndarray,
    reference: Volume,
    matrix: np.ndarray | None = None,
) -> np.ndarray:
    """Resample a mask to another grid (linear, threshold 0.5).

    Parameters
    ----------
    mask : (I, J, K) bool ndarray
        The mask.
    affine : (4, 4) ndarray
        Voxel indices of the mask to world, mm.
    reference : Volume
        Target grid.
    matrix : (4, 4) ndarray, optional
        World of the source to world of the target, RAS mm; identity by default.

    Returns
    -------
    bool ndarray
        On the reference's grid; False outside the mask's grid.
    """
    to_source = np.linalg.inv(affine) @ _inverse(matrix) @ reference.affine
    return _resample_array(np.asarray(mask, np.float32), to_source, reference.shape, 1) > 0.5


def isotropic_grid(volume: Volume, spacing_mm: float, margin_mm: float = 0.0) -> Volume:
    """Create an empty grid of cubic voxels along a volume's axes that covers it.

    Parameters
    ----------
    volume : Volume
        Volume to cover.
    spacing_mm, margin_mm : float
        Voxel size, and margin on each side, mm.

    Returns
    -------
    Volume
        All zeros.
    """
    spacing = volume.spacing
    extent = spacing * np.array(volume.shape) + 2 * margin_mm
    shape = np.maximum(np.ceil(extent / spacing_mm - 1e-6), 1).astype(int)
    axes = volume.affine[:3, :3] / spacing
    center = volume.affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = center - affine[:3, :3] @ ((shape - 1) / 2)
    return Volume(np.zeros(tuple(shape), np.float32), affine)


def write_itk_affine(path: str | os.PathLike[str], matrix: np.ndarray) -> Path:
    """Write a matrix as an ITK text transform that resamples the source on the target's grid.

    Parameters
    ----------
    path : path-like
        The file, `.txt`.
    matrix : (4, 4) ndarray
        Source to target points, RAS mm. Its inverse is written, in LPS.

    Returns
    -------
    Path
    """
    inner = LPS @ np.linalg.inv(_check_matrix(matrix)) @ LPS
    numbers = [*inner[:3, :3].ravel(), *inner[:3, 3]]
    text = (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {' '.join(repr(float(v)) for v in numbers)}\nFixedParameters: 0 0 0\n"
    )
    return write_text(path, text)


def read_itk_affine(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the matrix of an ITK text transform that holds one affine.

    Undoes `write_itk_affine`. A center of rotation (FixedParameters) is taken into account.

    Parameters
    ----------
    path : path-like
        The file, `.txt`.

    Returns
    -------
    (4, 4) ndarray
        Source to target points, RAS mm.

    Raises
    ------
    InputError
        If the file cannot be read or does not hold exactly one 3D matrix transform.
    """
    try:
        text = Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}). Give an ITK .txt.") from error
    parameters = re.findall(r"^Parameters:(.*)$", text, re.MULTILINE)
    fixed = re.findall(r"^FixedParameters:(.*)$", text, re.MULTILINE)
    if len(parameters) != 1 or len(parameters[0].split()) != 12:
        raise InputError(
            f"{path}: expected one ITK affine (12 numbers), got {len(parameters)} transforms. "
            "Give a file with a single affine; warps are not supported."
        )
    numbers = np.array(parameters[0].split(), dtype=float)
    center = np.array((fixed[0] if fixed else "0 0 0").split()[:3], dtype=float)
    inner = np.eye(4)
    inner[:3, :3] = numbers[:9].reshape(3, 3)
    inner[:3, 3] = numbers[9:] + center - inner[:3, :3] @ center
    return LPS @ np.linalg.inv(_check_matrix(inner)) @ LPS


def _check_matrix(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    sound = matrix.shape == (4, 4) and np.isfinite(matrix).all()
    if not sound or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise InputError(f"expected an invertible (4, 4) matrix, got {matrix!r}. Register again.")
    return matrix


def _inverse(matrix: np.ndarray | None) -> np.ndarray:
    return np.eye(4) if matrix is None else np.linalg.inv(_check_matrix(matrix))


def _resample_array(
    data: np.ndarray, to_source: np.ndarray, shape: tuple[int, ...], order: int
) -> np.ndarray:
    """Sample data at `to_source @ index` for every index of `shape`, as float32."""
    shift = np.rint(to_source[:3, 3])
    beside = np.abs(to_source[:3] - np.column_stack([np.eye(3), shift])) @ [*shape, 1]
    if beside.max() < GRID_TOLERANCE_VOXELS:
        box = BoundingBox(tuple(int(step) for step in shift), tuple(shape))
        return box.crop(data).astype(np.float32, copy=False)
    return ndimage.affine_transform(
        np.asarray(data, np.float32),
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=tuple(shape),
        output=np.float32,
        order=order,
        # Linear interpolation fades over half a voxel at the border. Cubic would ring far outside.
        mode="grid-constant" if order <= 1 else "constant",
        cval=0.0,
    )


def _antialias(data: np.ndarray, to_source: np.ndarray) -> np.ndarray:
    """Smooth along the source axes on which the target steps over more than one voxel.

    The footprint of a target voxel in source voxels is the row norm of `to_source`. The Gaussian
    widens the full width at half maximum of a source voxel to that of a target voxel.
    """
    step = np.linalg.norm(to_source[:3, :3], axis=1)
    sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / 2.355
    return ndimage.gaussian_filter(np.asarray(data, np.float32), sigma, truncate=3.0)
