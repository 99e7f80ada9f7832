"""What the tables of a cohort say, in rows and sentences for the group report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.table import MEASURES, Metrics

__all__ = ["DistanceRow", "FeatureRow", "SiteRow", "Outlier", "mean_distance", "headline",
           "anatomy_sentence", "distance_rows", "feature_rows", "site_rows", "outliers"]

WHISKER = 1.5  # Tukey's fences: this many interquartile ranges beyond the quartiles
FEWEST_FOR_OUTLIERS = 8
CONTRAST_KEPT = (0.8, 1.25)  # mean range over R within which distances can be compared
SITE_FEATURES = ("median", "p95", "gm_wm_ratio", "csf_wm_ratio", "noise_wm", "blur_x", "blur_y",
                 "blur_z")
WATCHED = (("wasserstein_to_target", "after", 0.01), ("ssim_structure", "change", 0.99),
           ("gradient_agreement", "change", 0.99))
"""Measure, stage, and the value up to which no scan is worth a look, however far from the rest."""


@dataclass(frozen=True)
class DistanceRow:
    """Mean distance between sites in one tissue at the three stages, in R."""

    tissue: str
    before: float | None
    rescaled: float | None
    after: float | None


@dataclass(frozen=True)
class FeatureRow:
    """What the site does to one feature, before and after.

    ``before``, ``after``: eta squared. ``spread_before``, ``spread_after``: standard deviation of
    the sites' means over their mean, in percent. ``chance``: (k - 1) / (n - 1).
    """

    feature: str
    before: float | None
    after: float | None
    spread_before: float | None
    spread_after: float | None
    chance: float


@dataclass(frozen=True)
class SiteRow:
    """A site's mean features, "before" and "after" texts in the order of SITE_FEATURES."""

    site: str
    scans: int
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Outlier:
    """A scan whose number lies beyond the fence of the cohort."""

    scan: str
    site: str
    measure: str
    value: float
    fence: float


def mean_distance(metrics: Metrics, stage: str, tissue: str = "brain") -> float | None:
    """Mean over all pairs of sites of the distance between them at one stage, in R, or None."""
    values = metrics.select(measure="wasserstein_between_sites", stage=stage,
                            tissue=tissue).values()
    return float(np.mean(values)) if values else None


def headline(metrics: Metrics, backend: str, target: str) -> str:
    """The distance between sites before, rescaled and after, in two plain sentences."""
    before, rescaled, after = (mean_distance(metrics, stage)
                               for stage in ("before", "rescaled", "after"))
    if before is None:
        return ("Only one site was evaluated, so no distance between sites can be given. "
                "Harmonization needs at least two sites to be judged.")
    if after is None:
        return (f"Before harmonization the mean distance between two sites is {before:.3f} R. "
                "No harmonized image was evaluated.")
    way = "fell" if after < before else "did not fall: it went"
    words = (f"With {backend} to {target}, the mean distance between two sites' histograms {way} "
             f"from {before:.3f} R to {after:.3f} R")
    return words + _against_rescaling(after, rescaled) + _faded(metrics)


def _faded(metrics: Metrics) -> str:
    """A warning where the harmonized images do not have the target's contrast; else empty."""
    ratios = metrics.select(measure="range_ratio", stage="after").values()
    low, high = CONTRAST_KEPT
    if not ratios or low <= np.mean(ratios) <= high:
        return ""
    return (f" Caution: the harmonized images have {100 * np.mean(ratios):.0f} % of the target's "
            "intensity range on average, so distances in R cannot be compared with those before.")


def _against_rescaling(after: float, rescaled: float | None) -> str:
    if rescaled is None:
        return "."
    if after < rescaled:
        return (f". Giving every scan the target's mean and spread, and nothing more, would reach "
                f"{rescaled:.3f} R.")
    return (f". But giving every scan the target's mean and spread, and nothing more, reaches "
            f"{rescaled:.3f} R: on this measure the method gains nothing over a linear rescaling.")


