"""Extract the brain without downloaded weights, at any contrast, with quality checks.

A whole head is registered to the skull-stripped template (pose search, rigid, affine, SyN; see
`registration`). The template's mask is transformed to the image, and its border is moved to where
the image's intensities indicate the end of the brain (`_refine`). Brain-only input is detected, and
its foreground is used as the mask. Each mask has a `QualityCheck` with the reasons for low
confidence.

There are two candidates, one from the affine and one from affine and SyN. SyN's candidate is used
unless it fails more checks.
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
from .bias import largest_component
from .registration import (
    affine_scales,
    mutual_information,
    refine_linear,
    search_pose,
    template_neighborhood,
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
# The template's mask lies this far inside the true border after each transform, measured on heads
# with labels (benchmarks/preprocessing.py).
AFFINE_MARGIN_MM = 1.9
SYN_MARGIN_MM = 3.6
AFFINE_DEPTH_WEIGHT = 0.25  # of the affine's border in the average with SyN's; it is more stable
PRIOR_WIDTH_MM = 2.5  # standard error of the expected border
INTENSITY_WEIGHT = 1.3  # of the intensities' log odds
LOG_ODDS_LIMITS = (-4.0, 1.5)  # of one voxel, nats: fat may exclude, no intensity alone includes
CORE_DEPTH_MM = (5.0, 15.0)  # certainly brain and mostly outside the ventricles
SURROUND_DEPTH_MM = (-8.0, -2.0)  # tissue around the brain
BORDER_MARGIN_MM = 3.0  # added around the tissue, so that partial volume removes no cortex
MAX_BORDER_EXCESS_MM = 0.2  # beyond the expected border, since dark bone looks like CSF

# Limits of a trustworthy mask. Inspected images of six sites (24 T1w, 2 T2w, 3 FLAIR) have volumes
# of 1.1-1.8 L, scales of 0.98-1.27, information of 0.15-0.30, edges of 0.79-1, overlaps above 0.93.
VOLUME_RANGE_L = (0.9, 2.0)
SCALE_RANGE = (0.8, 1.45)  # native to template; the template is about 1.1 times a typical brain
MIN_TEMPLATE_DICE = 0.85  # with the template's mask after the affine
MIN_MUTUAL_INFORMATION = 0.10  # nats
MIN_EDGE_FRACTION = 0.55  # of the border
MIN_NETWORK_DICE = 0.88  # with the network's mask: docs/concepts/segmentation.md, Whole heads
MAX_CUT_FRACTION = 0.05  # of the border at the edge of the field of view
LIMITS: Mapping[str, tuple[float | None, float | None]] = MappingProxyType({
    "volume_l": VOLUME_RANGE_L, "overlap": (MIN_TEMPLATE_DICE, None),
    "network_dice": (MIN_NETWORK_DICE, None),
    "mutual_information": (MIN_MUTUAL_INFORMATION, None),
    "edge_fraction": (MIN_EDGE_FRACTION, None), "cut_fraction": (None, MAX_CUT_FRACTION),
})
"""Lowest and highest trustworthy value of each measure of a `QualityCheck` but the scales."""

BRAIN_ONLY_RANGE_L = (0.6, 2.3)  # volumes of a filled foreground that can be a brain
MIN_BACKGROUND_FRACTION = 0.25  # of the voxels that have exactly the background value
SHELL_DISTANCE_MM = (5.0, 20.0)
MAX_SHELL_SIGNAL_FRACTION = 0.02  # of the shell's voxels that differ from the background


@dataclass(frozen=True)
class QualityCheck:
    """Quality measures of a brain mask.

    Attributes
    ----------
    volume_l : float
        Volume, liters.
    scales : tuple of float
        Stretch of the brain by the affine to the template, in descending order.
    mutual_information : float
        Between image and template inside the template's mask, nats.
    edge_fraction : float
        Fraction of the mask's border across which the intensity changes, 0 to 1.
    overlap : float
        Dice coefficient of the registered mask and the template's mask, 0 to 1.
    cut_fraction : float
        Fraction of the mask's border on the edge of the field of view, 0 to 1.
    network_dice : float or None
        Dice coefficient with the network's mask (`segmentation.brain`), 0 to 1; None if not
        computed.
    reasons : tuple of str
        One sentence for each limit that is exceeded.
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
    def low_confidence(self) -> bool:
        """Whether the mask exceeds a limit and should be inspected."""
        return bool(self.reasons)


