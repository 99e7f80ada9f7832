"""Conform an image: determine its affine and reorient it to RAS+; the inverse is exact.

All later steps get a 3D float32 volume with RAS+ axes. Reorientation only flips and permutes axes
and changes no voxel value. There is one exception. The air of a magnitude image is near zero, so a
negative constant under the whole image is removed and reported. It occurs in rescaled images and in
unsigned ones that were written as signed. N4 and the registration need intensities without it.

Which affine is used
--------------------
=====================  =====================  =========================  =======================
sform                  qform                  affine used                reported in `repairs`
=====================  =====================  =========================  =======================
code > 0, sound        any                    sform (nibabel's choice)   only if the qform differs
code > 0, sheared      code > 0, sound        qform                      yes
code > 0, singular     code > 0, sound        qform                      yes
code > 0, sheared      code 0                 sform, shear taken out     yes
code > 0, singular     code 0                 as "code 0, code 0"        yes
code 0                 code > 0               qform (nibabel's choice)   no
code 0                 code 0                 voxel sizes, x stored      yes: left and right are
                                              right to left, center at   an assumption
                                              (0, 0, 0) (nibabel's)
=====================  =====================  =========================  =======================

*Sheared*: two columns differ from a right angle by more than 0.001 in the cosine; ITK refuses such
grids. *Singular*: not invertible, or not finite. *Differs*: some voxel corner moves by over 0.1 mm.
(x, y, z, 1) and (x, y, z, 1, 1) are read as (x, y, z). Affines in micrometers or meters (NIfTI
xyzt_units) are brought to mm, which is reported; implausible voxel sizes are refused
(`harmonizer.volume.mm_per_unit`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from ..errors import InputError
from ..files import atomic_path
from ..volume import Volume, load_nifti, mm_per_unit, unit_name

__all__ = [
    "Conformed",
    "conform",
    "check_image",
    "to_original_grid",
    "original_image",
    "write_on_original_grid",
]

SHEAR_TOLERANCE = 1e-3  # cosine between two axes
DISAGREEMENT_MM = 0.1  # between the sform and the qform, at the worst corner
MIN_VOXELS = 8  # along every axis; fewer is a slice or a slab, not a head
MIN_OFFSET_FRACTION = 0.05  # of the intensity range; smaller ones come from resampling and noise
MAX_VOXELS = 1 << 29  # a head at 0.3 mm; protects the memory from a wrong header


@dataclass(frozen=True, eq=False)
class Conformed:
    """An image brought to RAS+ axes, with what is needed to go back.

    Attributes
    ----------
    volume : Volume, axes RAS+, intensities as stored (slope and intercept applied), without a
        negative offset
    source : the file that it came from
    original_shape : (3,) voxels along the stored axes
    original_affine : (4, 4) float64, stored voxel indices -> world mm; what nibabel gives for the
        file, bit for bit, unless `affine_repaired`
    orientation : (3, 2) nibabel orientation of the stored axes
    header : nibabel NIfTI header of the file (a copy)
    affine_repaired : whether the affine in use is not the one nibabel would take
    repairs : one sentence for each thing that was not taken as it stood
    """

    volume: Volume
    source: Path
    original_shape: tuple[int, int, int]
    original_affine: np.ndarray
    orientation: np.ndarray
    header: Any
    affine_repaired: bool
    repairs: tuple[str, ...]

    @property
    def original_axes(self) -> str:
        """Where the stored axes run to, for example 'LAS'."""
        return "".join(nib.orientations.ornt2axcodes(self.orientation))


def conform(source: str | os.PathLike[str] | nib.spatialimages.SpatialImage) -> Conformed:
    """Read an image, settle its geometry (truth table above) and turn its axes to RAS+.

    Parameters
    ----------
    source : path or nibabel image
        One 3D NIfTI image.

    Returns
    -------
    Conformed

    Raises
    ------
    InputError
        If the file cannot be opened, is not NIfTI, is not one 3D image of real numbers, is empty,
        constant, or holds NaN or infinity. The message names file, finding and remedy.
    """
    image, path = _open(source), _name_of(source)
    repairs: list[str] = []
    shape = _spatial_shape(image, path)
    if len(image.shape) > 3:
        repairs.append(f"shape {image.shape} was read as {shape}")
    affine, repaired = _settle_affine(image, shape, path, repairs)
    data = _without_offset(_read(image, shape, path), repairs)
    orientation = io_orientation(affine)
    volume = Volume(
        np.ascontiguousarray(apply_orientation(data, orientation)),
        affine @ inv_ornt_aff(orientation, shape),
    )
    return Conformed(
        volume, Path(path), shape, affine, orientation, image.header.copy(), repaired,
        tuple(repairs),
    )


def check_image(path: str | os.PathLike[str], *, read_data: bool = True) -> None:
    """Check an image before any processing: raise the `InputError` that `conform` would raise.

    Parameters
    ----------
    path : path-like
        The file.
    read_data : bool
        Read the voxels too (about 0.2 s for a 1 mm head); otherwise only the header.
    """
    image = _open(path)
    shape = _spatial_shape(image, path)
    _settle_affine(image, shape, path, [])
    if read_data:
        _read(image, shape, path)


def to_original_grid(array: np.ndarray, conformed: Conformed) -> np.ndarray:
    """(I, J, K) array on the RAS+ grid -> the stored axes; exactly undoes the reorientation."""
    if array.shape != conformed.volume.shape:
        raise InputError(
            f"expected an array of shape {conformed.volume.shape} on the conformed grid, "
            f"got {array.shape}. Resample it to that grid first."
        )
    back = nib.orientations.ornt_transform(
        io_orientation(conformed.volume.affine), conformed.orientation
    )
    return np.ascontiguousarray(apply_orientation(array, back))


def original_image(array: np.ndarray, conformed: Conformed) -> nib.Nifti1Image:
    """Create a NIfTI image on the stored grid, with the affine of the source.

    `array` lies on the RAS+ grid; bool becomes uint8, other types are kept. sform, qform, their
    codes and the units are copied, so nibabel reads the affine of the source bit for bit. An affine
    that was repaired is written to both, with code 1.
    """
    data = to_original_grid(array, conformed)
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    image = nib.Nifti1Image(data, None, header=_clean_header(conformed.header, data))
    if conformed.affine_repaired:
        image.set_sform(conformed.original_affine, 1)
        image.set_qform(conformed.original_affine, 1)
    return image


def write_on_original_grid(
    path: str | os.PathLike[str], array: np.ndarray, conformed: Conformed
) -> Path:
    """Write `original_image(array, conformed)` whole or not at all; return the path."""
    image = original_image(array, conformed)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def _clean_header(source: Any, data: np.ndarray) -> nib.Nifti1Header:
    """Copy only the geometry of a header: no slope, no display range, no extensions."""
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][:4] = source["pixdim"][:4]
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
                  "srow_x", "srow_y", "srow_z", "qform_code", "sform_code"):
        header[field] = source[field]
    return header


def _name_of(source: Any) -> Path:
    """Return the file of an image for messages; "image" if it is in memory only."""
    if isinstance(source, nib.spatialimages.SpatialImage):
        return Path(source.get_filename() or "image")
    return Path(source)


def _open(source: str | os.PathLike[str] | nib.spatialimages.SpatialImage) -> Any:
    path = _name_of(source)
    image = source if isinstance(source, nib.spatialimages.SpatialImage) else load_nifti(path)
    if not isinstance(image, (nib.Nifti1Pair, nib.Nifti2Pair)):
        raise InputError(
            f"{path}: expected NIfTI, got {type(image).__name__}. "
            "Convert it to .nii.gz (BIDS allows nothing else)."
        )
    dtype = image.get_data_dtype()
    if dtype.names is not None or dtype.kind not in "iuf":
        raise InputError(
            f"{path}: its voxels are {dtype}, not one real number each. "
            "Export the magnitude image instead of color or complex data."
        )
    return image


def _spatial_shape(image: Any, path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Return the shape (I, J, K) of one 3D image; refuse anything else."""
    shape = tuple(int(n) for n in image.shape)
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        shape = shape[:3]
    if 0 in shape:
        raise InputError(f"{path}: is empty (shape {image.shape}). Re-export or drop it.")
    if len(shape) > 3:
        raise InputError(
            f"{path}: expected one 3D image, got {len(shape)}D of shape {image.shape}. "
            "Keep a single volume (for example the mean or the first echo)."
        )
    if len(shape) < 3 or min(shape) < 2:
        raise InputError(
            f"{path}: is a 2D image (shape {image.shape}), expected 3D. Give the whole stack."
        )
    if min(shape) < MIN_VOXELS:
        raise InputError(
            f"{path}: has only {min(shape)} voxels along one axis (shape {image.shape}); a head "
            f"needs at least {MIN_VOXELS}. Drop localizers and slabs from the dataset."
        )
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"{path}: claims {math.prod(shape):.3g} voxels (shape {shape}), a head has at most "
            f"{MAX_VOXELS:.3g}. Its header is probably broken; convert the DICOMs again."
        )
    return shape  # type: ignore[return-value]


