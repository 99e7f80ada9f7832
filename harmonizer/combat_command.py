"""`harmonizer combat TABLE.tsv`: ComBat for a table of features, without images.

The table has one row per scan. The result is the same table with harmonized feature columns; all
other columns and the order of the rows stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .combat import ComBat
from .errors import HarmonizerError, InputError, UsageError, did_you_mean
from .files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main", "parser"]

IDENTIFIER_COLUMNS = ("participant_id", "session_id", "scan_id", "subject", "session", "filename")


def parser(prog: str = "harmonizer combat") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog=prog, description="Remove site effects from a table of features with ComBat.",
        epilog=f"Example: {prog} thickness.tsv --site-column site --covariates age sex "
               "--output thickness_combat.tsv")
    made.add_argument("table", type=Path, metavar="TABLE",
                      help="table with a header, one row per scan (.tsv, or .csv)")
    made.add_argument("--output", type=Path, required=True, metavar="FILE",
                      help="where the harmonized table goes")
    made.add_argument("--site-column", default="site", metavar="NAME",
                      help="column with the site of each scan (default: site)")
    made.add_argument("--covariates", nargs="+", default=[], metavar="NAME",
                      help="columns whose effect is kept, such as age sex; text is coded as "
                           "categories")
    made.add_argument("--features", nargs="+", default=[], metavar="NAME",
                      help="columns to harmonize (default: all numeric columns that are not "
                           "named by another flag)")
    made.add_argument("--reference", metavar="SITE",
                      help="site that keeps its values (default: the mean of all)")
    made.add_argument("--fit-rows", metavar="COLUMN=VALUE",
                      help="learn the site effects from these rows only, such as group=control")
    made.add_argument("--model", type=Path, metavar="FILE",
                      help="apply this fitted model (JSON) and fit nothing")
    made.add_argument("--save-model", type=Path, metavar="FILE",
                      help="write the fitted model, to apply it to new scans with --model")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; errors are printed without a traceback."""
    given = parser().parse_args(argv)
    try:
        print(run(given))
    except HarmonizerError as error:
        print(f"harmonizer combat: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(given: argparse.Namespace) -> str:
    """Harmonize the table, write the result, and return a summary in one line.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, or ComBat cannot be fitted to it.
    UsageError
        If flags contradict each other, or the output would overwrite the input.
    """
    if given.model and (given.fit_rows or given.reference or given.save_model):
        raise UsageError("--model applies a fitted model; --fit-rows, --reference and --save-model "
                         "belong to a fit. Leave them out, or leave --model out.")
    if given.output.resolve() == given.table.resolve():
        raise UsageError(f"--output {given.output} is the input table. Name another file.")
    table = _read(given.table)
    model = ComBat.load(given.model) if given.model else None
    sites = _column(table, given.site_column, given.table)
    names = _feature_names(table, given, model)
    covariates = {name: _column(table, name, given.table) for name in given.covariates}
    features = _numeric(table, names)
    if model is None:
        rows = _fit_rows(table, given)
        model = ComBat(given.reference).fit(
            features[rows], sites[rows], {n: c[rows] for n, c in covariates.items()} or None)
    done = model.transform(features, sites, covariates or None)
    result = table.copy()
    for name in names:
        result[name] = [f"{value:.10g}" for value in done[name]]
    with atomic_path(given.output) as temporary:
        result.to_csv(temporary, sep=_separator(given.output), index=False)
    if given.save_model:
        model.save(given.save_model)
    return (f"{len(names)} features of {len(table)} scans from {len(set(sites))} sites harmonized "
            f"({'to ' + model.reference if model.reference else 'to the mean of all sites'}): "
            f"{given.output}")


def _read(path: Path) -> pd.DataFrame:
    """Read the table; every value stays text."""
    import pandas as pd

    try:
        table = pd.read_csv(path, sep=_separator(path), dtype=str, keep_default_na=False,
                            encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: is not a table with a header ({error}). Expected tab-separated "
                         "(.tsv) or comma-separated (.csv) text in UTF-8.") from error
    if table.empty:
        raise InputError(f"{path}: has no rows. Expected one row per scan.")
    return table


def _separator(path: Path) -> str:
    return "," if path.suffix.lower() == ".csv" else "\t"


def _column(table: pd.DataFrame, name: str, path: Path) -> Any:
    if name not in table:
        raise InputError(f"{path}: has no column {name!r}. {did_you_mean(name, table.columns)}")
    return table[name].to_numpy()


def _feature_names(table: pd.DataFrame, given: argparse.Namespace, model: ComBat | None
                   ) -> list[str]:
    """Return the columns to harmonize: as requested, of the model, or all other numeric ones."""
    if given.features or model is not None:
        names = list(given.features) or list(model.features_ if model else ())
        for name in names:
            _column(table, name, given.table)
        return names
    import pandas as pd

    used = {given.site_column, *given.covariates, *IDENTIFIER_COLUMNS}
    used.update([given.fit_rows.partition("=")[0]] if given.fit_rows else [])
    numeric = [name for name in table.columns if name not in used
               and pd.to_numeric(table[name], errors="coerce").notna().all()]
    if not numeric:
        raise InputError(f"{given.table}: has no numeric column beside site and covariates. Name "
                         "the features with --features.")
    return numeric


def _numeric(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the feature columns as numbers; text becomes NaN, which ComBat refuses."""
    import pandas as pd

    return table[names].apply(pd.to_numeric, errors="coerce")


def _fit_rows(table: pd.DataFrame, given: argparse.Namespace) -> Any:
    """Return the mask (n,) of the rows that the fit uses."""
    import numpy as np

    if given.fit_rows is None:
        return np.ones(len(table), bool)
    name, equals, value = given.fit_rows.partition("=")
    if not equals:
        raise UsageError(f"--fit-rows expects COLUMN=VALUE, got {given.fit_rows!r}. "
                         "Example: --fit-rows group=control")
    rows = _column(table, name, given.table) == value
    if not rows.any():
        raise InputError(f"no row has {name}={value}. "
                         f"{did_you_mean(value, sorted(set(table[name])))}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
