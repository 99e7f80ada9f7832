"""Intensity distributions of sites as quantile functions, and distances between them.

The in-mask histogram of a scan is stored as its quantile function Q at 200 fixed levels. The
Wasserstein-1 distance of two scans is an integral over the levels::

    W1(a, b) = integral from 0 to 1 of |Q_a(p) - Q_b(p)| dp

The mean of quantile functions is the Wasserstein barycenter [1]_, the typical histogram of a site.

References
----------
.. [1] Agueh and Carlier 2011, Barycenters in the Wasserstein space. doi:10.1137/100805741
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
"""Midpoints of 200 equal intervals of probability; the mean over them is the integral."""
MIN_RELATIVE_STD = 1e-4  # below this, relative to the values, a feature is constant


def quantile_function(values: np.ndarray) -> np.ndarray:
    """Compute the quantiles of intensities at `LEVELS`.

    Parameters
    ----------
    values : ndarray
        Intensities.

    Returns
    -------
    ndarray, shape (200,)
        Quantiles in intensity units, float64, never decreasing.

    Raises
    ------
    InputError
        If there are no values or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError("expected finite intensities inside the mask, got "
                         f"{values.size} values, {np.count_nonzero(~np.isfinite(values))} of them "
                         "not finite. Check image and mask.")
    return np.quantile(values, LEVELS)


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the Wasserstein-1 distance of two quantile functions.

    Parameters
    ----------
    first, second : ndarray, shape (200,)
        Quantile functions at `LEVELS`.

    Returns
    -------
    float
        0 or more, in intensity units; lower is more similar.
    """
    return float(np.mean(np.abs(np.asarray(first) - np.asarray(second))))


def intensity_range(quantiles: np.ndarray) -> float:
    """Compute the intensity range R of a quantile function.

    Parameters
    ----------
    quantiles : ndarray, shape (200,)
        Quantile function at `LEVELS`.

    Returns
    -------
    float
        99.5th minus 0.5th percentile, in intensity units.
    """
    low, high = np.interp([0.005, 0.995], LEVELS, quantiles)
    return float(high - low)


def moment_map(quantiles: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute gain and offset that match mean and standard deviation to those of a target.

    Harmonization that is not better than ``gain * x + offset`` removes only a gain and an offset.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions of scans.
    target : ndarray, shape (200,)
        Quantile function of the target.

    Returns
    -------
    gain, offset : ndarray, shape (n, 1)
        A constant row has gain 0.
    """
    std = quantiles.std(axis=-1, keepdims=True)
    gain = np.divide(target.std(), std, out=np.zeros_like(std), where=std > 0)
    return gain, target.mean() - gain * quantiles.mean(axis=-1, keepdims=True)


