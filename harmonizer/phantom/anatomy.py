"""Anatomies of simulated subjects: one per seed, deformed from the template, changing with age.

A voxel x of a subject samples the template at y = f(x). The mapping f is the composition of

    a head size (larger in men),
    exp(v): the flow of a smooth random velocity field, so that f is a diffeomorphism, and
    exp(a u): a flow towards the ventricles by a mm, which widens them; a grows with age.

Age also thins the cortex: in gray matter the odds of parenchyma against fluid are divided by
exp(k(age)). This moves the pial border inwards and opens the sulci. For a given seed both effects
are monotone in age, so two ages of one seed are the same subject at two times. Their sizes are of
the order of published lifespan charts [1]_: from 20 to 80 years the volume of the ventricles at
least doubles, and gray matter loses about a seventh.

All random fields are drawn on fixed lattices in mm. A subject is therefore the same at every voxel
size.

References
----------
.. [1] Bethlehem RAI, et al. (2022). Brain charts for the human lifespan. Nature 604:525-533.
   doi:10.1038/s41586-022-04554-y
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import UsageError
from .atlas import Atlas, Map, distances, load_atlas
from .head import HeadShape, Painter, paint_head
from .physics import PHANTOM_TISSUES

__all__ = [
    "Subject", "Deformation", "make_subject", "make_deformation", "LABELS", "AGE_RANGE_YEARS",
]

AGE_RANGE_YEARS = (5.0, 100.0)
"""Lowest and highest age (years) of simulated subjects."""

LABELS = {1: "CSF", 2: "GM", 3: "WM", 4: "Bone", 5: "Soft tissue"}
"""Values of label images; 0 is air. Subcortical gray matter is GM."""

GRID_SPACINGS_MM = (1.0, 2.0, 4.0)
HEAD_BOX_MM = np.array([[-100.0, 100.0], [-136.0, 116.0], [-130.0, 108.0]])  # extent of the head
HEAD_SIZE_FACTORS = {"F": 0.905, "M": 0.94}  # size of an average head relative to the template
DEFORMATION_LATTICE_MM = 5.0
TEXTURE_LATTICE_MM = 2.0
COARSE_LATTICE_MM = 8.0  # for noise too smooth to need the texture lattice


@dataclass(frozen=True, eq=False)
class Deformation:
    """Mapping from a subject's space to the template's: y = x / size + displacement(x / size).

    Attributes
    ----------
    displacement : (3, I, J, K) float32 ndarray
        Displacement in mm on a lattice of 5 mm.
    origin : (3,) ndarray
        First point of the lattice in mm.
    size : (3,) ndarray
        Factors by which the head is larger than the template's.
    """

    displacement: np.ndarray
    origin: np.ndarray
    size: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points (3, ...) of the subject to template coordinates (3, ...), both in mm."""
        scaled = points / self.size.astype(np.float32).reshape((3,) + (1,) * (points.ndim - 1))
        return scaled + _look_up(self.displacement, scaled, self.origin)


