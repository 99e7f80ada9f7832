"""What is brain: found without any downloaded weights, at any contrast, and judged by itself.

Whole heads: pose search, rigid, affine, SyN against the bundled skull-stripped template
(`registration`); the template's mask is brought back, then its border is moved to where the
image's own intensities say that brain ends (`_refine`). Brain-only input is recognised and its
foreground taken as it is. Every mask comes with a `QualityCheck`; a doubtful one says why.

Two candidates are kept, from the affine alone and from affine and SyN together; SyN's is taken
unless the check finds more to doubt in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from scipy import ndimage

from ..errors import InputError, UsageError
from ..template import load_template
from ..volume import Volume
from .ants_bridge import ants_module, seed_ants, to_ants
from .bias import largest_piece
from .registration import (
    affine_scales,
    mutual_information,
    refine_linear,
    search_pose,
    template_neighbourhood,
    working_copy,
)
from .transforms import isotropic_grid, resample, resample_mask, write_itk_affine

__all__ = [
    "SKULL_STRIP",
    "LIMITS",
    "BrainExtraction",
    "QualityCheck",
    "extract_brain",
    "first_affine",
    "is_brain_only",
    "foreground_mask",
    "check_quality",
]

SKULL_STRIP = ("auto", "force", "skip")
WORKING_SPACING_MM = 2
SLOPPY_SPACING_MM = 4
REFINE_SPACING_MM = 1.5
AFFINE_MARGIN_MM = 1.9  # the template's mask, brought back, lies this far inside the border:
SYN_MARGIN_MM = 3.6  # measured on heads with labels (benchmarks/preprocessing.py)
AFFINE_SHARE = 0.25  # of the affine's border in the expected one: it is the steadier of the two
PRIOR_WIDTH_MM = 2.5  # how far the border may be moved by intensities, as one standard error
EVIDENCE = 1.3  # weight of the intensities' log odds
EVIDENCE_LIMITS = (-4.0, 1.5)  # natural log odds of one voxel: fat may veto, nothing may insist
CORE_MM = (5.0, 15.0)  # so deep is surely brain, and not yet a ventricle: what brain looks like
OTHER_MM = (-8.0, -2.0)  # and what lies around it
BORDER_MARGIN_MM = 3.0  # two voxels kept around the tissue: no cortex is lost to partial volume;
BEYOND_MM = 0.2  # but no further than this beyond the expected border: dark bone looks like fluid

# Limits of a trustworthy mask. The images of six sites (24 T1w, 2 T2w, 3 FLAIR) that were looked at
# have 1.1-1.8 L, scales .98-1.27, information .15-.30, edges .79-1, overlap .93-.97.
VOLUME_L = (0.9, 2.0)
SCALE = (0.8, 1.45)  # native -> template; the template is about 1.1 times a typical brain
MIN_OVERLAP = 0.85  # Dice with the template's mask after the affine
MIN_INFORMATION = 0.10  # nats
MIN_EDGE = 0.55  # of the border lying on an edge
MIN_AGREEMENT = 0.88  # Dice with the mask of the network: docs/segmentation.md, Whole heads
MAX_CUT = 0.05  # of the border at the edge of the field of view
LIMITS: Mapping[str, tuple[float | None, float | None]] = MappingProxyType({
    "volume_l": VOLUME_L, "overlap": (MIN_OVERLAP, None), "network_dice": (MIN_AGREEMENT, None),
    "mutual_information": (MIN_INFORMATION, None), "edge_fraction": (MIN_EDGE, None),
    "cut_fraction": (None, MAX_CUT),
})  # lowest and highest trustworthy value of the numbers of a `QualityCheck` beside the scales

BRAIN_ONLY_L = (0.6, 2.3)  # filled foreground that can be a brain without a head
CONSTANT_BACKGROUND = 0.25  # at least this part of the voxels has exactly one value
SHELL_MM = (5.0, 20.0)
SHELL_SIGNAL = 0.02  # at most this part of the shell may differ from the background


@dataclass(frozen=True)
class QualityCheck:
    """What was measured on a mask, and whether to doubt it.

    Attributes
    ----------
    volume_l : litres
    scales : (3,) stretch of the brain by the affine to the template, large to small
    mutual_information : nats between image and template inside the template's mask
    edge_fraction : part of the mask's border (0..1) across which the intensity changes
    overlap : Dice (0..1) of the mask, brought to the template by the affine, and its mask
    cut_fraction : part of the mask's border (0..1) that lies on the edge of the field of view
    network_dice : Dice (0..1) with the mask of the network (`segmentation.brain`); None: not asked
    reasons : one sentence for each limit that was broken; empty if none
    """

    volume_l: float
    scales: tuple[float, float, float]
    mutual_information: float
    edge_fraction: float
    overlap: float
    cut_fraction: float
    network_dice: float | None = None
    reasons: tuple[str, ...] = ()

    @property
    def doubtful(self) -> bool:
        """Whether a person should look at the mask before trusting it."""
        return bool(self.reasons)


@dataclass(frozen=True, eq=False)
class BrainExtraction:
    """A brain mask and how it came about.

    Attributes
    ----------
    mask : (I, J, K) bool on the input's grid
    quality : QualityCheck
    method : 'foreground' (brain-only input), 'affine' or 'syn' (whole head), or 'network'
        (`segmentation.brain.brain_by_network`)
    brain_only : whether the input was taken as already skull-stripped
    matrix : (4, 4) native world -> template world, RAS mm: a start for `register_to_template`
    """

    mask: np.ndarray
    quality: QualityCheck
    method: str
    brain_only: bool
    matrix: np.ndarray


def extract_brain(
    volume: Volume, *, skull_strip: str = "auto", seed: int = 0, sloppy: bool = False
) -> BrainExtraction:
    """Find the brain in an image that went through a rough bias correction.

    Parameters
    ----------
    volume : any contrast; negative voxels are allowed
    skull_strip : 'auto' looks whether the image is brain-only; 'force' always extracts;
        'skip' takes the foreground as brain
    seed : of ANTs' sampling; same seed, same bits (see `ants_bridge`)
    sloppy : 4 mm, no SyN: seconds, for tests

    Raises
    ------
    UsageError
        If `skull_strip` is none of the three.
    InputError
        If no brain is found at all (the mask is empty).
    """
    if skull_strip not in SKULL_STRIP:
        raise UsageError(f"skull_strip must be one of {SKULL_STRIP}, got {skull_strip!r}.")
    brain_only = skull_strip == "skip" or (skull_strip == "auto" and is_brain_only(volume))
    if brain_only:
        affine = first_affine(volume, seed=seed, sloppy=sloppy)
        candidates = {"foreground": foreground_mask(volume)}
    else:
        affine, candidates = _of_whole_head(volume, seed, sloppy)
    checks = {name: check_quality(volume, mask, affine) for name, mask in candidates.items()}
    method = min(reversed(checks), key=lambda name: len(checks[name].reasons))  # SyN unless worse
    if not candidates[method].any():
        raise InputError("no brain was found in the image. Give a mask, or exclude the image.")
    return BrainExtraction(candidates[method], checks[method], method, brain_only, affine)


def first_affine(volume: Volume, *, seed: int = 0, sloppy: bool = False) -> np.ndarray:
    """(4, 4) native world -> template world, RAS mm, of an image that shows a brain alone."""
    template, near, pose, moving = _ready(volume, sloppy)
    return refine_linear("Affine", moving, template, near, pose, seed=seed, sloppy=sloppy)


def is_brain_only(volume: Volume) -> bool:
    """Whether the image is already skull-stripped.

    The background has exactly one value over a quarter of the grid, the filled foreground has the
    volume of a brain rather than of a head, and 5-20 mm outside it there is no signal.
    """
    data = volume.data
    background = _background(data)
    if background is None:
        return False
    mask = foreground_mask(volume)
    litres = float(mask.sum() * np.prod(volume.spacing)) / 1e6
    if not BRAIN_ONLY_L[0] <= litres <= BRAIN_ONLY_L[1]:
        return False
    outside = ndimage.distance_transform_edt(~mask, sampling=volume.spacing)
    shell = (outside >= SHELL_MM[0]) & (outside <= SHELL_MM[1])
    level = _signal_level(data, background)
    signal = np.abs(data[shell] - background) > level
    return bool(shell.any() and signal.mean() <= SHELL_SIGNAL)


def foreground_mask(volume: Volume) -> np.ndarray:
    """(I, J, K) bool: the largest connected piece that differs from the background, holes filled.

    A rim weaker than 2 % of the typical signal (ringing of interpolation) is not foreground.
    """
    background = _background(volume.data)
    background = float(volume.data.min()) if background is None else background
    mask = volume.data - background > _signal_level(volume.data, background)
    return ndimage.binary_fill_holes(_without_threads(largest_piece(mask), volume.spacing))


def _without_threads(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A mask without what is thinner than 3 mm and reaches further than 3 mm from the rest."""
    if not mask.any():
        return mask
    where = np.argwhere(mask)
    box = tuple(slice(a, b + 1) for a, b in zip(where.min(axis=0), where.max(axis=0)))
    inside = np.pad(ndimage.binary_fill_holes(mask[box]), 1)
    core = largest_piece(_eroded(inside, 1.5, spacing))
    out = np.zeros_like(mask)
    out[box] = (inside & _dilated(core, 4.5, spacing))[1:-1, 1:-1, 1:-1]
    return out


