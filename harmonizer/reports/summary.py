"""Rows and sentences of the group report from the tables of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.table import MEASURES, Metrics

__all__ = ["DistanceRow", "FeatureRow", "SiteRow", "Outlier", "mean_distance", "headline",
           "anatomy_sentence", "distance_rows", "feature_rows", "site_rows", "outliers"]

TUKEY_FENCE_IQR = 1.5  # distance from the quartiles in interquartile ranges
MIN_SCANS_FOR_OUTLIERS = 8
COMPARABLE_RANGE_RATIO = (0.8, 1.25)  # range over R at which distances are comparable
SITE_FEATURES = ("median", "p95", "gm_wm_ratio", "csf_wm_ratio", "noise_wm", "blur_x", "blur_y",
                 "blur_z")
OUTLIER_MEASURES = (("wasserstein_to_target", "after", 0.01), ("ssim_structure", "change", 0.99),
           ("gradient_agreement", "change", 0.99))
"""Measure, stage, and the value up to which a scan is never reported as an outlier."""


@dataclass(frozen=True)
class DistanceRow:
    """Mean distance between sites in one tissue at the three stages, in R."""

    tissue: str
    before: float | None
    rescaled: float | None
    after: float | None


@dataclass(frozen=True)
class FeatureRow:
    """Site effect on one feature before and after harmonization.

    Attributes
    ----------
    feature : str
        Feature.
    before, after : float, optional
        Eta squared of site.
    site_cv_before, site_cv_after : float, optional
        Coefficient of variation of the sites' means in percent.
    chance : float
        Expected eta squared by chance: (k - 1) / (n - 1) for k sites and n scans.
    """

    feature: str
    before: float | None
    after: float | None
    site_cv_before: float | None
    site_cv_after: float | None
    chance: float


@dataclass(frozen=True)
class SiteRow:
    """Mean features of a site: "before" and "after" texts in the order of `SITE_FEATURES`."""

    site: str
    scans: int
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Outlier:
    """Scan whose value lies beyond the cohort's fence."""

    scan: str
    site: str
    measure: str
    value: float
    fence: float


def mean_distance(metrics: Metrics, stage: str, tissue: str = "brain") -> float | None:
    """Return the mean distance between all pairs of sites at one stage in R, or None."""
    values = metrics.select(measure="wasserstein_between_sites", stage=stage,
                            tissue=tissue).values()
    return float(np.mean(values)) if values else None


def headline(metrics: Metrics, backend: str, target: str) -> str:
    """Return the distance between sites after rescaling alone and after, in two sentences.

    Distances before are in the arbitrary units of uncalibrated images and are not comparable.
    """
    before, rescaled, after = (mean_distance(metrics, stage)
                               for stage in ("before", "rescaled", "after"))
    if before is None:
        return ("Only one site was evaluated, so no distance between sites can be given. "
                "An evaluation of harmonization needs at least two sites.")
    if after is None:
        return ("No harmonized image was evaluated. After linear rescaling alone the mean distance "
                f"between two sites is {rescaled:.3f} R." if rescaled is not None else
                "No harmonized image was evaluated.")
    words = (f"With {backend} to {target}, the mean distance between two sites' histograms is "
             f"{after:.3f} R")
    return words + _against_rescaling(after, rescaled) + _faded(metrics)


def _faded(metrics: Metrics) -> str:
    """Return a warning if the harmonized images lack the target's contrast, else ""."""
    ratios = metrics.select(measure="range_ratio", stage="after").values()
    low, high = COMPARABLE_RANGE_RATIO
    if not ratios or low <= np.mean(ratios) <= high:
        return ""
    return (f" Caution: the harmonized images have {100 * np.mean(ratios):.0f} % of the target's "
            "intensity range on average, so distances in R cannot be compared with those before.")


def _against_rescaling(after: float, rescaled: float | None) -> str:
    if rescaled is None:
        return "."
    if after < rescaled:
        return (f". Giving every scan the target's mean and standard "
                f"deviation alone reaches {rescaled:.3f} R.")
    return (f". But giving every scan the target's mean and standard deviation alone reaches "
            f"{rescaled:.3f} R: by this measure the method is no better than linear rescaling.")


