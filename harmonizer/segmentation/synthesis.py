"""Synthesis of training images: from a label map to an image of any contrast, and its labels.

A network that was trained on every contrast does not depend on one (SynthSeg [1]_, SynthStrip
[2]_). The following is drawn for each image:

* pose, shape and atrophy;
* the intensity of each structure, about half of the time near a familiar contrast (T1w, T2w,
  FLAIR, PDw), otherwise uniformly;
* lesions;
* missing parts: skull-stripping, defacing, the end of the field of view;
* blur, thick slices, noise, bias field and gamma.

An image depends only on the seed and its index, so a training can be resumed. Equal versions and
thread counts give equal bits.

References
----------
.. [1] Billot et al. (2023). SynthSeg. doi:10.1016/j.media.2023.102789
.. [2] Hoopes et al. (2022). SynthStrip. doi:10.1016/j.neuroimage.2022.119474
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from . import structures as st
from .label_maps import LabelMap

__all__ = ["SynthesisSettings", "Draw", "synthesize", "normalize", "CROP_VOXELS"]

CROP_VOXELS = (128, 160, 128)
BRAIN_BIT = 64  # added to the index of a structure inside the brain mask


@dataclass(frozen=True)
class SynthesisSettings:
    """Distribution of the images. Lengths are in mm, probabilities and intensities 0 to 1.

    Attributes
    ----------
    crop : tuple of int
        Voxels of an image; multiples of 16.
    voxel_mm : float
        Voxel size.
    brain : bool
        Whether the labels are a brain mask (0, 1) instead of indices in `CLASSES`.
    rotation_deg, scale, shear, shift_mm : float
        Half-widths of the uniform distributions of the pose.
    turned : float
        Probability that the axes are also permuted and mirrored.
    warp_mm : tuple of (float, float)
        Knot spacing and standard deviation of each random displacement field.
    atrophy : float
        Probability that ventricles and sulci are widened.
    familiar : float
        Probability of intensities near a familiar contrast.
    contrasts : tuple of float
        Weights of T1w, T2w, FLAIR and PDw among the familiar contrasts.
    stripped, defaced, cut : float
        Probabilities of skull-stripping, defacing, and a short field of view.
    thick, coarse : float
        Probabilities of thick slices, and of larger voxels in all directions.
    lesions : float
        Probability of additional white matter lesions.
    """

    crop: tuple[int, int, int] = CROP_VOXELS
    voxel_mm: float = 1.0
    brain: bool = False
    rotation_deg: float = 20.0
    scale: float = 0.15
    shear: float = 0.08
    shift_mm: float = 22.0
    turned: float = 0.0
    warp_mm: tuple[tuple[float, float], ...] = ((48.0, 5.0), (20.0, 2.2), (9.0, 0.7))
    atrophy: float = 0.3
    familiar: float = 0.55
    contrasts: tuple[float, float, float, float] = (0.5, 0.25, 0.15, 0.1)
    stripped: float = 0.35
    defaced: float = 0.12
    cut: float = 0.2
    thick: float = 0.25
    coarse: float = 0.25
    lesions: float = 0.25

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the labels."""
        return st.BRAIN_CLASSES if self.brain else st.CLASSES


class Draw:
    """Random numbers of one image; they depend only on (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        state = np.random.SeedSequence([int(seed), int(index)]).generate_state(2, np.uint64)
        self.rng = np.random.default_rng(state)
        self.torch = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float, size: int | None = None) -> Any:
        """Draw uniformly: a float, or (size,) float64."""
        return self.rng.uniform(low, high, size)

    def normal(self, *shape: int) -> torch.Tensor:
        """Draw a standard normal float32 tensor."""
        return torch.randn(shape, generator=self.torch)

    def smooth(self, shape: Sequence[int], spacing: float, channels: int = 1) -> torch.Tensor:
        """Draw (channels, *shape) normal values at knots every `spacing` voxels."""
        knots = [max(2, int(np.ceil(n / spacing)) + 1) for n in shape]
        field = self.normal(1, channels, *knots)
        return functional.interpolate(
            field, size=tuple(shape), mode="trilinear", align_corners=True
        )[0]


def synthesize(
    maps: Sequence[LabelMap], seed: int, index: int, settings: SynthesisSettings | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthesize one image and its labels.

    Parameters
    ----------
    maps : sequence of LabelMap
        Label maps, of which one is drawn.
    seed, index : int
        Seed, and number of the image.
    settings : SynthesisSettings, optional
        Distribution of the images.

    Returns
    -------
    image : Tensor, shape `settings.crop`, float32
        Intensities 0 to 1, as from `normalize`.
    target : Tensor, same shape, uint8
        Indices in `CLASSES`, or a brain mask.
    """
    settings = settings or SynthesisSettings()
    draw = Draw(seed, index)
    labels, brain = _deformed(maps[int(draw.rng.integers(len(maps)))], draw, settings)
    if draw.chance(settings.atrophy):
        labels = _atrophied(labels, draw, settings)
    if draw.chance(settings.lesions):
        labels = _with_lesions(labels, draw, settings)
    target = brain if settings.brain else torch.from_numpy(st.class_table())[labels.long()]
    missing = _missing(labels, draw, settings)
    image = _brightness(labels, draw, settings)
    if missing is not None:
        image[missing] = 0
        target[missing] = 0
    image = _through_scanner(image, draw, settings)
    if missing is not None and draw.chance(0.8):
        image[missing] = 0  # cut after reconstruction; otherwise the edge is blurred
    return normalize(image), target


