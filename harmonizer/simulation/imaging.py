"""Simulation of a scan of an anatomy: contrast, point spread, bias field, noise, gain.

    scan = Rice(bias x blur(tone(|sum over tissues of fraction x gain x signal|)), sigma) x gain

sampled on the grid of the scan. The truth for another scanner T is T's rendering on the same grid,
without noise and without bias field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..volume import Volume
from .anatomy import Anatomy
from .fields import smooth_field
from .scanners import SimulatedScanner

__all__ = ["ScanGrid", "scan_grid", "template_scan_grid", "render", "sample", "acquire"]

TISSUES_IN_TABLE = 4


@dataclass(frozen=True, eq=False)
class ScanGrid:
    """Voxel grid of one scan.

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Voxels to world as in the header, mm.
    shape : tuple of int
        Voxels along each axis.
    pose : ndarray, shape (4, 4)
        World to template world: the error of a registration.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    pose: np.ndarray


def scan_grid(rng: np.random.Generator, anatomy: Anatomy, voxel_mm: np.ndarray,
              tilt_deg: float = 6.0) -> ScanGrid:
    """Draw a grid over the brain: oblique by a few degrees, with a small registration error."""
    from scipy.spatial.transform import Rotation

    low = np.array([axis.min() for axis in anatomy.coordinates]) + 4
    high = np.array([axis.max() for axis in anatomy.coordinates]) - 4
    shape = np.ceil((high - low) / voxel_mm).astype(int)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.normal(0, tilt_deg, 3), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(voxel_mm)
    offset = rng.uniform(-0.5, 0.5, 3) * voxel_mm
    affine[:3, 3] = (low + high) / 2 + offset - affine[:3, :3] @ ((shape - 1) / 2)
    return ScanGrid(affine, (int(shape[0]), int(shape[1]), int(shape[2])), _registration_error(rng))


def _registration_error(rng: np.random.Generator) -> np.ndarray:
    """Draw a (4, 4) rotation and shift of some tenths of a degree and of a millimeter."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, 0.3, 3), degrees=True).as_matrix()
    pose[:3, 3] = rng.normal(0, 0.3, 3)
    return pose


def render(anatomy: Anatomy, scanner: SimulatedScanner) -> np.ndarray:
    """Render contrast, resolution and gain of a scanner on the grid of an anatomy, (I, J, K)."""
    fields = np.random.default_rng([scanner.seed, 1])
    gains = smooth_field(fields, anatomy.coordinates, scanner.region_knot_mm, TISSUES_IN_TABLE)
    gains = 1 + np.float32(scanner.region_std) * np.clip(gains, -3, 3)
    signal = np.zeros(anatomy.brain.shape, np.float32)
    for fraction, gain, (mean, one, two) in zip(anatomy.fractions, gains, scanner.table):
        signal += fraction * gain * (mean + one * anatomy.texture[0] + two * anatomy.texture[1])
    signal *= ndimage.gaussian_filter(scanner.structure_gains[anatomy.structures], 0.7)
    signal = _toned(np.abs(signal), scanner)
    if scanner.outside:
        around = smooth_field(fields, anatomy.coordinates, 16.0)[0]
        level = np.clip(1 + np.float32(0.6) * around, 0, 3) * np.float32(scanner.outside)
        signal += (1 - anatomy.brain) * level
    sigma = scanner.blur_sigma_mm / np.abs(np.diag(anatomy.affine)[:3])
    blurred = ndimage.gaussian_filter(signal, sigma, mode="nearest", truncate=3.0)
    return blurred * np.float32(scanner.gain)


def _toned(signal: np.ndarray, scanner: SimulatedScanner) -> np.ndarray:
    """Apply the tone curve: an exponent, and a sine that may be non-monotone; zero stays zero."""
    amplitude, cycles, phase = scanner.tone
    curved = np.maximum(signal, np.float32(1e-6)) ** np.float32(scanner.gamma)
    if amplitude:
        wave = np.sin(np.float32(2 * np.pi) * (np.float32(cycles) * signal + np.float32(phase)))
        curved = np.maximum(curved + np.float32(amplitude) * wave * np.clip(4 * signal, 0, 1), 0)
    return curved


def sample(image: np.ndarray, anatomy: Anatomy, grid: ScanGrid, order: int = 1) -> np.ndarray:
    """Interpolate an image of an anatomy on the grid of a scan; zero outside."""
    matrix = np.linalg.inv(anatomy.affine) @ grid.pose @ grid.affine
    return ndimage.affine_transform(image, matrix[:3, :3], matrix[:3, 3], grid.shape, np.float32,
                                    order, "constant", 0.0)


def template_scan_grid(rng: np.random.Generator, template: Volume) -> ScanGrid:
    """Return the grid of the template with a small registration error."""
    return ScanGrid(template.affine, template.shape, _registration_error(rng))


def acquire(rng: np.random.Generator, anatomy: Anatomy, scanner: SimulatedScanner, grid: ScanGrid,
            rendered: np.ndarray, noise_factor: float = 1.0) -> Volume:
    """Sample a scan with its brain mask, bias field and noise; zero outside the mask.

    `rendered` is `render(anatomy, scanner)`. Noise is drawn from `rng`, so it differs between two
    scans of one anatomy. Its level is that of the scanner times `noise_factor`, and does not depend
    on the voxel size of the grid.
    """
    clean = sample(rendered, anatomy, grid)
    side = np.sqrt((grid.affine[:3, :3] ** 2).sum(axis=0))
    sigma = scanner.noise * scanner.gain * noise_factor
    axes = [s * (np.arange(n) - (n - 1) / 2) for s, n in zip(side, grid.shape)]
    if scanner.noise_unevenness:
        level = smooth_field(rng, axes, 50.0)[0]
        sigma = sigma * np.exp(np.float32(scanner.noise_unevenness) * level)
    if scanner.bias:
        own = smooth_field(np.random.default_rng([scanner.seed, 2]), axes, 60.0)[0]
        now = smooth_field(rng, axes, 60.0)[0]
        clean = clean * np.exp(np.float32(scanner.bias) * (own + np.float32(0.4) * now))
    noisy = np.hypot(clean + sigma * _noise(rng, clean.shape, scanner.noise_sigma_voxels),
                     sigma * _noise(rng, clean.shape, scanner.noise_sigma_voxels))
    mask = _mask(rng, anatomy, grid)
    return Volume(np.where(mask, noisy, np.float32(0)).astype(np.float32), grid.affine, mask)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_voxels: float) -> np.ndarray:
    """Draw Gaussian noise of unit variance, correlated over `sigma_voxels`."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if not sigma_voxels:
        return noise
    smooth = ndimage.gaussian_filter(noise, sigma_voxels, truncate=3.0)
    return smooth / np.float32(smooth.std())


def _mask(rng: np.random.Generator, anatomy: Anatomy, grid: ScanGrid) -> np.ndarray:
    """Draw a brain mask as from brain extraction, a little tight or loose."""
    spacing = abs(float(anatomy.affine[0, 0]))
    soft = ndimage.gaussian_filter(anatomy.brain, 1.2 / spacing)
    return sample(soft, anatomy, grid) > rng.uniform(0.3, 0.65)
