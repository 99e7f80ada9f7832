"""Simulation of a second visit to the same scanner, to measure the variation between visits."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ...errors import InputError
from ...volume import Volume

__all__ = ["REGISTRATION_ERROR_DEGREES", "REGISTRATION_ERROR_MM", "noise_level",
           "resampled_noise", "simulated_rescan"]

REGISTRATION_ERROR_MM = 0.3  # between two registrations of one brain
REGISTRATION_ERROR_DEGREES = 0.3
SPLINE_MARGIN_VOXELS = 12  # beyond it, a voxel has no influence on a cubic spline


def noise_level(data: np.ndarray, mask: np.ndarray) -> float:
    """Estimate the standard deviation of noise from second differences along all axes [1]_.

    The differences contain little anatomy; their median absolute value is scaled to a normal
    distribution. Noise that was smoothed by resampling is underestimated, see `resampled_noise`.

    Parameters
    ----------
    data : ndarray, shape (I, J, K)
        Image.
    mask : ndarray of bool, shape (I, J, K)
        Brain mask; 2 voxels at its border are left out.

    Returns
    -------
    float
        In intensity units.

    References
    ----------
    .. [1] Immerkaer 1996, Fast noise variance estimation. doi:10.1006/cviu.1996.0060; here in 3D
       and robust.
    """
    array = data.astype(np.float32)
    for axis in range(3):
        array = ndimage.correlate1d(array, [1.0, -2.0, 1.0], axis=axis, mode="nearest")
    inner = ndimage.binary_erosion(mask, iterations=2)
    values = array[inner if inner.any() else mask]
    return float(1.4826 * np.median(np.abs(values)) / np.sqrt(6.0**3))


def resampled_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Generate noise as linear interpolation leaves white noise, scaled to a `noise_level` of 1.

    Preprocessing interpolates scans to the template grid. The remaining noise is correlated and
    depends on the position of a voxel between its neighbors. Its standard deviation is about 2.3
    times the value that second differences give (1.5 to 3.3 if the voxel size changes by 20 %).

    Parameters
    ----------
    shape : tuple of int
        (I, J, K).
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    ndarray, shape (I, J, K)
        float32.
    """
    angles = np.radians(rng.uniform(2, 5, 3))  # so that all positions between voxels occur
    turn = Rotation.from_euler("xyz", angles).as_matrix()
    center = (np.array(shape) - 1) / 2
    white = rng.normal(size=shape).astype(np.float32)
    noise = ndimage.affine_transform(white, turn, center - turn @ center, order=1, mode="mirror")
    return noise / noise_level(noise, np.ones(shape, dtype=bool))


def simulated_rescan(volume: Volume, seed: int, *, shift_mm: float = REGISTRATION_ERROR_MM,
                     degrees: float = REGISTRATION_ERROR_DEGREES) -> Volume:
    """Simulate a second visit to the same scanner, on the same grid.

    The image is moved rigidly in a random direction, by what two registrations of one brain differ
    by. Two visits have independent noise and the source contains one of them, so the added noise
    has twice the variance; it is correlated like interpolated noise.

    Parameters
    ----------
    volume : Volume
        Image with mask.
    seed : int
        Seed of motion and noise.
    shift_mm : float
        Length of the shift in mm.
    degrees : float
        Rotation about the center of the brain, in degrees.

    Returns
    -------
    Volume
        Unchanged outside the mask.

    Raises
    ------
    InputError
        If the volume has no mask.
    """
    if volume.mask is None:
        raise InputError("a simulated rescan needs a brain mask and the volume has none.")
    rng = np.random.default_rng(seed)
    axis, direction = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    angle = math.radians(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    center = volume.affine[:3, :3] @ np.argwhere(volume.mask).mean(axis=0) + volume.affine[:3, 3]
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn, center - turn @ center + shift_mm * direction
    step = np.linalg.inv(volume.affine) @ motion @ volume.affine
    box = ndimage.find_objects(volume.mask.astype(np.uint8))[0]
    wide = tuple(slice(max(part.start - SPLINE_MARGIN_VOXELS, 0), part.stop + SPLINE_MARGIN_VOXELS)
                 for part in box)
    first, origin = (np.array([part.start for part in one]) for one in (box, wide))
    moved = volume.data.copy()
    moved[box] = ndimage.affine_transform(
        volume.data[wide], step[:3, :3], step[:3, :3] @ first + step[:3, 3] - origin, order=3,
        mode="nearest", output_shape=volume.mask[box].shape)
    level = math.sqrt(2) * noise_level(volume.data[box], volume.mask[box])
    moved[box] += (level * resampled_noise(volume.mask[box].shape, rng)).astype(np.float32)
    return volume.with_data(np.where(volume.mask, moved, volume.data))