def normalize(image: torch.Tensor) -> torch.Tensor:
    """Scale intensities to 0 to 1 between their 0.5 and 99.5 % quantiles, and clip.

    Voxels with exactly the lowest value are background (masked images) and do not count. The result
    then does not depend on the amount of air around the head.
    """
    lowest = image.min()
    seen = image[image > lowest]
    if seen.numel() == 0:
        return torch.zeros_like(image)
    if seen.numel() > 200_000:
        seen = seen[:: seen.numel() // 200_000]
    low, high = torch.quantile(seen, torch.tensor([0.005, 0.995]))
    return ((image - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


# --- geometry -------------------------------------------------------------------------------------


def _deformed(head: LabelMap, draw: Draw, settings: SynthesisSettings
              ) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop a label map under a random pose and a random smooth warp.

    Returns
    -------
    labels, brain : Tensor, uint8
        Indices of structures, and the brain mask (zeros if `settings` do not request it).
    """
    shape = settings.crop
    points = _pose(draw, settings) @ (_centered_grid(shape) * settings.voxel_mm).reshape(3, -1)
    points = points.reshape(3, *shape)
    for spacing, sd in settings.warp_mm:
        knots = spacing / settings.voxel_mm
        points += draw.smooth(shape, knots, 3) * float(sd * draw.between(0.2, 1.3))
    center = _brain_center(head.indices) + draw.between(-1, 1, 3) * settings.shift_mm
    sizes = np.array(head.indices.shape, dtype=float)
    offset = torch.tensor(2 * center / (sizes - 1) - 1, dtype=torch.float32)
    scale = torch.tensor(2 / (sizes - 1), dtype=torch.float32)
    grid = points * scale[:, None, None, None] + offset[:, None, None, None]
    values = head.indices + BRAIN_BIT * head.brain if settings.brain else head.indices
    source = torch.from_numpy(values)[None, None].float()
    found = functional.grid_sample(
        source, grid.flip(0).permute(1, 2, 3, 0)[None], mode="nearest", align_corners=True
    )
    found = found[0, 0].to(torch.uint8)
    return found % BRAIN_BIT, found // BRAIN_BIT


def _centered_grid(shape: Sequence[int]) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _pose(draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Draw the (3, 3) matrix from crop axes to map axes; half of them are mirrored."""
    from scipy.spatial.transform import Rotation

    angles = draw.between(-settings.rotation_deg, settings.rotation_deg, 3)
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = draw.between(-settings.shear, settings.shear, 3)
    common = draw.between(1 - settings.scale, 1 + settings.scale)
    scales = common * draw.between(1 - settings.scale / 3, 1 + settings.scale / 3, 3)
    if draw.chance(0.5):
        scales[0] = -scales[0]
    turn = np.eye(3)
    if settings.turned and draw.chance(settings.turned):
        turn = turn[draw.rng.permutation(3)] * draw.rng.choice((-1.0, 1.0), 3)
    return torch.tensor(matrix @ shear @ np.diag(scales) @ turn, dtype=torch.float32)


def _brain_center(indices: np.ndarray) -> np.ndarray:
    """Return the center of the bounding box of cerebral white matter, (3,) voxels."""
    found = np.argwhere(indices[::2, ::2, ::2] == st.WHITE_MATTER) * 2
    return (found.min(0) + found.max(0)) / 2


def _grown(region: torch.Tensor, steps: int) -> torch.Tensor:
    """Dilate a region by voxels that touch it at a face, edge or corner, `steps` times."""
    for _ in range(steps):
        for axis in range(3):
            before, region = region, region.clone()
            count = region.shape[axis] - 1
            region.narrow(axis, 1, count).logical_or_(before.narrow(axis, 0, count))
            region.narrow(axis, 0, count).logical_or_(before.narrow(axis, 1, count))
    return region


def _voxels(mm: float, settings: SynthesisSettings) -> int:
    """Convert a length to voxels, at least one."""
    return max(1, round(mm / settings.voxel_mm))


def _atrophied(labels: torch.Tensor, draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Grow ventricles into white matter, and sulci into cortex at some places."""
    labels = labels.clone()
    if draw.chance(0.7):
        grown = _grown(labels == st.VENTRICLE, _voxels(int(draw.rng.integers(1, 6)), settings))
        labels[grown & (labels == st.WHITE_MATTER)] = st.VENTRICLE
    if draw.chance(0.5):
        grown = _grown(labels == st.SULCAL_CSF, 1)
        somewhere = draw.smooth(labels.shape, 12 / settings.voxel_mm)[0]
        somewhere = somewhere > float(draw.between(-0.5, 1))
        labels[grown & somewhere & (labels == st.CORTEX)] = st.SULCAL_CSF
    return labels


def _with_lesions(labels: torch.Tensor, draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Add blobs to the white matter, whose class remains white matter."""
    blobs = draw.smooth(labels.shape, float(draw.between(4, 10)) / settings.voxel_mm)[0]
    where = (blobs > float(draw.between(1.2, 2.2))) & (labels == st.WHITE_MATTER)
    return torch.where(where, torch.tensor(st.LESION, dtype=torch.uint8), labels)


def _missing(labels: torch.Tensor, draw: Draw, settings: SynthesisSettings) -> torch.Tensor | None:
    """Return the voxels without signal: outside a mask, the face, beyond the field of view."""
    missing = None
    if draw.chance(settings.stripped):
        missing = ~_stripping_mask(labels, draw, settings)
    elif draw.chance(settings.defaced):
        missing = _face(labels.shape, draw, settings)
    if draw.chance(settings.cut):
        beyond = _beyond_view(labels.shape, draw, settings)
        missing = beyond if missing is None else missing | beyond
    return missing


def _stripping_mask(labels: torch.Tensor, draw: Draw, settings: SynthesisSettings
                    ) -> torch.Tensor:
    """Return a brain mask as various tools make it: with or without CSF, tight or loose."""
    brain = (labels > 0) & (labels < st.FIRST_OUTSIDE)
    kind = draw.between(0, 1)
    if kind < 0.35:
        return brain
    tissue = brain & (labels != st.SULCAL_CSF)
    if kind < 0.55:
        return tissue
    if kind < 0.85:
        return _grown(tissue, _voxels(int(draw.rng.integers(1, 4)), settings))
    return _grown(brain, _voxels(int(draw.rng.integers(1, 4)), settings))


def _face(shape: Sequence[int], draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Return a half-space before and below the brain (axes RAS+)."""
    grid = _centered_grid(shape) * settings.voxel_mm
    angle = np.deg2rad(draw.between(20, 70))
    ahead = grid[1] * float(np.cos(angle)) - grid[2] * float(np.sin(angle))
    return ahead > float(draw.between(55, 85))


def _beyond_view(shape: Sequence[int], draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Return slabs at one or two ends of an axis."""
    beyond = torch.zeros(tuple(shape), dtype=torch.bool)
    axis = int(draw.rng.choice(3, p=[0.15, 0.25, 0.6]))
    for end in range(2):
        if end == 0 or draw.chance(0.4):
            count = int(draw.between(4, 45) / settings.voxel_mm)
            start = 0 if draw.chance(0.5) else shape[axis] - count
            beyond.narrow(axis, start, count).fill_(True)
    return beyond


# --- intensities ----------------------------------------------------------------------------------


def _brightness(labels: torch.Tensor, draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Draw intensities: a mean for each structure, texture, and inhomogeneous soft tissue."""
    means, stds = _means(draw, settings)
    index = labels.long()
    image = torch.from_numpy(means).float()[index]
    if draw.chance(0.8):
        size = float(draw.between(5, 14)) / settings.voxel_mm
        fat = draw.smooth(labels.shape, size)[0] > float(draw.between(-1, 1))
        other = float(draw.between(0, 1))
        image = torch.where(fat & (labels == st.SOFT_TISSUE), torch.tensor(other), image)
    texture = draw.normal(*labels.shape)
    if draw.chance(0.5):
        size = max(1.5, float(draw.between(2, 8)) / settings.voxel_mm)
        texture = texture + draw.smooth(labels.shape, size)[0]
    return (image + texture * torch.from_numpy(stds).float()[index]).clamp_min_(0)


def _means(draw: Draw, settings: SynthesisSettings) -> tuple[np.ndarray, np.ndarray]:
    """Draw mean and standard deviation of the intensity of each structure, (structures,) each."""
    count = len(st.STRUCTURES)
    if draw.chance(settings.familiar):
        contrast = int(draw.rng.choice(4, p=settings.contrasts))
        looks = np.array([s.looks[contrast] for s in st.STRUCTURES])
        far = draw.between(0.02, 0.12)
        means = looks * draw.between(0.8, 1.2) + far * draw.rng.standard_normal(count)
        outside = np.arange(count) >= st.FIRST_OUTSIDE
        means[outside] += 0.12 * draw.rng.standard_normal(int(outside.sum()))
        means = _tied(means, draw, 0.7)
    else:
        means = _tied(draw.between(0, 1, count), draw, 0.7)
    stds = draw.between(0, 0.07) * draw.between(0.3, 1.5, count)
    means[0], stds[0] = (0, 0) if draw.chance(0.7) else (draw.between(0, 0.1), 0.01)
    return np.clip(means, 0, 1.5), stds


# Structures of one tissue: the others get nearly the intensity of the first.
SAME_TISSUE_STRUCTURES = ((1, (4, 12, 17, 20)), (2, (5, 13, 14)), (3, (10, 11, 15)), (7, (8, 16)))


def _tied(means: np.ndarray, draw: Draw, probability: float) -> np.ndarray:
    """Give structures of the same tissue nearly equal means, with some probability."""
    means = means.copy()
    for first, others in SAME_TISSUE_STRUCTURES:
        if draw.chance(probability):
            means[list(others)] = means[first] + 0.03 * draw.rng.standard_normal(len(others))
    return means


# --- scanner --------------------------------------------------------------------------------------


def _through_scanner(image: torch.Tensor, draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Apply bias field, resolution, noise and gamma."""
    bias = draw.smooth(image.shape, float(draw.between(40, 100)) / settings.voxel_mm)[0]
    image = image * torch.exp(bias * float(draw.between(0, 0.3)))
    image = _resolution(image, draw, settings)
    return image.clamp_min_(0) ** float(np.exp(0.25 * draw.rng.standard_normal()))


def _resolution(image: torch.Tensor, draw: Draw, settings: SynthesisSettings) -> torch.Tensor:
    """Blur to a voxel size, sample, add noise there, and interpolate back."""
    sizes = np.ones(3)
    if draw.chance(settings.thick):
        sizes[int(draw.rng.integers(3))] = draw.between(2, 6)
    elif draw.chance(settings.coarse):
        sizes[:] = draw.between(1, 2.2)
    sizes = np.maximum(1, sizes / settings.voxel_mm)
    sharp = draw.between(0.3, 0.65)
    image = _blurred(image, [float(sharp * s) if s > 1 else float(sharp * 0.9) for s in sizes])
    shape = tuple(image.shape)
    small = tuple(max(4, round(n / s)) for n, s in zip(shape, sizes))
    if small != shape:
        image = _resized(image, small)
    noise = float(draw.between(0, 0.06))
    image = image + noise * draw.normal(*small)
    return image if small == shape else _resized(image, shape)


def _resized(image: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return functional.interpolate(image[None, None], size=shape, mode="trilinear")[0, 0]


def _blurred(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Blur with a separable Gaussian; sigma in voxels."""
    x = image[None, None]
    for axis, sigma in enumerate(sigmas):
        reach = max(1, int(np.ceil(2.5 * sigma)))
        at = torch.arange(-reach, reach + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (at / sigma) ** 2)
        kernel = (kernel / kernel.sum()).reshape([-1 if a == axis else 1 for a in range(3)])
        padding = [reach if a == axis else 0 for a in range(3)]
        x = functional.conv3d(x, kernel[None, None], padding=padding)
    return x[0, 0]
