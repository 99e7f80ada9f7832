"""Figures of a cohort: histograms per site, distances between sites, distance of every scan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..evaluation.metrics.distribution import (
    LEVELS,
    QuantileTable,
    intensity_range,
    match_moments,
    site_means,
)
from ..evaluation.table import Metrics
from .draw import new_canvas, to_png
from .figures import Figure, density, short_label

__all__ = ["STAGE_TITLES", "distance_matrix", "histograms_figure", "sites_figure",
           "draw_heatmaps", "heatmaps_figure", "on_one_axis", "scans_figure"]

STAGE_TITLES = {"before": "before", "rescaled": "only rescaled", "after": "after"}
# Palette of Okabe and Ito, distinguishable for color-blind readers; line styles come after it
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d3b")
LINE_STYLES = ("-", "--", "-.", ":")
HISTOGRAM_BINS = 90
CHART_WIDTH = 1180
PANELS_PER_ROW = 5
MAX_SITES_WITH_LEVEL_NAMES = 8  # more names are turned
MAX_RANGE_RATIO = 3.0  # of the sites' intensity ranges on one axis
MIN_SHOWN_DISTANCE = 1e-4  # in R; smaller ones stand there on a logarithmic axis
MAX_SITES_WITH_CELL_NUMBERS = 14  # more cells have no number


def histograms_figure(stages: Mapping[str, np.ndarray], sites: Sequence[str], target: np.ndarray,
                      target_name: str) -> Figure:
    """Draw one histogram per site, all sites in one panel, one panel per stage.

    Parameters
    ----------
    stages : mapping from str to (scans, 200) ndarray
        Title of the panel -> quantile functions of the scans.
    sites : sequence of str
        Site of each scan.
    target : (200,) ndarray
        Quantile function of the target.
    target_name : str
        Label of the target.
    """
    names = sorted(set(sites))
    legend = 22 * math.ceil((len(names) + 1) / 6)
    canvas = new_canvas(CHART_WIDTH, 280 + legend)
    for column, (title, quantiles) in enumerate(stages.items()):
        axes = canvas.add_subplot(1, len(stages), column + 1)
        title, means = on_one_axis(title, site_means(quantiles, sites), target)
        edges = _edges([*means.values(), target])
        _curve(axes, target, edges, "#9a9a9a", "-", f"target: {short_label(target_name)}", 4)
        for number, (site, mean) in enumerate(means.items()):
            _curve(axes, mean, edges, *_look(number), short_label(site), 1.4)
        _dress(axes, title)
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="lower center", ncol=6, fontsize=8, frameon=False)
    height = 280 + legend
    canvas.subplots_adjust(left=0.02, right=0.99, top=0.91, bottom=(48 + legend) / height,
                           wspace=0.05)
    return Figure(
        "Histograms of all sites",
        "Each site's typical in-mask histogram (from the mean of its scans' quantile functions), "
        "every curve scaled to the same peak. Only rescaled: every scan given the target's mean "
        "and standard deviation, which a method must beat. Each panel has its own axis.",
        "Histograms of every site before, after rescaling only, and after harmonization",
        (to_png(canvas),))


def on_one_axis(title: str, means: Mapping[str, np.ndarray], target: np.ndarray
                ) -> tuple[str, dict[str, np.ndarray]]:
    """Scale the sites to the range of the target if they are in different units.

    Parameters
    ----------
    title : str
        Title of the panel.
    means : mapping from str to (200,) ndarray
        Site -> mean quantile function.
    target : (200,) ndarray
        Quantile function of the target.

    Returns
    -------
    title : str
        It names the scaling.
    means : dict from str to (200,) ndarray
        Scaled if the largest range is more than three times the smallest.
    """
    ranges = {site: intensity_range(mean) for site, mean in means.items()}
    smallest = min([*ranges.values(), intensity_range(target)])
    largest = max([*ranges.values(), intensity_range(target)])
    if not smallest > 0 or largest <= MAX_RANGE_RATIO * smallest:
        return title, dict(means)
    return f"{title}, each site in its own unit", {
        site: mean * (intensity_range(target) / ranges[site]) for site, mean in means.items()}


def sites_figure(before: QuantileTable, after: QuantileTable, target: np.ndarray) -> Figure:
    """Draw one panel per site with a thin line per scan, in two frames: rescaled and after."""
    sites = sorted(set(before.column("site")))
    rescaled = QuantileTable(tuple(replace(row, quantiles=match_moments(row.quantiles, target))
                                   for row in before.rows))
    frames = tuple(_site_panels(table, sites, target) for table in (rescaled, after))
    return Figure(
        "Histograms site by site",
        "Thin lines: single scans; thick line: the site; gray: the target. Scans that differ from "
        "their site are visible here. Images before harmonization are linearly rescaled to the "
        "target, so that all panels of one frame can share one axis.",
        "One panel of histograms per site, only rescaled and after harmonization in turn",
        frames, ("only rescaled", "after"))


def heatmaps_figure(metrics: Metrics) -> Figure:
    """Draw Wasserstein distances between all pairs of sites, one panel per stage."""
    matrices = {stage: distance_matrix(metrics.select(stage=stage)) for stage in STAGE_TITLES
                if len(metrics.select(stage=stage, measure="wasserstein_between_sites"))}
    positive = np.concatenate([matrix[matrix > 0] for _, matrix in matrices.values()])
    ends = (float(positive.min()), float(positive.max())) if positive.size else (1e-3, 1.0)
    panels = {STAGE_TITLES[stage]: found for stage, found in matrices.items()}
    return Figure(
        "Distances between sites",
        "Wasserstein distance between the sites' typical in-mask histograms in units of the "
        "target's intensity range R. All panels share one logarithmic color scale, because images "
        "before harmonization can be in other units.",
        "Heat maps of the distance between every two sites before and after harmonization",
        (draw_heatmaps(panels, _log_scale(*ends), "R"),))


def draw_heatmaps(panels: Mapping[str, tuple[Sequence[str], np.ndarray]], scale: Any,
                  unit: str = "") -> bytes:
    """Draw matrices of distances between sites in adjacent panels, with one color scale.

    Parameters
    ----------
    panels : mapping of str to (sequence of str, (sites, sites) ndarray)
        Title -> names of the sites and their distances; NaN where there is none.
    scale : matplotlib.colors.Normalize
        Color scale.
    unit : str
        Title of the color bar.

    Returns
    -------
    bytes
        PNG file.
    """
    count = max(len(sites) for sites, _ in panels.values())
    canvas = new_canvas(CHART_WIDTH, int(min(540, 190 + 34 * count)))
    axes = [canvas.add_subplot(1, len(panels), n + 1) for n in range(len(panels))]
    for column, (axis, (title, (sites, matrix))) in enumerate(zip(axes, panels.items())):
        drawn = axis.imshow(matrix, cmap="YlGnBu", norm=scale)
        axis.set_title(title, fontsize=10)
        _name_cells(axis, sites, matrix, scale, show_names=column == 0)
    canvas.subplots_adjust(left=0.1, right=0.92, top=0.9, bottom=0.24, wspace=0.06)
    bar = canvas.colorbar(drawn, cax=canvas.add_axes((0.94, 0.24, 0.012, 0.66)))
    bar.ax.tick_params(labelsize=8)
    bar.ax.set_title(unit, fontsize=8)
    return to_png(canvas)


def scans_figure(metrics: Metrics) -> Figure:
    """Draw every scan's distance to the target by site: before, rescaled and after."""
    rows = [row for row in metrics.select(measure="wasserstein_to_target") if row.scan]
    sites = sorted({row.site for row in rows})
    canvas = new_canvas(CHART_WIDTH, 280)
    low = 0.24 if len(sites) > MAX_SITES_WITH_LEVEL_NAMES else 0.11
    axes = canvas.add_axes((0.09, low, 0.89, 0.87 - low))
    looks = {"before": ("#d55e00", "o"), "rescaled": ("#9a9a9a", "s"), "after": ("#0072b2", "o")}
    for shift, (stage, (color, marker)) in enumerate(looks.items()):
        points = [(sites.index(row.site) + 0.22 * (shift - 1), max(row.value, MIN_SHOWN_DISTANCE))
                  for row in rows if row.stage == stage and row.value is not None]
        if points:
            axes.scatter(*zip(*points), s=22, color=color, marker=marker, alpha=0.75,
                         label=STAGE_TITLES[stage], linewidths=0)
    _dress_scans(axes, sites)
    return Figure(
        "Distance of every scan to the target",
        "Wasserstein distance of each scan's in-mask histogram to the target's, in units of R; "
        "one mark per scan; the axis is logarithmic, because images before harmonization can be in "
        "other units.",
        "Marks for every scan's distance to the target before, rescaled and after",
        (to_png(canvas),))


