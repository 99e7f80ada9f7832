"""A second visit to the same scanner, simulated: what two scans of one brain may differ by."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ...errors import InputError
from ...volume import Volume

__all__ = ["REGISTRATION_MM", "REGISTRATION_DEGREES", "noise_level", "resampled_noise",
           "simulated_rescan"]

REGISTRATION_MM = 0.3  # shift and
REGISTRATION_DEGREES = 0.3  # rotation that two registrations of one brain differ by


def noise_level(data: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of voxelwise noise, in intensity units, from third-order differences.

    Median absolute value of the second difference along all three axes, which anatomy seldom
    fills, scaled to a normal distribution (Immerkaer 1996, doi:10.1006/cviu.1996.0060, in 3D and
    robust). Noise that resampling has smoothed is underestimated: `resampled_noise` undoes that.
    """
    array = data.astype(np.float32)
    for axis in range(3):
        array = ndimage.correlate1d(array, [1.0, -2.0, 1.0], axis=axis, mode="nearest")
    inner = ndimage.binary_erosion(mask, iterations=2)
    values = array[inner if inner.any() else mask]
    return float(1.4826 * np.median(np.abs(values)) / np.sqrt(6.0**3))


def resampled_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(I, J, K) noise as one linear interpolation leaves white noise, with a `noise_level` of 1.

    Preprocessing brings a scan to the template's grid that way. What is left of the noise depends
    on where a voxel falls between its neighbours, and they share it: its standard deviation is
    about 2.3 times what third-order differences see (1.5 to 3.3 where voxels also change by 20 %).
    """
    angles = np.radians(rng.uniform(2, 5, 3))  # so that voxels fall everywhere between others
    turn = Rotation.from_euler("xyz", angles).as_matrix()
    centre = (np.array(shape) - 1) / 2
    white = rng.normal(size=shape).astype(np.float32)
    noise = ndimage.affine_transform(white, turn, centre - turn @ centre, order=1, mode="mirror")
    return noise / noise_level(noise, np.ones(shape, dtype=bool))


def simulated_rescan(volume: Volume, seed: int, *, shift_mm: float = REGISTRATION_MM,
                     degrees: float = REGISTRATION_DEGREES) -> Volume:
    """The scan as a second visit to the same scanner might have given it, on the same grid.

    Moved by a rigid motion of ``shift_mm`` and ``degrees`` about the brain's centre in a random
    direction (what two registrations of one brain differ by). Two visits differ by two draws of the
    noise and the source holds one of them, so what is added has the variance of two; it is noise
    that was interpolated as the scan was.
    """
    if volume.mask is None:
        raise InputError("a simulated rescan needs a brain mask and the volume has none.")
    rng = np.random.default_rng(seed)
    axis, way = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    angle = math.radians(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    centre = volume.affine[:3, :3] @ np.argwhere(volume.mask).mean(axis=0) + volume.affine[:3, 3]
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn, centre - turn @ centre + shift_mm * way
    step = np.linalg.inv(volume.affine) @ motion @ volume.affine
    box = ndimage.find_objects(volume.mask.astype(np.uint8))[0]
    first = np.array([part.start for part in box])
    moved = volume.data.copy()
    moved[box] = ndimage.affine_transform(
        volume.data, step[:3, :3], step[:3, :3] @ first + step[:3, 3], order=3, mode="nearest",
        output_shape=volume.mask[box].shape)
    level = math.sqrt(2) * noise_level(volume.data, volume.mask)
    noise = level * resampled_noise(volume.shape, rng)
    return volume.with_data(np.where(volume.mask, moved + noise, volume.data))
