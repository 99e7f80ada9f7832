"""One long table of numbers, one row each: who, where, when, what, how much, in which unit.

``metrics.tsv`` is the only door between the measures and whoever reads them. Beside it lies
``metrics.json``, the data dictionary BIDS asks for: every column, every measure with its formula,
direction, range and source. A missing value is ``n/a`` (BIDS specification, Tabular files).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import InputError
from ..files import write_json, write_text

MISSING = "n/a"
STAGES = {
    "before": "preprocessed image, not harmonized",
    "rescaled": "preprocessed image after one linear map that gives it the target's in-mask mean "
    "and standard deviation: what a method must beat",
    "after": "harmonized image",
    "change": "harmonized image compared with the same scan's preprocessed image",
}


@dataclass(frozen=True)
class Measure:
    """What a number means. ``better``: "higher", "lower" or "none" (a description)."""

    description: str
    unit: str
    better: str
    range: str
    source: str = ""

    def in_words(self) -> str:
        """One line for a data dictionary."""
        source = f" Source: {self.source}." if self.source else ""
        return (f"{self.description}. Unit: {self.unit}. Better: {self.better}. "
                f"Range: {self.range}.{source}")


MEASURES = {
    "wasserstein_between_sites": Measure(
        "Wasserstein-1 distance between two sites' mean in-mask quantile functions, "
        "divided by the study's intensity range R",
        "R", "lower", "0 to infinity", "evaluation of distributions between sites"),
    "wasserstein_to_target": Measure(
        "Wasserstein-1 distance between the in-mask quantile function of the scan (or the mean "
        "one of the site) and the target's, divided by R",
        "R", "lower", "0 to infinity"),
    "site_eta_squared": Measure(
        "Share of a feature's variance between scans that the site label explains: "
        "SS_between / SS_total; with k sites and n scans chance alone gives (k - 1) / (n - 1)",
        "1", "lower", "0 to 1", "Cohen 1988"),
    "ssim": Measure(
        "Structural similarity, 3D, Gaussian window 1.5 voxels, mean inside the mask",
        "1", "higher", "-1 to 1", "Wang et al. 2004, doi:10.1109/TIP.2003.819861"),
    "ssim_structure": Measure(
        "Structure term of SSIM, (cov + C3) / (sd * sd + C3), mean inside the mask; "
        "gain and offset do not move it",
        "1", "higher", "-1 to 1", "Wang et al. 2004, doi:10.1109/TIP.2003.819861"),
    "gradient_agreement": Measure(
        "Cosine of the angle between the two images' intensity gradients, weighted by both "
        "gradients' lengths, inside the eroded mask",
        "1", "higher", "-1 to 1"),
    "edge_displacement": Measure(
        "Mean distance between the edges of the source, brought to the harmonized contrast and "
        "local brightness, and those of the harmonized image", "mm", "lower", "0 to infinity"),
    "largest_change": Measure(
        "Largest local difference that no change of contrast or bias field explains, averaged "
        "over 2.5 mm, over the harmonized image's range", "1", "lower", "0 to infinity"),
    "dice": Measure(
        "Overlap of the tissue segmentations of source and harmonized image, of the tissue where "
        "it is lowest; the source in its own contrast or brought to the harmonized one, whichever "
        "is nearer", "1", "higher", "0 to 1", "Dice 1945, doi:10.2307/1932409"),
    "ravd": Measure(
        "Relative absolute volume difference of the tissue ratios, of the tissue where it is "
        "largest; the source in its own contrast or brought to the harmonized one, whichever is "
        "nearer", "1", "lower", "0 to infinity"),
    "anatomy_held": Measure(
        "1 where the harmonized image keeps all limits of the anatomy guard, 0 where it is "
        "flagged; `reference` then holds the reasons",
        "1", "higher", "0 or 1"),
    "tissue_ratio": Measure(
        "Volume of a tissue over that of all three, from a segmentation of this very image",
        "1", "none", "0 to 1", "this package's network, docs/segmentation.md"),
    "psnr": Measure(
        "Peak signal to noise ratio 10 log10(R^2 / MSE) inside the mask; of a travelling pair, "
        "the image at `site` against the person's image at `reference`",
        "dB", "higher", "-infinity to infinity"),
    "ms_ssim": Measure(
        "Multi-scale structural similarity inside the mask, five scales or as many as the volume "
        "has room for", "1", "higher", "0 to 1",
        "Wang, Simoncelli and Bovik 2003, doi:10.1109/ACSSC.2003.1292216"),
    "rmse": Measure("Root mean squared difference inside the mask over R", "R", "lower",
                    "0 to infinity"),
    "mae": Measure("Mean absolute difference inside the mask over R", "R", "lower",
                   "0 to infinity"),
    "intensity_range": Measure(
        "R: the 99.5th minus the 0.5th percentile of the target's mean in-mask quantile function; "
        "one number for the whole study and modality",
        "intensity", "none", "above 0"),
    "range_ratio": Measure(
        "The harmonized scan's own 0.5 to 99.5 % range over R; well below 1 the image has faded, "
        "and every distance in R looks smaller than it is",
        "1", "none", "above 0; 1 is the target's contrast"),
    "mean": Measure("Mean in-mask intensity", "intensity", "none", "any"),
    "sd": Measure("Standard deviation of in-mask intensity", "intensity", "none", "0 to infinity"),
    "median": Measure("Median in-mask intensity", "intensity", "none", "any"),
    "p05": Measure("5th percentile of in-mask intensity", "intensity", "none", "any"),
    "p95": Measure("95th percentile of in-mask intensity", "intensity", "none", "any"),
    "mean_csf": Measure("Mean intensity where CSF is likely", "intensity", "none", "any"),
    "mean_gm": Measure("Mean intensity where grey matter is likely", "intensity", "none", "any"),
    "mean_wm": Measure("Mean intensity where white matter is likely", "intensity", "none", "any"),
    "gm_wm_ratio": Measure("mean_gm / mean_wm; a gain does not move it", "1", "none", "any"),
    **{f"noise_{tissue}": Measure(
        f"Standard deviation of noise in {name}, over the 1 to 99 % range of the brain: second "
        "differences along all axes in pure tissue, as of white noise", "1", "none",
        "0 to infinity", "after Immerkaer 1996, doi:10.1006/cviu.1996.0060")
        for tissue, name in (("csf", "CSF"), ("gm", "gray matter"), ("wm", "white matter"))},
    **{f"blur_{axis}": Measure(
        f"Full width at half maximum of the blur of edges along the template's {axis} axis; folds "
        "of the cortex enlarge it, alike for all scanners", "mm", "none", "0 to 20")
        for axis in "xyz"},
    "band_std": Measure(
        "Standard deviation of a band of the image, over the 1 to 99 % range of the brain: of a "
        "tissue, in its pure voxels; of the brain, what it has beyond the quietest tissue; "
        "`reference` is the band, between Gaussians of these standard deviations", "1", "none",
        "0 to infinity"),
    "csf_wm_ratio": Measure("mean_csf / mean_wm; a gain does not move it", "1", "none", "any"),
}

COLUMN_DESCRIPTIONS = {
    "subject": "Participant label without 'sub-'; n/a for numbers of a site or of the study",
    "session": "Session label without 'ses-'",
    "scan": "Scan identifier, the source name without extension",
    "modality": "BIDS suffix of the image, such as T1w",
    "site": "Site of the scan, or the site that the number describes",
    "tissue": "Where it was taken: brain (the whole mask), CSF, GM or WM",
    "backend": "Harmonization method",
    "target": "What the images were harmonized to",
    "stage": "Which image the number was taken on",
    "reference": "What the image or site was compared with, or the feature that was analysed",
    "measure": "Name of the measure",
    "value": "The number; n/a where it is not defined",
    "unit": "Unit of the number; R is the study's intensity range, 1 a pure number",
}


@dataclass(frozen=True)
class Metric:
    """One row of ``metrics.tsv``; a text column that does not apply is empty, a number None."""

    measure: str
    value: float | None
    unit: str = "1"
    stage: str = ""
    subject: str = ""
    session: str = ""
    scan: str = ""
    modality: str = ""
    site: str = ""
    tissue: str = "brain"
    reference: str = ""
    backend: str = ""
    target: str = ""


@dataclass(frozen=True)
class Metrics:
    """The table: a tuple of :class:`Metric`, with selection and a TSV door."""

    rows: tuple[Metric, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.rows)

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(self.rows + other.rows)

    def select(self, **wanted: str) -> Metrics:
        """The rows whose columns equal every given value, e.g. ``select(stage="after")``."""
        return Metrics(tuple(row for row in self.rows
                             if all(getattr(row, name) == value for name, value in wanted.items())))

    def distinct(self, column: str) -> tuple[str, ...]:
        """The values of ``column`` in order of first appearance, without the empty one."""
        return tuple(dict.fromkeys(getattr(row, column) for row in self.rows
                                   if getattr(row, column)))

    def values(self) -> list[float]:
        """The numbers of the table in order; a missing one is NaN."""
        return [math.nan if row.value is None else row.value for row in self.rows]

    def to_tsv(self, path: Path) -> Path:
        """Write ``path`` and its data dictionary, the same name with ``.json``."""
        lines = ["\t".join(COLUMN_DESCRIPTIONS)]
        lines += ["\t".join(_cell(getattr(row, name)) for name in COLUMN_DESCRIPTIONS)
                  for row in self.rows]
        write_text(Path(path), "\n".join(lines) + "\n")
        write_json(Path(path).with_suffix(".json"), data_dictionary(self.distinct("measure")))
        return Path(path)

    @classmethod
    def from_tsv(cls, path: Path) -> Metrics:
        """Read what :meth:`to_tsv` wrote; InputError where a column is missing or no number."""
        return cls(tuple(_metric(row, path) for row in read_tsv(path, COLUMN_DESCRIPTIONS)))


def read_tsv(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a tab-separated file that must have ``columns``."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a readable tab-separated table, got: {error}. "
                         "Run the evaluate stage again to write it.") from error
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}; "
                         f"{', '.join(missing)} not there. Run the evaluate stage again.")
    return rows


def data_dictionary(measures: Iterable[str]) -> dict[str, object]:
    """The JSON data dictionary of ``metrics.tsv``: columns, stages, and the measures used."""
    dictionary: dict[str, object] = {
        name: {"Description": text} for name, text in COLUMN_DESCRIPTIONS.items()}
    dictionary["stage"] = {"Description": COLUMN_DESCRIPTIONS["stage"], "Levels": dict(STAGES)}
    dictionary["measure"] = {"Description": COLUMN_DESCRIPTIONS["measure"],
                             "Levels": {name: _level(name) for name in measures}}
    return dictionary


def _level(name: str) -> str:
    return MEASURES[name].in_words() if name in MEASURES else name


def _cell(value: str | float | None) -> str:
    """Text of one cell: 8 significant digits, n/a for what is missing, never a tab or newline."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, str):
        return " ".join(value.split())
    return f"{value:.8g}"


def _metric(row: dict[str, str], path: Path) -> Metric:
    given = {item.name: _text(row[item.name]) for item in fields(Metric)
             if item.name != "value"}
    return Metric(value=parse_number(row["value"], path), **given)


def _text(cell: str | None) -> str:
    return "" if cell in (None, MISSING) else str(cell)


def parse_number(cell: str | None, path: Path) -> float | None:
    """The number in a cell, None for ``n/a``; InputError naming the file for anything else."""
    if cell in (None, "", MISSING):
        return None
    try:
        return float(cell)  # type: ignore[arg-type]
    except ValueError:
        raise InputError(f"{path}: expected a number or n/a, got '{cell}'. "
                         "Run the evaluate stage again.") from None
