"""People: one anatomy per seed, bent from the average head, with an age that shows.

A voxel x of a person looks up the template at y = f(x) (pull-back), where f is the composition of

    a head size (larger in men),
    exp(v): the flow of a smooth random velocity field, so f is a diffeomorphism, and
    exp(a u): a flow towards the ventricles, of a mm; a grows with age and widens them.

Age also thins the cortex: the odds of parenchyma against fluid are divided by exp(k(age)) where
there is grey matter, which moves the pial border inwards and opens the sulci. Both effects are
monotone for a given seed by construction: the same person, only older. Sizes are of the order of
published lifespan charts (Bethlehem et al. 2022, doi:10.1038/s41586-022-04554-y): from 20 to 80
years the ventricles double or more and grey matter loses about a seventh.

Everything random lives on fixed lattices in mm, so a person is the same at every voxel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import UsageError
from .atlas import Atlas, Map, distances, load_atlas
from .head import HeadShape, Painter, paint_head
from .physics import TISSUES

__all__ = ["Person", "Deformation", "make_person", "make_deformation", "LABELS", "AGES"]

AGES = (5.0, 100.0)
"""Ages (years) that the phantom knows how to show."""

LABELS = {1: "CSF", 2: "GM", 3: "WM", 4: "Bone", 5: "Soft tissue"}
"""Values of label images; 0 is air. Subcortical grey matter is GM."""

SPACINGS = (1.0, 2.0, 4.0)
BOX = np.array([[-100.0, 100.0], [-136.0, 116.0], [-130.0, 108.0]])  # the head, mm
SIZES = {"F": 0.905, "M": 0.94}  # of an average head, relative to the template
LATTICE_MM = 5.0  # of deformations
GRAIN_MM = 2.0  # of textures
COARSE_MM = 8.0  # of noise too smooth to need the grain's lattice


@dataclass(frozen=True, eq=False)
class Deformation:
    """A map from a person's space to the template's: y = x / size + displacement(x / size).

    Attributes
    ----------
    displacement : (3, I, J, K) float32 mm, on a lattice of 5 mm starting at `origin`
    origin : (3,) mm
    size : (3,) factors by which the head is larger than the template's
    """

    displacement: np.ndarray
    origin: np.ndarray
    size: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Template coordinates (3, ...) of a person's points (3, ...), both in mm."""
        scaled = points / self.size.astype(np.float32).reshape((3,) + (1,) * (points.ndim - 1))
        return scaled + _look_up(self.displacement, scaled, self.origin)


