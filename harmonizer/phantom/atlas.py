"""The average brain that every person of the phantom is bent from.

nilearn's bundled MNI152NLin2009aSym template with its grey- and white-matter maps: offline,
symmetric, ending at the brain surface. Beside the tissues stand two signed distances in mm
(negative inside), to the brain's surface and to the ventricles: unlike voxels, a distance can be
thickened, thinned and followed. The head around the brain is in `head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..template import load_template, tissue_priors

__all__ = ["Atlas", "Map", "axes_of", "distances", "load_atlas"]

PAD_MM = 30.0  # margin around the template in which the distance to the brain is known
SHARPENING = 2.0  # exponent that undoes part of the blur of an average of 152 brains


@dataclass(frozen=True, eq=False)
class Map:
    """A scalar field on a regular RAS grid: `data` (I, J, K), first voxel at `origin` (mm)."""

    data: np.ndarray
    origin: np.ndarray
    spacing: float

    def at(self, points: np.ndarray, outside: float = 0.0) -> np.ndarray:
        """(...) float32 linear interpolation at points (3, ...) in mm; `outside` off the grid."""
        index = (points - self.origin.reshape((3,) + (1,) * (points.ndim - 1))) / self.spacing
        return ndimage.map_coordinates(
            self.data, index, order=1, mode="constant", cval=outside, output=np.float32
        )


@dataclass(frozen=True, eq=False)
class Atlas:
    """Template-space fields.

    Attributes
    ----------
    gm, wm : tissue probabilities inside the brain, sharpened; the rest is fluid
    detail : what the template's T1w shows beyond its tissue maps, unit variance inside the brain
    brain : signed distance (mm) to the brain surface
    ventricle : signed distance (mm) to the lateral and third ventricles, smoothed
    """

    gm: Map
    wm: Map
    detail: Map
    brain: Map
    ventricle: Map


@lru_cache(maxsize=3)
def load_atlas(spacing: float) -> Atlas:
    """The atlas band-limited for a grid of `spacing` mm (1, 2 or 4); cached, treat as read-only."""
    gm, wm, _, detail, _ = _tissues()
    origin = load_template(1).affine[:3, 3]
    gm_map, wm_map, detail_map = (
        _band_limited(array, origin, spacing) for array in (gm, wm, detail)
    )
    return Atlas(gm_map, wm_map, detail_map, *distances())


@lru_cache(maxsize=1)
def _tissues() -> tuple[np.ndarray, ...]:
    """GM, WM, CSF, detail (float32) and brain mask (bool) on the template's 1 mm grid."""
    template, priors = load_template(1), tissue_priors(1)
    assert template.mask is not None
    parts = _sharpened([priors[name] for name in ("GM", "WM", "CSF")], template.mask)
    return (*parts, _detail(template.data, parts, template.mask), template.mask)


def _sharpened(parts: list[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
    """Tissue probabilities inside the mask, raised to a power and made to sum to one."""
    powers = [np.where(mask, part, np.float32(0)) ** SHARPENING for part in parts]
    total = np.maximum(sum(powers), np.float32(1e-6))
    return [power / total for power in powers]


def _detail(template: np.ndarray, parts: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Residual of the template after fitting one intensity per tissue: myelin, iron, nuclei."""
    design = np.stack([part[mask] for part in parts], axis=1)
    weights = np.linalg.solve(design.T @ design, design.T @ template[mask])
    residual = np.zeros_like(template)
    residual[mask] = template[mask] - design @ weights
    return np.clip(residual / residual[mask].std(), -2.5, 2.5)


def _band_limited(array: np.ndarray, origin: np.ndarray, spacing: float) -> Map:
    """A 1 mm map smoothed for sampling at `spacing` mm; above 1 mm every second voxel stays."""
    if spacing <= 1:
        return Map(array, origin, 1.0)
    smooth = ndimage.gaussian_filter(array, 0.35 * spacing, output=np.float32)
    return Map(np.ascontiguousarray(smooth[::2, ::2, ::2]), origin, 2.0)


@lru_cache(maxsize=1)
def distances() -> tuple[Map, Map]:
    """Signed distances to brain and ventricles at 2 mm; they are smooth and serve every spacing."""
    _, _, csf, _, mask = _tissues()
    pad = int(PAD_MM / 2)
    start = load_template(1).affine[:3, 3] - 2.0 * pad
    brain = Map(_signed_distance(np.pad(mask[::2, ::2, ::2], pad), 2.0, 0.5), start, 2.0)
    deep = Map(brain.data[pad:-pad, pad:-pad, pad:-pad], start + 2.0 * pad, 2.0)
    ventricles = _ventricles(csf[::2, ::2, ::2], deep)
    return brain, Map(_signed_distance(ventricles, 2.0, 1.0), deep.origin, 2.0)


def _signed_distance(mask: np.ndarray, spacing: float, smooth: float) -> np.ndarray:
    """Distance in mm to the mask's surface, negative inside; smoothed by `smooth` voxels."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    distance = outside - inside + np.where(mask, 0.5, -0.5) * spacing
    return ndimage.gaussian_filter(distance.astype(np.float32), smooth)


def _ventricles(csf: np.ndarray, brain: Map) -> np.ndarray:
    """The connected fluid deep inside the brain: lateral ventricles and the third."""
    x, y, z = axes_of(brain)
    box = (abs(x) < 34) & (y > -52) & (y < 38) & (z > -10) & (z < 36)
    quadrigeminal = (abs(x) < 14) & (y < -26) & (z < 14)  # the cistern behind the midbrain
    fluid = (csf > 0.4) & box & ~quadrigeminal & (brain.data < -18)
    parts, count = ndimage.label(fluid)
    sizes = ndimage.sum_labels(fluid, parts, np.arange(1, count + 1))
    return np.isin(parts, 1 + np.flatnonzero(sizes > 60))  # 60 voxels = 0.5 mL


def axes_of(field: Map) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Broadcastable coordinates (mm) of a map's voxels along x, y and z."""
    shape = field.data.shape
    axes = [start + field.spacing * np.arange(n) for start, n in zip(field.origin, shape)]
    return tuple(np.ix_(*axes))  # type: ignore[return-value]