def distance_matrix(metrics: Metrics) -> tuple[list[str], np.ndarray]:
    """Return the sites and their symmetric (K, K) distance matrix from the rows of one stage."""
    rows = metrics.select(measure="wasserstein_between_sites")
    sites = sorted(set(rows.distinct("site")) | set(rows.distinct("reference")))
    matrix = np.zeros((len(sites), len(sites)))
    for row in rows:
        i, j = sites.index(row.site), sites.index(row.reference)
        matrix[i, j] = matrix[j, i] = np.nan if row.value is None else row.value
    return sites, matrix


def _site_panels(table: QuantileTable, sites: Sequence[str], target: np.ndarray) -> bytes:
    across = min(PANELS_PER_ROW, len(sites))
    down = math.ceil(len(sites) / across)
    height = 165 * down + 40
    canvas = new_canvas(CHART_WIDTH, height)
    edges = _edges([*table.matrix(), target])
    for number, site in enumerate(sites):
        axes = canvas.add_subplot(down, across, number + 1)
        scans = table.select(site=site).matrix()
        _curve(axes, target, edges, "#b5b5b5", "-", "", 4)
        for quantiles in scans:
            _curve(axes, quantiles, edges, "#0072b2", "-", "", 0.6)
        if len(scans):
            _curve(axes, scans.mean(axis=0), edges, "#003b5c", "-", "", 1.8)
        _dress(axes, f"{short_label(site)} (n={len(scans)})")
    canvas.subplots_adjust(left=0.02, right=0.99, top=1 - 48 / height, bottom=42 / height,
                           wspace=0.06, hspace=0.62)
    return to_png(canvas)


