"""The prior over scanners: everything that distinguishes two scanners, drawn from one seed.

Contrast is the signal equation of a T1-weighted sequence with random parameters at 1.5 or 3 T. It
is perturbed in ways that no equation describes: gains of tissues, of structures and of regions, the
visibility of myelin- and iron-like texture, and a tone curve that need not be monotone. Resolution
is an anisotropic point spread and a voxel, up to slices of 4 mm. Noise is Rician, white or
correlated, uniform or not. A residual bias field and a gain complete the scanner.

`PRIOR` states every range. docs/extend/simulation.md compares the prior with real scans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..phantom.physics import Sequence, signals

__all__ = ["PRIOR", "ScannerPrior", "SimulatedScanner", "draw_scanner"]

FWHM_PER_SIGMA = 2.3548
BOX_VARIANCE = 12.0  # averaging over a width w has the variance w^2 / 12
BRAIN_TISSUES = 4  # CSF, cortical gray, white, deep gray matter: first rows of `physics.TISSUES`


@dataclass(frozen=True)
class ScannerPrior:
    """Ranges of the scanner prior; pairs are bounds of uniform draws unless stated otherwise.

    Attributes
    ----------
    mprage : probability of an MPRAGE sequence, else a spoiled gradient echo
    csf_std, tissue_std, structure_std : standard deviations of log gains
    region_std : bounds of the standard deviation of the regional gain fields
    region_knot_mm : bounds of their scale
    texture_std : standard deviation of the log visibility of textures
    tone, tone_amplitude, tone_cycles : probability, amplitude and frequency of the tone curve
    gamma_std : standard deviation of the log exponent of the intensities
    psf_mm : full width at half maximum of the point spread, log-uniform
    psf_anisotropy : standard deviation of the log ratio of its widths along the axes
    voxel_mm : voxel side in the plane
    slice_mm, thick_slice_mm : slice thickness of ordinary and of thick-slice protocols
    unequal, thick : probabilities of a slice thickness of its own, and of thick slices
    noise : standard deviation of the noise in either channel over the signal of white matter,
        log-uniform
    correlated : probability of spatially correlated noise
    uneven : probability of a noise level that varies over the brain
    bias : bounds of the standard deviation of the log residual bias field
    log_gain : log of the stored units of the signal of white matter
    """

    mprage: float = 0.6
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
    noise: tuple[float, float] = (0.008, 0.09)
    correlated: float = 0.2
    uneven: float = 0.4
    bias: tuple[float, float] = (0.0, 0.04)
    log_gain: tuple[float, float] = (4.5, 9.5)


PRIOR = ScannerPrior()


@dataclass(frozen=True)
class SimulatedScanner:
    """One scanner and its protocol, complete.

    Attributes
    ----------
    seed : of the regional gain fields and of the bias field's shape
    tesla, sequence : field strength and pulse sequence
    table : (4, 3) signal and texture slopes of CSF, cortical gray, white and deep gray matter
    structure_gains : (structures,) gains by index in `segmentation.structures.STRUCTURES`
    region_std, region_knot_mm : size and scale of the regional gain fields
    outside : brightness of what surrounds the brain, relative to white matter
    tone : amplitude, cycles over the intensity range, phase
    gamma : exponent of the intensities
    psf_mm, voxel_mm : (3,) point spread (FWHM) and voxel along right-left, back-front, foot-head
    noise : standard deviation in either channel, relative to white matter
    noise_sigma_voxels : of the noise's own smoothing; 0 is white
    noise_unevenness : standard deviation of the log noise level over the brain
    bias : standard deviation of the log residual bias field
    gain : stored units of the signal of white matter
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
        """(3,) standard deviation of point spread and voxel averaging together."""
        return np.sqrt((self.psf_mm / FWHM_PER_SIGMA) ** 2 + self.voxel_mm ** 2 / BOX_VARIANCE)


def draw_scanner(rng: np.random.Generator, structures: int, prior: ScannerPrior = PRIOR
                 ) -> SimulatedScanner:
    """Draw a scanner with a T1-weighted protocol: white brighter than gray matter and fluid."""
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
    """(count,) gains; 1 for index 0, which stands for unknown structures."""
    gains = np.exp(rng.normal(0, std, count)).astype(np.float32)
    gains[0] = 1
    return gains


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return math.exp(rng.uniform(*np.log(bounds)))


def _draw_contrast(rng: np.random.Generator, prior: ScannerPrior
                   ) -> tuple[float, Sequence, np.ndarray]:
    """Field strength, sequence, and (4, 3) perturbed signals, white matter's being 1."""
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
    """(3,) voxel size, mm."""
    voxel = np.full(3, rng.uniform(*prior.voxel_mm))
    kind, axis = rng.random(), int(rng.integers(3))
    if kind < prior.thick:
        voxel[axis] = rng.uniform(*prior.thick_slice_mm)
    elif kind < prior.thick + prior.unequal:
        voxel[axis] = rng.uniform(*prior.slice_mm)
    return voxel
