"""Score training-free methods on each scanner in turn that is left out of their fit.

    python benchmarks/scanner_left_out.py WORK [--fit FOLDER] [--subjects 8] [--held 3]
        [--targets aspen dogwood] [--markdown docs/benchmarks.md]

Subjects, scans, truth, WORK and FOLDER are those of `benchmarks/trained.py`. The methods are fitted
on `--subjects` of each of the other scanners. They harmonize the scans of the validation subjects
at the scanner that was left out to the targets, without its site label. Tissue matching is scored
twice: without shrinkage of the regional pattern, and with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import put_section  # noqa: E402
from trained import TruthCase, cases_of, cohort_of, row_of  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.methods.statistical.histogram_matching import HistogramMatching  # noqa: E402
from harmonizer.methods.statistical.regional_pattern import PatternVariances  # noqa: E402
from harmonizer.methods.statistical.tissue_matching import TissueMatching  # noqa: E402

METHODS = ("histogram_matching", "tissue_matching, whole pattern", "tissue_matching")


def main(argv: Sequence[str] | None = None) -> int:
    """Make, score, print, and put the section into the markdown file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--subjects", type=int, default=8, help="of each scanner in the fit")
    parser.add_argument("--held", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=["aspen", "dogwood"])
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args(argv)
    subjects = cohort_of(given.fit or given.work / "fit", given.subjects)
    cases = [case for case in cases_of(given.work / "held", given.held, given.targets)
             if case.group != "same"]
    lines = ["| left out | cases | " + " | ".join(METHODS) + " |",
             "|---" * (len(METHODS) + 2) + "|"]
    found = []
    for site in dict.fromkeys(case.source for case in cases):
        mine = [case for case in cases if case.source == site and case.target != site]
        found.append(scores(subjects.where(lambda scan, site=site: scan.site != site), mine))
        lines.append(line(site, found[-1]))
    whole = np.concatenate(found)
    text = "\n".join([*lines, line("all", whole), "", "With part of the pattern let go tissue "
                      f"matching is better in {(whole[:, 2, 0] > whole[:, 1, 0]).sum()} of "
                      f"{len(whole)} cases (PSNR in dB / SSIM)."])
    print(text)
    if given.markdown:
        put_section(given.markdown, "Scanners that no fit saw", text)
    return 0


def scores(cohort: Cohort, cases: Sequence[TruthCase]) -> np.ndarray:
    """Return PSNR and SSIM, shape (cases, methods, 2)."""
    histogram, tissue = HistogramMatching().fit(cohort), TissueMatching().fit(cohort)
    learned, found = tissue.pattern_variances_, []
    for case in cases:
        rows = [row_of("", case, histogram.harmonize(case.scan, histogram.target(case.target)))]
        for tissue.pattern_variances_ in (PatternVariances(), learned):
            rows.append(row_of("", case, tissue.harmonize(case.scan, tissue.target(case.target))))
        found.append([(row["psnr"], row["ssim"]) for row in rows])
    return np.array(found)


def line(name: str, found: np.ndarray) -> str:
    """Return a row of the table."""
    cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in found.mean(axis=0)]
    return f"| {name} | {len(found)} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