def anatomy_sentence(metrics: Metrics) -> str:
    """Mean and worst scan of both anatomy measures; empty where nothing was harmonized."""
    parts = []
    for measure, name in (("ssim_structure", "the structure term of SSIM"),
                          ("gradient_agreement", "the agreement of edge directions")):
        rows = [row for row in metrics.select(measure=measure, stage="change")
                if row.value is not None]
        if rows:
            worst = min(rows, key=lambda row: row.value or 0.0)
            mean = np.mean([row.value for row in rows])
            parts.append(f"{name} between each scan and its harmonized image is {mean:.3f} on "
                         f"average and {worst.value:.3f} at worst ({worst.scan})")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}. 1 means that no edge moved." if parts else ""


def distance_rows(metrics: Metrics) -> list[DistanceRow]:
    """Mean distance between sites for the whole brain and every tissue that was measured."""
    table = metrics.select(measure="wasserstein_between_sites")
    return [DistanceRow(tissue, *(mean_distance(metrics, stage, tissue)
                                  for stage in ("before", "rescaled", "after")))
            for tissue in table.distinct("tissue")]


def feature_rows(metrics: Metrics) -> list[FeatureRow]:
    """Site eta squared and spread of the sites' means of each feature, before and after."""
    table = metrics.select(measure="site_eta_squared")
    scans = metrics.select(stage="before", measure="median")
    sites, count = len(scans.distinct("site")), len(scans.distinct("scan"))
    chance = (sites - 1) / (count - 1) if count > 1 else float("nan")
    return [FeatureRow(
        feature,
        _only(table.select(reference=feature, stage="before")),
        _only(table.select(reference=feature, stage="after")),
        _site_spread(metrics.select(measure=feature, stage="before")),
        _site_spread(metrics.select(measure=feature, stage="after")), chance)
        for feature in table.distinct("reference")]


def _site_spread(metrics: Metrics) -> float | None:
    """Standard deviation of the sites' means over the absolute mean of them, percent."""
    means = [np.nanmean(metrics.select(site=site).values()) for site in metrics.distinct("site")]
    centre = abs(np.mean(means)) if means else 0.0
    return float(100 * np.std(means, ddof=1) / centre) if len(means) > 1 and centre > 0 else None


def site_rows(metrics: Metrics) -> list[SiteRow]:
    """Mean and standard deviation of SITE_FEATURES over each site's scans, before and after."""
    rows = []
    for site in sorted(metrics.select(stage="before", measure="median").distinct("site")):
        of_site = metrics.select(site=site)
        cells = tuple((_spread(of_site.select(measure=name, stage="before")),
                       _spread(of_site.select(measure=name, stage="after")))
                      for name in SITE_FEATURES)
        rows.append(SiteRow(site, len(of_site.select(stage="before", measure="median")), cells))
    return rows


def outliers(metrics: Metrics) -> list[Outlier]:
    """Scans beyond Tukey's fence on the bad side of a watched measure; none below 8 scans."""
    found = []
    for measure, stage, harmless in WATCHED:
        rows = [row for row in metrics.select(measure=measure, stage=stage, tissue="brain")
                if row.scan and row.value is not None]
        lower_is_better = MEASURES[measure].better == "lower"
        sign = 1 if lower_is_better else -1
        fence = _fence([row.value for row in rows], lower_is_better)
        limit = max(sign * fence, sign * harmless)
        found += [Outlier(row.scan, row.site, measure, row.value, sign * limit) for row in rows
                  if sign * row.value > limit]
    return found


def _fence(values: Sequence[float], upper: bool) -> float:
    """Tukey's upper or lower fence; infinitely far with too few values."""
    if len(values) < FEWEST_FOR_OUTLIERS:
        return np.inf if upper else -np.inf
    first, third = np.percentile(values, [25, 75])
    reach = WHISKER * (third - first)
    return float(third + reach if upper else first - reach)


def _only(metrics: Metrics) -> float | None:
    return metrics.rows[0].value if len(metrics) else None


def _spread(metrics: Metrics) -> str:
    """Mean and, from two values on, standard deviation as text."""
    values = [value for value in metrics.values() if np.isfinite(value)]
    if not values:
        return "n/a"
    mean = f"{np.mean(values):.3g}" if abs(np.mean(values)) < 1000 else f"{np.mean(values):.0f}"
    if len(values) < 2:
        return mean
    spread = np.std(values, ddof=1)
    return f"{mean} ± {spread:.2g}" if abs(spread) < 100 else f"{mean} ± {spread:.0f}"
