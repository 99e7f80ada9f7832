"""Anatomies for simulation: deformed label maps and phantom subjects, in template space.

Tissue fractions come from a label map, deformed differently for each anatomy, or from a phantom
subject. Both lack the detail of a real brain, and a network trained without detail learns to erase
it. Every anatomy therefore gets fine structure: two multi-scale texture fields, thin sheets, tubes
(vessels, perivascular spaces) and blobs, some of them lesions. This structure belongs to the
anatomy: every scanner shows it in its own contrast and resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..files import atomic_path
from ..segmentation import structures as st
from ..segmentation.label_maps import LabelMap, label_map_paths, load_label_map
from ..template import load_template, tissue_priors
from ..volume import Volume
from .fields import axis_coordinates, smooth_field

__all__ = ["Anatomy", "label_map_anatomy", "phantom_anatomy", "template_grid"]

MARGIN_MM = 10.0  # around the template's brain
ALIGNMENT_STEPS = 60  # of the alignment of a label map
DEEP_GRAY = ("thalamus", "caudate", "putamen", "pallidum", "accumbens")
LABEL_SMOOTHING_VOXELS = 0.6  # turns labels into fractions; sharpened again after the deformation
WARPS_MM = ((44.0, 2.5), (22.0, 1.5), (10.0, 0.6))  # knot spacing, standard deviation


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One brain on a grid along the axes of the template's world.

    Attributes
    ----------
    name : str
        Unique name.
    affine : ndarray, shape (4, 4)
        Voxels to template world, mm; diagonal.
    fractions : ndarray, shape (4, I, J, K), float32
        Fractions of CSF, cortical gray, white and deep gray matter.
    texture : ndarray, shape (2, I, J, K), float32
        Fields of about unit variance; see `phantom.physics`.
    brain : ndarray, shape (I, J, K), float32
        Fraction of a voxel inside the surface of the brain.
    structures : ndarray, shape (I, J, K), uint8
        Indices in `segmentation.structures.STRUCTURES`; 0 if unknown.
    """

    name: str
    affine: np.ndarray
    fractions: np.ndarray
    texture: np.ndarray
    brain: np.ndarray
    structures: np.ndarray

    @property
    def coordinates(self) -> list[np.ndarray]:
        """World coordinates along each axis, mm."""
        return axis_coordinates(self.affine, self.brain.shape)


def template_grid(spacing_mm: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return affine and shape of a grid over the template's brain and a margin."""
    template = load_template(2)
    inside = np.argwhere(template.require_mask())
    low = template.affine[:3, :3] @ inside.min(axis=0) + template.affine[:3, 3] - MARGIN_MM
    high = template.affine[:3, :3] @ inside.max(axis=0) + template.affine[:3, 3] + MARGIN_MM
    shape = np.ceil((high - low) / spacing_mm).astype(int) + 1
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low
    return affine, (int(shape[0]), int(shape[1]), int(shape[2]))


# --- from label maps ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AlignedMap:
    """Label map cropped to its brain, with its position in the template's world.

    Attributes
    ----------
    structures : ndarray, shape (I, J, K), uint8
        Indices in `segmentation.structures.STRUCTURES`, 1 mm.
    soft : ndarray, shape (5, I, J, K), uint8
        Fractions of the four tissues and of the brain, 0 to 255, smoothed.
    matrix : ndarray, shape (4, 4)
        Template world in mm to voxels.
    """

    structures: np.ndarray
    soft: np.ndarray
    matrix: np.ndarray


def label_map_anatomy(folder: Path, index: int, seed: int, spacing_mm: float,
                      cache: Path | None = None) -> Anatomy:
    """Deform label map number `index` of a folder; depends on the arguments only.

    Aligned label maps take seconds to compute; `cache` is a folder to store them in.
    """
    rng = np.random.default_rng([seed, index, 7001])
    head = _aligned_map(str(folder), index, spacing_mm, None if cache is None else str(cache))
    affine, shape = template_grid(spacing_mm)
    points = _deformed_points(rng, affine, shape)
    voxels = np.tensordot(head.matrix[:3, :3], points, 1) + head.matrix[:3, 3].reshape(3, 1, 1, 1)
    fractions, brain, found = _sampled(head.soft.astype(np.float32) / 255, head.structures,
                                    voxels.astype(np.float32))
    fractions = _with_atrophy(rng, fractions, axis_coordinates(affine, shape))
    return _detailed(rng, f"map{index:02d}-{seed}", affine, fractions, brain, found)


@lru_cache(maxsize=6)
def _aligned_map(folder: str, index: int, spacing_mm: float, cache: str | None) -> AlignedMap:
    """Return an aligned label map, from the cache if it is there."""
    path = Path(cache or ".") / f"aligned_{index:02d}_{spacing_mm:g}mm.npz"
    if cache is not None and path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return AlignedMap(stored["structures"], stored["soft"], stored["matrix"])
    made = _make_aligned(load_label_map(label_map_paths(Path(folder))[index]), spacing_mm)
    if cache is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, structures=made.structures, soft=made.soft, matrix=made.matrix)
    return made


