"""Simulated scanners: from an anatomy to an image.

A scan is, in each voxel,

    noisy = gain x Rice(bias x blur(|sum of tissue fractions x signed signals|), sigma)

on its own grid. Voxel size, axis order and obliquity are properties of the scanner; the pose of the
head is a property of the scan. Everything that a harmonization should remove or keep is modeled
separately: contrast (field strength, sequence), resolution (PSF, voxel), gain, bias field
and noise. The scan that another scanner T would acquire is therefore known in every voxel: T's
contrast, resolution and gain, on the grid and in the pose of this scan, without noise and bias
field.

Manufacturers and models are invented, so that no image is mistaken for a vendor's.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..errors import UsageError, did_you_mean
from ..point_spread import BOX_VARIANCE_DIVISOR, FWHM_PER_STD
from ..volume import Volume
from .anatomy import Subject
from .physics import FIELD_STRENGTHS_T, PHANTOM_TISSUES, Sequence, signals

__all__ = [
    "MODALITIES", "SCANNERS", "UNSEEN", "Scanner", "Grid", "Scan", "scanner_named", "grid_of",
    "render", "acquire", "image_of",
]

MODALITIES = ("T1w", "T2w", "FLAIR", "PDw")
FOV_MM = np.array([196.0, 244.0, 224.0])  # field of view: right-left, back-front, foot-head
FOV_CENTER_MM = np.array([0.0, -9.0, -12.0])  # in the subject's world
VOXEL_RANGE_MM = (0.5, 12.0)  # limits of the smallest voxel side
COIL_FADE_MM = (-130.0, -92.0)  # the coil's sensitivity rises from 0 to 1 between these heights


@dataclass(frozen=True)
class Scanner:
    """Scanner and its protocol.

    Attributes
    ----------
    name : str
        Site label, alphanumeric; also the session label of traveling subjects.
    manufacturer, model : str
        Invented names.
    tesla : float
        Field strength: 1.5 or 3 T.
    protocol : mapping from str to Sequence
        Sequence of each modality.
    psf_mm : float
        Full width at half maximum of the PSF before voxel averaging.
    voxel_mm : tuple of float
        Voxel size right-left, back-front, foot-head.
    noise : float
        Standard deviation of the Gaussian noise in either channel, relative to white matter's
        signal.
    gain : float
        Stored intensity of white matter.
    bias : float
        Half of the log range of the bias field over the field of view (0.2: about +-20 %).
    bias_seed : int
        Seed of the bias field's shape, which all scans of the scanner have in common up to a tenth.
    orientation : str
        Axis codes of the stored voxels, such as "LAS" (nibabel's convention).
    tilt_deg : float
        Obliquity of the slices about the left-right axis.
    pose_deg, pose_mm : float
        Standard deviation of the head's rotation and shift from scan to scan.
    """

    name: str
    manufacturer: str
    model: str
    tesla: float
    protocol: Mapping[str, Sequence] = field(hash=False)
    psf_mm: float = 1.0
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.03
    gain: float = 500.0
    bias: float = 0.2
    bias_seed: int = 0
    orientation: str = "RAS"
    tilt_deg: float = 0.0
    pose_deg: float = 3.0
    pose_mm: float = 4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", MappingProxyType(dict(self.protocol)))
        self._check()

    def _check(self) -> None:
        if not self.name.isalnum():
            raise UsageError(f"the name of a scanner must have letters and digits only, "
                             f"got {self.name!r}.")
        if self.tesla not in FIELD_STRENGTHS_T:
            raise UsageError(f"scanner {self.name}: expected 1.5 or 3 T, got {self.tesla} T.")
        axes = sorted("RASRAS"["LPIRAS".index(c)] for c in self.orientation if c in "LPIRAS")
        if len(self.orientation) != 3 or axes != ["A", "R", "S"]:
            raise UsageError(
                f"scanner {self.name}: expected three axis codes such as 'LAS', "
                f"got {self.orientation!r}."
            )
        if min(self.voxel_mm) <= 0 or min(self.psf_mm, self.noise, self.bias) < 0 or self.gain <= 0:
            raise UsageError(f"scanner {self.name}: sizes, noise, bias and gain must be positive.")

    def sequence(self, modality: str) -> Sequence:
        """Return the sequence of a modality; UsageError if the protocol has none."""
        if modality not in self.protocol:
            raise UsageError(
                f"scanner {self.name} has no {modality!r}. {did_you_mean(modality, self.protocol)}"
            )
        return self.protocol[modality]

    def at_voxel(self, voxel_mm: float | None) -> Scanner:
        """Return the same scanner with voxels scaled to a smallest side of `voxel_mm`."""
        if voxel_mm is None:
            return self
        low, high = VOXEL_RANGE_MM
        if not low <= voxel_mm <= high:
            raise UsageError(f"expected a voxel size of {low:g} to {high:g} mm, got {voxel_mm:g}.")
        factor = voxel_mm / min(self.voxel_mm)
        x, y, z = (round(size * factor, 4) for size in self.voxel_mm)
        return replace(self, voxel_mm=(x, y, z))


def _protocol(t1: Sequence, t2: Sequence, flair: Sequence, pd: Sequence) -> dict[str, Sequence]:
    return dict(zip(MODALITIES, (t1, t2, flair, pd)))


SCANNERS: tuple[Scanner, ...] = (
    Scanner(
        "aspen", "Alder Imaging", "Canopy 3T", 3.0,
        _protocol(
            Sequence("mprage", 2300, 2.98, 900, 9, 176, 7.1), Sequence("spin_echo", 6000, 100),
            Sequence("flair", 9000, 120, 2500), Sequence("spin_echo", 3000, 12),
        ),
        psf_mm=1.0, voxel_mm=(1.0, 1.0, 1.0), noise=0.02, gain=420, bias=0.22, bias_seed=11,
        orientation="PSR",
    ),
    Scanner(
        "birch", "Boreal Systems", "Taiga 1.5", 1.5,
        _protocol(
            Sequence("spgr", 11, 4.6, flip=18), Sequence("spin_echo", 4000, 85),
            Sequence("flair", 9000, 110, 2350), Sequence("spin_echo", 2600, 17),
        ),
        psf_mm=1.3, voxel_mm=(0.94, 0.94, 1.3), noise=0.045, gain=1700, bias=0.10, bias_seed=23,
        orientation="LAS",
    ),
    Scanner(
        "cedar", "Crownwood Medical", "Understory 3.0", 3.0,
        _protocol(
            Sequence("spgr", 9, 3.5, flip=12), Sequence("spin_echo", 4500, 80),
            Sequence("flair", 5000, 135, 1750), Sequence("spin_echo", 2500, 20),
        ),
        psf_mm=1.6, voxel_mm=(1.2, 1.0, 1.0), noise=0.03, gain=31000, bias=0.36, bias_seed=37,
        orientation="RSA", tilt_deg=8.0,
    ),
    Scanner(
        "dogwood", "Boreal Systems", "Tundra 1.5", 1.5,
        _protocol(
            Sequence("mprage", 1800, 4.0, 800, 8, 128, 9.7), Sequence("spin_echo", 5000, 120),
            Sequence("flair", 8000, 95, 2200), Sequence("spin_echo", 2200, 15),
        ),
        psf_mm=2.0, voxel_mm=(1.1, 1.1, 1.8), noise=0.06, gain=150, bias=0.16, bias_seed=53,
        orientation="LPS",
    ),
)
"""Preset scanners of a study, with clearly different contrast and resolution."""

_LABEL_TISSUES = {
    1: ("csf",), 2: ("gm", "deep"), 3: ("wm",), 4: ("bone", "marrow"),
    5: ("fat", "muscle", "skin", "vitreous"),
}  # keys: `anatomy.LABELS`

UNSEEN = Scanner(
    "elm", "Elmwood Devices", "Grove 3T", 3.0,
    _protocol(
        Sequence("mprage", 2200, 2.2, 1250, 10, 176, 6.5), Sequence("spin_echo", 3200, 140),
        Sequence("flair", 7000, 90, 2100), Sequence("spin_echo", 4000, 25),
    ),
    psf_mm=1.15, voxel_mm=(0.9, 1.0, 1.0), noise=0.025, gain=5200, bias=0.28, bias_seed=71,
    orientation="LIP", tilt_deg=-6.0,
)
"""Scanner for tests on a site that a model was not fitted on."""


def scanner_named(name: str) -> Scanner:
    """Return a preset by name; UsageError with the known names for another."""
    known = {scanner.name: scanner for scanner in (*SCANNERS, UNSEEN)}
    if name not in known:
        raise UsageError(f"no scanner is called {name!r}. {did_you_mean(name, known)}")
    return known[name]


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid of one scan and the pose of the head in it.

    Attributes
    ----------
    shape : tuple of int
        Number of voxels along the three axes.
    affine : (4, 4) ndarray
        From voxels to scanner world coordinates in mm, RAS+, as in the header.
    pose : (4, 4) ndarray
        From the subject's to the scanner's world coordinates in mm: a rotation and a shift.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    pose: np.ndarray

    def sample(self, array: np.ndarray, subject_affine: np.ndarray) -> np.ndarray:
        """Interpolate an array on a subject's grid linearly; 0 outside it."""
        matrix = np.linalg.inv(subject_affine) @ np.linalg.inv(self.pose) @ self.affine
        result = np.zeros(self.shape, dtype=np.float32)
        low, high = _reach(array, matrix, self.shape)  # the rest is 0
        if (high > low).all():
            where = tuple(slice(a, b) for a, b in zip(low, high))
            result[where] = ndimage.affine_transform(
                array, matrix[:3, :3], matrix[:3, :3] @ low + matrix[:3, 3], tuple(high - low),
                np.float32, 1, "constant", 0.0,
            )
        return result


def _reach(
    array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the box of output voxels that the array's non-zero voxels may reach.

    The box is given by its first and one past its last index. `matrix` (4, 4) maps output indices
    to indices of the array.
    """
    used = array != 0
    spans = [np.flatnonzero(used.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not all(span.size for span in spans):
        return np.zeros(3, int), np.zeros(3, int)
    # Linear interpolation needs one more voxel.
    ends = [(span[0] - 1, span[-1] + 1) for span in spans]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(matrix)
    reached = back[:3, :3] @ corners + back[:3, 3:]
    low = np.clip(np.floor(reached.min(axis=1)), 0, shape).astype(int)
    high = np.clip(np.ceil(reached.max(axis=1)) + 1, 0, shape).astype(int)
    return low, high


@dataclass(frozen=True, eq=False)
class Scan:
    """Simulated scan with its truth; all arrays are (I, J, K) on one grid.

    Attributes
    ----------
    noisy : ndarray
        Image as stored by the scanner.
    clean : ndarray
        Image without noise, with bias field.
    bias : ndarray
        Bias field, around 1.
    mask : ndarray of bool
        Inside of the brain's surface.
    labels : ndarray of uint8
        Tissue labels, see `anatomy.LABELS`.
    grid : Grid
        Grid and pose.
    """

    noisy: np.ndarray
    clean: np.ndarray
    bias: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    grid: Grid


def image_of(
    subject: Subject, scanner: Scanner, modality: str = "T1w", rescan: int = 0
) -> tuple[Volume, Volume]:
    """Simulate the image that a scanner stores of a subject, and the same image without noise.

    Both volumes have the true brain mask. The noise-free image includes the scanner's bias field;
    for an image without it, see `render`.

    Parameters
    ----------
    subject : Subject
        Anatomy.
    scanner : Scanner
        Scanner and protocol.
    modality : str
        "T1w", "T2w", "FLAIR" or "PDw".
    rescan : int
        Number of the repeated scan; each has another pose, noise and slightly different bias field.

    Returns
    -------
    tuple of Volume
        Stored image and noise-free image.

    Raises
    ------
    UsageError
        If the scanner has no such modality.
    """
    scan = acquire(subject, scanner, modality, rescan)
    return (Volume(scan.noisy, scan.grid.affine, scan.mask),
            Volume(scan.clean, scan.grid.affine, scan.mask))


def acquire(
    subject: Subject,
    scanner: Scanner,
    modality: str = "T1w",
    rescan: int = 0,
    rendered: np.ndarray | None = None,
) -> Scan:
    """Simulate a scan of a subject with its truth.

    Parameters
    ----------
    subject, scanner, modality, rescan
        See `image_of`.
    rendered : ndarray, optional
        Result of `render(subject, scanner, modality)`, where it was computed before.

    Returns
    -------
    Scan
        Images, bias field, mask and labels.
    """
    grid = grid_of(subject, scanner, modality, rescan)
    bias = _bias_field(scanner, grid.shape, _rng(subject, scanner, modality, rescan, "bias"))
    if rendered is None:
        rendered = render(subject, scanner, modality)
    clean = grid.sample(rendered, subject.affine) * bias
    noise = _rng(subject, scanner, modality, rescan, "noise")
    noisy = _rician(clean, scanner.noise * scanner.gain, noise)
    mask, labels = _truth(subject, grid)
    return Scan(noisy, clean, bias, mask, labels, grid)


def render(subject: Subject, scanner: Scanner, modality: str = "T1w") -> np.ndarray:
    """Simulate contrast, resolution and gain of a scan on the subject's own grid.

    Returns
    -------
    (I, J, K) float32 ndarray
        The image without noise and bias field.
    """
    table = signals(scanner.tesla, scanner.sequence(modality)).astype(np.float32)
    flat = table.T @ subject.fractions.reshape(len(PHANTOM_TISSUES), -1)
    mean, one, two = flat.reshape(3, *subject.brain.shape)
    magnetization = np.abs(mean + one * subject.texture[0] + two * subject.texture[1])
    magnetization *= _coil(subject)
    sigma = _blur_sigma(scanner) / subject.spacing
    blurred = ndimage.gaussian_filter(magnetization, sigma, mode="constant", truncate=3.0)
    unit = scanner.gain / abs(float(table[PHANTOM_TISSUES.index("wm"), 0]))
    return blurred * np.float32(unit)


def _coil(subject: Subject) -> np.ndarray:
    """Return the (K,) sensitivity of the head coil in each slice; it fades out over the neck."""
    height = subject.affine[2, 3] + subject.spacing * np.arange(subject.brain.shape[2])
    fade = np.clip((height - COIL_FADE_MM[0]) / (COIL_FADE_MM[1] - COIL_FADE_MM[0]), 0, 1)
    return (fade * fade * (3 - 2 * fade)).astype(np.float32)


def grid_of(subject: Subject, scanner: Scanner, modality: str = "T1w", rescan: int = 0) -> Grid:
    """Return the grid of a scan and the pose of the head in it.

    The modalities of one session have a common position up to a small movement.
    """
    session = _rng(subject, scanner, "", rescan, "pose")
    moved = _rng(subject, scanner, modality, rescan, "movement")
    angles = session.normal(0, scanner.pose_deg, 3) + moved.normal(0, 0.1 * scanner.pose_deg, 3)
    shift = session.normal(0, scanner.pose_mm, 3) + moved.normal(0, 0.1 * scanner.pose_mm, 3)
    pose = np.eye(4)
    pose[:3, :3] = _rotation(np.clip(angles, -10, 10))
    pose[:3, 3] = np.clip(shift, -12, 12)
    return Grid(*_voxel_grid(scanner), pose)


def _voxel_grid(scanner: Scanner) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of the stored volume, with the scanner's tilt and axis codes."""
    size = np.array(scanner.voxel_mm)
    count = np.ceil(FOV_MM / size).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(np.array([scanner.tilt_deg, 0, 0])) @ np.diag(size)
    affine[:3, 3] = FOV_CENTER_MM - affine[:3, :3] @ ((count - 1) / 2)
    codes = nib.orientations.axcodes2ornt(scanner.orientation)
    ras = nib.orientations.axcodes2ornt("RAS")
    turn = nib.orientations.ornt_transform(ras, codes)
    shape = tuple(int(count[int(axis)]) for axis in codes[:, 0])
    return shape, affine @ nib.orientations.inv_ornt_aff(turn, tuple(count))  # type: ignore


def _rotation(degrees: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        result = turn @ result
    return result


def _blur_sigma(scanner: Scanner) -> np.ndarray:
    """Return the (3,) standard deviation (mm) of PSF and voxel averaging together."""
    voxel = np.array(scanner.voxel_mm)
    return np.sqrt((scanner.psf_mm / FWHM_PER_STD) ** 2 + voxel**2 / BOX_VARIANCE_DIVISOR)


def _bias_field(scanner: Scanner, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return an (I, J, K) smooth positive field: exp of a few slow cosines along the stored axes.

    The shape is the scanner's; a tenth of the amplitude varies from scan to scan.
    """
    fixed = _cosines(np.random.default_rng(scanner.bias_seed), shape)
    varying = _cosines(rng, shape)
    return np.exp(np.float32(scanner.bias) * (fixed + np.float32(0.1) * varying))


def _cosines(rng: np.random.Generator, shape: tuple[int, ...], terms: int = 5) -> np.ndarray:
    """Return a sum of products of slow cosines (at most one period per axis), scaled to -1..1."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    total = np.zeros(shape, dtype=np.float32)
    for _ in range(terms):
        waves = [
            np.cos(np.float32(np.pi * rng.uniform(0.2, 0.9)) * axis
                   + np.float32(rng.uniform(0, 2 * np.pi)))
            for axis in axes
        ]
        total += np.float32(rng.uniform(0.4, 1)) * np.einsum("i,j,k->ijk", *waves)
    total -= (total.max() + total.min()) / 2
    return total / np.float32(max(abs(total.max()), 1e-6))


def _rician(clean: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of a complex signal with Gaussian noise of `sigma` in either channel."""
    real = rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma) + clean
    imaginary = rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary)


def _truth(subject: Subject, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return brain mask and the label with the largest fraction, on a scan's grid."""
    mask = grid.sample(subject.brain, subject.affine) > 0.5
    labels = np.zeros(grid.shape, dtype=np.uint8)
    air = np.ones(grid.shape, dtype=np.float32)
    best = np.full(grid.shape, -1, dtype=np.float32)
    for label, names in _LABEL_TISSUES.items():
        group = sum(subject.fractions[PHANTOM_TISSUES.index(name)] for name in names)
        fraction = grid.sample(group, subject.affine)
        wins = fraction > best
        labels[wins], best[wins] = label, fraction[wins]
        air -= fraction
    labels[air > best] = 0
    return mask, labels


def _rng(
    subject: Subject, scanner: Scanner, modality: str, rescan: int, purpose: str
) -> np.random.Generator:
    """Return an independent stream for each subject, scanner, modality, rescan and purpose."""
    words = [zlib.crc32(word.encode()) for word in (scanner.name, modality, purpose)]
    return np.random.default_rng([subject.seed, rescan, *words])