def anatomy_sentence(metrics: Metrics) -> str:
    """Return mean and worst scan of both anatomy measures; "" if nothing was harmonized."""
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
    """Return the mean distance between sites for the whole brain and every measured tissue."""
    table = metrics.select(measure="wasserstein_between_sites")
    return [DistanceRow(tissue, *(mean_distance(metrics, stage, tissue)
                                  for stage in ("before", "rescaled", "after")))
            for tissue in table.distinct("tissue")]


def feature_rows(metrics: Metrics) -> list[FeatureRow]:
    """Return site eta squared and variation of the sites' means of each feature."""
    table = metrics.select(measure="site_eta_squared")
    scans = metrics.select(stage="before", measure="median")
    sites, count = len(scans.distinct("site")), len(scans.distinct("scan"))
    chance = (sites - 1) / (count - 1) if count > 1 else float("nan")
    return [FeatureRow(
        feature,
        _only(table.select(reference=feature, stage="before")),
        _only(table.select(reference=feature, stage="after")),
        _site_cv(metrics.select(measure=feature, stage="before")),
        _site_cv(metrics.select(measure=feature, stage="after")), chance)
        for feature in table.distinct("reference")]


def _site_cv(metrics: Metrics) -> float | None:
    """Return the coefficient of variation of the sites' means in percent."""
    means = [np.nanmean(metrics.select(site=site).values()) for site in metrics.distinct("site")]
    center = abs(np.mean(means)) if means else 0.0
    return float(100 * np.std(means, ddof=1) / center) if len(means) > 1 and center > 0 else None


def site_rows(metrics: Metrics) -> list[SiteRow]:
    """Return mean and standard deviation of `SITE_FEATURES` over each site's scans."""
    rows = []
    for site in sorted(metrics.select(stage="before", measure="median").distinct("site")):
        of_site = metrics.select(site=site)
        cells = tuple((_mean_std_words(of_site.select(measure=name, stage="before")),
                       _mean_std_words(of_site.select(measure=name, stage="after")))
                      for name in SITE_FEATURES)
        rows.append(SiteRow(site, len(of_site.select(stage="before", measure="median")), cells))
    return rows


def outliers(metrics: Metrics) -> list[Outlier]:
    """Return scans beyond Tukey's fence on the worse side of a measure; none below 8 scans."""
    found = []
    for measure, stage, harmless in OUTLIER_MEASURES:
        rows = [(row.scan, row.site, row.value)
                for row in metrics.select(measure=measure, stage=stage, tissue="brain")
                if row.scan and row.value is not None]
        lower_is_better = MEASURES[measure].better == "lower"
        sign = 1 if lower_is_better else -1
        fence = _fence([value for *_, value in rows], lower_is_better)
        limit = max(sign * fence, sign * harmless)
        found += [Outlier(scan, site, measure, value, sign * limit) for scan, site, value in rows
                  if sign * value > limit]
    return found


def _fence(values: Sequence[float], upper: bool) -> float:
    """Return Tukey's upper or lower fence; infinite with too few values."""
    if len(values) < MIN_SCANS_FOR_OUTLIERS:
        return np.inf if upper else -np.inf
    first, third = np.percentile(values, [25, 75])
    reach = TUKEY_FENCE_IQR * (third - first)
    return float(third + reach if upper else first - reach)


def _only(metrics: Metrics) -> float | None:
    return metrics.rows[0].value if len(metrics) else None


def _mean_std_words(metrics: Metrics) -> str:
    """Mean and, from two values on, standard deviation as text."""
    values = [value for value in metrics.values() if np.isfinite(value)]
    if not values:
        return "n/a"
    mean = f"{np.mean(values):.3g}" if abs(np.mean(values)) < 1000 else f"{np.mean(values):.0f}"
    if len(values) < 2:
        return mean
    std = np.std(values, ddof=1)
    return f"{mean} ± {std:.2g}" if abs(std) < 100 else f"{mean} ± {std:.0f}"
