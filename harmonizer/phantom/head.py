"""Head around the brain, modeled by signed distances.

Every body has a signed distance in mm (negative inside) in template coordinates (mm, RAS+). There
are shells of fluid, bone and scalp around the brain, a face with nose, jaw, eyes, sinuses and
throat, and a neck with the spinal canal. Bodies are painted from the innermost outwards. Each gets
a fraction of the unassigned part of a voxel. The rest is air.

The model is coarse. It contains what makes brain extraction difficult: bright fat, dark bone,
muscle and eyes with intensities like the brain's, a neck, and a head that is not spherical.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .physics import PHANTOM_TISSUES

__all__ = ["HeadShape", "Painter", "paint_head"]

SKIN_THICKNESS_MM = 2.2
FACE_TOP_MM = -15.0  # nothing of face and spine lies above
BLEND_WIDTH_MM = 14.0  # how softly skull, face and neck grow into each other


@dataclass(frozen=True)
class HeadShape:
    """Differences between heads: thicknesses in mm, sizes relative to the average head."""

    fluid_mm: float = 2.0
    bone_mm: float = 6.5
    scalp_mm: float = 6.0
    face: float = 1.0
    nose: float = 1.0
    neck: float = 1.0


class Painter:
    """Volume fractions of each tissue in each voxel, painted front to back.

    Attributes
    ----------
    fractions : (tissues, ...) ndarray
        Volume fractions in the order of `PHANTOM_TISSUES`.
    remaining : (...) ndarray
        Fraction of each voxel that no body has taken.
    softness : float
        Width in mm over which a surface goes from inside to outside: one voxel.
    """

    def __init__(self, fractions: np.ndarray, remaining: np.ndarray, softness: float) -> None:
        self.fractions, self.remaining, self.softness = fractions, remaining, softness

    @classmethod
    def blank(cls, shape: tuple[int, ...], softness: float) -> Painter:
        """Return a painter of an empty grid."""
        fractions = np.zeros((len(PHANTOM_TISSUES), *shape), dtype=np.float32)
        return cls(fractions, np.ones(shape, dtype=np.float32), softness)

    def lowest(self, count: int) -> Painter:
        """Return a painter of the `count` first slices of the last axis, sharing memory."""
        return Painter(self.fractions[..., :count], self.remaining[..., :count], self.softness)

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Return the fraction (0 to 1) of a voxel inside a body at this signed distance (mm)."""
        return np.clip(0.5 - distance / np.float32(self.softness), 0, 1)

    def paint(self, tissue: str | None, distance: np.ndarray) -> None:
        """Assign a body to a tissue, or to air (None), where no earlier body took the voxel."""
        taken = self.remaining * self.inside(distance)
        if tissue is not None:
            self.fractions[PHANTOM_TISSUES.index(tissue)] += taken
        self.remaining -= taken


def paint_head(
    painter: Painter,
    points: np.ndarray,
    brain: np.ndarray,
    shape: HeadShape,
    variation: np.ndarray,
) -> None:
    """Paint everything but the brain, which the painter must already contain.

    Parameters
    ----------
    painter : Painter
        Fractions of (I, J, K) voxels; changed in place.
    points : (3, I, J, K) float32 ndarray
        Template coordinates in mm; the last axis goes upwards.
    brain : (I, J, K) ndarray
        Signed distance to the brain in mm.
    shape : HeadShape
        Thicknesses and sizes of this head.
    variation : (3, I, J, K) ndarray
        Smooth unit-variance fields: variation of the thickness of fluid and bone, of the scalp, and
        of the amount of fat in muscle.
    """
    inner = brain - shape.fluid_mm * np.exp(0.3 * np.clip(variation[0], -2, 2))
    bone = shape.bone_mm * (1 + 0.2 * np.clip(variation[0], -2.5, 2.5))
    scalp = shape.scalp_mm * (1 + 0.2 * np.clip(variation[1], -2.5, 2.5))
    skull = inner - bone
    low = int(np.count_nonzero((points[2] < FACE_TOP_MM).any(axis=(0, 1))))
    _paint_canal(painter.lowest(low), points[..., :low])
    painter.paint("csf", inner)
    painter.paint("marrow", np.abs(inner - bone / 2) - 0.22 * bone)  # the diploe
    outer = _outer(points, skull - scalp, shape)
    _paint_face(painter.lowest(low), points[..., :low], skull[..., :low], outer[..., :low], shape)
    painter.paint("bone", skull)
    _paint_soft(painter, outer, scalp, variation[2])


def _paint_canal(painter: Painter, points: np.ndarray) -> None:
    """Paint spinal cord, its fluid, and the vertebrae, from the medulla's end downwards."""
    canal = _rod(points, (0, -45, -66), (0, -52, -160))
    painter.paint("wm", canal - 4.5)
    painter.paint("csf", canal - 8.5)
    bodies = _rod(points, (0, -26, -84), (0, -32, -160)) - 9
    discs = np.abs((points[2] + 88) % 18 - 9) - 2  # fluid-poor discs between the bodies
    painter.paint("muscle", np.maximum(bodies, discs))
    painter.paint("marrow", bodies + 2)
    below = points[2] + 78
    painter.paint("bone", np.maximum(np.minimum(bodies, canal - 12.5), below))


