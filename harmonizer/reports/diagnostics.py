"""Tables and figures of the site effect on features, as in papers on ComBat.

Additive and multiplicative site effect of each feature, variance explained by site and covariates,
principal components by site and age, and Mahalanobis distances between sites: before, with linear
rescaling alone, and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.statistics.equivalence import SITE_VARIANCE_MARGIN
from ..evaluation.statistics.resampling import Test
from ..evaluation.table import RESCALED, Metrics, stage_of
from .charts import CHART_WIDTH, PALETTE, draw_heatmaps
from .draw import new_canvas, to_png
from .figures import Figure, short_label
from .results import ModalityResults, method_words
from .tables import Cell, Table, interval_cell, make_table, p_cell

__all__ = ["diagnostic_figures", "diagnostic_tables"]

LOOKS = {"": ("#d55e00", "o"), RESCALED: ("#9a9a9a", "s"), "after": ("#0072b2", "o")}
FEATURE_PIXELS = 15  # height of a feature's row
COMPONENTS = ("PC1", "PC2")
MEASURES = ("principal_component_1", "principal_component_2")


def diagnostic_tables(results: ModalityResults) -> tuple[Table, ...]:
    """Make the tables of features, principal components and Mahalanobis distances."""
    return _features_table(results), _components_table(results), _mahalanobis_table(results)


def diagnostic_figures(results: ModalityResults, metrics: Metrics,
                       ages: Mapping[str, float | None]) -> tuple[Figure, ...]:
    """Draw the figures that the tests of one modality allow.

    Parameters
    ----------
    results : ModalityResults
        Tests of the modality.
    metrics : Metrics
        Rows of the modality, with the principal components of each scan.
    ages : mapping of str to float or None
        Age by scan identifier.

    Returns
    -------
    tuple of Figure
        Site effect by feature, explained variance, principal components and distances.
    """
    made = (_effects_figure(results), _variance_figure(results),
            _components_figure(results, metrics, ages), _distances_figure(results))
    return tuple(figure for figure in made if figure is not None)


def _stages(results: ModalityResults) -> tuple[str, ...]:
    """Return before, rescaled and the run's own method."""
    return tuple(name for name in ("", RESCALED, *results.methods[:1]))


def _look(name: str) -> tuple[str, str]:
    return LOOKS.get(name, LOOKS["after"])


def _by_feature(results: ModalityResults, name: str) -> dict[str, dict[str, Test]]:
    """Return the rows of a test by image and feature."""
    return {method: {row.reference: row for row in results.rows(name, method) if row.known}
            for method in _stages(results)}


def _features_table(results: ModalityResults) -> Table:
    additive, scale, rest = (_by_feature(results, name) for name in (
        "site_variance", "site_scale", "covariates_variance"))
    features = dict.fromkeys(row.reference for row in results.table.select(name="site_variance"))
    rows = [(Cell(feature), Cell(method_words(method)),
             interval_cell(additive[method].get(feature)),
             p_cell(_corrected(additive[method].get(feature))),
             interval_cell(scale[method].get(feature)),
             p_cell(_corrected(scale[method].get(feature))),
             interval_cell(rest[method].get(feature)))
            for feature in features for method in _stages(results)]
    return make_table(
        "Site effect on each feature",
        f"Additive: fraction of the variance that the site explains beyond age and sex (or beyond "
        f"the subject, if all subjects travel); up to {SITE_VARIANCE_MARGIN:g} is negligible. "
        "Multiplicative: largest over smallest standard deviation of a site, Levene test. p "
        "corrected by Benjamini-Hochberg. Covariates: fraction of the variance that age and sex "
        "explain beyond the site. Noise and sharpness are features too.",
        ("Feature", "Images", "Additive (95 %)", "p", "Multiplicative", "p", "Covariates"), rows,
        results.row("features_within_margin"))


def _corrected(row: Test | None) -> float | None:
    return None if row is None else row.p_corrected


def _components_table(results: ModalityResults) -> Table:
    rows = [(Cell(method_words(method)), Cell(name),
             *(interval_cell(results.row(test, method, reference=name)) for test in (
                 "component_variance", "component_site_variance", "component_age_correlation")))
            for method in results.images() for name in COMPONENTS]
    return make_table(
        "Principal components of all features",
        "Fraction of the variance of all standardized features, fraction of the component's "
        "variance that the site explains, and its correlation with age.",
        ("Images", "Component", "Variance", "Site (95 %)", "Correlation with age (95 %)"), rows,
        results.row("features_within_margin"))


