"""Do two sites speak the same intensities?

An in-mask histogram is kept as its quantile function Q at fixed levels: 200 numbers whatever the
image's size. The Wasserstein-1 distance between two scans is then an integral over the levels,

    W1(a, b) = integral from 0 to 1 of |Q_a(p) - Q_b(p)| dp,

and the mean of several quantile functions is their Wasserstein barycentre (Agueh and Carlier 2011,
doi:10.1137/100805741): the site's typical histogram, which a mean of histograms is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...files import write_json, write_text
from ..table import MISSING, parse_number, read_tsv

LEVELS = (np.arange(200) + 0.5) / 200
"""Midpoints of 200 equal shares of the voxels: a plain mean over levels is the integral."""
RESOLUTION = 1e-4  # relative spread below which a feature is called constant


def quantile_function(values: np.ndarray) -> np.ndarray:
    """Quantiles of 1D ``values`` at LEVELS, (200,) float64, intensity units, never decreasing.

    InputError for an empty array or one with NaN.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError("expected finite intensities inside the mask, got "
                         f"{values.size} values, {np.count_nonzero(~np.isfinite(values))} of them "
                         "not finite. Check image and mask.")
    return np.quantile(values, LEVELS)


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """W1 distance of two quantile functions at LEVELS, in their intensity units; 0 is best."""
    return float(np.mean(np.abs(np.asarray(first) - np.asarray(second))))


def intensity_range(quantiles: np.ndarray) -> float:
    """R: the 99.5th minus the 0.5th percentile of a quantile function at LEVELS."""
    low, high = np.interp([0.005, 0.995], LEVELS, quantiles)
    return float(high - low)


