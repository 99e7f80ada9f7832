"""Scanners: what stands between an anatomy and an image.

A scan is, voxel by voxel,

    noisy = gain x Rice(bias x blur(|sum of shares x signed signals|), sigma)

on a grid of its own: voxel size, axis order and obliquity are the scanner's, the pose of the head
is the scan's. Everything that a harmonization should undo or keep apart is separate here: contrast
(field strength, sequence), resolution (point spread, voxel), gain, bias field, noise. So the truth
"this very scan, as if on scanner T" is known in every voxel: T's contrast, resolution and gain, on
this scan's grid and in this pose, without noise and without bias field.

The scanners' makers are invented, so that nobody takes a simulated image for a vendor's.
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
from ..volume import Volume
from .anatomy import Person
from .physics import FIELDS, TISSUES, Sequence, signals

__all__ = [
    "MODALITIES", "SCANNERS", "UNSEEN", "Scanner", "Grid", "Scan", "scanner_named", "grid_of",
    "shown_by", "render", "acquire", "image_of",
]

MODALITIES = ("T1w", "T2w", "FLAIR", "PDw")
FOV_MM = np.array([196.0, 244.0, 224.0])  # right-left, back-front, foot-head
FOV_CENTRE = np.array([0.0, -9.0, -12.0])  # of the head, in the person's world
VOXELS_MM = (0.5, 12.0)  # smallest side that can be asked for
NECK_MM = (-130.0, -92.0)  # the coil sees nothing below the first, all above the second
FWHM_PER_SIGMA = 2.3548
BOX_VARIANCE = 12.0  # a voxel of width w averages like a Gaussian of variance w^2 / 12


@dataclass(frozen=True)
class Scanner:
    """One machine and its protocol.

    Attributes
    ----------
    name : site label, alphanumeric; also the session label of travelling people
    manufacturer, model : invented
    tesla : 1.5 or 3
    protocol : modality -> `Sequence`
    psf_mm : full width at half maximum of the point spread, before the voxel's own averaging
    voxel_mm : (3,) voxel size right-left, back-front, foot-head
    noise : sigma of the Gaussian noise in either channel, relative to white matter's signal
    gain : stored units of white matter's signal
    bias : half of the log range of the bias field over the field of view (0.2: about +-20 %)
    bias_seed : its shape; the same in all scans of the scanner, up to a tenth
    orientation : axis codes of the stored voxels, such as "LAS" (nibabel's convention)
    tilt_deg : obliquity of the slices about the left-right axis
    pose_deg, pose_mm : standard deviation of the head's rotation and shift from scan to scan
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
            raise UsageError(f"a scanner's name has letters and digits alone, not {self.name!r}.")
        if self.tesla not in FIELDS:
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
        """The sequence of a modality; a modality without one is a `UsageError`."""
        if modality not in self.protocol:
            raise UsageError(
                f"scanner {self.name} has no {modality!r}. {did_you_mean(modality, self.protocol)}"
            )
        return self.protocol[modality]

    def at_voxel(self, voxel_mm: float | None) -> Scanner:
        """The same scanner with voxels scaled so that the smallest side is `voxel_mm`."""
        if voxel_mm is None:
            return self
        low, high = VOXELS_MM
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
"""Scanners that a study may consist of, clearly different from one another."""

_LABEL_TISSUES = {
    1: ("csf",), 2: ("gm", "deep"), 3: ("wm",), 4: ("bone", "marrow"),
    5: ("fat", "muscle", "skin", "vitreous"),
}  # the values of `anatomy.LABELS`

UNSEEN = Scanner(
    "elm", "Elmwood Devices", "Grove 3T", 3.0,
    _protocol(
        Sequence("mprage", 2200, 2.2, 1250, 10, 176, 6.5), Sequence("spin_echo", 3200, 140),
        Sequence("flair", 7000, 90, 2100), Sequence("spin_echo", 4000, 25),
    ),
    psf_mm=1.15, voxel_mm=(0.9, 1.0, 1.0), noise=0.025, gain=5200, bias=0.28, bias_seed=71,
    orientation="LIP", tilt_deg=-6.0,
)
"""A scanner kept apart, for questions about sites that a model has not seen."""


def scanner_named(name: str) -> Scanner:
    """A preset by name; an unknown name is a `UsageError` that lists them."""
    known = {scanner.name: scanner for scanner in (*SCANNERS, UNSEEN)}
    if name not in known:
        raise UsageError(f"no scanner is called {name!r}. {did_you_mean(name, known)}")
    return known[name]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of one scan lie, and how the head lay among them.

    Attributes
    ----------
    shape : (3,) voxels
    affine : (4, 4) voxel -> scanner world, mm, RAS+ (what the header says)
    pose : (4, 4) person's world -> scanner world, mm: a rotation and a shift
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    pose: np.ndarray

    def sample(self, array: np.ndarray, person_affine: np.ndarray) -> np.ndarray:
        """Linear interpolation of an array on a person's grid; zero outside it."""
        matrix = np.linalg.inv(person_affine) @ np.linalg.inv(self.pose) @ self.affine
        result = np.zeros(self.shape, dtype=np.float32)
        low, high = _reach(array, matrix, self.shape)  # elsewhere there is nothing to sample
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
    """First and one past last index of the output voxels that the array's non-zero box may touch.

    `matrix` (4, 4) takes output indices to indices of the array.
    """
    used = array != 0
    spans = [np.flatnonzero(used.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not all(span.size for span in spans):
        return np.zeros(3, int), np.zeros(3, int)
    ends = [(span[0] - 1, span[-1] + 1) for span in spans]  # one voxel more: linear interpolation
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(matrix)
    reached = back[:3, :3] @ corners + back[:3, 3:]
    low = np.clip(np.floor(reached.min(axis=1)), 0, shape).astype(int)
    high = np.clip(np.ceil(reached.max(axis=1)) + 1, 0, shape).astype(int)
    return low, high


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan with its truth, all (I, J, K) on one grid.

    Attributes
    ----------
    noisy : what the scanner stores
    clean : the same without noise, with bias field
    bias : the bias field, around 1
    mask : inside the brain's surface
    labels : uint8, see `anatomy.LABELS`
    grid : where it lies
    """

    noisy: np.ndarray
    clean: np.ndarray
    bias: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    grid: Grid


def image_of(
    person: Person, scanner: Scanner, modality: str = "T1w", rescan: int = 0
) -> tuple[Volume, Volume]:
    """The image that a scanner stores of a person, and the same without noise.

    Both carry the true brain mask. The noise-free one includes the scanner's bias field; what
    a scanner without one would show is `shown_by`. Another `rescan` is another pose, another draw
    of the noise and a slightly other bias field.

    Raises
    ------
    UsageError
        If the scanner has no such modality.
    """
    scan = acquire(person, scanner, modality, rescan)
    return tuple(  # type: ignore[return-value]
        Volume(data, scan.grid.affine, scan.mask) for data in (scan.noisy, scan.clean)
    )


def acquire(
    person: Person,
    scanner: Scanner,
    modality: str = "T1w",
    rescan: int = 0,
    rendered: np.ndarray | None = None,
) -> Scan:
    """A scan of a person with everything that is true about it; see `Scan`.

    `rendered` saves time where `render(person, scanner, modality)` is already there.
    """
    grid = grid_of(person, scanner, modality, rescan)
    bias = _bias_field(scanner, grid.shape, _rng(person, scanner, modality, rescan, "bias"))
    if rendered is None:
        rendered = render(person, scanner, modality)
    clean = grid.sample(rendered, person.affine) * bias
    noise = _rng(person, scanner, modality, rescan, "noise")
    noisy = _rician(clean, scanner.noise * scanner.gain, noise)
    mask, labels = _truth(person, grid)
    return Scan(noisy, clean, bias, mask, labels, grid)


def shown_by(person: Person, scanner: Scanner, modality: str, grid: Grid) -> np.ndarray:
    """(I, J, K) float32: a person as a scanner shows it, without noise and bias, on any grid.

    The scanner gives contrast, resolution (point spread and voxel averaging) and gain; the grid
    may be another scanner's scan of the same person.
    """
    return grid.sample(render(person, scanner, modality), person.affine)


def render(person: Person, scanner: Scanner, modality: str = "T1w") -> np.ndarray:
    """(I, J, K) float32 on the person's own grid: contrast, resolution and gain of a scanner."""
    table = signals(scanner.tesla, scanner.sequence(modality)).astype(np.float32)
    flat = table.T @ person.shares.reshape(len(TISSUES), -1)
    mean, one, two = flat.reshape(3, *person.brain.shape)
    magnetization = np.abs(mean + one * person.texture[0] + two * person.texture[1])
    magnetization *= _coil(person)
    sigma = _blur_sigma(scanner) / person.spacing
    blurred = ndimage.gaussian_filter(magnetization, sigma, mode="constant", truncate=3.0)
    unit = scanner.gain / abs(float(table[TISSUES.index("wm"), 0]))
    return blurred * np.float32(unit)


def _coil(person: Person) -> np.ndarray:
    """(K,) how well the head coil sees each slice of a person: it fades out over the neck."""
    height = person.affine[2, 3] + person.spacing * np.arange(person.brain.shape[2])
    fade = np.clip((height - NECK_MM[0]) / (NECK_MM[1] - NECK_MM[0]), 0, 1)
    return (fade * fade * (3 - 2 * fade)).astype(np.float32)


def grid_of(person: Person, scanner: Scanner, modality: str = "T1w", rescan: int = 0) -> Grid:
    """The grid of a scan and the pose of the head in it.

    The modalities of one session share a position up to a small movement.
    """
    session = _rng(person, scanner, "", rescan, "pose")
    moved = _rng(person, scanner, modality, rescan, "movement")
    angles = session.normal(0, scanner.pose_deg, 3) + moved.normal(0, 0.1 * scanner.pose_deg, 3)
    shift = session.normal(0, scanner.pose_mm, 3) + moved.normal(0, 0.1 * scanner.pose_mm, 3)
    pose = np.eye(4)
    pose[:3, :3] = _rotation(np.clip(angles, -10, 10))
    pose[:3, 3] = np.clip(shift, -12, 12)
    return Grid(*_voxel_grid(scanner), pose)


def _voxel_grid(scanner: Scanner) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the scanner's stored volume: oblique, flipped and permuted as it says."""
    size = np.array(scanner.voxel_mm)
    count = np.ceil(FOV_MM / size).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(np.array([scanner.tilt_deg, 0, 0])) @ np.diag(size)
    affine[:3, 3] = FOV_CENTRE - affine[:3, :3] @ ((count - 1) / 2)
    codes = nib.orientations.axcodes2ornt(scanner.orientation)
    ras = nib.orientations.axcodes2ornt("RAS")
    turn = nib.orientations.ornt_transform(ras, codes)
    shape = tuple(int(count[int(axis)]) for axis in codes[:, 0])
    return shape, affine @ nib.orientations.inv_ornt_aff(turn, tuple(count))  # type: ignore


def _rotation(degrees: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        result = turn @ result
    return result


def _blur_sigma(scanner: Scanner) -> np.ndarray:
    """(3,) standard deviation (mm) of point spread and voxel averaging together."""
    voxel = np.array(scanner.voxel_mm)
    return np.sqrt((scanner.psf_mm / FWHM_PER_SIGMA) ** 2 + voxel**2 / BOX_VARIANCE)


def _bias_field(scanner: Scanner, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(I, J, K) smooth positive field: exp of a few slow cosines along the stored axes.

    The shape is the scanner's, a tenth of the amplitude is the scan's.
    """
    own = _cosines(np.random.default_rng(scanner.bias_seed), shape)
    now = _cosines(rng, shape)
    return np.exp(np.float32(scanner.bias) * (own + np.float32(0.1) * now))


def _cosines(rng: np.random.Generator, shape: tuple[int, ...], terms: int = 5) -> np.ndarray:
    """Sum of products of slow cosines (at most one period per axis), scaled to -1..1."""
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
    """Magnitude of a complex signal with Gaussian noise of `sigma` in either channel."""
    real = rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma) + clean
    imaginary = rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary)


def _truth(person: Person, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Brain mask and the label with the largest share, on a scan's grid."""
    mask = grid.sample(person.brain, person.affine) > 0.5
    labels = np.zeros(grid.shape, dtype=np.uint8)
    left = np.ones(grid.shape, dtype=np.float32)  # what is no tissue is air
    best = np.full(grid.shape, -1, dtype=np.float32)
    for label, names in _LABEL_TISSUES.items():
        group = sum(person.shares[TISSUES.index(name)] for name in names)
        share = grid.sample(group, person.affine)
        wins = share > best
        labels[wins], best[wins] = label, share[wins]
        left -= share
    labels[left > best] = 0
    return mask, labels


def _rng(
    person: Person, scanner: Scanner, modality: str, rescan: int, purpose: str
) -> np.random.Generator:
    """An independent stream for each person, scanner, modality, rescan and purpose."""
    words = [zlib.crc32(word.encode()) for word in (scanner.name, modality, purpose)]
    return np.random.default_rng([person.seed, rescan, *words])