def _read(image: Any, shape: tuple[int, ...], path: str | os.PathLike[str]) -> np.ndarray:
    """Read finite, non-constant float32 intensities (I, J, K)."""
    try:
        data = np.asanyarray(image.dataobj, dtype=np.float32).reshape(shape)
    except Exception as error:  # short file, broken gzip: nibabel and zlib raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: its voxels cannot be read ({reason}). "
            "The file is probably truncated; copy or download it again."
        ) from error
    low, high = float(data.min()), float(data.max())
    if not np.isfinite([low, high]).all():
        count = int((~np.isfinite(data)).sum())
        raise InputError(
            f"{path}: holds {count} NaN or infinite voxels of {data.size}. "
            "Replace them (for example by 0 outside the head) or exclude the image."
        )
    if low == high:
        raise InputError(
            f"{path}: is constant (every voxel is {low:g}). Re-export or exclude the image."
        )
    return data


def _without_offset(data: np.ndarray, repairs: list[str]) -> np.ndarray:
    """Remove a negative constant under the whole image; what was added goes to `repairs`.

    The faces of the image show the background: only an offset lies below zero there, and not the
    negative values of a brain whose intensities were standardized.
    """
    faces = np.concatenate([data.take((0, -1), axis=axis).ravel() for axis in range(3)])
    background = float(np.median(faces))
    if background >= 0:
        return data
    low, high = (float(value) for value in np.percentile(data, (0.1, 99.5)))
    if -background < MIN_OFFSET_FRACTION * (high - low):
        return data
    repairs.append(f"the background has intensity {background:g}; {-low:g} was added to all "
                   "voxels, so that it is near zero")
    return data - np.float32(low)


