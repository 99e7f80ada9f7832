"""Metrics of scans before and after harmonization, and of sites against each other.

One pair of volumes is in memory at a time. Each scan contributes its quantile functions and a few
numbers, from which the comparisons of sites are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..cohort import Cohort, Scan
from ..errors import InputError
from ..tissues import TISSUE_LABELS
from ..volume import Volume
from .cache import array_key, cached, file_key
from .metrics import distribution as dist
from .metrics import image as near
from .metrics.distribution import QuantileRow, QuantileTable
from .table import MEASURES, Metric, Metrics

__all__ = ["PairedMetrics", "eta_rows", "label_tissues", "map_quantiles", "measure_cohort",
           "scan_features", "tissue_values"]

MIN_TISSUE_PROBABILITY = 0.5  # prior probability of a labeled voxel
SCAN_FEATURES = ("mean", "sd", "median", "p05", "p95", "mean_csf", "mean_gm", "mean_wm",
            "gm_wm_ratio", "csf_wm_ratio", "noise_gm", "noise_wm", "blur_x", "blur_y", "blur_z")


@dataclass(frozen=True)
class PairedMetrics:
    """Metrics of one method.

    Attributes
    ----------
    metrics : Metrics
        Rows of scans, sites and the study.
    quantiles : QuantileTable
        Quantile functions before and after.
    missing : tuple of str
        Scans without a harmonized image.
    """

    metrics: Metrics
    quantiles: QuantileTable
    missing: tuple[str, ...] = ()


def measure_cohort(
    before: Cohort,
    after: Cohort,
    target: str,
    *,
    backend: str = "",
    priors: Mapping[str, np.ndarray] | None = None,
    target_quantiles: Mapping[str, np.ndarray] | None = None,
    mapper: Callable[..., Iterable] = map,
    cache: Path | None = None,
) -> PairedMetrics:
    """Measure every scan before and after harmonization, and the sites against each other.

    Parameters
    ----------
    before : Cohort
        Preprocessed scans on the template grid.
    after : Cohort
        The same scans with harmonized images on the same grid, matched by ``scan_id``. A scan that
        is missing is measured before only.
    target : str
        Site harmonized to, or another name (reference images, "scanner-free").
    backend : str
        Name of the method, for the table.
    priors : mapping of str to ndarray, shape (I, J, K), optional
        Probabilities, 0 to 1, of "GM", "WM" and "CSF" on the template grid.
    target_quantiles : mapping of str to ndarray, shape (200,), optional
        Quantile function of the target by modality, if the target is not a site. Default: the mean
        over the scans of the target or, if it is not a site, over all harmonized scans.
    mapper : callable
        ``map``, or a parallel replacement.
    cache : Path, optional
        Folder for the numbers of each scan.

    Returns
    -------
    PairedMetrics
        Each modality is measured separately.

    Raises
    ------
    InputError
        If an image cannot be read or lies on another grid.
    """
    labels = None if priors is None else label_tissues(priors)
    parts = []
    for modality in dict.fromkeys(scan.modality for scan in before):
        parts.append(_measure_modality(
            before.of_modality(modality), after.of_modality(modality), target, labels,
            (target_quantiles or {}).get(modality), mapper, cache))
    metrics = Metrics(tuple(replace(row, backend=backend, target=target)
                            for part in parts for row in part.metrics))
    quantiles = QuantileTable(tuple(row for part in parts for row in part.quantiles.rows))
    return PairedMetrics(metrics, quantiles, tuple(n for part in parts for n in part.missing))


def label_tissues(priors: Mapping[str, np.ndarray], mask: np.ndarray | None = None) -> np.ndarray:
    """Return the most probable tissue of each voxel.

    Parameters
    ----------
    priors : mapping of str to ndarray, shape (I, J, K)
        Probabilities, 0 to 1, by tissue.
    mask : ndarray of bool, shape (I, J, K), optional
        Voxels to label.

    Returns
    -------
    ndarray, shape (I, J, K)
        uint8: 1 CSF, 2 GM, 3 WM; 0 outside the mask and where no tissue reaches 0.5.

    Raises
    ------
    InputError
        If the mask has another shape.
    """
    likeliest = np.maximum.reduce([priors[name] for name in TISSUE_LABELS])
    labels = np.zeros(likeliest.shape, dtype=np.uint8)
    for name, code in TISSUE_LABELS.items():
        labels[(priors[name] == likeliest) & (likeliest >= MIN_TISSUE_PROBABILITY)] = code
    return labels if mask is None else _within(labels, mask)


def _within(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if labels.shape != mask.shape:
        raise InputError(f"expected tissue labels on the image's grid {mask.shape}, got "
                         f"{labels.shape}. Load the priors of the same resolution.")
    return np.where(mask, labels, 0)


def tissue_values(volume: Volume, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the intensities inside the mask by tissue.

    Parameters
    ----------
    volume : Volume
        Image with its mask.
    labels : ndarray, shape (I, J, K), or None
        As `label_tissues` returns.

    Returns
    -------
    dict of str to ndarray
        "brain", and "CSF", "GM", "WM" if they have labels; one-dimensional.
    """
    values = {"brain": volume.in_mask()}
    if labels is not None:
        for name, code in TISSUE_LABELS.items():
            chosen = volume.data[labels == code]
            if chosen.size:
                values[name] = chosen
    return values


