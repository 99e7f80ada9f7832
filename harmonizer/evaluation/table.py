"""Tables of numbers, one per row, with scan, measure, value and unit.

``metrics.tsv`` is the only interface between measurements and reports. Beside it lies
``metrics.json``, a BIDS data dictionary with every column and every measure: formula, direction,
range and source. A missing value is ``n/a`` (BIDS specification, Tabular files).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import InputError
from ..files import write_json, write_text

if TYPE_CHECKING:
    from typing import Self

MISSING = "n/a"
RESCALED = "rescaled"
"""Name of the yardstick among the methods: one linear map per scan, see `STAGES`."""
STAGES = {
    "before": "preprocessed image, not harmonized",
    "rescaled": "preprocessed image after one linear map to the in-mask mean and standard "
    "deviation of the target: the baseline for every method",
    "after": "harmonized image",
    "change": "harmonized image compared with the same scan's preprocessed image",
}


def stage_of(method: str) -> dict[str, Any]:
    """Return the columns `stage` and `backend` of a method's rows.

    Parameters
    ----------
    method : str
        Name of a method; "" for unharmonized, `RESCALED` for linearly rescaled images.

    Returns
    -------
    dict of str to str
        The backend is empty if no image was harmonized.
    """
    stage = {"": "before", RESCALED: "rescaled"}.get(method, "after")
    return {"stage": stage, "backend": method if stage == "after" else ""}


@dataclass(frozen=True)
class Measure:
    """Description of a measure for a data dictionary.

    Attributes
    ----------
    description : str
        Definition or formula.
    unit : str
        Unit; "1" for a pure number, "R" for the intensity range of the study.
    better : {"higher", "lower", "none"}
        Which values are better.
    range : str
        Possible values.
    source : str
        Reference, if the measure is from a paper.
    """

    description: str
    unit: str
    better: str
    range: str
    source: str = ""

    def in_words(self) -> str:
        """Return the description in one line."""
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
        "Fraction of a feature's variance between scans that the site label explains: "
        "SS_between / SS_total; with k sites and n scans chance alone gives (k - 1) / (n - 1)",
        "1", "lower", "0 to 1", "Cohen 1988"),
    "ssim": Measure(
        "Structural similarity, 3D, Gaussian window 1.5 voxels, mean inside the mask",
        "1", "higher", "-1 to 1", "Wang et al. 2004, doi:10.1109/TIP.2003.819861"),
    "ssim_structure": Measure(
        "Structure term of SSIM, (cov + C3) / (sd * sd + C3), mean inside the mask; "
        "gain and offset do not change it",
        "1", "higher", "-1 to 1", "Wang et al. 2004, doi:10.1109/TIP.2003.819861"),
    "gradient_agreement": Measure(
        "Cosine of the angle between the two images' intensity gradients, weighted by both "
        "gradients' lengths, inside the eroded mask",
        "1", "higher", "-1 to 1"),
    "edge_displacement": Measure(
        "Mean distance between the edges of the source, mapped to the harmonized contrast and "
        "local brightness, and those of the harmonized image", "mm", "lower", "0 to infinity"),
    "largest_change": Measure(
        "Largest local difference beyond contrast and bias field, averaged over 2.5 mm, over the "
        "harmonized image's range", "1", "lower", "0 to infinity"),
    "dice": Measure(
        "Overlap of the tissue segmentations of source and harmonized image, of the tissue where "
        "it is lowest; with the source in its own or in the harmonized contrast, whichever is "
        "more similar", "1", "higher", "0 to 1", "Dice 1945, doi:10.2307/1932409"),
    "ravd": Measure(
        "Relative absolute volume difference of the tissue ratios, of the tissue where it is "
        "largest; with the source in its own or in the harmonized contrast, whichever is more "
        "similar", "1", "lower", "0 to infinity"),
    "anatomy_held": Measure(
        "1 where the harmonized image keeps all limits of the anatomy guard, 0 where it is "
        "flagged; `reference` then holds the reasons",
        "1", "higher", "0 or 1"),
    "tissue_ratio": Measure(
        "Volume of a tissue over that of all three, from a segmentation of this image",
        "1", "none", "0 to 1", "this package's network, docs/concepts/segmentation.md"),
    "psnr": Measure(
        "Peak signal-to-noise ratio 10 log10(R^2 / MSE) inside the mask; of a traveling pair, "
        "the image at `site` against the subject's image at `reference`",
        "dB", "higher", "-infinity to infinity"),
    "ms_ssim": Measure(
        "Multi-scale structural similarity inside the mask, five scales, or fewer for a small "
        "volume", "1", "higher", "0 to 1",
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
        "The harmonized scan's own 0.5 to 99.5 % range over R; well below 1 the image is faded, "
        "and distances in R are too small",
        "1", "none", "above 0; 1 is the target's contrast"),
    "mean": Measure("Mean in-mask intensity", "intensity", "none", "any"),
    "sd": Measure("Standard deviation of in-mask intensity", "intensity", "none", "0 to infinity"),
    "median": Measure("Median in-mask intensity", "intensity", "none", "any"),
    "p05": Measure("5th percentile of in-mask intensity", "intensity", "none", "any"),
    "p95": Measure("95th percentile of in-mask intensity", "intensity", "none", "any"),
    "mean_csf": Measure("Mean intensity where CSF is probable", "intensity", "none", "any"),
    "mean_gm": Measure("Mean intensity where gray matter is probable", "intensity", "none", "any"),
    "mean_wm": Measure("Mean intensity where white matter is probable", "intensity", "none", "any"),
    "gm_wm_ratio": Measure("mean_gm / mean_wm; a gain does not change it", "1", "none", "any"),
    **{f"noise_{tissue}": Measure(
        f"Standard deviation of noise in {name}, over the 1 to 99 % range of the brain: second "
        "differences along all axes in pure tissue, as of white noise", "1", "none",
        "0 to infinity", "after Immerkaer 1996, doi:10.1006/cviu.1996.0060")
        for tissue, name in (("csf", "CSF"), ("gm", "gray matter"), ("wm", "white matter"))},
    **{f"blur_{axis}": Measure(
        f"Full width at half maximum of the blur of edges along the template's {axis} axis; folds "
        "of the cortex increase it, for all scanners alike", "mm", "none", "0 to 20")
        for axis in "xyz"},
    "band_std": Measure(
        "Standard deviation of a band of the image, over the 1 to 99 % range of the brain: of a "
        "tissue, in its pure voxels; of the brain, beyond the tissue with the least; `reference` "
        "is the band, between Gaussians of these standard deviations", "1", "none",
        "0 to infinity"),
    **{f"principal_component_{number}": Measure(
        f"Principal component {number} of the standardized features of the scans of one stage",
        "1", "none", "any") for number in (1, 2)},
    "csf_wm_ratio": Measure("mean_csf / mean_wm; a gain does not change it", "1", "none", "any"),
}

COLUMN_DESCRIPTIONS = {
    "subject": "Participant label without 'sub-'; n/a for numbers of a site or of the study",
    "session": "Session label without 'ses-'",
    "scan": "Scan identifier, the source name without extension",
    "modality": "BIDS suffix of the image, such as T1w",
    "site": "Site of the scan, or the site that the number describes",
    "tissue": "Region: brain (the whole mask), CSF, GM or WM",
    "backend": "Harmonization method",
    "target": "What the images were harmonized to",
    "stage": "Which image the number was computed on",
    "reference": "What the image or site is compared with, or the feature that was analyzed",
    "measure": "Name of the measure",
    "value": "The number; n/a where it is not defined",
    "unit": "Unit of the number; R is the study's intensity range, 1 a pure number",
}


@dataclass(frozen=True)
class Metric:
    """One row of ``metrics.tsv``.

    The attributes are the columns, described in `COLUMN_DESCRIPTIONS`. A text column that does not
    apply is empty, a missing number None.
    """

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


Row = TypeVar("Row")


@dataclass(frozen=True)
class Table(Generic[Row]):
    """Rows with the same columns.

    Attributes
    ----------
    rows : tuple
        The rows.
    """

    rows: tuple[Row, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def select(self, **wanted: str) -> Self:
        """Select the rows whose columns equal all given values, as in ``select(stage="after")``."""
        return replace(self, rows=tuple(
            row for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())))

    def distinct(self, column: str) -> tuple[str, ...]:
        """Return the values of a column in order of first appearance, without the empty one."""
        return tuple(dict.fromkeys(getattr(row, column) for row in self.rows
                                   if getattr(row, column)))

    def write(self, path: Path, columns: Iterable[str], dictionary: Mapping[str, object]) -> Path:
        """Write a TSV file, and beside it its data dictionary with the extension ``.json``."""
        columns = list(columns)
        lines = ["\t".join(columns)]
        lines += ["\t".join(_cell(getattr(row, name)) for name in columns) for row in self.rows]
        write_text(Path(path), "\n".join(lines) + "\n")
        write_json(Path(path).with_suffix(".json"), dictionary)
        return Path(path)


@dataclass(frozen=True)
class Metrics(Table[Metric]):
    """Table of metrics; ``metrics.tsv``."""

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(self.rows + other.rows)

    def values(self) -> list[float]:
        """Return the numbers of all rows in order; a missing one is NaN."""
        return [math.nan if row.value is None else row.value for row in self.rows]

    def to_tsv(self, path: Path) -> Path:
        """Write the table, and beside it its data dictionary with the extension ``.json``."""
        return self.write(path, COLUMN_DESCRIPTIONS, data_dictionary(
            COLUMN_DESCRIPTIONS, "measure", MEASURES, self.distinct("measure")))

    @classmethod
    def from_tsv(cls, path: Path) -> Metrics:
        """Read a table written by `to_tsv`.

        Parameters
        ----------
        path : Path
            TSV file.

        Returns
        -------
        Metrics
            The table.

        Raises
        ------
        InputError
            If a column is missing or a cell is not a number.
        """
        return cls(tuple(_metric(row, path) for row in read_tsv(path, COLUMN_DESCRIPTIONS)))


def read_tsv(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Read a tab-separated file.

    Parameters
    ----------
    path : Path
        TSV file with a header.
    columns : iterable of str
        Columns that must be there.

    Returns
    -------
    list of dict of str to str
        Rows.

    Raises
    ------
    InputError
        If the file cannot be read or lacks a column.
    """
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