def _look(number: int) -> tuple[str, str]:
    return PALETTE[number % len(PALETTE)], LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]


def _edges(quantiles: Sequence[np.ndarray]) -> np.ndarray:
    """Bin edges over the widest 0.3 to 99.7 % range and a little more."""
    ends = np.array([np.interp([0.003, 0.997], LEVELS, q) for q in quantiles])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    pad = 0.06 * (high - low) + 1e-6
    return np.linspace(low - pad, high + pad, HISTOGRAM_BINS + 1)


def _curve(axes: Any, quantiles: np.ndarray, edges: np.ndarray, color: str, style: str,
           label: str, width: float) -> None:
    heights = density(quantiles, edges)
    axes.plot((edges[1:] + edges[:-1]) / 2, heights / max(float(heights.max()), 1e-30),
              color=color, linestyle=style, linewidth=width, label=label or None)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(0, 1.08)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("intensity", fontsize=7.5, labelpad=1)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _log_scale(low: float, high: float) -> Any:
    """Return a logarithmic color scale."""
    from matplotlib.colors import LogNorm

    return LogNorm(low, max(high, 1.001 * low))


def _name_cells(axes: Any, sites: Sequence[str], matrix: np.ndarray, scale: Any,
                show_names: bool) -> None:
    places = range(len(sites))
    names = [short_label(site) for site in sites]
    steep = len(sites) > MAX_SITES_WITH_LEVEL_NAMES
    axes.set_xticks(places, names, rotation=90 if steep else 40, ha="center" if steep else "right",
                    fontsize=8)
    axes.set_yticks(places, names if show_names else [""] * len(sites), fontsize=8)
    axes.tick_params(length=0)
    if len(sites) > MAX_SITES_WITH_CELL_NUMBERS:
        return
    for i in places:
        for j in places:
            if i != j and np.isfinite(matrix[i, j]):
                dark = matrix[i, j] > 0 and scale(matrix[i, j]) > 0.55
                axes.text(j, i, f"{matrix[i, j]:.2g}", ha="center", va="center", fontsize=7.5,
                          color="white" if dark else "black")


def _dress_scans(axes: Any, sites: Sequence[str]) -> None:
    turned = len(sites) > MAX_SITES_WITH_LEVEL_NAMES
    axes.set_xticks(range(len(sites)), [short_label(site) for site in sites], fontsize=8,
                    rotation=20 if turned else 0, ha="right" if turned else "center")
    axes.set_ylabel("distance to target, R", fontsize=8)
    axes.set_yscale("log")
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.legend(fontsize=8, frameon=False, ncol=3, loc="lower right", bbox_to_anchor=(1, 1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