def check_quality(
    volume: Volume, mask: np.ndarray, matrix: np.ndarray, network_dice: float | None = None
) -> QualityCheck:
    """Judge a brain mask (I, J, K) given the affine `matrix` (native -> template, RAS mm).

    `network_dice`: its agreement with a second opinion, where there is one.
    """
    template = load_template(WORKING_SPACING_MM)
    litres = float(np.count_nonzero(mask) * np.prod(volume.spacing)) / 1e6
    moved = resample(volume.with_mask(None), template, matrix, antialias=True)
    there = resample_mask(mask, volume.affine, template, matrix)
    overlap = 2 * (there & template.mask).sum() / max(there.sum() + template.mask.sum(), 1)
    cut = np.percentile(moved.data[template.mask], (0.5, 99.5))
    information = mutual_information(
        template.data[template.mask], np.clip(moved.data[template.mask], *cut)
    )
    edge, cut_fraction = _edge_fraction(volume, mask)
    scales = affine_scales(matrix)
    measured = QualityCheck(
        litres, scales, information, edge, float(overlap), cut_fraction, network_dice
    )
    return replace(measured, reasons=_reasons(measured))


def _reasons(check: QualityCheck) -> tuple[str, ...]:
    """A sentence for each broken limit."""
    low, high = VOLUME_L
    reasons = []
    if not low <= check.volume_l <= high:
        reasons.append(f"volume {check.volume_l:.2f} L is outside {low}-{high} L")
    if not (SCALE[0] <= check.scales[2] and check.scales[0] <= SCALE[1]):
        stretch = " ".join(f"{s:.2f}" for s in check.scales)
        reasons.append(f"affine scales {stretch} are outside {SCALE[0]}-{SCALE[1]}")
    if check.mutual_information < MIN_INFORMATION:
        reasons.append(
            f"mutual information with the template {check.mutual_information:.2f} "
            f"is below {MIN_INFORMATION}"
        )
    if check.edge_fraction < MIN_EDGE:
        reasons.append(f"only {check.edge_fraction:.0%} of the border lies on an edge")
    if check.overlap < MIN_OVERLAP:
        reasons.append(f"overlap with the template {check.overlap:.2f} is below {MIN_OVERLAP}")
    if check.cut_fraction > MAX_CUT:
        reasons.append(f"{check.cut_fraction:.0%} of the border is cut by the field of view")
    if check.network_dice is not None and check.network_dice < MIN_AGREEMENT:
        reasons.append(
            f"agreement with the network's mask {check.network_dice:.2f} is below {MIN_AGREEMENT}"
        )
    return tuple(reasons)