def data_dictionary(columns: Mapping[str, str], key: str, measures: Mapping[str, Measure],
                    names: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return the data dictionary of a table.

    Parameters
    ----------
    columns : mapping of str to str
        Descriptions of the columns; one is "stage".
    key : str
        The column that names the measure.
    measures : mapping of str to Measure
        Descriptions of measures.
    names : iterable of str
        Measures in the table.

    Returns
    -------
    dict
        For JSON: columns, stages and measures.
    """
    dictionary: dict[str, dict[str, object]] = {
        name: {"Description": text} for name, text in columns.items()}
    dictionary["stage"]["Levels"] = dict(STAGES)
    dictionary[key]["Levels"] = {
        name: measures[name].in_words() if name in measures else name for name in names}
    return dictionary


def _cell(value: str | float | None) -> str:
    """Return the text of a cell: 8 significant digits, n/a for missing, no tab or newline."""
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
    """Return the number in a cell, or None for ``n/a``.

    Parameters
    ----------
    cell : str or None
        Text of the cell.
    path : Path
        File, for the message.

    Returns
    -------
    float or None
        The number.

    Raises
    ------
    InputError
        If the cell holds anything else.
    """
    if cell in (None, "", MISSING):
        return None
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{path}: expected a number or n/a, got '{cell}'. "
                         "Run the evaluate stage again.") from None