@dataclass(frozen=True, eq=False)
class Person:
    """One anatomy on a regular RAS grid of `spacing` mm.

    Attributes
    ----------
    seed, age (years), sex ("F" or "M") : who it is
    spacing : mm
    affine : (4, 4) voxel -> the person's world, mm, RAS+, origin near the anterior commissure
    shares : (tissues, I, J, K) float32 share of each of `TISSUES` in a voxel; the rest is air
    texture : (2, I, J, K) float32, about unit variance; see `physics`
    brain : (I, J, K) float32 share of a voxel inside the brain's surface (fissures included)
    ventricles : (I, J, K) float32 share of a voxel inside the lateral and third ventricles
    """

    seed: int
    age: float
    sex: str
    spacing: float
    affine: np.ndarray
    shares: np.ndarray
    texture: np.ndarray
    brain: np.ndarray
    ventricles: np.ndarray

    def without_skull(self) -> Person:
        """The same person with everything outside the brain's surface turned to air."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Person(**{**fields, "shares": self.shares * self.brain})


def make_person(seed: int, age: float = 40.0, sex: str = "F", spacing: float = 2.0) -> Person:
    """A person, the same one for the same seed at any age and voxel size.

    Parameters
    ----------
    seed : non-negative integer; every random choice comes from it
    age : years, 5..100
    sex : "F" or "M"; men's heads are 4 % larger in each direction, on average
    spacing : grid in mm: 1, 2 or 4

    Raises
    ------
    UsageError
        If age, sex or spacing is none of these.
    """
    _check(age, sex, spacing)
    deformation = make_deformation(seed, age, sex)
    points, affine = _grid(spacing)
    points = deformation(points)
    atlas = load_atlas(spacing)
    brain = atlas.brain.at(points, outside=60.0)
    painter = Painter.blank(brain.shape, spacing)
    brain_share = painter.inside(brain)
    textures = _textures(seed, atlas, points, brain_share, spacing)
    _paint_brain(painter, atlas, points, brain_share, _thinning(seed, age))
    paint_head(painter, points, brain, _head_shape(seed, sex), _variation(seed, spacing))
    ventricles = painter.inside(atlas.ventricle.at(points, outside=60.0))
    return Person(
        seed, float(age), sex, spacing, affine, painter.shares, textures, brain_share, ventricles
    )


def make_deformation(seed: int, age: float = 40.0, sex: str = "F") -> Deformation:
    """How a person's space maps to the template's; see the module's equation.

    The template is larger than people are (1.88 L), hence sizes below one.
    """
    rng = _rng(seed, "deformation")
    size = SIZES[sex] * (1 + rng.normal(0, 0.015)) * (1 + rng.normal(0, 0.012, 3))
    origin, shape = _lattice()
    coarse, fine = (
        np.float32(mm) * np.stack([_smooth_noise(rng, shape, sigma) for _ in range(3)])
        for mm, sigma in ((3.5, 28.0 / LATTICE_MM), (1.3, 11.0 / LATTICE_MM))
    )
    own = _exponential(coarse + fine, origin, squarings=5)
    ageing = _exponential(
        _towards_ventricles(_widening(seed, age), origin, shape), origin, squarings=4
    )
    points = _points(origin, shape, LATTICE_MM)
    return Deformation(own + _look_up(ageing, points + own, origin), origin, size)


def _check(age: float, sex: str, spacing: float) -> None:
    if not AGES[0] <= age <= AGES[1]:
        raise UsageError(f"expected an age of {AGES[0]:g} to {AGES[1]:g} years, got {age}.")
    if sex not in ("F", "M"):
        raise UsageError(f"expected sex 'F' or 'M', got {sex!r}.")
    if spacing not in SPACINGS:
        raise UsageError(f"people come on grids of 1, 2 or 4 mm, not {spacing}. Choose one.")


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """An independent stream of random numbers for each purpose."""
    return np.random.default_rng([seed, *purpose.encode()])


def _widening(seed: int, age: float) -> float:
    """How far (mm) the walls of the ventricles have moved outwards; slow until 40, then faster."""
    own = float(np.clip(_rng(seed, "ventricles").normal(0, 0.4), -0.9, 0.9))
    return own + 0.3 + 1.8 * (age - 20) / 60 + 3.0 * (max(age - 20, 0) / 60) ** 2


def _thinning(seed: int, age: float) -> float:
    """k of the module's docstring: log odds by which grey matter has lost against fluid."""
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
    """CSF, cortex, white matter and deep grey matter inside the brain's surface."""
    inside = brain > 0
    here = points[:, inside]
    gm, wm = atlas.gm.at(here), atlas.wm.at(here)
    parenchyma = np.clip(gm + wm, 1e-6, 1)
    odds = np.exp(np.float32(thinning) * gm / parenchyma)
    kept = parenchyma / (parenchyma + (1 - parenchyma) * odds)
    share = brain[inside] * kept / parenchyma
    deep = _deep(here)
    parts = {"gm": share * gm * (1 - deep), "wm": share * wm, "deep": share * gm * deep}
    for tissue, part in parts.items():
        painter.shares[TISSUES.index(tissue)][inside] = part
    painter.shares[TISSUES.index("csf")][inside] = brain[inside] - sum(parts.values())
    painter.left -= brain


def _deep(points: np.ndarray) -> np.ndarray:
    """0..1: how much a point belongs to the basal ganglia and the thalamus (an ellipsoid)."""
    centre = np.array([0, -5, 4], np.float32)[:, None]
    radii = np.array([33, 32, 20], np.float32)[:, None]
    radius = np.sqrt((((points - centre) / radii) ** 2).sum(axis=0))
    return np.clip((1.08 - radius) / 0.16, 0, 1)