def match_moments(quantiles: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Apply the linear map of `moment_map` to quantile functions.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions of scans.
    target : ndarray, shape (200,)
        Quantile function of the target.

    Returns
    -------
    ndarray, shape (n, 200)
        With mean and standard deviation of the target.
    """
    gain, offset = moment_map(quantiles, target)
    return gain * quantiles + offset


def site_means(quantiles: np.ndarray, sites: Sequence[str]) -> dict[str, np.ndarray]:
    """Compute the mean quantile function of each site.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions of scans.
    sites : sequence of str, length n
        Site of each scan.

    Returns
    -------
    dict of str to ndarray, shape (200,)
        Sites in sorted order.
    """
    labels = np.asarray(sites)
    return {str(site): quantiles[labels == site].mean(axis=0) for site in sorted(set(sites))}


def site_distances(quantiles: np.ndarray, sites: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Compute the Wasserstein-1 distance between the mean quantile functions of all sites.

    Parameters
    ----------
    quantiles : ndarray, shape (n, 200)
        Quantile functions of scans.
    sites : sequence of str, length n
        Site of each scan.

    Returns
    -------
    names : list of str
        Sites in sorted order.
    distances : ndarray, shape (K, K)
        Symmetric, in intensity units.
    """
    means = site_means(quantiles, sites)
    stack = np.stack(list(means.values()))
    return list(means), np.abs(stack[:, None] - stack[None]).mean(axis=-1)


def distances_to(target: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Compute the Wasserstein-1 distance of each quantile function to that of a target.

    Parameters
    ----------
    target : ndarray, shape (200,)
        Quantile function of the target.
    quantiles : ndarray, shape (n, 200)
        Quantile functions of scans.

    Returns
    -------
    ndarray, shape (n,)
        In intensity units.
    """
    return np.abs(quantiles - target).mean(axis=-1)


def eta_squared(values: Sequence[float], groups: Sequence[str]) -> float:
    """Compute eta squared: the fraction of variance that a group label explains [1]_.

    Parameters
    ----------
    values : sequence of float, length n
        NaN values are left out.
    groups : sequence of str, length n
        Label of each value.

    Returns
    -------
    float
        SS_between / SS_total, 0 to 1; chance alone gives (k - 1) / (n - 1) for k groups. NaN with
        fewer than two groups, no more values than groups, or values that are constant up to
        rounding.

    References
    ----------
    .. [1] Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 8.2.
    """
    numbers = np.asarray(values, dtype=np.float64)
    labels = np.asarray(groups)[np.isfinite(numbers)]
    numbers = numbers[np.isfinite(numbers)]
    names = np.unique(labels)
    total = np.sum((numbers - numbers.mean()) ** 2) if numbers.size else 0.0
    if len(names) < 2 or len(numbers) <= len(names) or (
            total <= np.sum((MIN_RELATIVE_STD * numbers) ** 2)):
        return float("nan")
    within = sum(np.sum((part - part.mean()) ** 2)
                 for part in (numbers[labels == name] for name in names))
    return max(float(1.0 - within / total), 0.0)  # rounding can give -1e-16


@dataclass(frozen=True)
class QuantileRow:
    """Quantile function of one scan in one tissue at one stage.

    Attributes
    ----------
    scan, subject, site, modality : str
        Which scan.
    stage : str
        "before" or "after".
    tissue : str
        "brain", "CSF", "GM" or "WM".
    quantiles : ndarray, shape (200,)
        Intensities at `LEVELS`.
    """

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
    """Quantile functions of a cohort; ``metrics_quantiles.tsv``.

    Attributes
    ----------
    rows : tuple of QuantileRow
        One per scan, stage and tissue.
    """

    rows: tuple[QuantileRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, **wanted: str) -> QuantileTable:
        """Select the rows whose columns equal all given values, as in ``select(tissue="GM")``."""
        return QuantileTable(tuple(
            row for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())))

    def matrix(self) -> np.ndarray:
        """Return all quantile functions, shape (rows, 200)."""
        return (np.stack([row.quantiles for row in self.rows]) if self.rows
                else np.empty((0, LEVELS.size)))

    def column(self, name: str) -> list[str]:
        """Return one text column, one value per row."""
        return [getattr(row, name) for row in self.rows]

    def by_tissue(self) -> Mapping[str, np.ndarray]:
        """Return the quantile functions by tissue, each of shape (scans, 200)."""
        tissues = dict.fromkeys(self.column("tissue"))
        return {tissue: self.select(tissue=tissue).matrix() for tissue in tissues}

    def to_tsv(self, path: Path) -> Path:
        """Write the table, and beside it its data dictionary with the extension ``.json``."""
        lines = ["\t".join(_TEXT_COLUMNS + _LEVEL_COLUMNS)]
        lines += ["\t".join(_cells(row)) for row in self.rows]
        write_text(Path(path), "\n".join(lines) + "\n")
        write_json(Path(path).with_suffix(".json"), _dictionary())
        return Path(path)

    @classmethod
    def from_tsv(cls, path: Path) -> QuantileTable:
        """Read a table written by `to_tsv`.

        Parameters
        ----------
        path : Path
            TSV file.

        Returns
        -------
        QuantileTable
            The table.

        Raises
        ------
        InputError
            If a column or a number is missing.
        """
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
        column: {"Description": f"In-mask intensity below which the fraction {level:.4f} of "
                 "the voxels lies", "Units": "arbitrary"}
        for column, level in zip(_LEVEL_COLUMNS, LEVELS)}
