"""Average brain from which the phantom's subjects are deformed.

The template is nilearn's bundled MNI152NLin2009aSym with its gray- and white-matter maps: offline,
symmetric, ending at the brain surface. Two signed distances in mm (negative inside) describe the
brain's surface and the ventricles; unlike voxels, distances can be thickened and thinned smoothly.
`head` models the head around the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..template import load_template, tissue_priors

__all__ = ["Atlas", "Map", "axes_of", "distances", "load_atlas"]

PADDING_MM = 30.0  # margin around the template in which the distance to the brain is known
SHARPENING_EXPONENT = 2.0  # exponent that undoes part of the blur of an average of 152 brains


@dataclass(frozen=True, eq=False)
class Map:
    """Scalar field on a regular RAS grid.

    Attributes
    ----------
    data : (I, J, K) ndarray
        Values.
    origin : (3,) ndarray
        Center of the first voxel in mm.
    spacing : float
        Voxel size in mm.
    """

    data: np.ndarray
    origin: np.ndarray
    spacing: float

    def at(self, points: np.ndarray, outside: float = 0.0) -> np.ndarray:
        """Interpolate linearly at points (3, ...) in mm; `outside` is the value off the grid."""
        index = (points - self.origin.reshape((3,) + (1,) * (points.ndim - 1))) / self.spacing
        return ndimage.map_coordinates(
            self.data, index, order=1, mode="constant", cval=outside, output=np.float32
        )


@dataclass(frozen=True, eq=False)
class Atlas:
    """Fields in template space.

    Attributes
    ----------
    gm, wm : Map
        Sharpened tissue probabilities inside the brain; the rest is fluid.
    detail : Map
        Residual of the template's T1w image after its tissue maps, of unit variance inside the
        brain.
    brain : Map
        Signed distance to the brain surface in mm.
    ventricle : Map
        Smoothed signed distance to the lateral and third ventricles in mm.
    """

    gm: Map
    wm: Map
    detail: Map
    brain: Map
    ventricle: Map


@lru_cache(maxsize=3)
def load_atlas(spacing: float) -> Atlas:
    """Load the atlas, band-limited for a grid of `spacing` mm (1, 2 or 4).

    The result is cached and must not be changed.
    """
    gm, wm, _, detail, _ = _tissues()
    origin = load_template(1).affine[:3, 3]
    gm_map, wm_map, detail_map = (
        _band_limited(array, origin, spacing) for array in (gm, wm, detail)
    )
    return Atlas(gm_map, wm_map, detail_map, *distances())


@lru_cache(maxsize=1)
def _tissues() -> tuple[np.ndarray, ...]:
    """Return GM, WM, CSF, detail (float32) and brain mask (bool) on the template's 1 mm grid."""
    template, priors = load_template(1), tissue_priors(1)
    assert template.mask is not None
    parts = _sharpened([priors[name] for name in ("GM", "WM", "CSF")], template.mask)
    return (*parts, _detail(template.data, parts, template.mask), template.mask)


def _sharpened(parts: list[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
    """Raise tissue probabilities inside the mask to a power and normalize their sum to one."""
    powers = [np.where(mask, part, np.float32(0)) ** SHARPENING_EXPONENT for part in parts]
    total = np.maximum(sum(powers), np.float32(1e-6))
    return [power / total for power in powers]


def _detail(template: np.ndarray, parts: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return the template's residual after one intensity per tissue: myelin, iron, nuclei."""
    design = np.stack([part[mask] for part in parts], axis=1)
    weights = np.linalg.solve(design.T @ design, design.T @ template[mask])
    residual = np.zeros_like(template)
    residual[mask] = template[mask] - design @ weights
    return np.clip(residual / residual[mask].std(), -2.5, 2.5)


def _band_limited(array: np.ndarray, origin: np.ndarray, spacing: float) -> Map:
    """Smooth a 1 mm map for sampling at `spacing` mm; above 1 mm keep every second voxel."""
    if spacing <= 1:
        return Map(array, origin, 1.0)
    smooth = ndimage.gaussian_filter(array, 0.35 * spacing, output=np.float32)
    return Map(np.ascontiguousarray(smooth[::2, ::2, ::2]), origin, 2.0)


@lru_cache(maxsize=1)
def distances() -> tuple[Map, Map]:
    """Return signed distances to brain and ventricles at 2 mm.

    They are smooth and therefore serve every spacing.
    """
    _, _, csf, _, mask = _tissues()
    pad = int(PADDING_MM / 2)
    start = load_template(1).affine[:3, 3] - 2.0 * pad
    brain = Map(_signed_distance(np.pad(mask[::2, ::2, ::2], pad), 2.0, 0.5), start, 2.0)
    deep = Map(brain.data[pad:-pad, pad:-pad, pad:-pad], start + 2.0 * pad, 2.0)
    ventricles = _ventricles(csf[::2, ::2, ::2], deep)
    return brain, Map(_signed_distance(ventricles, 2.0, 1.0), deep.origin, 2.0)


def _signed_distance(mask: np.ndarray, spacing: float, smooth: float) -> np.ndarray:
    """Return the smoothed distance in mm to the mask's surface, negative inside."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    distance = outside - inside + np.where(mask, 0.5, -0.5) * spacing
    return ndimage.gaussian_filter(distance.astype(np.float32), smooth)


def _ventricles(csf: np.ndarray, brain: Map) -> np.ndarray:
    """Return the connected fluid deep inside the brain: lateral ventricles and the third."""
    x, y, z = axes_of(brain)
    box = (abs(x) < 34) & (y > -52) & (y < 38) & (z > -10) & (z < 36)
    quadrigeminal = (abs(x) < 14) & (y < -26) & (z < 14)  # the cistern behind the midbrain
    fluid = (csf > 0.4) & box & ~quadrigeminal & (brain.data < -18)
    parts, count = ndimage.label(fluid)
    sizes = ndimage.sum_labels(fluid, parts, np.arange(1, count + 1))
    return np.isin(parts, 1 + np.flatnonzero(sizes > 60))  # 60 voxels = 0.5 mL


def axes_of(field: Map) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return broadcastable coordinates (mm) of a map's voxels along x, y and z."""
    shape = field.data.shape
    axes = [start + field.spacing * np.arange(n) for start, n in zip(field.origin, shape)]
    x, y, z = np.ix_(*axes)
    return x, y, z