def _textures(
    seed: int, atlas: Atlas, points: np.ndarray, brain: np.ndarray, spacing: float
) -> np.ndarray:
    """(2, ...) fields of regional, fine and, for the first, template-given variation."""
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
    """(3, ...) smooth unit-variance fields that `paint_head` thickens and streaks the head with."""
    rng = _rng(seed, "variation")
    return np.stack([_grain(rng, mm, spacing) for mm in (22.0, 18.0, 6.0)])


def _grain(rng: np.random.Generator, mm: float, spacing: float) -> np.ndarray:
    """Unit-variance noise of scale `mm`, drawn on a fixed lattice, on the person's grid."""
    lattice = COARSE_MM if mm > 1.5 * COARSE_MM else GRAIN_MM
    shape = tuple(np.ceil((BOX[:, 1] - BOX[:, 0]) / lattice).astype(int))
    noise = _smooth_noise(rng, shape, mm / lattice)
    return noise if lattice == spacing else _resampled(noise, lattice, spacing)


def _resampled(field: np.ndarray, lattice: float, spacing: float) -> np.ndarray:
    """A field of voxels of `lattice` mm that fill the box, on the person's grid (linear)."""
    ratio = spacing / lattice
    matrix = np.diag([ratio, ratio, ratio])
    return ndimage.affine_transform(
        field, matrix, np.full(3, (ratio - 1) / 2), _shape(spacing), np.float32, 1, "nearest"
    )


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise smoothed by `sigma` voxels, with unit variance."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3.0)
    return smooth / np.float32(smooth.std())


def _shape(spacing: float) -> tuple[int, int, int]:
    return tuple(np.round((BOX[:, 1] - BOX[:, 0]) / spacing).astype(int))  # type: ignore


def _grid(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """(3, I, J, K) voxel centres in mm and the affine of a person's grid."""
    start = BOX[:, 0] + spacing / 2
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = start
    return _points(start, _shape(spacing), spacing), affine


def _lattice() -> tuple[np.ndarray, tuple[int, ...]]:
    """First point and shape of the deformation's lattice: the box and 12 mm around it."""
    origin = BOX[:, 0] - 12
    return origin, tuple(np.ceil((BOX[:, 1] + 12 - origin) / LATTICE_MM).astype(int) + 1)


def _points(origin: np.ndarray, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    axes = [np.float32(o) + np.float32(spacing) * np.arange(n, dtype=np.float32)
            for o, n in zip(origin, shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _look_up(field: np.ndarray, points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Linear interpolation of a vector field (3, ...) on the 5 mm lattice at points (3, ...)."""
    start = origin.astype(np.float32).reshape((3,) + (1,) * (points.ndim - 1))
    index = (points - start) / np.float32(LATTICE_MM)
    return np.stack([
        ndimage.map_coordinates(part, index, order=1, mode="nearest", output=np.float32)
        for part in field
    ])


def _exponential(velocity: np.ndarray, origin: np.ndarray, squarings: int) -> np.ndarray:
    """Displacement of the flow of a stationary velocity, by scaling and squaring.

    Arsigny et al. 2006, doi:10.1007/11866565_113. Small steps are invertible, so the whole is.
    """
    points = _points(origin, velocity.shape[1:], LATTICE_MM)
    flow = velocity / np.float32(2**squarings)
    for _ in range(squarings):
        flow = flow + _look_up(flow, points + flow, origin)
    return flow


def _towards_ventricles(amount: float, origin: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Velocity (mm) down the distance to the ventricles, fading over some 10 mm of tissue."""
    _, distance = distances()
    points = _points(origin, shape, LATTICE_MM)
    smooth = Map(ndimage.gaussian_filter(distance.data, 1.0), distance.origin, distance.spacing)
    field = smooth.at(points, outside=60.0)
    fade = np.exp(-((np.maximum(field, 0) / 11.0) ** 2))
    gradient = np.stack(np.gradient(field, LATTICE_MM))
    return np.float32(-amount) * gradient * fade