def _ready(volume: Volume, sloppy: bool) -> tuple[Volume, np.ndarray, np.ndarray, Volume]:
    """Template, what lies near its brain, the pose to begin with, and the image as coarse."""
    spacing = SLOPPY_SPACING_MM if sloppy else WORKING_SPACING_MM
    template = load_template(spacing)
    near = template_neighbourhood(template, 6.0)
    return template, near, search_pose(volume, sloppy=sloppy), working_copy(volume, spacing)


def _of_whole_head(volume: Volume, seed: int, sloppy: bool
                   ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The affine to the template, and a mask by each way."""
    template, near, pose, moving = _ready(volume, sloppy)
    rigid = refine_linear("Rigid", moving, template, near, pose, seed=seed, sloppy=sloppy)
    affine = refine_linear(
        "Affine", moving, template, template.mask, rigid, seed=seed, sloppy=sloppy
    )
    return affine, _candidates(volume, moving, template, near, affine, seed, sloppy)


def _candidates(
    volume: Volume,
    moving: Volume,
    template: Volume,
    near: np.ndarray,
    affine: np.ndarray,
    seed: int,
    sloppy: bool,
) -> dict[str, np.ndarray]:
    """Refined masks on the volume's grid, from the affine and from affine and SyN together."""
    brain = Volume(template.mask.astype(np.float32), template.affine)
    grid = _grid_around(volume, resample(brain, moving, np.linalg.inv(affine)))
    data = resample(volume.with_mask(None), grid, antialias=True).data
    linear = resample(brain, grid, np.linalg.inv(affine)).data > 0.5
    depths = {"affine": _signed_depth(linear, grid.spacing) + AFFINE_MARGIN_MM}
    if not sloppy:
        warped = _syn_mask(moving, template, near, affine, seed)
        warped = resample(Volume(warped, moving.affine), grid).data > 0.5
        deformed = _signed_depth(warped, grid.spacing) + SYN_MARGIN_MM
        depths["syn"] = AFFINE_SHARE * depths["affine"] + (1 - AFFINE_SHARE) * deformed
    return {
        name: _on_grid_of(volume, _refine(data, depth), grid) for name, depth in depths.items()
    }


def _syn_mask(
    moving: Volume, template: Volume, near: np.ndarray, affine: np.ndarray, seed: int
) -> np.ndarray:
    """The template's mask in the head, 0..1 on the working grid, through SyN from the affine."""
    ants = ants_module()
    seed_ants(seed)
    with tempfile.TemporaryDirectory(prefix="harmonizer-") as folder:
        text = write_itk_affine(Path(folder) / "start.txt", affine)
        start = f"{folder}/start.mat"  # antspyx inverts matrices only if their name ends in .mat
        ants.write_transform(ants.read_transform(str(text)), start)
        result = ants.registration(
            fixed=to_ants(template), moving=to_ants(moving), type_of_transform="SyNOnly",
            initial_transform=start, mask=to_ants(template, near), outprefix=f"{folder}/",
            syn_metric="mattes", reg_iterations=(40, 20, 0), total_sigma=1,
        )
        back = ants.apply_transforms(
            fixed=to_ants(moving), moving=to_ants(template, template.mask),
            transformlist=result["invtransforms"], whichtoinvert=[True, False],
            interpolator="linear",
        )
        return back.numpy()


def _refine(data: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Move the border to where intensities say that brain ends; arrays on the 1.5 mm grid.

    `depth`: mm to the expected border, positive inside. Returns a bool mask.
    """
    solid = _solid(_posterior(data, depth) > 0.5)
    margin = _dilated(solid, BORDER_MARGIN_MM, REFINE_SPACING_MM)
    return margin & (depth > -BEYOND_MM)


def _on_grid_of(volume: Volume, mask: np.ndarray, grid: Volume) -> np.ndarray:
    """A mask of the 1.5 mm grid on the volume's own grid, smoothly; one piece without holes."""
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.5)
    back = resample(grid.with_data(soft), volume)
    return ndimage.binary_fill_holes(largest_piece(back.data > 0.5))


def _grid_around(volume: Volume, prior: Volume) -> Volume:
    """A 1.5 mm grid along the volume's axes that covers the prior and 15 mm around it."""
    where = np.argwhere(prior.data > 0.5)
    if not len(where):
        raise InputError("no brain was found in the image. Give a mask, or exclude the image.")
    steps = np.ceil(15.0 / prior.spacing).astype(int)
    low = np.maximum(where.min(axis=0) - steps, 0)
    high = np.minimum(where.max(axis=0) + steps + 1, prior.shape)
    affine = prior.affine.copy()
    affine[:3, 3] = (prior.affine @ [*low, 1])[:3]
    box = Volume(np.zeros(tuple(high - low), np.float32), affine)
    return isotropic_grid(box, REFINE_SPACING_MM)


def _signed_depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """mm to the border: positive inside, negative outside, zero between the two voxels."""
    half = float(np.mean(spacing)) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing) - half
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing) - half
    return np.where(mask, inside, -outside).astype(np.float32)