def _mahalanobis_table(results: ModalityResults) -> Table:
    rows = [(Cell(row.site), Cell(row.reference), Cell(method_words(method)), interval_cell(row))
            for method in results.images() for row in results.rows("site_mahalanobis", method)]
    return make_table(
        "Mahalanobis distance between sites",
        "Distance between the means of two sites in standard deviations between the subjects of a "
        "site, over principal components of all features. 0: no site effect.",
        ("Site", "Other site", "Images", "Distance (95 %)"), rows,
        results.row("site_mahalanobis"))


def _effects_figure(results: ModalityResults) -> Figure | None:
    """Draw additive and multiplicative site effects, one row per feature."""
    additive, scale = (_by_feature(results, name) for name in ("site_variance", "site_scale"))
    features = _sorted_features(additive)
    if not features:
        return None
    height = 90 + FEATURE_PIXELS * len(features)
    canvas = new_canvas(CHART_WIDTH, height)
    panels = [canvas.add_subplot(1, 2, n + 1) for n in range(2)]
    for method in _stages(results):
        color, marker = _look(method)
        for axes, table in zip(panels, (additive, scale)):
            points = [(table[method][name].effect, -i) for i, name in enumerate(features)
                      if name in table[method]]
            if points:
                axes.scatter(*zip(*points), s=16, color=color, marker=marker, alpha=0.8,
                             label=method_words(method), linewidths=0)
        if method == results.methods[0]:
            for i, row in ((i, additive[method][name]) for i, name in enumerate(features)
                           if name in additive[method]):
                panels[0].plot([row.low, row.high], [-i, -i], color=color, linewidth=0.8)
    panels[0].axvline(SITE_VARIANCE_MARGIN, color="#555555", linewidth=0.8, linestyle="--")
    panels[1].axvline(1.0, color="#555555", linewidth=0.8)
    panels[1].set_xscale("log")
    _dress_rows(panels, features, ("additive: variance explained by site",
                                   "multiplicative: ratio of the sites' std"))
    _legend(canvas, panels[0], height)
    return Figure(
        "Site effect on each feature",
        f"Left: fraction of the variance that the site explains, with 95 % intervals after "
        f"harmonization; dashed: the margin, {SITE_VARIANCE_MARGIN:g}. Right: largest over "
        "smallest standard deviation of a site.",
        "Marks of the additive and the multiplicative site effect on every feature before, "
        "rescaled and after", (to_png(canvas),))


def _sorted_features(table: Mapping[str, Mapping[str, Test]]) -> list[str]:
    """Return the features by decreasing site effect of rescaled images, else before."""
    first = table.get(RESCALED) or table.get("") or {}
    names = list(dict.fromkeys(name for rows in table.values() for name in rows))
    effects = {name: test.effect or 0.0 for name, test in first.items()}
    return sorted(names, key=lambda name: -effects.get(name, 0.0))


def _variance_figure(results: ModalityResults) -> Figure | None:
    """Draw the variance explained by site and covariates, one panel per stage."""
    site, rest = (_by_feature(results, name) for name in ("site_variance", "covariates_variance"))
    features = _sorted_features(site)
    stages = [method for method in _stages(results) if site[method]]
    if not features or not any(rest.values()):
        return None
    height = 90 + FEATURE_PIXELS * len(features)
    canvas = new_canvas(CHART_WIDTH, height)
    panels = [canvas.add_subplot(1, len(stages), n + 1) for n in range(len(stages))]
    places = -np.arange(len(features))
    for axes, method in zip(panels, stages):
        parts = [np.array([table[method][name].effect if name in table[method] else 0.0
                           for name in features]) for table in (site, rest)]
        parts[1] = (1 - parts[0]) * parts[1]  # the covariates explain a part of the rest
        axes.barh(places, parts[0], height=0.75, color="#d55e00", label="site")
        axes.barh(places, parts[1], left=parts[0], height=0.75, color="#0072b2",
                  label="age and sex")
        axes.set_xlim(0, 1)
    _dress_rows(panels, features, [method_words(method) for method in stages])
    _legend(canvas, panels[0], height)
    return Figure(
        "Explained variance",
        "Fraction of each feature's variance that the site explains beyond age and sex, and that "
        "age and sex explain beyond the site. Harmonization should remove the first and keep the "
        "second.", "Bars of the variance explained by site and by covariates for every feature",
        (to_png(canvas),))


