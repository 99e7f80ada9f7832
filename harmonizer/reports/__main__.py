"""python -m harmonizer.reports FOLDER: the group report from the tables that lie in a folder.

The folder holds what `python -m harmonizer.evaluation` or the group level wrote: cohort.tsv,
metrics.tsv, metrics_quantiles.tsv, group_statistics.tsv. No image is opened.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cohort import Cohort
from ..errors import HarmonizerError
from ..evaluation.metrics.distribution import QuantileTable
from ..evaluation.questions.anatomy import GUARDED
from ..evaluation.questions.anatomy_limits import AnatomyCheck
from ..evaluation.statistics.resampling import Statistics
from ..evaluation.table import Metrics
from .group import GroupReport, ScanRow, render_group_report

__all__ = ["main", "report_of", "verdicts_of"]


def verdicts_of(metrics: Metrics, statistics: Statistics) -> dict[str, dict[str, AnatomyCheck]]:
    """Method -> scan -> the anatomy guard's verdict, read back from the two tables."""
    limits = {(row.modality, row.reference): row.effect
              for row in statistics.select(name="anatomy_limit") if row.known}
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in metrics.select(stage="change"):
        if row.measure in GUARDED and row.value is not None:
            values.setdefault((row.backend, row.scan), {})[row.measure] = row.value
    found: dict[str, dict[str, AnatomyCheck]] = {}
    for row in metrics.select(measure="anatomy_held"):
        own = {name: limit for (modality, name), limit in limits.items()
               if modality == row.modality and limit is not None}
        found.setdefault(row.backend, {})[row.scan] = AnatomyCheck(
            row.value == 1.0, tuple(filter(None, row.reference.split("; "))),
            values.get((row.backend, row.scan), {}), own)
    return found


def report_of(folder: Path) -> GroupReport:
    """The report that a folder's tables make; InputError where one is missing or broken."""
    folder = Path(folder)
    metrics = Metrics.from_tsv(folder / "metrics.tsv")
    statistics = Statistics.from_tsv(folder / "group_statistics.tsv")
    verdicts = verdicts_of(metrics, statistics)
    scans = tuple(ScanRow(s.scan_id, s.subject, s.site, s.modality, s.age, s.sex,
                          covariates=s.covariates)
                  for s in Cohort.from_tsv(folder / "cohort.tsv"))
    named = tuple(name for name in statistics.select(name="site_confounding").distinct("reference")
                  if name not in ("age", "sex"))
    links = {scan.subject: f"sub-{scan.subject}.html" for scan in scans
             if (folder / f"sub-{scan.subject}.html").is_file()}
    backend = next(iter(verdicts), "none")
    targets = {modality: target for modality in metrics.distinct("modality") for target
               in metrics.select(modality=modality, backend=backend).distinct("target")[:1]}
    return GroupReport(
        scans, metrics, QuantileTable.from_tsv(folder / "metrics_quantiles.tsv"),
        backend=backend, targets=targets,
        links=links, named=named, statistics=statistics, verdicts=verdicts)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code, and explains what went wrong in one line."""
    parser = argparse.ArgumentParser(prog="python -m harmonizer.reports",
                                     description="The group report from a folder's tables.")
    parser.add_argument("folder", type=Path, help="with cohort.tsv, metrics.tsv, "
                        "metrics_quantiles.tsv and group_statistics.tsv")
    parser.add_argument("--out", type=Path, help="the file; default: FOLDER/group.html")
    given = parser.parse_args(argv)
    try:
        path = render_group_report(given.out or given.folder / "group.html",
                                   report_of(given.folder))
    except HarmonizerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
