"""`Volume`: a 3D image with its affine and brain mask; reading and writing of NIfTI.

This module is the only reader and writer of NIfTI. Functions that change intensities return
`volume.with_data(...)`, so that affine and mask remain the same objects.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .errors import InputError
from .files import atomic_path

__all__ = [
    "Volume", "affine_in_mm", "load_nifti", "mm_per_unit", "read_volume", "unit_name",
    "write_labels", "write_mask", "write_volume",
]

NIFTI_UNITS = {1: ("meters", 1e3), 2: ("mm", 1.0), 3: ("micrometers", 1e-3)}  # NIfTI: name, mm
VOXEL_SIZE_RANGE_MM = (0.05, 20.0)  # ex-vivo microscopy to thick localizer slices
MAX_EXTENT_MM = 1000.0  # along one axis of a head's image
AFFINE_TOLERANCE_MM = 1e-3  # two grids are the same if no voxel corner moves by more than this


@dataclass(frozen=True, eq=False)
class Volume:
    """3D image on one grid.

    Attributes
    ----------
    data : (I, J, K) float32 ndarray
        Intensities, read-only; in scanner units unless stated otherwise.
    affine : (4, 4) float64 ndarray
        Voxel indices to world, mm, RAS+; read-only.
    mask : (I, J, K) bool ndarray or None
        True inside the brain; read-only. It is given, never estimated here.

    Raises
    ------
    InputError
        If `data` is not 3D, the affine is not an invertible (4, 4) matrix, or the mask has another
        shape.
    """

    data: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _frozen(self.data, np.float32))
        object.__setattr__(self, "affine", _frozen(self.affine, np.float64))
        if self.data.ndim != 3:
            raise InputError(f"expected a 3D volume, got shape {self.data.shape}. Give one 3D "
                             "image.")
        if self.affine.shape != (4, 4) or abs(np.linalg.det(self.affine[:3, :3])) < 1e-12:
            raise InputError("expected an invertible (4, 4) affine. Repair the image's header.")
        if self.mask is not None:
            object.__setattr__(self, "mask", _frozen(self.mask, np.bool_))
            if self.mask.shape != self.data.shape:
                raise InputError(
                    f"mask of shape {self.mask.shape} does not fit the image of shape "
                    f"{self.data.shape}. Resample the mask to the image's grid."
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.data.shape

    @property
    def spacing(self) -> np.ndarray:
        """(3,) voxel size in mm."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    def in_mask(self) -> np.ndarray:
        """Return the (n,) float32 intensities inside the mask.

        Raises
        ------
        InputError
            If the volume has no mask.
        """
        return self.data[self.require_mask()]

    def require_mask(self) -> np.ndarray:
        """Return the (I, J, K) bool mask.

        Raises
        ------
        InputError
            If the volume has no mask.
        """
        if self.mask is None:
            raise InputError("this step needs a brain mask and the volume has none. Give a mask.")
        return self.mask

    def with_data(self, data: np.ndarray) -> Volume:
        """Return a volume with other intensities (I, J, K) on the same grid, with the same mask."""
        return replace(self, data=data)

    def with_mask(self, mask: np.ndarray | None) -> Volume:
        """Return a volume with the same intensities and another mask (I, J, K), or none."""
        return replace(self, mask=mask)

    def same_grid(self, other: Volume) -> bool:
        """Return whether another volume lies on the same grid, see `same_grid`."""
        return same_grid(self.shape, self.affine, other.shape, other.affine)


def same_grid(
    shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other: np.ndarray
) -> bool:
    """Return whether two grids have the same shape and no corner differs by over 0.001 mm."""
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.abs((affine - other) @ corners).max()) <= AFFINE_TOLERANCE_MM