def _posterior(data: np.ndarray, depth: np.ndarray, bins: int = 48) -> np.ndarray:
    """Probability of brain from intensity (histograms well inside and well outside) and depth."""
    core = (depth > CORE_MM[0]) & (depth < CORE_MM[1])
    core = core if core.any() else depth > 0
    low, high = np.percentile(data[core], (0.5, 99.5))
    level = np.clip((data - low) / max(float(high - low), 1e-12), -0.2, 1.2)
    index = ((level + 0.2) / 1.4 * (bins - 1) + 0.5).astype(np.intp)
    brain = _histogram(index[core], bins)
    other = _histogram(index[(depth > OTHER_MM[0]) & (depth < OTHER_MM[1])], bins)
    evidence = np.clip(np.log(brain / other), *EVIDENCE_LIMITS)[index].astype(np.float32)
    evidence = ndimage.gaussian_filter(evidence, 0.6)
    odds = EVIDENCE * evidence + np.clip(depth / PRIOR_WIDTH_MM, -6, 6)
    inside = 1 / (1 + np.exp(-odds))
    for _ in range(4):  # neighbours agree (mean field of a Potts model)
        around = ndimage.gaussian_filter(inside, 0.8)
        inside = 1 / (1 + np.exp(-(odds + 4 * (around - 0.5))))
    return inside