@dataclass(frozen=True, eq=False)
class Subject:
    """One simulated anatomy on a regular RAS grid.

    Attributes
    ----------
    seed : int
        Seed of the anatomy.
    age : float
        Age in years.
    sex : str
        "F" or "M".
    spacing : float
        Voxel size in mm.
    affine : (4, 4) ndarray
        From voxels to the subject's world coordinates in mm, RAS+; the origin is near the anterior
        commissure.
    fractions : (tissues, I, J, K) float32 ndarray
        Volume fraction of each of `PHANTOM_TISSUES` in a voxel; the rest is air.
    texture : (2, I, J, K) float32 ndarray
        Fields of about unit variance that change relaxation times, see `physics`.
    brain : (I, J, K) float32 ndarray
        Fraction of a voxel inside the brain's surface, fissures included.
    ventricles : (I, J, K) float32 ndarray
        Fraction of a voxel inside the lateral and third ventricles.
    """

    seed: int
    age: float
    sex: str
    spacing: float
    affine: np.ndarray
    fractions: np.ndarray
    texture: np.ndarray
    brain: np.ndarray
    ventricles: np.ndarray

    def without_skull(self) -> Subject:
        """Return the same subject with air outside the brain's surface."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Subject(**{**fields, "fractions": self.fractions * self.brain})


def make_subject(seed: int, age: float = 40.0, sex: str = "F", spacing: float = 2.0) -> Subject:
    """Make the anatomy of one subject.

    The same seed gives the same subject at any age and voxel size.

    Parameters
    ----------
    seed : int
        Non-negative seed of every random choice.
    age : float
        Age in years, 5 to 100.
    sex : str
        "F" or "M"; heads of men are 4 % larger in each direction on average.
    spacing : float
        Voxel size in mm: 1, 2 or 4.

    Returns
    -------
    Subject
        The anatomy.

    Raises
    ------
    UsageError
        If age, sex or spacing is out of range.
    """
    _check(age, sex, spacing)
    deformation = make_deformation(seed, age, sex)
    points, affine = _grid(spacing)
    points = deformation(points)
    atlas = load_atlas(spacing)
    brain = atlas.brain.at(points, outside=60.0)
    painter = Painter.blank(brain.shape, spacing)
    brain_fraction = painter.inside(brain)
    textures = _textures(seed, atlas, points, brain_fraction, spacing)
    _paint_brain(painter, atlas, points, brain_fraction, _thinning(seed, age))
    paint_head(painter, points, brain, _head_shape(seed, sex), _variation(seed, spacing))
    ventricles = painter.inside(atlas.ventricle.at(points, outside=60.0))
    return Subject(
        seed, float(age), sex, spacing, affine, painter.fractions, textures, brain_fraction,
        ventricles,
    )


def make_deformation(seed: int, age: float = 40.0, sex: str = "F") -> Deformation:
    """Make the mapping from a subject's space to the template's, see the module's equation.

    The template (1.88 L) is larger than an average head, hence the sizes below one.
    """
    rng = _rng(seed, "deformation")
    size = HEAD_SIZE_FACTORS[sex] * (1 + rng.normal(0, 0.015)) * (1 + rng.normal(0, 0.012, 3))
    origin, shape = _lattice()
    coarse, fine = (
        np.float32(mm) * np.stack([_smooth_noise(rng, shape, sigma) for _ in range(3)])
        for mm, sigma in ((3.5, 28.0 / DEFORMATION_LATTICE_MM),
                          (1.3, 11.0 / DEFORMATION_LATTICE_MM))
    )
    own = _exponential(coarse + fine, origin, squarings=5)
    aging = _exponential(
        _towards_ventricles(_widening(seed, age), origin, shape), origin, squarings=4
    )
    points = _points(origin, shape, DEFORMATION_LATTICE_MM)
    return Deformation(own + _look_up(aging, points + own, origin), origin, size)


def _check(age: float, sex: str, spacing: float) -> None:
    low, high = AGE_RANGE_YEARS
    if not low <= age <= high:
        raise UsageError(f"expected an age of {low:g} to {high:g} years, got {age}.")
    if sex not in ("F", "M"):
        raise UsageError(f"expected sex 'F' or 'M', got {sex!r}.")
    if spacing not in GRID_SPACINGS_MM:
        raise UsageError(f"expected a voxel size of 1, 2 or 4 mm, got {spacing}.")


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """Return an independent stream of random numbers for one purpose."""
    return np.random.default_rng([seed, *purpose.encode()])


def _widening(seed: int, age: float) -> float:
    """Return the outward displacement (mm) of the ventricles' walls; it accelerates with age."""
    own = float(np.clip(_rng(seed, "ventricles").normal(0, 0.4), -0.9, 0.9))
    return own + 0.3 + 1.8 * (age - 20) / 60 + 3.0 * (max(age - 20, 0) / 60) ** 2


def _thinning(seed: int, age: float) -> float:
    """Return k of the module's docstring: the log odds that gray matter has lost against fluid."""
    own = float(np.clip(_rng(seed, "cortex").normal(0, 0.12), -0.3, 0.3))
    return own - 0.25 + 1.8 * (age - 20) / 60


def _head_shape(seed: int, sex: str) -> HeadShape:
    rng = _rng(seed, "head")
    male = sex == "M"
    return HeadShape(
        fluid_mm=rng.uniform(1.2, 2.4),
        bone_mm=rng.uniform(5.0, 7.5),
        scalp_mm=rng.uniform(4.5, 8.0),
        face=rng.uniform(0.95, 1.03) + 0.02 * male,
        nose=rng.uniform(0.85, 1.2),
        neck=rng.uniform(0.88, 1.0) + 0.08 * male,
    )


def _paint_brain(
    painter: Painter, atlas: Atlas, points: np.ndarray, brain: np.ndarray, thinning: float
) -> None:
    """Fill the brain's surface with CSF, cortex, white matter and deep gray matter."""
    inside = brain > 0
    here = points[:, inside]
    gm, wm = atlas.gm.at(here), atlas.wm.at(here)
    parenchyma = np.clip(gm + wm, 1e-6, 1)
    odds = np.exp(np.float32(thinning) * gm / parenchyma)
    thinned = parenchyma / (parenchyma + (1 - parenchyma) * odds)
    share = brain[inside] * thinned / parenchyma
    deep = _deep(here)
    parts = {"gm": share * gm * (1 - deep), "wm": share * wm, "deep": share * gm * deep}
    for tissue, part in parts.items():
        painter.fractions[PHANTOM_TISSUES.index(tissue)][inside] = part
    painter.fractions[PHANTOM_TISSUES.index("csf")][inside] = brain[inside] - sum(parts.values())
    painter.remaining -= brain


def _deep(points: np.ndarray) -> np.ndarray:
    """Return 0 to 1: membership of the basal ganglia and the thalamus, modeled as an ellipsoid."""
    center = np.array([0, -5, 4], np.float32)[:, None]
    radii = np.array([33, 32, 20], np.float32)[:, None]
    radius = np.sqrt((((points - center) / radii) ** 2).sum(axis=0))
    return np.clip((1.08 - radius) / 0.16, 0, 1)