def _settle_affine(
    image: Any, shape: tuple[int, ...], path: str | os.PathLike[str], repairs: list[str]
) -> tuple[np.ndarray, bool]:
    """Return the affine by the table above, and whether it is not nibabel's; note repairs.

    Another affine is rounded to float32, the precision of a header.
    """
    scale = _unit_scale(image, repairs)
    affine, repaired = _settled(image, shape, path, repairs, scale)
    return (affine, repaired) if scale == 1.0 else (_as_stored(affine), True)


def _unit_scale(image: Any, repairs: list[str]) -> float:
    """Return the length of the affine's unit in mm; note a unit other than mm in `repairs`."""
    scale, unit = mm_per_unit(image), unit_name(image)
    if scale != 1.0:
        repairs.append(f"the affine is in {unit} (xyzt_units) and was brought to mm")
    elif unit != "mm":
        repairs.append(f"the header states {unit} (xyzt_units), which no head fits; mm were used")
    return scale


def _in_mm(affine: np.ndarray, scale: float) -> np.ndarray:
    """Scale the world axes of an affine."""
    return np.diag([scale, scale, scale, 1.0]) @ np.asarray(affine, np.float64)


def _settled(
    image: Any, shape: tuple[int, ...], path: str | os.PathLike[str], repairs: list[str],
    scale: float,
) -> tuple[np.ndarray, bool]:
    """Choose the affine with all affines scaled to mm."""
    header = image.header
    sform = _in_mm(header.get_sform(), scale) if header["sform_code"] > 0 else None
    qform = _qform(header, scale)
    if sform is None:
        if qform is None:
            return _without_codes(image, shape, path, repairs, scale), False
        return qform, False
    fault = _fault(sform)
    if fault is None:
        if qform is not None and _corner_distance(sform, qform, shape) > DISAGREEMENT_MM:
            repairs.append(
                f"sform and qform differ by up to {_corner_distance(sform, qform, shape):.1f} mm; "
                "the sform was used"
            )
        return sform, False
    if qform is not None:
        repairs.append(f"the sform is {fault}; the qform was used")
        return _as_stored(qform), True
    if fault == "sheared":
        repairs.append("the sform is sheared and there is no qform; its shear was taken out")
        return _as_stored(_without_shear(sform, shape)), True
    repairs.append(f"the sform is {fault} and there is no qform")
    return _as_stored(_without_codes(image, shape, path, repairs, scale)), True


