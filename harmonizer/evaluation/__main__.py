"""python -m harmonizer.evaluation BEFORE AFTER: judge any two folders of images.

Images are paired by file name, lie on one grid and, for tissue volumes (--tissues), in the space
of the template. Written to --out: cohort.tsv, metrics.tsv, metrics_quantiles.tsv and
group_statistics.tsv, with data dictionaries; `python -m harmonizer.reports OUT` makes a page of it.
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
from .questions.anatomy import moved_map
from .run import Ruling, referee
from .verdicts import QUESTIONS, answers

__all__ = ["main", "parser", "write_moved_maps"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m harmonizer.evaluation",
        description="Is the scanner gone, the person still there, biology still there, and anatomy "
        "where it was? Compares folders of images by file name; no BIDS needed.")
    made.add_argument("before", type=Path, help="folder of images before harmonization")
    made.add_argument("after", type=Path, nargs="+",
                      help="one or more folders of harmonized images with the same file names")
    made.add_argument("--masks", type=Path, metavar="DIR",
                      help="brain masks named as the images, or with _mask added; default: what is "
                      "not zero in BEFORE, where images are brain only")
    made.add_argument("--sites", type=Path, metavar="TSV",
                      help="table with the columns file and site, and maybe subject, session, age, "
                      "sex and others")
    made.add_argument("--target", default="", help="site that was harmonized to")
    made.add_argument("--reference-site", metavar="SITE",
                      help="site that others are tested against")
    made.add_argument("--covariates", nargs="*", default=["age", "sex"], metavar="NAME",
                      help="whose effects must survive (default: age sex)")
    made.add_argument("--traveling", choices=["auto", "no"], default="auto",
                      help="whether one subject label at several sites is one person")
    made.add_argument("--tissues", action="store_true",
                      help="segment every image, by the network that comes with the package")
    made.add_argument("--out", type=Path, default=Path("evaluation"),
                      help="folder for tables and kept numbers (default: evaluation)")
    made.add_argument("--moved-maps", choices=["none", "flagged", "all"], default="none",
                      help="write OUT/moved/METHOD/NAME_moved.nii.gz: where an image differs from "
                      "its source by more than contrast, in shares of its range (default: none)")
    made.add_argument("--permutations", type=int, default=200, help="shuffles per chance level")
    made.add_argument("--nprocs", type=int, default=1, help="processes")
    made.add_argument("--random-seed", type=int, default=1)
    return made


def run(given: argparse.Namespace) -> Ruling:
    """Judge the folders, write the tables, return the ruling."""
    variants = {folder.name or str(folder): folder for folder in given.after}
    if len(variants) < len(given.after):
        raise UsageError("the folders of harmonized images need different names: methods are named "
                         "by them.")
    before, after = cohorts_of_folders(given.before, variants, given.out / "masks",
                                       masks=given.masks, sites=given.sites)
    segment = (CachedSegmenter(NetworkSegmenter(quick=True), given.out / "cache")
               if given.tissues else None)
    with phases("evaluate") as progress:
        ruling = referee(before, after, given.target, covariates=given.covariates,
                         reference_site=given.reference_site, travelling=given.traveling,
                         segment=segment,
                         permutations=given.permutations, workers=given.nprocs, progress=progress,
                         cache=given.out / "cache", seed=given.random_seed)
    before.to_tsv(given.out / "cohort.tsv")
    ruling.metrics.to_tsv(given.out / "metrics.tsv")
    ruling.quantiles.to_tsv(given.out / "metrics_quantiles.tsv")
    ruling.statistics.to_tsv(given.out / "group_statistics.tsv")
    if given.moved_maps != "none":
        write_moved_maps(given.out / "moved", before, after, ruling, given.moved_maps == "all")
    return ruling


def write_moved_maps(folder: Path, before: Cohort, variants: Mapping[str, Cohort], ruling: Ruling,
                     every: bool = False) -> list[Path]:
    """The map of where it moved of each flagged image, or of every one; see `moved_map`.

    A constant image has no map: everything moved.
    """
    sources = {scan.scan_id: scan for scan in before}
    written = []
    for method, cohort in variants.items():
        for scan in cohort:
            verdict = ruling.verdicts.get(method, {}).get(scan.scan_id)
            if verdict is None or (verdict.ok and not every):
                continue
            source, result = sources[scan.scan_id].read(), scan.read()
            if np.ptp(result.data[source.mask]) > 0:
                moved = moved_map(source.data, result.data, source.mask, tuple(source.spacing))
                written.append(write_volume(folder / method / f"{scan.scan_id}_moved.nii.gz",
                                            source.with_data(moved)))
    return written


def in_words(ruling: Ruling) -> list[str]:
    """The four answers of each method, and every scan whose anatomy is in doubt."""
    lines = [f"Warning: {row.note}" for row in ruling.statistics.select(name="site_confounding")
             if row.note]
    for backend, verdicts in ruling.verdicts.items():
        lines.append(f"{backend}")
        for answer in answers(ruling.statistics, backend):
            lines.append(f"  {QUESTIONS[answer.question]:32s}{answer.verdict:9s}{answer.sentence}")
        lines += [f"    flagged: {name}: {'; '.join(verdict.reasons)}"
                  for name, verdict in verdicts.items() if not verdict.ok]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, and explains what went wrong without a traceback."""
    given = parser().parse_args(argv)
    try:
        ruling = run(given)
    except HarmonizerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(in_words(ruling)))
    print(f"Tables: {given.out / 'metrics.tsv'}, {given.out / 'group_statistics.tsv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