def _textures(
    seed: int, atlas: Atlas, points: np.ndarray, brain: np.ndarray, spacing: float
) -> np.ndarray:
    """Return (2, ...) fields of regional and fine variation; the first also has template detail."""
    rng = _rng(seed, "texture")
    scales = ((0.5, 14.0), (0.45, 4.5), (0.5, 1.6))
    fields = np.stack([
        np.sum([np.float32(a) * _grain(rng, mm, spacing) for a, mm in scales], axis=0)
        for _ in range(2)
    ])
    detail = atlas.detail.at(points[:, brain > 0])  # bright on T1w means short T1
    fields[0][brain > 0] -= np.float32(0.6) * detail
    return fields


def _variation(seed: int, spacing: float) -> np.ndarray:
    """Return (3, ...) smooth unit-variance fields with which `paint_head` varies the head."""
    rng = _rng(seed, "variation")
    return np.stack([_grain(rng, mm, spacing) for mm in (22.0, 18.0, 6.0)])


def _grain(rng: np.random.Generator, mm: float, spacing: float) -> np.ndarray:
    """Return unit-variance noise of scale `mm`, drawn on a fixed lattice, on the subject's grid."""
    lattice = COARSE_LATTICE_MM if mm > 1.5 * COARSE_LATTICE_MM else TEXTURE_LATTICE_MM
    shape = tuple(np.ceil((HEAD_BOX_MM[:, 1] - HEAD_BOX_MM[:, 0]) / lattice).astype(int))
    noise = _smooth_noise(rng, shape, mm / lattice)
    return noise if lattice == spacing else _resampled(noise, lattice, spacing)


def _resampled(field: np.ndarray, lattice: float, spacing: float) -> np.ndarray:
    """Resample a field with voxels of `lattice` mm to the subject's grid (linear)."""
    ratio = spacing / lattice
    matrix = np.diag([ratio, ratio, ratio])
    return ndimage.affine_transform(
        field, matrix, np.full(3, (ratio - 1) / 2), _shape(spacing), np.float32, 1, "nearest"
    )


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Return Gaussian noise smoothed by `sigma` voxels, with unit variance."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3.0)
    return smooth / np.float32(smooth.std())


def _shape(spacing: float) -> tuple[int, int, int]:
    i, j, k = np.round((HEAD_BOX_MM[:, 1] - HEAD_BOX_MM[:, 0]) / spacing).astype(int)
    return i, j, k


def _grid(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (3, I, J, K) voxel centers in mm and the affine of a subject's grid."""
    start = HEAD_BOX_MM[:, 0] + spacing / 2
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = start
    return _points(start, _shape(spacing), spacing), affine


def _lattice() -> tuple[np.ndarray, tuple[int, ...]]:
    """Return first point and shape of the deformation's lattice: the box and 12 mm around it."""
    origin = HEAD_BOX_MM[:, 0] - 12
    steps = np.ceil((HEAD_BOX_MM[:, 1] + 12 - origin) / DEFORMATION_LATTICE_MM)
    return origin, tuple(steps.astype(int) + 1)


def _points(origin: np.ndarray, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    axes = [np.float32(o) + np.float32(spacing) * np.arange(n, dtype=np.float32)
            for o, n in zip(origin, shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _look_up(field: np.ndarray, points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Interpolate a vector field (3, ...) on the 5 mm lattice linearly at points (3, ...)."""
    start = origin.astype(np.float32).reshape((3,) + (1,) * (points.ndim - 1))
    index = (points - start) / np.float32(DEFORMATION_LATTICE_MM)
    return np.stack([
        ndimage.map_coordinates(part, index, order=1, mode="nearest", output=np.float32)
        for part in field
    ])


def _exponential(velocity: np.ndarray, origin: np.ndarray, squarings: int) -> np.ndarray:
    """Return the displacement of the flow of a stationary velocity, by scaling and squaring [1]_.

    Each of the small steps is invertible, so their composition is.

    References
    ----------
    .. [1] Arsigny V, et al. (2006). A log-Euclidean framework for statistics on diffeomorphisms.
       MICCAI, 924-931. doi:10.1007/11866565_113
    """
    points = _points(origin, velocity.shape[1:], DEFORMATION_LATTICE_MM)
    flow = velocity / np.float32(2**squarings)
    for _ in range(squarings):
        flow = flow + _look_up(flow, points + flow, origin)
    return flow


def _towards_ventricles(amount: float, origin: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the velocity (mm) towards the ventricles, fading over some 10 mm of tissue."""
    _, distance = distances()
    points = _points(origin, shape, DEFORMATION_LATTICE_MM)
    smooth = Map(ndimage.gaussian_filter(distance.data, 1.0), distance.origin, distance.spacing)
    field = smooth.at(points, outside=60.0)
    fade = np.exp(-((np.maximum(field, 0) / 11.0) ** 2))
    gradient = np.stack(np.gradient(field, DEFORMATION_LATTICE_MM))
    return np.float32(-amount) * gradient * fade