def _qform(header: Any, scale: float) -> np.ndarray | None:
    """Return the qform in mm if it has a code and is sound, else None."""
    if header["qform_code"] <= 0:
        return None
    try:
        qform = _in_mm(header.get_qform(), scale)
    except Exception:  # nibabel raises for an impossible quaternion
        return None
    return qform if _fault(qform) is None else None


def _without_codes(
    image: Any, shape: tuple[int, ...], path: str | os.PathLike[str], repairs: list[str],
    scale: float,
) -> np.ndarray:
    """Return nibabel's fallback: voxel sizes, x stored right to left, center at (0, 0, 0)."""
    affine = _in_mm(image.header.get_base_affine(), scale)
    if _fault(affine) is not None:
        raise InputError(
            f"{path}: its header holds no usable geometry (voxel sizes "
            f"{tuple(float(z) for z in image.header.get_zooms()[:3])}). Convert the DICOMs again."
        )
    repairs.append(
        "neither sform nor qform is set: voxel sizes alone were used, x stored right to left, "
        "center at (0, 0, 0); left and right are an assumption"
    )
    return affine


def _fault(affine: np.ndarray) -> str | None:
    """Return 'singular', 'sheared', or None for a sound affine."""
    if not np.isfinite(affine).all():
        return "singular"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-3:
        return "singular"
    axes = affine[:3, :3] / spacing
    if abs(np.linalg.det(axes)) < 1e-3:
        return "singular"
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return "sheared" if cosines > SHEAR_TOLERANCE else None


def _without_shear(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the nearest grid with right angles (polar decomposition), same center and voxels."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    center = (np.array(shape) - 1) / 2
    straight[:3, 3] = affine[:3, :3] @ center + affine[:3, 3] - straight[:3, :3] @ center
    return straight


def _corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the largest movement of a voxel corner between two affines, mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    moved = (first - second)[:3, :3] @ corners + (first - second)[:3, 3:]
    return float(np.linalg.norm(moved, axis=0).max())


def _as_stored(affine: np.ndarray) -> np.ndarray:
    """Round an affine to float32, as in header fields."""
    return affine.astype(np.float32).astype(np.float64)