def scan_features(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute simple features of one scan.

    Parameters
    ----------
    values : mapping of str to ndarray
        As `tissue_values` returns.

    Returns
    -------
    dict of str to float
        Keys as in `MEASURES`.
    """
    brain = np.asarray(values["brain"], dtype=np.float64)
    features = {"mean": brain.mean(), "sd": brain.std(), "median": np.median(brain),
                "p05": np.percentile(brain, 5), "p95": np.percentile(brain, 95)}
    for name in TISSUE_LABELS:
        if name in values:
            features[f"mean_{name.lower()}"] = np.mean(values[name], dtype=np.float64)
    white = features.get("mean_wm", 0.0)
    for name in ("gm", "csf"):
        if f"mean_{name}" in features and white != 0:
            features[f"{name}_wm_ratio"] = features[f"mean_{name}"] / white
    return {name: float(number) for name, number in features.items()}


def _measure_modality(
    before: Cohort,
    after: Cohort,
    target: str,
    labels: np.ndarray | None,
    target_quantiles: np.ndarray | None,
    mapper: Callable[..., Iterable] = map,
    cache: Path | None = None,
) -> PairedMetrics:
    """Measure one modality in two passes over the images, one volume or pair in memory."""
    harmonized = {scan.scan_id: scan for scan in after}
    pairs = [(scan, harmonized[scan.scan_id]) for scan in before if scan.scan_id in harmonized]
    rows: list[Metric] = []
    table: list[QuantileRow] = []
    measure = partial(_measure_images, labels=labels, key=array_key(labels), cache=cache)
    for found in mapper(measure, [(scan,) for scan in before] + pairs):
        rows += found[0]
        table += found[1]
    quantiles = QuantileTable(tuple(table))
    target_curve = _target_curve(quantiles, target, target_quantiles)
    scale = _scale(target_curve, target)
    modality = before.scans[0].modality
    rows.append(Metric("intensity_range", scale, "intensity", modality=modality))
    rows += _contrast_rows(quantiles, scale) + _between_rows(quantiles, target_curve, scale, target)
    rows += eta_rows(rows, modality)
    missing = tuple(scan.scan_id for scan in before if scan.scan_id not in harmonized)
    return PairedMetrics(Metrics(tuple(rows)), quantiles, missing)


def _target_curve(quantiles: QuantileTable, target: str, given: np.ndarray | None) -> np.ndarray:
    """Return the quantile function of the target: given, of its site or of harmonized scans."""
    if given is not None:
        return np.asarray(given, dtype=np.float64)
    brain = quantiles.select(tissue="brain")
    for part in (brain.select(site=target, stage="before"), brain.select(stage="after"), brain):
        if len(part):
            return part.matrix().mean(axis=0)
    raise InputError("expected at least one scan to evaluate, got none. Run preprocess first.")


def _scale(target_curve: np.ndarray, target: str) -> float:
    """Return R of the study; `InputError` if the target is constant."""
    scale = dist.intensity_range(target_curve)
    if not scale > 0:
        raise InputError(f"expected the target '{target}' to have a range of intensities, got "
                         f"{scale}. Check the target's images.")
    return scale


def _contrast_rows(quantiles: QuantileTable, scale: float) -> list[Metric]:
    """Return each harmonized scan's own range over R, which shows a method that fades images."""
    return [Metric("range_ratio", dist.intensity_range(row.quantiles) / scale, "1", "after",
                   row.subject, scan=row.scan, modality=row.modality, site=row.site)
            for row in quantiles.select(tissue="brain", stage="after").rows]


def _row(scan: Scan, measure: str, value: float, stage: str, reference: str = "") -> Metric:
    return Metric(measure, value, MEASURES[measure].unit, stage, scan.subject, scan.session or "",
                  scan.scan_id, scan.modality, scan.site, reference=reference)


def _measure_images(images: tuple[Scan, ...], labels: np.ndarray | None, key: int | None,
                 cache: Path | None) -> tuple[list[Metric], list[QuantileRow]]:
    """Measure a scan alone or with its harmonized image, or read the numbers from the cache."""
    def compute() -> list[list[dict]]:
        rows, table = (_scan_alone(images[0], labels) if len(images) == 1
                       else _scan_pair((images[0], images[1]), labels))
        return [[vars(row) for row in rows],
                [{**vars(row), "quantiles": row.quantiles.tolist()} for row in table]]

    about = [(s.scan_id, s.subject, s.session, s.site, s.modality) for s in images]
    paths = [path for scan in images for path in (scan.image, scan.mask)]
    rows, table = cached(cache, file_key(paths, "left behind", key, about), compute)
    return ([Metric(**row) for row in rows],
            [QuantileRow(**{**row, "quantiles": np.array(row["quantiles"])}) for row in table])


def _scan_alone(scan: Scan, labels: np.ndarray | None) -> tuple[list[Metric], list[QuantileRow]]:
    """Measure the unharmonized image of a scan."""
    return _scan_rows(scan, scan.read(), "before", labels)


def _scan_pair(pair: tuple[Scan, Scan], labels: np.ndarray | None
               ) -> tuple[list[Metric], list[QuantileRow]]:
    """Measure a harmonized image, alone and against its source."""
    source, result = pair[0].read(), pair[1].read()
    rows, table = _scan_rows(pair[0], result, "after", labels)
    return rows + _change_rows(pair[0], source, result), table


def _scan_rows(scan: Scan, volume: Volume, stage: str, labels: np.ndarray | None
               ) -> tuple[list[Metric], list[QuantileRow]]:
    """Return the features of a scan and its quantile functions."""
    inside = None if labels is None else _within(labels, volume.require_mask())
    values = tissue_values(volume, inside)
    rows = [_row(scan, name, number, stage) for name, number in scan_features(values).items()]
    return rows, [QuantileRow(scan.scan_id, scan.subject, scan.site, scan.modality, stage, tissue,
                              dist.quantile_function(inside)) for tissue, inside in values.items()]


def _change_rows(scan: Scan, source: Volume, result: Volume) -> list[Metric]:
    """Return the change of anatomy from source to result, on one grid."""
    if not source.same_grid(result):
        raise InputError(f"{scan.scan_id}: expected the harmonized image on the grid of the "
                         f"preprocessed one {source.shape}, got {result.shape}. "
                         "Run the harmonize stage again.")
    mask = source.require_mask()
    ranges = [dist.intensity_range(dist.quantile_function(v.data[mask])) for v in (source, result)]
    structure = (near.ssim_structure(source.data, result.data, mask, *ranges)
                 if min(ranges) > 0 else float("nan"))
    edges = near.gradient_agreement(source.data, result.data, mask, tuple(source.spacing))
    return [_row(scan, "ssim_structure", structure, "change"),
            _row(scan, "gradient_agreement", edges, "change")]


def _between_rows(quantiles: QuantileTable, target_curve: np.ndarray, scale: float, target: str
                  ) -> list[Metric]:
    """Return distances between sites and to the target: before, rescaled linearly, and after."""
    before, after = quantiles.select(stage="before"), quantiles.select(stage="after")
    brain = before.select(tissue="brain")
    gain, offset = dist.moment_map(brain.matrix(), target_curve)
    maps = dict(zip(brain.column("scan"), zip(gain, offset)))
    rows: list[Metric] = []
    for tissue in dict.fromkeys(quantiles.column("tissue")):
        raw, result = before.select(tissue=tissue), after.select(tissue=tissue)
        curve = target_curve if tissue == "brain" else _site_mean(raw, target)
        stages = {"before": raw, "rescaled": map_quantiles(raw, maps), "after": result}
        for stage, part in stages.items():
            if len(part):
                rows += [replace(row, stage=stage, tissue=tissue)
                         for row in _distance_rows(part, scale, curve, target)]
    return rows


def _site_mean(part: QuantileTable, site: str) -> np.ndarray | None:
    here = part.select(site=site)
    return here.matrix().mean(axis=0) if len(here) else None


def map_quantiles(part: QuantileTable, maps: Mapping[str, tuple[float, float]]) -> QuantileTable:
    """Apply the linear map of each scan to its quantile functions.

    Parameters
    ----------
    part : QuantileTable
        Rows of unharmonized scans.
    maps : mapping of str to tuple of float
        Gain and offset by scan identifier.

    Returns
    -------
    QuantileTable
        The same rows.
    """
    return QuantileTable(tuple(
        replace(row, quantiles=maps[row.scan][0] * row.quantiles + maps[row.scan][1])
        for row in part.rows))


def _distance_rows(part: QuantileTable, scale: float, target_curve: np.ndarray | None, target: str
                   ) -> list[Metric]:
    """Return distances of pairs of sites, and of scans and sites to the target if it is known."""
    matrix, sites, modality = part.matrix(), part.column("site"), part.rows[0].modality
    names, between = dist.site_distances(matrix, sites)
    rows = [Metric("wasserstein_between_sites", float(between[i, j]) / scale, "R",
                   modality=modality, site=names[i], reference=names[j])
            for i in range(len(names)) for j in range(i + 1, len(names))]
    if target_curve is None:
        return rows
    rows += [Metric("wasserstein_to_target", float(distance) / scale, "R", subject=row.subject,
                    scan=row.scan, modality=modality, site=row.site, reference=target)
             for row, distance in zip(part.rows, dist.distances_to(target_curve, matrix))]
    return rows + [Metric("wasserstein_to_target", dist.wasserstein(mean, target_curve) / scale,
                          "R", modality=modality, site=site, reference=target)
                   for site, mean in dist.site_means(matrix, sites).items()]


def eta_rows(rows: list[Metric], modality: str) -> list[Metric]:
    """Compute eta squared of the site for every feature, before and after.

    Parameters
    ----------
    rows : list of Metric
        Features of scans.
    modality : str
        BIDS suffix.

    Returns
    -------
    list of Metric
        ``site_eta_squared``; `reference` is the feature.
    """
    found: dict[tuple[str, str], list[Metric]] = {}
    for row in rows:
        if row.measure in SCAN_FEATURES and row.scan:
            found.setdefault((row.stage, row.measure), []).append(row)
    return [Metric("site_eta_squared",
                   dist.eta_squared(Metrics(tuple(part)).values(), [row.site for row in part]),
                   "1", stage, modality=modality, reference=feature)
            for (stage, feature), part in found.items()]
