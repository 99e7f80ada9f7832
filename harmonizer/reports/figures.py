"""Figures of one scan: brain mask, bias field, registration, tissues, harmonization.

Each function takes arrays on one grid and returns a :class:`Figure`: PNG frames and their texts.
The frames of a figure lie on top of each other in the report and alternate. They are therefore
drawn on the same slices with the same window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from ..evaluation.metrics.distribution import LEVELS, quantile_function
from ..tissues import TISSUE_LABELS
from .draw import ColorScale, Contour, draw_mosaic, new_canvas, to_png
from .mosaic import plan_mosaic

if TYPE_CHECKING:
    from ..volume import Volume

__all__ = ["Figure", "ScanImages", "scan_figures", "mask_figure", "bias_figures",
           "registration_figures", "tissue_figure", "harmonization_figure", "difference_figure",
           "histogram_figure", "density", "short_label"]

MAX_UNSCALED_GAIN = 1.5  # ratio of medians below which the display needs no rescaling
HISTOGRAM_BINS = 80
MASK_COLOR, WM_COLOR, GM_COLOR = "#ff4b3e", "#ffd400", "#3fa7ff"


@dataclass(frozen=True)
class Figure:
    """Figure of a report.

    Attributes
    ----------
    title, caption : str
        Texts; they are escaped when the report is rendered.
    alt : str
        Description for screen readers.
    frames : tuple of bytes
        One PNG, or several that are shown in turn.
    labels : tuple of str
        Name of each frame.
    """

    title: str
    caption: str
    alt: str
    frames: tuple[bytes, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanImages:
    """Arrays for the figures of one scan; figures without their arrays are omitted.

    Attributes
    ----------
    native : Volume, optional
        Conformed image before bias correction with its brain mask, on the native grid.
    bias_field : (I, J, K) ndarray, optional
        Multiplicative field on the native grid; corrected image = native / field.
    registered : Volume, optional
        Preprocessed image with its mask on the template's grid.
    template : Volume, optional
        Template with its brain mask.
    template_tissues : (I, J, K) ndarray, optional
        Tissue labels of the template: 0 outside, 1 CSF, 2 GM, 3 WM.
    harmonized : Volume, optional
        Harmonized image on the grid of `registered`.
    tissues : (I, J, K) ndarray, optional
        Tissue labels of this scan, coded as `template_tissues`.
    target_quantiles : mapping, optional
        Tissue ("brain", "CSF", "GM", "WM") -> quantile functions (scans, 200) of the target's scans
        at `harmonizer.evaluation.metrics.distribution.LEVELS`.
    """

    native: Volume | None = None
    bias_field: np.ndarray | None = None
    registered: Volume | None = None
    template: Volume | None = None
    template_tissues: np.ndarray | None = None
    harmonized: Volume | None = None
    tissues: np.ndarray | None = None
    target_quantiles: Mapping[str, np.ndarray] | None = None


def scan_figures(
    images: ScanImages, target: str = "target", convention: str = "neurological"
) -> tuple[Figure, ...]:
    """Draw every figure that the given arrays allow, in the order of the pipeline.

    Parameters
    ----------
    images : ScanImages
        Arrays of the scan.
    target : str
        Label of the target.
    convention : str
        "neurological" (patient's left at the left) or "radiological".
    """
    figures: list[Figure] = []
    native, registered, harmonized = images.native, images.registered, images.harmonized
    if native is not None and native.mask is not None:
        figures.append(mask_figure(native, convention))
        if images.bias_field is not None:
            figures += bias_figures(native, images.bias_field, convention)
    if registered is not None and images.template is not None:
        figures += registration_figures(registered, images.template, images.template_tissues,
                                        convention)
    if registered is not None and images.tissues is not None and harmonized is None:
        figures.append(tissue_figure(registered, images.tissues, convention))
    if registered is not None and registered.mask is not None and harmonized is not None:
        figures += [
            harmonization_figure(registered, harmonized, convention),
            difference_figure(registered, harmonized, convention),
            histogram_figure(registered, harmonized, images.tissues, images.target_quantiles,
                             target)]
    return tuple(figures)


def mask_figure(volume: Volume, convention: str = "neurological") -> Figure:
    """Draw the brain mask's outline on the image from which it was estimated."""
    mosaic = plan_mosaic(volume.require_mask(), volume.affine, convention=convention, margin_mm=14)
    picture = draw_mosaic(mosaic, volume.data, _window(volume.in_mask()),
                          [Contour(volume.require_mask(), MASK_COLOR)])
    liters = volume.require_mask().sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1e6
    return Figure(
        "Brain mask",
        f"Red: outline of the brain mask ({liters:.2f} liters) on the image before bias "
        "correction, native grid. Look for skull or neck inside the line and for cortex outside.",
        "Axial, coronal and sagittal slices of the head with the brain mask outlined in red",
        (picture,))


def bias_figures(volume: Volume, field: np.ndarray, convention: str = "neurological"
                 ) -> list[Figure]:
    """Draw the bias field over the image, and the image before and after correction."""
    mask = volume.require_mask()
    middle = np.median(field[mask])
    percent = np.where(mask, 100 * (field / middle - 1), np.nan)
    limit = max(5.0, float(np.nanpercentile(np.abs(percent), 99)))
    mosaic = plan_mosaic(mask, volume.affine, planes=("axial", "sagittal"), convention=convention)
    window = _window(volume.in_mask())
    corrected = volume.data * (middle / np.maximum(field, 1e-6))
    low, high = np.percentile(percent[mask], [1, 99])
    return [
        Figure("Bias field",
               "The smooth field that was divided out, as deviation from its median. In this "
               f"brain it runs from {low:+.0f} % to {high:+.0f} % (1st and 99th percentile). It "
               "should be smooth and show no anatomy.",
               "Slices of the brain with the bias field in color",
               (draw_mosaic(mosaic, volume.data, window, overlay=percent, color_scale=ColorScale(
                   "RdBu_r", -limit, limit, "field, % from its median", 0.6)),)),
        Figure("Bias correction",
               "The image before and after the field was divided out, at one window. White matter "
               "should become even from front to back and from top to bottom.",
               "Slices of the brain before and after bias correction",
               (draw_mosaic(mosaic, volume.data, window), draw_mosaic(mosaic, corrected, window)),
               ("before correction", "after correction"))]


def registration_figures(
    registered: Volume,
    template: Volume,
    tissues: np.ndarray | None = None,
    convention: str = "neurological",
) -> list[Figure]:
    """Draw template edges on the registered image, and image and template as two frames."""
    brain = template.mask if template.mask is not None else template.data > 0
    mosaic = plan_mosaic(brain, template.affine, convention=convention)
    inside = registered.in_mask() if registered.mask is not None else registered.data[brain]
    window = _window(inside)
    contours = [Contour(brain, MASK_COLOR)]
    if tissues is not None:
        contours.append(Contour(tissues == TISSUE_LABELS["WM"], WM_COLOR, 0.7))
    image = draw_mosaic(mosaic, registered.data, window)
    edges = ("Red: the template's brain edge" + ("; yellow: the edge of its white matter"
                                                 if tissues is not None else ""))
    return [
        Figure("Registration: template edges",
               f"{edges}, drawn on this scan after affine registration. The lines should follow "
               "brain edge, ventricles and midline; single gyri need not fit.",
               "Slices of the registered brain with the template's edges drawn on it",
               (draw_mosaic(mosaic, registered.data, window, contours),)),
        Figure("Registration: scan and template",
               "This scan on the template's grid and the template itself, on the same slices.",
               "Slices of the registered brain and of the template in turn",
               (image, draw_mosaic(mosaic, template.data, _window(template.data[brain]))),
               ("this scan", "template"))]


def tissue_figure(
    registered: Volume, tissues: np.ndarray, convention: str = "neurological"
) -> Figure:
    """Draw the borders of gray and white matter; labels as in `ScanImages.tissues`."""
    mosaic = plan_mosaic(registered.require_mask(), registered.affine, convention=convention)
    window = _window(registered.in_mask())
    contours = [Contour(tissues >= TISSUE_LABELS["GM"], GM_COLOR, 0.6),
                Contour(tissues == TISSUE_LABELS["WM"], WM_COLOR, 0.6)]
    fractions = {name: (tissues == code).sum() / max((tissues > 0).sum(), 1)
                 for name, code in TISSUE_LABELS.items()}
    words = ", ".join(f"{name} {part:.0%}" for name, part in fractions.items())
    return Figure(
        "Tissues",
        f"Blue: the edge of gray matter; yellow: that of white matter ({words} of the brain). The "
        "yellow line should run under the cortex, ventricles should lie outside the blue one. "
        "Lesions of white matter are counted as white matter.",
        "Slices of the registered brain without lines, then with the edges of its tissues",
        (draw_mosaic(mosaic, registered.data, window),
         draw_mosaic(mosaic, registered.data, window, contours)),
        ("image", "tissues"))


def harmonization_figure(before: Volume, after: Volume, convention: str = "neurological") -> Figure:
    """Draw the image before and after harmonization as two frames with the same slices and window.

    A large difference of scale is removed for display; the caption states the factor.
    """
    mosaic = plan_mosaic(before.require_mask(), before.affine, convention=convention)
    window = _window(after.data[before.mask])
    shown, words = _for_display(before, after)
    return Figure(
        "Before and after harmonization",
        f"Both at one window, {window[0]:.4g} to {window[1]:.4g}. {words}Intensities may change; "
        "edges, sulci and lesions may not.",
        "Slices of the brain before and after harmonization in turn",
        (draw_mosaic(mosaic, shown, window), draw_mosaic(mosaic, after.data, window)),
        ("before", "after"))


def difference_figure(before: Volume, after: Volume, convention: str = "neurological") -> Figure:
    """Draw after minus before inside the mask, in percent of the harmonized image's range."""
    shown, words = _for_display(before, after)
    mask = before.require_mask()
    low, high = np.percentile(after.data[mask], [0.5, 99.5])
    scale = max(float(high - low), 1e-12)
    percent = np.where(mask, 100 * (after.data - shown) / scale, np.nan)
    limit = max(1.0, float(np.nanpercentile(np.abs(percent), 99)))
    mosaic = plan_mosaic(mask, before.affine, convention=convention)
    mean = float(np.nanmean(np.abs(percent)))
    return Figure(
        "What changed",
        f"After minus before, in percent of the harmonized image's 0.5 to 99.5 % range. {words}"
        f"Red: brighter now, blue: darker now; {mean:.1f} % on average. A change of contrast "
        "follows the tissues; an isolated lesion or gyrus in this map was invented by the method.",
        "Slices with the signed difference of harmonized and original image in red and blue",
        (draw_mosaic(mosaic, None, overlay=percent, contours=[Contour(mask, "#777777", 0.5)],
                     color_scale=ColorScale("RdBu_r", -limit, limit,
                                            "after - before, % of range")),))


def histogram_figure(
    before: Volume,
    after: Volume,
    tissues: np.ndarray | None = None,
    target_quantiles: Mapping[str, np.ndarray] | None = None,
    target: str = "target",
) -> Figure:
    """Draw histograms of brain and tissues before and after, with the range of the target's scans.

    Parameters
    ----------
    before, after : Volume
        Images on one grid.
    tissues : (I, J, K) ndarray, optional
        Tissue labels.
    target_quantiles : mapping, optional
        Tissue -> quantile functions (scans, 200). The band covers the 5th to 95th percentile of the
        target scans' densities at each intensity.
    target : str
        Label of the target.
    """
    shown, words = _for_display(before, after)
    places = {"brain": before.mask}
    if tissues is not None:
        found = {name: (tissues == code) & before.mask for name, code in TISSUE_LABELS.items()}
        places |= {name: place for name, place in found.items() if place.any()}
    bands = target_quantiles or {}
    ends = [quantile_function(after.data[before.mask]),
            quantile_function(shown[before.mask]), *np.atleast_2d(bands.get("brain", []))]
    edges = _edges([quantiles for quantiles in ends if quantiles.size])
    canvas = new_canvas(1180, 290)
    for column, (name, place) in enumerate(places.items()):
        axes = canvas.add_subplot(1, len(places), column + 1)
        _band(axes, bands.get(name), edges, target)
        _line(axes, shown[place], edges, "#7a7a7a", "before", "--")
        _line(axes, after.data[place], edges, "#0072b2", "after", "-")
        _dress(axes, name, first=column == 0)
    canvas.subplots_adjust(left=0.03, right=0.99, top=0.88, bottom=0.17, wspace=0.08)
    have = f"Shaded: 5th to 95th percentile of the scans of {target}. " if bands else ""
    return Figure(
        "Histograms",
        f"Intensities in the brain mask and in each tissue. {have}{words}",
        "Histograms of intensity before and after harmonization for brain, CSF, gray and white "
        "matter", (to_png(canvas),))


def density(quantiles: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the probability density over bin edges (n + 1) of a quantile function (200,): (n,).

    It is smoothed by one bin, because 200 levels give rough histograms.
    """
    masses = np.diff(np.interp(edges, quantiles, LEVELS, left=0.0, right=1.0))
    return ndimage.gaussian_filter1d(masses, 1.0, mode="constant") / np.diff(edges)


def _edges(quantiles: list[np.ndarray]) -> np.ndarray:
    """Return bin edges that cover the 0.5 to 99.5 % range of all given quantile functions."""
    ends = np.array([np.interp([0.005, 0.995], LEVELS, q) for q in quantiles])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    pad = 0.05 * (high - low) + 1e-6
    return np.linspace(low - pad, high + pad, HISTOGRAM_BINS + 1)


def _centers(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2


def _band(axes: Any, quantiles: np.ndarray | None, edges: np.ndarray, target: str) -> None:
    if quantiles is None or len(quantiles) == 0:
        return
    curves = np.stack([density(q, edges) for q in np.atleast_2d(quantiles)])
    low, high = np.percentile(curves, [5, 95], axis=0)
    axes.fill_between(_centers(edges), low, high, color="#e69f00", alpha=0.35, linewidth=0,
                      label=f"{short_label(target)} (n={len(curves)})")
    axes.plot(_centers(edges), np.median(curves, axis=0), color="#b87400", linewidth=1)


def _line(axes: Any, values: np.ndarray, edges: np.ndarray, color: str, label: str, style: str
          ) -> None:
    axes.plot(_centers(edges), density(quantile_function(values), edges), color=color,
              linestyle=style, linewidth=1.4, label=label)


def _dress(axes: Any, name: str, first: bool) -> None:
    axes.set_title({"brain": "whole brain"}.get(name, name), fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("intensity", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if first:
        axes.legend(fontsize=7, frameon=False, loc="upper right")


def short_label(text: str, longest: int = 18) -> str:
    """Shorten a label, and escape dollar signs, which matplotlib reads as mathematics."""
    text = text if len(text) <= longest else text[:longest - 1] + "…"
    return text.replace("$", r"\$")


def _window(inside: np.ndarray) -> tuple[float, float]:
    """Return the gray window: from 0, or the minimum, to a little above the 99.5th percentile."""
    low, high = np.percentile(inside, [0.5, 99.5])
    return min(0.0, float(low)), float(high + 0.05 * abs(high - low))


def _for_display(before: Volume, after: Volume) -> tuple[np.ndarray, str]:
    """Rescale the image before harmonization if its scale differs; return it with a note."""
    medians = [float(np.median(volume.data[before.mask])) for volume in (before, after)]
    gain = medians[1] / medians[0] if medians[0] > 0 and medians[1] > 0 else 1.0
    if 1 / MAX_UNSCALED_GAIN <= gain <= MAX_UNSCALED_GAIN:
        return before.data, ""
    return before.data * gain, (f"For display only, the image before is multiplied by {gain:.3g}, "
                                "because its scale differs. ")