def _frozen(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Read-only view in `dtype`, or the array itself; the caller's array stays writable."""
    if isinstance(array, np.ndarray) and array.dtype == dtype and not array.flags.writeable:
        return array
    view = np.asarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view


def load_nifti(path: str | os.PathLike[str]) -> Any:
    """Open an image with nibabel.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    nibabel image

    Raises
    ------
    InputError
        If the file is missing or cannot be opened; the message names it.
    """
    try:
        return nib.load(os.fspath(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Check the path.") from error
    except Exception as error:  # nibabel raises many kinds for broken files
        raise InputError(
            f"{path}: cannot be opened as an image ({_first_line(error)}). "
            "Expected NIfTI (.nii or .nii.gz); convert or re-export it."
        ) from error


def unit_name(image: Any) -> str:
    """Spatial unit that a header states, `mm` where it states none."""
    return _unit(image)[0]


def mm_per_unit(image: Any) -> float:
    """Length in mm of the unit of an image's affine, after its header (NIfTI xyzt_units).

    Micrometers and meters are believed where they give plausible voxel sizes. Where they do not
    and millimeters do, the affine is in millimeters.

    Raises
    ------
    InputError
        If neither gives voxel sizes of 0.05 to 20 mm in at most 1000 mm along each axis.
    """
    shape, (name, stated) = np.array(image.shape[:3]), _unit(image)
    sizes = np.linalg.norm(np.asarray(image.affine, np.float64)[:3, :3], axis=0)
    if not (np.isfinite(sizes).all() and sizes.all()):
        sizes = np.abs(np.asarray(image.header.get_zooms()[:3], np.float64))
    if len(shape) < 3 or not (np.isfinite(sizes).all() and sizes.all()):
        return stated  # no geometry at all, which is for others to refuse
    for scale in (stated, 1.0):
        if _is_plausible(sizes * scale, shape):
            return scale
    low, high = VOXEL_SIZE_RANGE_MM
    raise InputError(
        f"{image.get_filename()}: expected voxels of {low:g} to {high:g} mm and at most "
        f"{MAX_EXTENT_MM:g} mm along an axis, got voxels of {_product(sizes)} {name} and "
        f"{_product(sizes * shape)} {name} in all. Correct its affine or the unit in its header "
        "(xyzt_units), or exclude the image."
    )


def affine_in_mm(image: Any) -> np.ndarray:
    """(4, 4) float64 affine of a nibabel image, voxel indices -> world mm (see `mm_per_unit`)."""
    affine = np.array(image.affine, np.float64)
    affine[:3] *= mm_per_unit(image)
    return affine


def _unit(image: Any) -> tuple[str, float]:
    known = isinstance(image.header, nib.Nifti1Header)
    return NIFTI_UNITS.get(int(image.header["xyzt_units"]) & 7 if known else 2, NIFTI_UNITS[2])


def _is_plausible(sizes_mm: np.ndarray, shape: np.ndarray) -> bool:
    low, high = VOXEL_SIZE_RANGE_MM
    in_range = (low <= sizes_mm) & (sizes_mm <= high) & (sizes_mm * shape <= MAX_EXTENT_MM)
    return bool(in_range.all())


def _product(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def read_volume(
    path: str | os.PathLike[str], mask: str | os.PathLike[str] | None = None
) -> Volume:
    """Read an image, and its mask where a path is given.

    Accepts (I, J, K) and (I, J, K, 1). Data are scaled by the header's slope and intercept, and the
    affine to mm by its unit (`mm_per_unit`).

    Raises
    ------
    InputError
        If a file cannot be read, is not 3D, is empty, has implausible voxel sizes, or holds NaN or
        infinity, or if the mask lies on another grid.
    """
    image = load_nifti(path)
    affine = affine_in_mm(image)
    volume = Volume(_read_data(image, path), affine)
    return volume if mask is None else volume.with_mask(_read_mask(mask, volume))


def _read_data(image: Any, path: str | os.PathLike[str]) -> np.ndarray:
    """(I, J, K) float32 data of an image; raises InputError for unusable data."""
    shape = image.shape[:3] if image.shape[3:] in ((1,), (1, 1)) else image.shape
    if len(shape) != 3 or min(shape, default=0) < 2:
        raise InputError(f"{path}: expected one 3D image, got {image.shape}. Split or drop it.")
    try:
        data = np.asanyarray(image.dataobj, dtype=np.float32).reshape(shape)
    except Exception as error:  # truncated gzip, short file, odd dtype
        raise InputError(
            f"{path}: its voxels cannot be read ({_first_line(error)}). "
            "The file is probably truncated; copy it again."
        ) from error
    if not np.isfinite(data).all():
        count = int((~np.isfinite(data)).sum())
        raise InputError(f"{path}: holds {count} NaN or infinite voxels. Repair or drop it.")
    return data


def _read_mask(path: str | os.PathLike[str], volume: Volume) -> np.ndarray:
    image = load_nifti(path)
    affine = affine_in_mm(image)
    data = _read_data(image, path)
    if not same_grid(data.shape, affine, volume.shape, volume.affine):
        raise InputError(
            f"{path}: the mask's grid (shape {data.shape}) is not the image's (shape "
            f"{volume.shape}, or another affine). Resample the mask to the image."
        )
    return data > 0.5


def write_volume(
    path: str | os.PathLike[str], volume: Volume, *, header: Any = None, code: int | None = None
) -> Path:
    """Write intensities as float32, atomically.

    The bytes depend on the content alone (the gzip time is 0).

    Parameters
    ----------
    path : path-like
        The file, `.nii` or `.nii.gz`.
    volume : Volume
        Image to write. Its affine is written to the sform, and to the qform without shear.
    header : nibabel header, optional
        Source of the qform and sform codes.
    code : int, optional
        Value of both codes instead, such as 4 for MNI152.

    Returns
    -------
    Path
    """
    return _write(path, volume.data, volume.affine, header, code)


def write_mask(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    header: Any = None,
    code: int | None = None,
) -> Path:
    """Write a (I, J, K) mask as uint8 zeros and ones, atomically; see `write_volume`."""
    return _write(path, np.asarray(mask, dtype=np.bool_).astype(np.uint8), affine, header, code)


def write_labels(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    affine: np.ndarray,
    *,
    header: Any = None,
    code: int | None = None,
) -> Path:
    """Write (I, J, K) integer labels 0 to 255 as uint8, atomically; see `write_volume`."""
    return _write(path, np.asarray(labels).astype(np.uint8), affine, header, code)


def _write(
    path: str | os.PathLike[str], data: np.ndarray, affine: np.ndarray, header: Any,
    code: int | None,
) -> Path:
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    image.header.set_xyzt_units("mm", "sec")
    q_code, s_code = _codes(header) if code is None else (code, code)
    image.set_sform(affine, s_code)
    image.set_qform(affine, q_code, strip_shears=True)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def _codes(header: Any) -> tuple[int, int]:
    """Codes of qform and sform from a source header; a code of 0 becomes 1, as both are written."""
    if header is None:
        return 1, 1
    return int(header["qform_code"]) or 1, int(header["sform_code"]) or 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
