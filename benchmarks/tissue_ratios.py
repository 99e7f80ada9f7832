"""Measure how much tissue ratios depend on the scanner after a learned method, on phantoms.

    python benchmarks/tissue_ratios.py MODEL CASES --fit FOLDER [--subjects 3] [--target aspen]
                                       [--markdown docs/benchmarks.md]

MODEL was trained by `benchmarks/trained.py WORK --fit FOLDER` (WORK/training/model) and CASES is
its WORK/held: subjects that no fit saw, each at the four known scanners and a fifth. All scans are
harmonized to the target and segmented again, as in the evaluation. *marginal*: fraction of the
variance of a tissue ratio that the scanner explains, lower is better; *conditional*: the fraction
of scanner and subject together, higher is better (mixed model as in Hache et al. 2026, Table 2).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from enrolled import with_residual_weight  # noqa: E402
from sections import put_section  # noqa: E402
from trained import TruthCase, cases_of, parser_for_a_model  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.evaluation.metrics.volumes import variance_components  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from harmonizer.methods.model_folder import read  # noqa: E402
from harmonizer.segmentation.predict import NetworkSegmenter  # noqa: E402
from harmonizer.segmentation.segmentations import tissue_ratios  # noqa: E402
from harmonizer.tissues import TISSUES  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Harmonize, segment, print; put the section into the markdown file if one is named."""
    given = parser_for_a_model(__doc__).parse_args(argv)
    cases = list(cases_of(given.cases, given.subjects, [given.target]))
    lines = ["| method | " + " | ".join(f"{name}, marginal / conditional" for name in TISSUES)
             + " |", "|---" * (len(TISSUES) + 1) + "|"]
    print(*lines, sep="\n")
    segment = NetworkSegmenter(quick=True)
    for name, method in _methods(given):
        found = [tissue_ratios(segment(_result(method, case))) for case in cases]
        lines.append(f"| {name} | " + " | ".join(_cell(cases, found, tissue)
                                                 for tissue in TISSUES) + " |")
        print(lines[-1], flush=True)
    if given.markdown:
        put_section(given.markdown, "Tissue ratios of traveling subjects", "\n".join(
            [f"`{_command(given)}`", "", f"{len(cases)} scans.", "", *lines]))
    return 0


def _command(given: argparse.Namespace) -> str:
    return ("python benchmarks/tissue_ratios.py MODEL CASES --fit FOLDER "
            f"--subjects {given.subjects} "
            f"--target {given.target}")


def _methods(given: argparse.Namespace) -> list[tuple[str, Any]]:
    """Return no method, histogram matching, the baseline of the model, and the model."""
    name = read(given.model)[0]["Backend"]
    model: Any = registry.get(name).load(given.model)
    subjects = Cohort.from_tsv(given.fit / "cohort.tsv")
    histogram = registry.get("histogram_matching")().fit(subjects)
    return [("unharmonized", None), ("histogram_matching", histogram),
            (f"{model.config.baseline} (its baseline)", with_residual_weight(model, 0.0)),
            (f"{name}, {model.residual_weight_:.0%} of its change", model)]


def _result(method: Any, case: TruthCase) -> Volume:
    if method is None:
        return case.scan
    return method.harmonize(case.scan, method.target(case.target), source=case.source)


def _cell(cases: Sequence[TruthCase], found: Sequence[dict[str, float]], tissue: str) -> str:
    ratios = np.array([one[tissue] for one in found])
    fractions = variance_components(ratios, [case.source for case in cases],
                             [case.subject for case in cases])
    return f"{fractions.marginal_r2:.3f} / {fractions.conditional_r2:.3f}"


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