def _components_figure(results: ModalityResults, metrics: Metrics,
                       ages: Mapping[str, float | None]) -> Figure | None:
    """Draw the first two principal components of every scan, by site and by age."""
    points = {method: _points(metrics, method) for method in _stages(results)}
    points = {method: rows for method, rows in points.items() if len(rows) > 2}
    if not points:
        return None
    known = {scan: age for scan, age in ages.items() if age is not None}
    rows = 2 if len(set(known.values())) > 1 else 1
    canvas = new_canvas(CHART_WIDTH, 40 + 270 * rows)
    sites = sorted({site for found in points.values() for _, site, _, _ in found})
    for column, (method, found) in enumerate(points.items()):
        axes = canvas.add_subplot(rows, len(points), column + 1)
        for number, site in enumerate(sites):
            here = [(x, y) for _, where, x, y in found if where == site]
            if here:
                axes.scatter(*zip(*here), s=16, color=PALETTE[number % len(PALETTE)], alpha=0.8,
                             marker="os^Dv"[number // len(PALETTE) % 5], linewidths=0,
                             label=short_label(site))
        _dress_points(axes, f"{method_words(method)}, by site")
        if rows == 2:
            axes = canvas.add_subplot(2, len(points), len(points) + column + 1)
            aged = [(x, y, known[scan]) for scan, _, x, y in found if scan in known]
            x, y, age = zip(*aged) if aged else ((), (), ())
            drawn = axes.scatter(x, y, c=age, s=16, cmap="viridis", linewidths=0,
                                 vmin=min(known.values()), vmax=max(known.values()))
            _dress_points(axes, f"{method_words(method)}, by age")
    if rows == 2:
        bar = canvas.colorbar(drawn, cax=canvas.add_axes((0.955, 0.12, 0.01, 0.3)))
        bar.ax.tick_params(labelsize=7)
        bar.ax.set_title("years", fontsize=7)
    canvas.axes[0].legend(fontsize=6.5, frameon=False, loc="best")
    canvas.subplots_adjust(left=0.04, right=0.94, top=0.93, bottom=0.09, wspace=0.2, hspace=0.35)
    return Figure(
        "Principal components of all features",
        "One mark per scan. Each panel has its own components, of standardized features. Sites "
        "should overlap after harmonization, and age should still be visible.",
        "Scatter plots of the first two principal components by site and by age",
        (to_png(canvas),))


def _points(metrics: Metrics, method: str) -> list[tuple[str, str, float, float]]:
    """Return scan, site and both components of the scans of one kind of images."""
    first, second = ({row.scan: (row.site, row.value)
                      for row in metrics.select(measure=name, **stage_of(method))
                      if row.value is not None} for name in MEASURES)
    return [(scan, site, value, second[scan][1]) for scan, (site, value) in first.items()
            if scan in second]


def _distances_figure(results: ModalityResults) -> Figure | None:
    """Draw the Mahalanobis distance between every two sites, one panel per stage."""
    matrices = {}
    for method in _stages(results):
        rows = [row for row in results.rows("site_mahalanobis", method) if row.known]
        if rows:
            sites = sorted({row.site for row in rows} | {row.reference for row in rows})
            matrix = np.full((len(sites), len(sites)), np.nan)
            for row in rows:
                i, j = sites.index(row.site), sites.index(row.reference)
                matrix[i, j] = matrix[j, i] = row.effect
            matrices[method_words(method)] = (sites, matrix)
    if not matrices:
        return None
    from matplotlib.colors import Normalize

    top = max(float(np.nanmax(matrix)) for _, matrix in matrices.values()) or 1.0
    return Figure(
        "Mahalanobis distances between sites",
        "Distance between the means of two sites in standard deviations between the subjects of a "
        "site, over principal components of all features. The features have no unit, so all panels "
        "share one scale.", "Heat maps of the Mahalanobis distance between every two sites",
        (draw_heatmaps(matrices, Normalize(0, top)),))


def _dress_rows(panels: Sequence[Any], features: Sequence[str], titles: Sequence[str]) -> None:
    for column, (axes, title) in enumerate(zip(panels, titles)):
        names = [name.replace("_", " ") for name in features] if column == 0 else []
        axes.set_yticks(-np.arange(len(features)), names or [""] * len(features), fontsize=7)
        axes.set_ylim(-len(features), 1)
        axes.set_title(title, fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


def _legend(canvas: Any, axes: Any, height: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="lower center", ncol=4, fontsize=8, frameon=False)
    canvas.subplots_adjust(left=0.15, right=0.98, top=1 - 26 / height, bottom=48 / height,
                           wspace=0.06)


def _dress_points(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(COMPONENTS[0], fontsize=7, labelpad=1)
    axes.set_ylabel(COMPONENTS[1], fontsize=7, labelpad=1)
    axes.tick_params(labelsize=6.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