def _paint_face(
    painter: Painter, points: np.ndarray, skull: np.ndarray, outer: np.ndarray, shape: HeadShape
) -> None:
    """Paint eyes, orbits, air-filled spaces with their thin bony walls, and the jaw."""
    mirrored = np.concatenate([np.abs(points[:1]), points[1:]])
    eye = _ball(mirrored, (31, 53 * shape.face, -40), (12, 12, 12))
    orbit = _ball(mirrored, (28, 42 * shape.face, -40), (17, 25, 15))
    walls = np.maximum(-skull, 0) * 4  # nothing of the face reaches into the skull
    lids = outer + SKIN_THICKNESS_MM  # eyes and orbits stay behind the skin
    painter.paint("vitreous", np.maximum(eye, lids) + walls)
    painter.paint("muscle", np.abs(_ball(mirrored, (28, 36, -40), (9, 22, 8))) - 1 + walls)
    painter.paint("fat", np.maximum(orbit, lids + 2) + walls)
    caves = _union([
        np.maximum(_ball(mirrored, (0, 62, -60), (9, 26, 20)), 1.5 - mirrored[0]),  # nose, septum
        _ball(mirrored, (27, 52, -66), (11, 14, 14)),  # maxillary sinus
        _ball(mirrored, (7, 22, -48), (6, 9, 8)),  # sphenoid sinus
        _rod(points, (0, 12, -62), (0, 2, -160)) - 7,  # throat
        _ball(mirrored, (0, 55, -92), (22, 26, 4)),  # mouth
        _ball(mirrored, (64, -28, -50), (8, 10, 12)),  # mastoid and ear canal
    ])
    caves = np.maximum(caves, np.maximum(outer + 5, 0)) + walls
    painter.paint(None, caves)
    painter.paint("bone", np.maximum(np.minimum(caves, orbit) - 2, np.maximum(outer + 6, 0)))
    _paint_jaw(painter, mirrored, shape)


def _paint_jaw(painter: Painter, mirrored: np.ndarray, shape: HeadShape) -> None:
    """Paint a lower jaw with marrow: on each side a rod from below the ear to the chin."""
    chin = (0, 76 * shape.face, -112)
    corner = (46, 6, -98)
    jaw = np.minimum(_rod(mirrored, corner, chin), _rod(mirrored, corner, (52, -8, -56)))
    painter.paint("marrow", jaw - 3)
    painter.paint("bone", jaw - 6)


def _paint_soft(painter: Painter, outer: np.ndarray, scalp: np.ndarray, fatty: np.ndarray) -> None:
    """Paint skin, a layer of fat beneath it, and muscle with streaks of fat down to the bone."""
    skin = np.maximum(outer, -outer - SKIN_THICKNESS_MM)
    fat = np.maximum(outer, -outer - np.maximum(0.75 * scalp, SKIN_THICKNESS_MM + 1.5))
    painter.paint("skin", skin)
    painter.paint("fat", fat)
    flesh = painter.remaining * painter.inside(outer)
    fat_fraction = np.clip(0.12 + 0.22 * fatty, 0, 0.7) * flesh  # streaks between the muscles
    painter.fractions[PHANTOM_TISSUES.index("fat")] += fat_fraction
    painter.fractions[PHANTOM_TISSUES.index("muscle")] += flesh - fat_fraction
    painter.remaining -= flesh


def _outer(points: np.ndarray, scalp: np.ndarray, shape: HeadShape) -> np.ndarray:
    """Return the signed distance to the skin: scalp, face, nose and neck blended."""
    f, n = shape.face, shape.neck
    face = _ball(points, (0, 28 * f, -72), (58 * f, 56 * f, 62 * f))
    neck = np.maximum(_ball(points, (0, -22, -140), (56 * n, 62 * n, 400)), points[2] + 40)
    nose = _ball(points, (0, 84 * f, -64), (13, 22 * shape.nose, 20))
    body = _smooth_union(_smooth_union(scalp, face, BLEND_WIDTH_MM), neck, BLEND_WIDTH_MM)
    ears = _ball(np.concatenate([np.abs(points[:1]), points[1:]]), (76, -24, -36), (6, 14, 26))
    return _smooth_union(_smooth_union(body, nose, 8.0), ears, 6.0)


def _ball(points: np.ndarray, center: tuple, radii: tuple) -> np.ndarray:
    """Return the approximate signed distance (mm) to an ellipsoid; exact on its surface."""
    shape = (3,) + (1,) * (points.ndim - 1)
    center_, radii_ = (np.asarray(a, np.float32).reshape(shape) for a in (center, radii))
    scaled = np.sqrt((((points - center_) / radii_) ** 2).sum(axis=0))
    return (scaled - 1) * np.float32(min(radii))


def _rod(points: np.ndarray, start: tuple, end: tuple) -> np.ndarray:
    """Return the distance (mm) to the straight line from `start` to `end`."""
    shape = (3,) + (1,) * (points.ndim - 1)
    a, b = (np.asarray(p, np.float32) for p in (start, end))
    along = b - a
    offset = points - a.reshape(shape)
    position = np.clip(np.tensordot(along, offset, axes=1) / (along @ along), 0, 1)
    return np.sqrt(((offset - along.reshape(shape) * position) ** 2).sum(axis=0))


def _union(distances: list[np.ndarray]) -> np.ndarray:
    return np.minimum.reduce(distances)


def _smooth_union(one: np.ndarray, two: np.ndarray, blend: float) -> np.ndarray:
    """Return the union of two bodies with a fillet of about `blend` mm.

    This is Quilez's polynomial minimum.
    """
    near = np.maximum(blend - np.abs(one - two), 0) / np.float32(blend)
    return np.minimum(one, two) - near * near * np.float32(blend / 4)
