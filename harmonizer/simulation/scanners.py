"""Distribution of simulated scanners: all properties that differ between two scanners.

Contrast is the signal equation of a T1-weighted sequence with random parameters at 1.5 or 3 T. It
is perturbed by gains of tissues, structures and regions, by the visibility of myelin- and iron-like
texture, and by a tone curve that may be non-monotone. Resolution is an anisotropic point spread and
a voxel, with slices up to 4 mm. Noise is Rician, white or correlated, uniform or not. A residual
bias field and a gain complete the scanner.

`PRIOR` states every range. docs/extend/simulation.md compares the prior with real scans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..phantom.physics import Sequence, signals
from ..point_spread import BOX_VARIANCE_DIVISOR, FWHM_PER_STD

__all__ = ["PRIOR", "ScannerPrior", "SimulatedScanner", "draw_scanner"]

BRAIN_TISSUES = 4  # CSF, cortical gray, white, deep gray matter: first of `PHANTOM_TISSUES`


@dataclass(frozen=True)
class ScannerPrior:
    """Ranges of scanner properties; pairs are bounds of uniform distributions unless stated.

    Attributes
    ----------
    mprage : float
        Probability of an MPRAGE sequence, else a spoiled gradient echo.
    perturbed : float
        Probability that contrast differs from the signal equation, by the gains, texture visibility
        and tone curve below.
    csf_std, tissue_std, structure_std : float
        Standard deviations of log gains.
    region_std, region_knot_mm : tuple of float
        Standard deviation and scale (mm) of the regional gain fields.
    texture_std : float
        Standard deviation of the log visibility of textures.
    tone, tone_amplitude, tone_cycles : float, tuple of float
        Probability, amplitude and frequency of the tone curve.
    gamma_std : float
        Standard deviation of the log exponent of the intensities.
    psf_mm : tuple of float
        Full width at half maximum of the point spread, log-uniform.
    psf_anisotropy : float
        Standard deviation of the log ratio of its widths along the axes.
    voxel_mm : tuple of float
        Voxel side in the plane.
    slice_mm, thick_slice_mm : tuple of float
        Slice thickness of ordinary and of thick-slice protocols.
    unequal, thick : float
        Probabilities of a separately drawn slice thickness, and of thick slices.
    noise : tuple of float
        Standard deviation of the noise in either channel over the signal of white matter,
        log-uniform.
    correlated : float
        Probability of spatially correlated noise.
    uneven : float
        Probability of a noise level that varies over the brain.
    bias : tuple of float
        Standard deviation of the log residual bias field.
    log_gain : tuple of float
        Log of the stored intensity of white matter.
    """

    mprage: float = 0.6
    perturbed: float = 0.6
    csf_std: float = 0.2
    tissue_std: float = 0.04
    structure_std: float = 0.02
    region_std: tuple[float, float] = (0.0, 0.025)
    region_knot_mm: tuple[float, float] = (18.0, 60.0)
    texture_std: float = 0.4
    tone: float = 0.3
    tone_amplitude: tuple[float, float] = (0.0, 0.07)
    tone_cycles: tuple[float, float] = (0.5, 1.6)
    gamma_std: float = 0.12
    psf_mm: tuple[float, float] = (0.7, 2.3)
    psf_anisotropy: float = 0.15
    voxel_mm: tuple[float, float] = (0.75, 1.4)
    slice_mm: tuple[float, float] = (0.9, 2.0)
    thick_slice_mm: tuple[float, float] = (2.0, 4.0)
    unequal: float = 0.35
    thick: float = 0.12
    noise: tuple[float, float] = (0.004, 0.09)
    correlated: float = 0.2
    uneven: float = 0.4
    bias: tuple[float, float] = (0.0, 0.04)
    log_gain: tuple[float, float] = (4.5, 9.5)


PRIOR = ScannerPrior()
UNPERTURBED_RANGES = {"csf_std": 0.0, "tissue_std": 0.0, "structure_std": 0.0,
                      "region_std": (0.0, 0.0), "texture_std": 0.0, "tone": 0.0, "gamma_std": 0.0}
"""Ranges of a scanner whose contrast is that of the signal equation alone."""


@dataclass(frozen=True)
class SimulatedScanner:
    """One scanner and its protocol.

    Attributes
    ----------
    seed : int
        Seed of the regional gain fields and of the shape of the bias field.
    tesla, sequence : float, Sequence
        Field strength and pulse sequence.
    table : ndarray, shape (4, 3)
        Signal and texture slopes of CSF, cortical gray, white and deep gray matter.
    structure_gains : ndarray, shape (structures,)
        Gains by index in `segmentation.structures.STRUCTURES`.
    region_std, region_knot_mm : float
        Standard deviation and scale of the regional gain fields.
    outside : float
        Intensity around the brain relative to white matter.
    tone : tuple of float
        Amplitude, cycles over the intensity range, and phase of the tone curve.
    gamma : float
        Exponent of the intensities.
    psf_mm, voxel_mm : ndarray, shape (3,)
        Point spread (FWHM) and voxel size along right-left, back-front, foot-head.
    noise : float
        Standard deviation in either channel relative to white matter.
    noise_sigma_voxels : float
        Smoothing of the noise; 0 is white noise.
    noise_unevenness : float
        Standard deviation of the log noise level over the brain.
    bias : float
        Standard deviation of the log residual bias field.
    gain : float
        Stored intensity of white matter.
    """

    seed: int
    tesla: float
    sequence: Sequence
    table: np.ndarray = field(repr=False)
    structure_gains: np.ndarray = field(repr=False)
    region_std: float
    region_knot_mm: float
    outside: float
    tone: tuple[float, float, float]
    gamma: float
    psf_mm: np.ndarray
    voxel_mm: np.ndarray
    noise: float
    noise_sigma_voxels: float
    noise_unevenness: float
    bias: float
    gain: float

    @property
    def blur_sigma_mm(self) -> np.ndarray:
        """Standard deviation of point spread and voxel averaging together, (3,)."""
        psf_variance = (self.psf_mm / FWHM_PER_STD) ** 2
        return np.sqrt(psf_variance + self.voxel_mm ** 2 / BOX_VARIANCE_DIVISOR)


def draw_scanner(rng: np.random.Generator, structures: int, prior: ScannerPrior = PRIOR
                 ) -> SimulatedScanner:
    """Draw a scanner with a T1-weighted protocol: white matter brighter than gray matter."""
    if rng.random() >= prior.perturbed:
        prior = replace(prior, **UNPERTURBED_RANGES)  # type: ignore[arg-type]
    tesla, sequence, table = _draw_contrast(rng, prior)
    tone = (rng.uniform(*prior.tone_amplitude) if rng.random() < prior.tone else 0.0,
            rng.uniform(*prior.tone_cycles), rng.uniform(0, 1))
    psf = _log_uniform(rng, prior.psf_mm) * np.exp(rng.normal(0, prior.psf_anisotropy, 3))
    return SimulatedScanner(
        seed=int(rng.integers(2 ** 31)), tesla=tesla, sequence=sequence, table=table,
        structure_gains=_structure_gains(rng, structures, prior.structure_std),
        region_std=rng.uniform(*prior.region_std),
        region_knot_mm=rng.uniform(*prior.region_knot_mm),
        outside=rng.uniform(0.0, 0.4) if rng.random() < 0.5 else 0.0,
        tone=tone, gamma=math.exp(rng.normal(0, prior.gamma_std)),
        psf_mm=psf, voxel_mm=_draw_voxel(rng, prior), noise=_log_uniform(rng, prior.noise),
        noise_sigma_voxels=rng.uniform(0.35, 0.75) if rng.random() < prior.correlated else 0.0,
        noise_unevenness=rng.uniform(0, 0.4) if rng.random() < prior.uneven else 0.0,
        bias=rng.uniform(*prior.bias), gain=math.exp(rng.uniform(*prior.log_gain)),
    )


def _structure_gains(rng: np.random.Generator, count: int, std: float) -> np.ndarray:
    """Draw gains (count,); 1 for index 0, which stands for unknown structures."""
    gains = np.exp(rng.normal(0, std, count)).astype(np.float32)
    gains[0] = 1
    return gains


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return math.exp(rng.uniform(*np.log(bounds)))


def _draw_contrast(rng: np.random.Generator, prior: ScannerPrior
                   ) -> tuple[float, Sequence, np.ndarray]:
    """Draw field strength, sequence and (4, 3) perturbed signals relative to white matter."""
    while True:
        tesla = float(rng.choice([1.5, 3.0]))
        if rng.random() < prior.mprage:
            sequence = Sequence("mprage", rng.uniform(1600, 2600), rng.uniform(2, 4.5),
                                rng.uniform(750, 1250), rng.uniform(7, 12),
                                int(rng.integers(110, 190)), rng.uniform(6, 10))
        else:
            sequence = Sequence("spgr", rng.uniform(7, 25), rng.uniform(2, 5.5),
                                flip=rng.uniform(9, 30))
        table = signals(tesla, sequence)[:BRAIN_TISSUES]
        table = table / table[2, 0] if table[2, 0] > 0 else table * 0
        table[0] *= math.exp(rng.normal(0, prior.csf_std))
        table[[1, 3]] *= np.exp(rng.normal(0, prior.tissue_std, 2))[:, None]
        table[:, 1:] *= np.exp(rng.normal(0, prior.texture_std, 2))
        fluid, gray, white, deep = table[:, 0]
        if white > 1.06 * gray and gray > 1.05 * abs(fluid) and deep > 0.9 * gray:
            return tesla, sequence, table.astype(np.float32)


def _draw_voxel(rng: np.random.Generator, prior: ScannerPrior) -> np.ndarray:
    """Draw the voxel size (3,), mm."""
    voxel = np.full(3, rng.uniform(*prior.voxel_mm))
    kind, axis = rng.random(), int(rng.integers(3))
    if kind < prior.thick:
        voxel[axis] = rng.uniform(*prior.thick_slice_mm)
    elif kind < prior.thick + prior.unequal:
        voxel[axis] = rng.uniform(*prior.slice_mm)
    return voxel