def _histogram(index: np.ndarray, bins: int) -> np.ndarray:
    counts = np.bincount(index.ravel(), minlength=bins).astype(np.float64)
    counts = ndimage.gaussian_filter1d(counts, 1.0, mode="nearest")
    return (counts + 1e-3 * counts.sum() + 1e-9) / (counts.sum() * (1 + 1e-3 * bins) + 1e-9)


def _solid(mask: np.ndarray) -> np.ndarray:
    """Thin bridges cut, one piece kept, sulci closed, holes filled."""
    spacing = REFINE_SPACING_MM
    core = largest_piece(_eroded(mask, 3.0, spacing))
    mask = mask & _dilated(core, 4.5, spacing)
    closed = _eroded(_dilated(np.pad(mask, 6), 5.0, spacing), 5.0, spacing)[6:-6, 6:-6, 6:-6]
    return ndimage.binary_fill_holes(closed)


def _eroded(mask: np.ndarray, margin_mm: float, spacing: float | np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(mask, sampling=spacing) > margin_mm


def _dilated(mask: np.ndarray, margin_mm: float, spacing: float | np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= margin_mm


def _background(data: np.ndarray) -> float | None:
    """The value that at least a quarter of all voxels hold exactly, if there is one."""
    values, counts = np.unique(data, return_counts=True)
    if counts.max() < CONSTANT_BACKGROUND * data.size:
        return None
    return float(values[counts.argmax()])


def _signal_level(data: np.ndarray, background: float) -> float:
    """2 % of the median signal above the background."""
    above = data[data > background] - background
    return 0.02 * float(np.median(above)) if above.size else 0.0


def _edge_fraction(volume: Volume, mask: np.ndarray) -> tuple[float, float]:
    """Parts of the border (0..1) that lie on an intensity edge, and on the field of view's edge.

    The intensity 3 mm inside is compared with that 3 mm outside along the normal of the mask; an
    edge is a change of more than 15 % of the median inside (either direction, as contrasts vary).
    """
    small = resample(volume.with_mask(mask), isotropic_grid(volume, 2.0), antialias=True)
    if not small.mask.any():
        return 0.0, 0.0
    border = small.mask & ~ndimage.binary_erosion(small.mask, border_value=1)
    depth = ndimage.gaussian_filter(_signed_depth(small.mask, small.spacing), 1.0)
    points = np.argwhere(border)
    normal = np.stack([g[border] for g in np.gradient(depth)], axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    inner, outer = (
        ndimage.map_coordinates(small.data, (points + step * normal).T, order=1, mode="nearest")
        for step in (1.5, -1.5)
    )
    typical = float(np.median(small.data[small.mask]))
    edge = np.abs(inner - outer) > 0.15 * abs(typical)
    ends = np.array(small.shape) - 1
    cut = ((points == 0) | (points == ends)).any(axis=1)
    return float(edge.mean()), float(cut.mean())