@dataclass(frozen=True, eq=False)
class BrainExtraction:
    """Brain mask and how it was found.

    Attributes
    ----------
    mask : (I, J, K) bool ndarray
        On the input's grid.
    quality : QualityCheck
        Quality measures.
    method : str
        'foreground' (brain-only input), 'affine' or 'syn' (whole head), or 'network'
        (`segmentation.brain.brain_by_network`).
    brain_only : bool
        Whether the input was skull-stripped.
    matrix : (4, 4) ndarray
        Native world to template world, RAS mm; initial matrix for `register_to_template`.
    """

    mask: np.ndarray
    quality: QualityCheck
    method: str
    brain_only: bool
    matrix: np.ndarray


def extract_brain(
    volume: Volume, *, skull_strip: str = "auto", seed: int = 0, sloppy: bool = False
) -> BrainExtraction:
    """Extract the brain from an image after a rough bias correction.

    Parameters
    ----------
    volume : Volume
        Image of any contrast; negative voxels are allowed.
    skull_strip : str
        'auto' detects brain-only images, 'force' always extracts, 'skip' uses the foreground.
    seed : int
        Seed of the sampling of ANTs; the same seed gives the same bits (see `ants_bridge`).
    sloppy : bool
        4 mm and no SyN, for tests.

    Returns
    -------
    BrainExtraction

    Raises
    ------
    UsageError
        If `skull_strip` is none of the three.
    InputError
        If the mask is empty.
    """
    if skull_strip not in SKULL_STRIP:
        raise UsageError(f"skull_strip must be one of {SKULL_STRIP}, got {skull_strip!r}.")
    brain_only = skull_strip == "skip" or (skull_strip == "auto" and is_brain_only(volume))
    if brain_only:
        affine = first_affine(volume, seed=seed, sloppy=sloppy)
        candidates = {"foreground": foreground_mask(volume)}
    else:
        affine, candidates = _extract_from_head(volume, seed, sloppy)
    checks = {name: check_quality(volume, mask, affine) for name, mask in candidates.items()}
    method = min(reversed(checks), key=lambda name: len(checks[name].reasons))  # SyN unless worse
    if not candidates[method].any():
        raise InputError("no brain was found in the image. Give a mask or exclude the image.")
    return BrainExtraction(candidates[method], checks[method], method, brain_only, affine)


def first_affine(volume: Volume, *, seed: int = 0, sloppy: bool = False) -> np.ndarray:
    """Register a brain-only image to the template by an affine.

    Parameters
    ----------
    volume : Volume
        Image of a brain without a head.
    seed, sloppy
        See `extract_brain`.

    Returns
    -------
    (4, 4) ndarray
        Native world to template world, RAS mm.
    """
    template, near, pose, moving = _prepare(volume, sloppy)
    return refine_linear("Affine", moving, template, near, pose, seed=seed, sloppy=sloppy)


def is_brain_only(volume: Volume) -> bool:
    """Detect whether an image is skull-stripped.

    Three conditions must hold: at least a quarter of the voxels have exactly the background value,
    the filled foreground has the volume of a brain, and there is no signal 5 to 20 mm around it.

    Parameters
    ----------
    volume : Volume
        Image of any contrast.

    Returns
    -------
    bool
    """
    data = volume.data
    background = _background(data)
    if background is None:
        return False
    mask = foreground_mask(volume)
    volume_l = float(mask.sum() * np.prod(volume.spacing)) / 1e6
    if not BRAIN_ONLY_RANGE_L[0] <= volume_l <= BRAIN_ONLY_RANGE_L[1]:
        return False
    outside = ndimage.distance_transform_edt(~mask, sampling=volume.spacing)
    shell = (outside >= SHELL_DISTANCE_MM[0]) & (outside <= SHELL_DISTANCE_MM[1])
    level = _signal_level(data, background)
    signal = np.abs(data[shell] - background) > level
    return bool(shell.any() and signal.mean() <= MAX_SHELL_SIGNAL_FRACTION)