def moment_map(quantiles: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset, (scans, 1) each, that give each row the target's mean and spread.

    ``quantiles`` (scans, 200). Harmonization that does not beat ``gain * x + offset`` has only
    removed a gain and an offset. A constant row gets gain zero.
    """
    spread = quantiles.std(axis=-1, keepdims=True)
    gain = np.divide(target.std(), spread, out=np.zeros_like(spread), where=spread > 0)
    return gain, target.mean() - gain * quantiles.mean(axis=-1, keepdims=True)


def match_moments(quantiles: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``quantiles`` (scans, 200) after their :func:`moment_map` to the target's (200,)."""
    gain, offset = moment_map(quantiles, target)
    return gain * quantiles + offset


def site_means(quantiles: np.ndarray, sites: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean quantile function of each site over its scans, sites in sorted order.

    ``quantiles``: (scans, 200); ``sites``: one label per scan.
    """
    labels = np.asarray(sites)
    return {str(site): quantiles[labels == site].mean(axis=0) for site in sorted(set(sites))}


def site_distances(quantiles: np.ndarray, sites: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """W1 between every two sites' mean quantile functions: labels and a (K, K) symmetric matrix."""
    means = site_means(quantiles, sites)
    stack = np.stack(list(means.values()))
    return list(means), np.abs(stack[:, None] - stack[None]).mean(axis=-1)


def distances_to(target: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """W1 of each row of ``quantiles`` (scans, 200) to the target's quantile function (200,)."""
    return np.abs(quantiles - target).mean(axis=-1)


def eta_squared(values: Sequence[float], groups: Sequence[str]) -> float:
    """Share of the variance of ``values`` that the group label explains, SS_between / SS_total.

    Range 0 to 1, lower is better for a site label; chance alone gives (k - 1) / (n - 1). NaN with
    fewer than two groups, without more values than groups, or where the values agree to within
    RESOLUTION of their size: rounding has no site. NaN values are left out. Cohen 1988,
    Statistical Power Analysis, section 8.2.
    """
    numbers = np.asarray(values, dtype=np.float64)
    labels = np.asarray(groups)[np.isfinite(numbers)]
    numbers = numbers[np.isfinite(numbers)]
    names = np.unique(labels)
    total = np.sum((numbers - numbers.mean()) ** 2) if numbers.size else 0.0
    if len(names) < 2 or len(numbers) <= len(names) or total <= np.sum((RESOLUTION * numbers) ** 2):
        return float("nan")
    within = sum(np.sum((part - part.mean()) ** 2)
                 for part in (numbers[labels == name] for name in names))
    return float(1.0 - within / total)


@dataclass(frozen=True)
class QuantileRow:
    """One scan's quantile function in one tissue ("brain", "CSF", "GM", "WM") at one stage."""

    scan: str
    subject: str
    site: str
    modality: str
    stage: str
    tissue: str
    quantiles: np.ndarray


_TEXT_COLUMNS = ("scan", "subject", "site", "modality", "stage", "tissue")
_LEVEL_COLUMNS = tuple(f"q{level:.4f}" for level in LEVELS)


@dataclass(frozen=True)
class QuantileTable:
    """The quantile functions of a cohort; ``metrics_quantiles.tsv`` on disk."""

    rows: tuple[QuantileRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, **wanted: str) -> QuantileTable:
        """The rows whose columns equal every given value, e.g. ``select(tissue="GM")``."""
        return QuantileTable(tuple(
            row for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())))

    def matrix(self) -> np.ndarray:
        """All quantile functions, (rows, 200)."""
        return (np.stack([row.quantiles for row in self.rows]) if self.rows
                else np.empty((0, LEVELS.size)))

    def column(self, name: str) -> list[str]:
        """One text column, one value per row."""
        return [getattr(row, name) for row in self.rows]

    def by_tissue(self) -> Mapping[str, np.ndarray]:
        """Tissue -> (scans, 200): what the subject report draws the target's band from."""
        tissues = dict.fromkeys(self.column("tissue"))
        return {tissue: self.select(tissue=tissue).matrix() for tissue in tissues}

    def to_tsv(self, path: Path) -> Path:
        """Write the table with its data dictionary beside it."""
        lines = ["\t".join(_TEXT_COLUMNS + _LEVEL_COLUMNS)]
        lines += ["\t".join(_cells(row)) for row in self.rows]
        write_text(Path(path), "\n".join(lines) + "\n")
        write_json(Path(path).with_suffix(".json"), _dictionary())
        return Path(path)

    @classmethod
    def from_tsv(cls, path: Path) -> QuantileTable:
        """Read what :meth:`to_tsv` wrote; InputError where a column or a number is missing."""
        return cls(tuple(_row(cells, path)
                         for cells in read_tsv(path, _TEXT_COLUMNS + _LEVEL_COLUMNS)))


def _cells(row: QuantileRow) -> list[str]:
    texts = [getattr(row, name) or MISSING for name in _TEXT_COLUMNS]
    return [" ".join(text.split()) for text in texts] + [f"{q:.7g}" for q in row.quantiles]


def _row(cells: Mapping[str, str], path: Path) -> QuantileRow:
    texts = {name: "" if cells[name] == MISSING else cells[name] for name in _TEXT_COLUMNS}
    numbers = [parse_number(cells[name], path) for name in _LEVEL_COLUMNS]
    if None in numbers:
        raise InputError(f"{path}: expected a number in every quantile column of scan "
                         f"{texts['scan']}. Run the evaluate stage again.")
    return QuantileRow(quantiles=np.array(numbers, dtype=np.float64), **texts)


def _dictionary() -> dict[str, dict[str, str]]:
    described = {
        "scan": "Scan identifier", "subject": "Participant label without 'sub-'",
        "site": "Site of the scan", "modality": "BIDS suffix of the image",
        "stage": "before: preprocessed; after: harmonized",
        "tissue": "Where the intensities were taken: brain (the mask), CSF, GM or WM",
    }
    dictionary = {name: {"Description": text} for name, text in described.items()}
    return dictionary | {
        column: {"Description": f"In-mask intensity below which a share of {level:.4f} of the "
                 "voxels lies", "Units": "arbitrary"}
        for column, level in zip(_LEVEL_COLUMNS, LEVELS)}