def _make_aligned(head: LabelMap, spacing_mm: float) -> AlignedMap:
    """Align, crop and smooth a label map."""
    sigma = LABEL_SMOOTHING_VOXELS * max(1.0, 0.75 * spacing_mm)
    matrix, inside = _align(head), np.argwhere(head.brain)
    low = np.maximum(inside.min(axis=0) - 8, 0)
    box = tuple(slice(a, b) for a, b in zip(low, inside.max(axis=0) + 9))
    table, brain, found = tissue_of_structure(), head.brain[box], head.indices[box]
    parts = [brain & (table[found] == tissue) for tissue in range(4)]
    soft = np.stack([np.round(255 * ndimage.gaussian_filter(part.astype(np.float32), sigma))
                     for part in (*parts, brain)]).astype(np.uint8)
    matrix[:3, 3] -= low
    return AlignedMap(np.ascontiguousarray(found), soft, matrix)


def tissue_of_structure() -> np.ndarray:
    """Return the tissue of each structure: 0 CSF, 1 cortex, 2 WM, 3 deep GM, 4 outside."""
    table = np.full(len(st.STRUCTURES), 4)
    for index, structure in enumerate(st.STRUCTURES):
        for tissue, classes in enumerate(st.TISSUE_CLASSES.values()):
            if structure.target in classes:
                table[index] = 3 if structure.name in DEEP_GRAY else tissue
    return table