def foreground_mask(volume: Volume) -> np.ndarray:
    """Find the largest connected component that differs from the background, with holes filled.

    Voxels within 2 % of the typical signal belong to the background (ringing of interpolation).

    Parameters
    ----------
    volume : Volume
        Brain-only image.

    Returns
    -------
    (I, J, K) bool ndarray
    """
    background = _background(volume.data)
    background = float(volume.data.min()) if background is None else background
    mask = volume.data - background > _signal_level(volume.data, background)
    mask = _remove_thin_structures(largest_component(mask), volume.spacing)
    return ndimage.binary_fill_holes(mask)


def _remove_thin_structures(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Remove structures thinner than 3 mm that extend more than 3 mm from the rest of a mask."""
    if not mask.any():
        return mask
    where = np.argwhere(mask)
    box = tuple(slice(a, b + 1) for a, b in zip(where.min(axis=0), where.max(axis=0)))
    inside = np.pad(ndimage.binary_fill_holes(mask[box]), 1)
    core = largest_component(_erode(inside, 1.5, spacing))
    out = np.zeros_like(mask)
    out[box] = (inside & _dilate(core, 4.5, spacing))[1:-1, 1:-1, 1:-1]
    return out


def check_quality(
    volume: Volume, mask: np.ndarray, matrix: np.ndarray, network_dice: float | None = None
) -> QualityCheck:
    """Measure the quality of a brain mask.

    Parameters
    ----------
    volume : Volume
        The image.
    mask : (I, J, K) bool ndarray
        The brain mask.
    matrix : (4, 4) ndarray
        Affine, native to template, RAS mm.
    network_dice : float, optional
        Dice coefficient with the network's mask.

    Returns
    -------
    QualityCheck
    """
    template = load_template(WORKING_SPACING_MM)
    volume_l = float(np.count_nonzero(mask) * np.prod(volume.spacing)) / 1e6
    resampled = resample(volume.with_mask(None), template, matrix, antialias=True)
    there = resample_mask(mask, volume.affine, template, matrix)
    brain = template.require_mask()
    overlap = 2 * (there & brain).sum() / max(there.sum() + brain.sum(), 1)
    limits = np.percentile(resampled.data[brain], (0.5, 99.5))
    information = mutual_information(
        template.data[brain], np.clip(resampled.data[brain], *limits)
    )
    edge, cut_fraction = _edge_fraction(volume, mask)
    scales = affine_scales(matrix)
    measured = QualityCheck(
        volume_l, scales, information, edge, float(overlap), cut_fraction, network_dice
    )
    return replace(measured, reasons=_reasons(measured))


def _reasons(check: QualityCheck) -> tuple[str, ...]:
    """One sentence for each exceeded limit."""
    low, high = VOLUME_RANGE_L
    reasons = []
    if not low <= check.volume_l <= high:
        reasons.append(f"volume {check.volume_l:.2f} L is outside {low}-{high} L")
    if not (SCALE_RANGE[0] <= check.scales[2] and check.scales[0] <= SCALE_RANGE[1]):
        stretch = " ".join(f"{s:.2f}" for s in check.scales)
        reasons.append(f"affine scales {stretch} are outside {SCALE_RANGE[0]}-{SCALE_RANGE[1]}")
    if check.mutual_information < MIN_MUTUAL_INFORMATION:
        reasons.append(
            f"mutual information with the template {check.mutual_information:.2f} "
            f"is below {MIN_MUTUAL_INFORMATION}"
        )
    if check.edge_fraction < MIN_EDGE_FRACTION:
        reasons.append(f"only {check.edge_fraction:.0%} of the border lies on an edge")
    if check.overlap < MIN_TEMPLATE_DICE:
        reasons.append(
            f"overlap with the template {check.overlap:.2f} is below {MIN_TEMPLATE_DICE}"
        )
    if check.cut_fraction > MAX_CUT_FRACTION:
        reasons.append(f"{check.cut_fraction:.0%} of the border is cut by the field of view")
    if check.network_dice is not None and check.network_dice < MIN_NETWORK_DICE:
        reasons.append(
            f"agreement with the network's mask {check.network_dice:.2f} "
            f"is below {MIN_NETWORK_DICE}"
        )
    return tuple(reasons)


def _prepare(volume: Volume, sloppy: bool) -> tuple[Volume, np.ndarray, np.ndarray, Volume]:
    """Template, dilated template mask, initial pose, and the image at the template's resolution."""
    spacing = SLOPPY_SPACING_MM if sloppy else WORKING_SPACING_MM
    template = load_template(spacing)
    near = template_neighborhood(template, 6.0)
    return template, near, search_pose(volume, sloppy=sloppy), working_copy(volume, spacing)


def _extract_from_head(volume: Volume, seed: int, sloppy: bool
                   ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Affine to the template, and the candidate masks of a whole head."""
    template, near, pose, moving = _prepare(volume, sloppy)
    rigid = refine_linear("Rigid", moving, template, near, pose, seed=seed, sloppy=sloppy)
    affine = refine_linear(
        "Affine", moving, template, template.require_mask(), rigid, seed=seed, sloppy=sloppy
    )
    return affine, _candidate_masks(volume, moving, template, near, affine, seed, sloppy)


def _candidate_masks(
    volume: Volume,
    moving: Volume,
    template: Volume,
    near: np.ndarray,
    affine: np.ndarray,
    seed: int,
    sloppy: bool,
) -> dict[str, np.ndarray]:
    """Refined masks on the volume's grid, from the affine and from affine and SyN."""
    brain = Volume(template.require_mask().astype(np.float32), template.affine)
    grid = _refinement_grid(volume, resample(brain, moving, np.linalg.inv(affine)))
    data = resample(volume.with_mask(None), grid, antialias=True).data
    linear = resample(brain, grid, np.linalg.inv(affine)).data > 0.5
    depths = {"affine": _signed_depth(linear, grid.spacing) + AFFINE_MARGIN_MM}
    if not sloppy:
        warped = _syn_mask(moving, template, near, affine, seed)
        warped = resample(Volume(warped, moving.affine), grid).data > 0.5
        deformed = _signed_depth(warped, grid.spacing) + SYN_MARGIN_MM
        weight = AFFINE_DEPTH_WEIGHT
        depths["syn"] = weight * depths["affine"] + (1 - weight) * deformed
    return {
        name: _to_volume_grid(volume, _refine(data, depth), grid) for name, depth in depths.items()
    }


def _syn_mask(
    moving: Volume, template: Volume, near: np.ndarray, affine: np.ndarray, seed: int
) -> np.ndarray:
    """Transform the template's mask, 0..1, to the working grid by SyN from the affine."""
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
    """Move the border of a mask by the image's intensities, on the 1.5 mm grid.

    `depth` is the distance to the expected border, mm, positive inside. Returns a bool mask.
    """
    closed = _close_mask(_posterior(data, depth) > 0.5)
    margin = _dilate(closed, BORDER_MARGIN_MM, REFINE_SPACING_MM)
    return margin & (depth > -MAX_BORDER_EXCESS_MM)


def _to_volume_grid(volume: Volume, mask: np.ndarray, grid: Volume) -> np.ndarray:
    """Resample a mask from the 1.5 mm grid to the volume's grid; one component without holes."""
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.5)
    back = resample(grid.with_data(soft), volume)
    return ndimage.binary_fill_holes(largest_component(back.data > 0.5))


def _refinement_grid(volume: Volume, prior: Volume) -> Volume:
    """Create a 1.5 mm grid along the volume's axes that covers the prior mask and 15 mm."""
    where = np.argwhere(prior.data > 0.5)
    if not len(where):
        raise InputError("no brain was found in the image. Give a mask or exclude the image.")
    steps = np.ceil(15.0 / prior.spacing).astype(int)
    low = np.maximum(where.min(axis=0) - steps, 0)
    high = np.minimum(where.max(axis=0) + steps + 1, prior.shape)
    affine = prior.affine.copy()
    affine[:3, 3] = (prior.affine @ [*low, 1])[:3]
    box = Volume(np.zeros(tuple(high - low), np.float32), affine)
    return isotropic_grid(box, REFINE_SPACING_MM)


def _signed_depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance to the border, mm: positive inside, negative outside, zero between two voxels."""
    half = float(np.mean(spacing)) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing) - half
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing) - half
    return np.where(mask, inside, -outside).astype(np.float32)


def _posterior(data: np.ndarray, depth: np.ndarray, bins: int = 48) -> np.ndarray:
    """Posterior probability of brain, from intensity histograms and the distance to the border."""
    core = (depth > CORE_DEPTH_MM[0]) & (depth < CORE_DEPTH_MM[1])
    core = core if core.any() else depth > 0
    low, high = np.percentile(data[core], (0.5, 99.5))
    level = np.clip((data - low) / max(float(high - low), 1e-12), -0.2, 1.2)
    index = ((level + 0.2) / 1.4 * (bins - 1) + 0.5).astype(np.intp)
    brain = _histogram(index[core], bins)
    other = _histogram(index[(depth > SURROUND_DEPTH_MM[0]) & (depth < SURROUND_DEPTH_MM[1])], bins)
    log_odds = np.clip(np.log(brain / other), *LOG_ODDS_LIMITS)[index].astype(np.float32)
    log_odds = ndimage.gaussian_filter(log_odds, 0.6)
    odds = INTENSITY_WEIGHT * log_odds + np.clip(depth / PRIOR_WIDTH_MM, -6, 6)
    inside = 1 / (1 + np.exp(-odds))
    for _ in range(4):  # neighbors agree (mean field of a Potts model)
        around = ndimage.gaussian_filter(inside, 0.8)
        inside = 1 / (1 + np.exp(-(odds + 4 * (around - 0.5))))
    return inside


def _histogram(index: np.ndarray, bins: int) -> np.ndarray:
    counts = np.bincount(index.ravel(), minlength=bins).astype(np.float64)
    counts = ndimage.gaussian_filter1d(counts, 1.0, mode="nearest")
    return (counts + 1e-3 * counts.sum() + 1e-9) / (counts.sum() * (1 + 1e-3 * bins) + 1e-9)


def _close_mask(mask: np.ndarray) -> np.ndarray:
    """Cut thin bridges, keep the largest component, close sulci and fill holes."""
    spacing = REFINE_SPACING_MM
    core = largest_component(_erode(mask, 3.0, spacing))
    mask = mask & _dilate(core, 4.5, spacing)
    closed = _erode(_dilate(np.pad(mask, 6), 5.0, spacing), 5.0, spacing)[6:-6, 6:-6, 6:-6]
    return ndimage.binary_fill_holes(closed)


def _erode(mask: np.ndarray, margin_mm: float, spacing: float | np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(mask, sampling=spacing) > margin_mm


def _dilate(mask: np.ndarray, margin_mm: float, spacing: float | np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= margin_mm


def _background(data: np.ndarray) -> float | None:
    """Find the value that at least a quarter of the voxels hold exactly; None without one."""
    values, counts = np.unique(data, return_counts=True)
    if counts.max() < MIN_BACKGROUND_FRACTION * data.size:
        return None
    return float(values[counts.argmax()])


def _signal_level(data: np.ndarray, background: float) -> float:
    """2 % of the median signal above the background."""
    above = data[data > background] - background
    return 0.02 * float(np.median(above)) if above.size else 0.0


def _edge_fraction(volume: Volume, mask: np.ndarray) -> tuple[float, float]:
    """Fractions of the mask's border on an intensity edge, and on the edge of the field of view.

    Intensities 3 mm inside and 3 mm outside are compared along the normal of the mask. A change of
    more than 15 % of the median inside counts as an edge, in either direction, because contrasts
    differ.
    """
    small = resample(volume.with_mask(mask), isotropic_grid(volume, 2.0), antialias=True)
    inside = small.require_mask()
    if not inside.any():
        return 0.0, 0.0
    border = inside & ~ndimage.binary_erosion(inside, border_value=1)
    depth = ndimage.gaussian_filter(_signed_depth(inside, small.spacing), 1.0)
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
