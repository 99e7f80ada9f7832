"""Matrices between worlds, ITK's text files, and resampling.

A *matrix* here is always (4, 4), RAS mm, and moves **points from the source's world to the target's
world**: `matrix = register_to_template(...)` maps native points to template points.

ITK stores the opposite: a transform that resamples an image of the source on the target's grid maps
*target* points back to *source* points, in LPS. So `write_itk_affine("..._from-T1w_to-MNI_
mode-image_xfm.txt", matrix)` writes the inverse of `matrix`, and
`ants.apply_transforms(fixed=target, moving=source, transformlist=[path])` does what
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

ON_VOXELS = 1e-4  # a grid that lies beside another's voxels by less takes their values


def resample(
    volume: Volume,
    reference: Volume,
    matrix: np.ndarray | None = None,
    *,
    order: int = 1,
    antialias: bool = False,
) -> Volume:
    """The volume on another grid; deterministic (scipy), no value beyond the input's range.

    Parameters
    ----------
    volume : source image; its mask, if any, comes along (linear, threshold 0.5)
    reference : the target grid (its intensities are not used)
    matrix : (4, 4) source world -> target world, RAS mm; identity if None
    order : 0 nearest, 1 linear, 3 cubic; cubic rings, so it is clipped to the input's range
    antialias : smooth first along the axes where the target's voxels are larger

    Returns
    -------
    Volume on the reference's grid, 0 outside the source's field of view
    """
    to_source = np.linalg.inv(volume.affine) @ _inverse(matrix) @ reference.affine
    data = _smoothed(volume.data, to_source) if antialias else volume.data
    out = _pull(data, to_source, reference.shape, order)
    if order > 1:
        np.clip(out, min(float(volume.data.min()), 0.0), float(volume.data.max()), out=out)
    mask = None
    if volume.mask is not None:
        mask = _pull(volume.mask.astype(np.float32), to_source, reference.shape, 1) > 0.5
    return Volume(out, reference.affine, mask)


def resample_mask(
    mask: np.ndarray,
    affine: np.ndarray,
    reference: Volume,
    matrix: np.ndarray | None = None,
) -> np.ndarray:
    """A (I, J, K) bool mask on another grid: linear, threshold 0.5; False outside its grid."""
    to_source = np.linalg.inv(affine) @ _inverse(matrix) @ reference.affine
    return _pull(np.asarray(mask, np.float32), to_source, reference.shape, 1) > 0.5


def isotropic_grid(volume: Volume, spacing_mm: float, margin_mm: float = 0.0) -> Volume:
    """An empty grid of cubic voxels along the volume's own axes that covers it and a margin."""
    spacing = volume.spacing
    extent = spacing * np.array(volume.shape) + 2 * margin_mm
    shape = np.maximum(np.ceil(extent / spacing_mm - 1e-6), 1).astype(int)
    axes = volume.affine[:3, :3] / spacing
    centre = volume.affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Volume(np.zeros(tuple(shape), np.float32), affine)


def write_itk_affine(path: str | os.PathLike[str], matrix: np.ndarray) -> Path:
    """Write (4, 4) `matrix` (source -> target points, RAS mm) as the ITK text transform (.txt)
    that resamples an image of the source on the target's grid: its inverse, in LPS.
    """
    inner = LPS @ np.linalg.inv(_checked(matrix)) @ LPS
    numbers = [*inner[:3, :3].ravel(), *inner[:3, 3]]
    text = (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {' '.join(repr(float(v)) for v in numbers)}\nFixedParameters: 0 0 0\n"
    )
    return write_text(path, text)


def read_itk_affine(path: str | os.PathLike[str]) -> np.ndarray:
    """The (4, 4) source -> target matrix (RAS mm) of an ITK text transform of one affine.

    Undoes `write_itk_affine`; a centre of rotation (FixedParameters) is taken into account.

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
            f"{path}: expected one ITK affine (12 numbers), found {len(parameters)} transforms; "
            "warps and lists of transforms are not read here."
        )
    numbers = np.array(parameters[0].split(), dtype=float)
    centre = np.array((fixed[0] if fixed else "0 0 0").split()[:3], dtype=float)
    inner = np.eye(4)
    inner[:3, :3] = numbers[:9].reshape(3, 3)
    inner[:3, 3] = numbers[9:] + centre - inner[:3, :3] @ centre
    return LPS @ np.linalg.inv(_checked(inner)) @ LPS


def _checked(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    sound = matrix.shape == (4, 4) and np.isfinite(matrix).all()
    if not sound or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise InputError(f"expected an invertible (4, 4) matrix, got {matrix!r}. Register again.")
    return matrix


def _inverse(matrix: np.ndarray | None) -> np.ndarray:
    return np.eye(4) if matrix is None else np.linalg.inv(_checked(matrix))


def _pull(
    data: np.ndarray, to_source: np.ndarray, shape: tuple[int, ...], order: int
) -> np.ndarray:
    """data at `to_source @ index` for every index of `shape`, float32."""
    shift = np.rint(to_source[:3, 3])
    beside = np.abs(to_source[:3] - np.column_stack([np.eye(3), shift])) @ [*shape, 1]
    if beside.max() < ON_VOXELS:
        box = BoundingBox(tuple(int(step) for step in shift), tuple(shape))
        return box.crop(data).astype(np.float32, copy=False)
    return ndimage.affine_transform(
        np.asarray(data, np.float32),
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=tuple(shape),
        output=np.float32,
        order=order,
        # linear fades over half a voxel at the border; a cubic one would ring far outside of it
        mode="grid-constant" if order <= 1 else "constant",
        cval=0.0,
    )


def _smoothed(data: np.ndarray, to_source: np.ndarray) -> np.ndarray:
    """Blurred along the source axes that are stepped over by more than one voxel.

    The footprint of a target voxel in source voxels is the row norm of `to_source`; the Gaussian
    brings the full width at half maximum of a source voxel to that of a target voxel.
    """
    step = np.linalg.norm(to_source[:3, :3], axis=1)
    sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / 2.355
    return ndimage.gaussian_filter(np.asarray(data, np.float32), sigma, truncate=3.0)