def _align(head: LabelMap) -> np.ndarray:
    """Fit the (4, 4) affine from template world to a map's voxels to the tissue maps."""
    import torch
    from torch.nn import functional

    priors, grid = tissue_priors(4), load_template(4)
    wanted = torch.from_numpy(np.stack([priors[name] for name in ("CSF", "GM", "WM")]).copy())
    table = tissue_of_structure()
    tissue = np.where(table == 3, 1, table)[head.indices]
    tissue = np.where(head.brain, tissue, 4)
    soft = np.stack([ndimage.gaussian_filter((tissue == c).astype(np.float32), 2.0)
                     for c in range(3)])
    source = torch.from_numpy(soft)[None]
    size = torch.tensor(head.indices.shape, dtype=torch.float32)
    voxels = torch.from_numpy(np.argwhere(np.ones(grid.shape, bool)).T.astype(np.float32))
    world = torch.from_numpy(grid.affine[:3, :3].astype(np.float32)) @ voxels \
        + torch.from_numpy(grid.affine[:3, 3:].astype(np.float32))
    start = _boxes_matched(head.brain, grid)
    change = torch.zeros(3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=0.03)
    scale = torch.tensor([1.0, 1.0, 1.0, 60.0])
    for step in range(ALIGNMENT_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / ALIGNMENT_STEPS)
        matrix = torch.from_numpy(start[:3].astype(np.float32)) + change * scale
        at = (matrix[:, :3] @ world + matrix[:, 3:]) * (2 / (size - 1))[:, None] - 1
        sampled = functional.grid_sample(source, at.flip(0).T.reshape(1, *grid.shape, 3),
                                         align_corners=True)[0]
        loss = ((sampled - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = np.eye(4)
    found[:3] = start[:3] + (change * scale).detach().numpy()
    return found


def _boxes_matched(brain: np.ndarray, grid: Volume) -> np.ndarray:
    """Return the (4, 4) matrix that matches the bounding boxes of both brains."""
    ours, theirs = np.argwhere(brain), np.argwhere(grid.require_mask())
    world = theirs @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    factor = np.ptp(ours, axis=0) / np.ptp(world, axis=0)
    matrix = np.diag([*factor, 1.0])
    matrix[:3, 3] = (ours.max(0) + ours.min(0)) / 2 - factor * (world.max(0) + world.min(0)) / 2
    return matrix


def _deformed_points(rng: np.random.Generator, affine: np.ndarray, shape: tuple[int, ...]
                     ) -> np.ndarray:
    """Draw the template coordinates (3, I, J, K) at which a deformed anatomy is sampled."""
    from scipy.spatial.transform import Rotation

    axes = axis_coordinates(affine, shape)
    points = np.stack(np.meshgrid(*[a.astype(np.float32) for a in axes], indexing="ij"))
    turn = Rotation.from_euler("xyz", rng.normal(0, 0.8, 3), degrees=True).as_matrix()
    turn = turn @ np.diag(np.exp(rng.normal(0, 0.015, 3)))
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    points = np.tensordot(turn.astype(np.float32), points, 1)
    points += rng.normal(0, 1.0, 3).astype(np.float32).reshape(3, 1, 1, 1)
    for knot, std in WARPS_MM:
        points += smooth_field(rng, axes, knot, 3) * np.float32(std * rng.uniform(0.4, 1.3))
    return points


def _sampled(soft: np.ndarray, indices: np.ndarray, voxels: np.ndarray
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample fractions, brain and structures at (3, I, J, K) voxel coordinates of the map."""
    import torch
    from torch.nn import functional

    size = np.array(indices.shape, np.float32).reshape(3, 1, 1, 1)
    at = torch.from_numpy(voxels * (2 / (size - 1)) - 1).flip(0).permute(1, 2, 3, 0)[None]
    found = functional.grid_sample(torch.from_numpy(soft)[None], at, align_corners=True)[0].numpy()
    nearest = functional.grid_sample(torch.from_numpy(indices)[None, None].float(), at,
                                     mode="nearest", align_corners=True)[0, 0].numpy()
    power = found[:4] ** np.float32(1.5)
    brain = np.clip(found[4], 0, 1)
    fractions = power / np.maximum(power.sum(axis=0), np.float32(1e-6)) * brain
    return fractions, brain, nearest.astype(np.uint8)


def _with_atrophy(rng: np.random.Generator, fractions: np.ndarray, axes: list[np.ndarray]
                  ) -> np.ndarray:
    """Widen or narrow fluid spaces by changing the log odds of fluid, more at some places."""
    amount = rng.normal(0, 0.5) + 0.15 * smooth_field(rng, axes, 40.0)[0]
    factor = np.exp(amount).astype(np.float32)
    total = fractions.sum(axis=0)
    raised = fractions.copy()
    raised[0] *= factor
    return raised * (total / np.maximum(raised.sum(axis=0), np.float32(1e-6)))


# --- from the phantom -----------------------------------------------------------------------------


def phantom_anatomy(seed: int, age: float, sex: str, spacing_mm: float) -> Anatomy:
    """Make a phantom subject in template space, with fine structure."""
    from ..phantom.anatomy import make_deformation, make_subject

    subject = make_subject(seed, age, sex, spacing_mm)
    size = make_deformation(seed, age, sex).size
    inside = np.argwhere(subject.brain > 0)
    margin = int(np.ceil(MARGIN_MM / spacing_mm))
    low = np.maximum(inside.min(axis=0) - margin, 0)
    box = tuple(slice(a, b) for a, b in zip(low, inside.max(axis=0) + 1 + margin))
    affine = np.diag([*(np.diag(subject.affine)[:3] / size), 1.0])
    affine[:3, 3] = (subject.affine[:3, 3] + subject.spacing * low) / size
    brain = subject.brain[box]
    fractions = subject.fractions[(slice(0, 4), *box)] * brain
    fractions /= np.maximum(fractions.sum(axis=0), np.float32(1e-6)) / brain.clip(1e-6)
    rng = np.random.default_rng([seed, 7002])
    return _detailed(rng, f"phantom-{seed}", affine, fractions, brain,
                     np.zeros(brain.shape, np.uint8), subject.texture[(slice(None), *box)])


# --- fine structure -------------------------------------------------------------------------------


def _detailed(rng: np.random.Generator, name: str, affine: np.ndarray, fractions: np.ndarray,
              brain: np.ndarray, structures: np.ndarray, texture: np.ndarray | None = None
              ) -> Anatomy:
    """Add textures, sheets, tubes and blobs."""
    axes, spacing = axis_coordinates(affine, brain.shape), abs(float(affine[0, 0]))
    if texture is None:
        texture = np.stack([_texture(rng, axes, spacing) for _ in range(2)])
    texture = texture.astype(np.float32).copy()
    fractions = fractions.astype(np.float32).copy()
    texture += _own_levels(rng, axes, fractions)
    tubes = _tubes(rng, axes, spacing)
    total = fractions.sum(axis=0)
    fractions *= 1 - tubes
    fractions[0] += tubes * total
    visibility = rng.uniform(0, 1)  # brains differ in how much fine detail a scan can show
    for _ in range(2):
        sheets = _sheets(rng, axes, spacing)
        blobs = _blobs(rng, axes, spacing)
        for part in texture:
            for detail in (sheets, blobs):
                sign = rng.choice((-1, 1))
                part += np.float32(visibility * sign * rng.uniform(1, 6)) * detail
    lesions = _lesions(rng, axes)
    texture[0] += np.float32(rng.uniform(3, 9)) * lesions * fractions[2]
    return Anatomy(name, affine, fractions, np.clip(texture, -14, 14), brain.astype(np.float32),
                   structures)


def _own_levels(rng: np.random.Generator, axes: list[np.ndarray], fractions: np.ndarray
                ) -> np.ndarray:
    """Draw intensity offsets of a subject's tissues, overall and regional, (2, I, J, K).

    Without them, a network could learn to treat a subject's own tissue intensities as an error.
    """
    offsets = rng.normal(0, (0.6, 0.4), (len(fractions), 2)).astype(np.float32)
    regional = smooth_field(rng, axes, 50.0, 2) * np.float32(0.35)
    return np.tensordot(offsets, fractions, (0, 0)) + regional


def _texture(rng: np.random.Generator, axes: list[np.ndarray], spacing: float) -> np.ndarray:
    """Draw a multi-scale field of about unit variance."""
    field = sum(np.float32(a) * smooth_field(rng, axes, knot)[0]
                for a, knot in ((0.5, 24.0), (0.5, 8.0), (0.5, 3.5)))
    return field + np.float32(rng.uniform(0.2, 0.8)) * _grain(rng, axes, rng.uniform(0.5, 1.2),
                                                             spacing)


def _grain(rng: np.random.Generator, axes: list[np.ndarray], sigma_mm: float, spacing: float
           ) -> np.ndarray:
    """Draw fine noise, of unit variance unless it is finer than the grid."""
    noise = rng.standard_normal([len(a) for a in axes], dtype=np.float32)
    sigma = sigma_mm / spacing
    if sigma < 0.3:
        return noise * np.float32(max(sigma, 0.1) / 0.3)  # finer than a voxel: averaged away
    smooth = ndimage.gaussian_filter(noise, sigma, truncate=3.0)
    return smooth / np.float32(max(smooth.std(), 1e-6))


def _level_distance(field: np.ndarray, spacing: float) -> np.ndarray:
    """Return the distance (mm, first order) to the zero level of a smooth field."""
    slope = np.sqrt(sum(np.gradient(field, spacing, axis=axis) ** 2 for axis in range(3)))
    return np.abs(field) / np.maximum(slope, 1e-4)


def _present(rng: np.random.Generator, axes: list[np.ndarray], threshold: float) -> np.ndarray:
    """Draw the parts of the brain where a kind of structure occurs, (I, J, K) 0 to 1."""
    return np.clip(3 * (smooth_field(rng, axes, 26.0)[0] - np.float32(threshold)), 0, 1)


def _profile(distance: np.ndarray, width_mm: float, spacing: float) -> np.ndarray:
    """Return the fraction of a voxel within half of `width_mm`; fainter if it is below a voxel."""
    width = max(width_mm, spacing)
    return np.float32(width_mm / width) * np.exp(-(distance / (0.6 * width)) ** 2)


def _sheets(rng: np.random.Generator, axes: list[np.ndarray], spacing: float) -> np.ndarray:
    field = smooth_field(rng, axes, rng.uniform(7, 16))[0]
    return _profile(_level_distance(field, spacing), rng.uniform(0.5, 1.8), spacing) \
        * _present(rng, axes, 0.5)


def _tubes(rng: np.random.Generator, axes: list[np.ndarray], spacing: float) -> np.ndarray:
    knot = rng.uniform(7, 14)
    one, two = (_level_distance(smooth_field(rng, axes, knot)[0], spacing) for _ in range(2))
    tube = _profile(np.hypot(one, two), rng.uniform(0.5, 2.0), spacing)
    return np.clip(np.float32(rng.uniform(0.3, 1.0)) * tube * _present(rng, axes, 0.3), 0, 0.95)


def _blobs(rng: np.random.Generator, axes: list[np.ndarray], spacing: float) -> np.ndarray:
    grain = _grain(rng, axes, rng.uniform(0.6, 1.5), spacing)
    return np.clip(grain - np.float32(rng.uniform(2.0, 2.8)), 0, 1)


def _lesions(rng: np.random.Generator, axes: list[np.ndarray]) -> np.ndarray:
    if rng.random() < 0.5:
        return np.zeros([len(a) for a in axes], np.float32)
    field = smooth_field(rng, axes, rng.uniform(5, 12))[0]
    return np.clip(3 * (field - np.float32(rng.uniform(1.6, 2.4))), 0, 1)
