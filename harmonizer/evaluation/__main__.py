"""Command ``python -m harmonizer.evaluation BEFORE AFTER``: evaluate any folders of images.

Images are paired by file name and lie on one grid. The command writes cohort.tsv, metrics.tsv,
metrics_quantiles.tsv and group_statistics.tsv with data dictionaries to ``--out``;
``python -m harmonizer.reports OUT`` makes a page of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..cohort import Cohort
from ..errors import HarmonizerError, UsageError
from ..progress import phases
from ..segmentation.predict import NetworkSegmenter
from ..segmentation.segmentations import CachedSegmenter
from ..volume import write_volume
from .folders import cohorts_of_folders
from .questions.anatomy import anatomy_change_map
from .run import EvaluationResult, evaluate
from .verdicts import QUESTIONS, compute_verdicts

__all__ = ["main", "parser", "write_anatomy_change_maps"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m harmonizer.evaluation",
        description="Measure the site effect, subject identity, biological effects and anatomical "
        "change in folders of images, which are paired by file name. BIDS is not needed.")
    made.add_argument("before", type=Path, help="folder of images before harmonization")
    made.add_argument("after", type=Path, nargs="+",
                      help="one or more folders of harmonized images with the same file names")
    made.add_argument("--masks", type=Path, metavar="DIR",
                      help="folder of brain masks with the names of the images, or with _mask "
                      "added (default: nonzero voxels of BEFORE, for brain-only images)")
    made.add_argument("--sites", type=Path, metavar="TSV",
                      help="table with the columns file and site; optional: subject, session, age, "
                      "sex and covariates")
    made.add_argument("--target", default="", help="site that was harmonized to")
    made.add_argument("--reference-site", metavar="SITE",
                      help="site that the others are compared with")
    made.add_argument("--covariates", nargs="*", default=["age", "sex"], metavar="NAME",
                      help="covariates whose effects must be preserved (default: age sex)")
    made.add_argument("--traveling", choices=["auto", "no"], default="auto",
                      help="whether a subject label at several sites is one subject")
    made.add_argument("--tissues", action="store_true",
                      help="segment every image with the packaged network")
    made.add_argument("--out", type=Path, default=Path("evaluation"),
                      help="output folder of tables and cache (default: evaluation)")
    made.add_argument("--anatomy-change-maps", choices=["none", "flagged", "all"], default="none",
                      help="write maps of anatomical change, as fractions of the image's range, to "
                      "OUT/anatomy_change/METHOD/NAME_anatomychange.nii.gz (default: none)")
    made.add_argument("--permutations", type=int, default=200,
                      help="permutations for each chance level")
    made.add_argument("--nprocs", type=int, default=1, help="processes")
    made.add_argument("--random-seed", type=int, default=1)
    return made


def run(given: argparse.Namespace) -> EvaluationResult:
    """Evaluate the folders and write the tables.

    Parameters
    ----------
    given : argparse.Namespace
        Arguments of `parser`.

    Returns
    -------
    EvaluationResult
        Tables and checks.

    Raises
    ------
    HarmonizerError
        If a folder, an image or a table cannot be used.
    """
    variants = {folder.name or str(folder): folder for folder in given.after}
    if len(variants) < len(given.after):
        raise UsageError("the folders of harmonized images need different names, because they name "
                         "the methods. Rename one.")
    before, after = cohorts_of_folders(given.before, variants, given.out / "masks",
                                       masks=given.masks, sites=given.sites)
    segment = (CachedSegmenter(NetworkSegmenter(quick=True), given.out / "cache")
               if given.tissues else None)
    with phases("evaluate") as progress:
        result = evaluate(before, after, given.target, covariates=given.covariates,
                          reference_site=given.reference_site, traveling=given.traveling,
                          segment=segment, permutations=given.permutations, workers=given.nprocs,
                          progress=progress, cache=given.out / "cache", seed=given.random_seed)
    before.to_tsv(given.out / "cohort.tsv")
    result.metrics.to_tsv(given.out / "metrics.tsv")
    result.quantiles.to_tsv(given.out / "metrics_quantiles.tsv")
    result.statistics.to_tsv(given.out / "group_statistics.tsv")
    if given.anatomy_change_maps != "none":
        write_anatomy_change_maps(given.out / "anatomy_change", before, after, result,
                                  given.anatomy_change_maps == "all")
    return result


def write_anatomy_change_maps(
    folder: Path,
    before: Cohort,
    variants: Mapping[str, Cohort],
    result: EvaluationResult,
    every: bool = False,
) -> list[Path]:
    """Write the map of anatomical change of each flagged image, or of every image.

    Parameters
    ----------
    folder : Path
        Output folder.
    before : Cohort
        Unharmonized scans.
    variants : mapping of str to Cohort
        Harmonized images by method.
    result : EvaluationResult
        Its anatomy checks tell which images are flagged.
    every : bool
        Whether to write the maps of all images.

    Returns
    -------
    list of Path
        FOLDER/METHOD/NAME_anatomychange.nii.gz. A constant image has no map.
    """
    sources = {scan.scan_id: scan for scan in before}
    written = []
    for method, cohort in variants.items():
        for scan in cohort:
            check = result.anatomy_checks.get(method, {}).get(scan.scan_id)
            if check is None or (check.ok and not every):
                continue
            source, harmonized = sources[scan.scan_id].read(), scan.read()
            if np.ptp(harmonized.data[source.mask]) > 0:
                change = anatomy_change_map(source.data, harmonized.data, source.require_mask(),
                                            tuple(source.spacing))
                written.append(write_volume(
                    folder / method / f"{scan.scan_id}_anatomychange.nii.gz",
                    source.with_data(change)))
    return written


def in_words(result: EvaluationResult) -> list[str]:
    """Return warnings, the verdicts of each method, and the flagged scans, one line each."""
    lines = [f"Warning: {row.note}" for row in result.statistics.select(name="site_confounding")
             if row.note]
    for backend, checks in result.anatomy_checks.items():
        lines.append(f"{backend}")
        for verdict in compute_verdicts(result.statistics, backend):
            lines.append(f"  {QUESTIONS[verdict.question]:36s}{verdict.words}: "
                         f"{verdict.sentence}")
        lines += [f"    flagged: {name}: {'; '.join(check.reasons)}"
                  for name, check in checks.items() if not check.ok]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; an error is printed without a traceback."""
    given = parser().parse_args(argv)
    try:
        result = run(given)
    except HarmonizerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(in_words(result)))
    print(f"Tables: {given.out / 'metrics.tsv'}, {given.out / 'group_statistics.tsv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
