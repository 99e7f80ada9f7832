"""Score a target that is enrolled without training: a scanner that is not in the fit.

    python benchmarks/enrolled.py CASES --models MODEL ... [--references 1 5] [--subjects 2]
        [--whole] [--markdown docs/benchmarks.md]

Each MODEL was trained by `benchmarks/trained.py` (WORK/training/model), and CASES is its WORK/held.
A model enrolls the scanner elm from scans of other subjects. The scans of the validation subjects
at the four known scanners are harmonized to it. The truth is the same scan as acquired by elm,
including noise. Columns: PSNR in dB / SSIM in the brain, mean over cases; *enroll*: CPU seconds.
`--whole` also scores a residual weight of 1.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import put_section  # noqa: E402
from trained import cases_of, row_of  # noqa: E402

from harmonizer.cohort import Cohort, Scan  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from harmonizer.methods.model_folder import read  # noqa: E402
from harmonizer.methods.statistical.histogram_matching import HistogramMatching  # noqa: E402
from harmonizer.methods.target import Target  # noqa: E402
from harmonizer.phantom import UNSEEN  # noqa: E402
from harmonizer.phantom.aligned import write_aligned  # noqa: E402

SEED = 99


def main(argv: Sequence[str] | None = None) -> int:
    """Enroll, score, print; put the section into the markdown file if one is named."""
    given = _parser().parse_args(argv)
    references = references_in(given.cases / "references", max(given.references))
    cases = list(cases_of(given.cases, given.subjects, [UNSEEN.name]))
    cases = [case for case in cases if case.source != case.target]
    rows: list[dict[str, Any]] = []
    for count in given.references:
        for name, method, target, spent in enrolled(given, references, count):
            scores = [row_of(name, case, method.harmonize(
                case.scan, target, source=case.source)) for case in cases]
            rows.append({"method": name, "references": count, "enroll, s": f"{spent:.0f}",
                         "PSNR": f"{np.mean([s['psnr'] for s in scores]):.2f}",
                         "SSIM": f"{np.mean([s['ssim'] for s in scores]):.4f}"})
            print(*rows[-1].values(), flush=True)
    text = "\n".join(["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|",
                      *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])
    if given.markdown:
        put_section(given.markdown, "A new target, enrolled",
                    f"{_command(given)}\n\n{len(cases)} cases.\n\n{text}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--references", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--markdown", type=Path)
    return parser


def _command(given: argparse.Namespace) -> str:
    models, counts = " ".join(["MODEL"] * len(given.models)), " ".join(map(str, given.references))
    return (f"`python benchmarks/enrolled.py CASES --models {models} --references {counts} "
            f"--subjects {given.subjects}{' --whole' if given.whole else ''}`")


def references_in(folder: Path, count: int) -> Cohort:
    """Simulate scans of other subjects at the new scanner, once."""
    if not (folder / "cohort.tsv").is_file():
        write_aligned(folder, [UNSEEN], subjects=count, design="nested", seed=SEED)
    return Cohort.from_tsv(folder / "cohort.tsv")


def enrolled(given: argparse.Namespace, references: Cohort, count: int
             ) -> Iterator[tuple[str, Any, Target, float]]:
    """Yield (name, method, target, seconds) of histogram matching, baselines and models."""
    scans = references.scans[:count]
    histogram = HistogramMatching().fit(references)
    yield "histogram_matching", histogram, *timed(histogram, scans)
    baselines = set()
    for folder in given.models:
        name = read(folder)[0]["Backend"]
        model: Any = registry.get(name).load(folder)
        target, spent = timed(model, scans)
        if (baseline := model.config.baseline) not in baselines:
            baselines.add(baseline)
            label = f"{baseline}, as the baseline of {name}"
            yield label, with_residual_weight(model, 0.0), target, spent
        yield f"{name}, {model.residual_weight_:.0%} of its change", model, target, spent
        if given.whole and model.residual_weight_ < 1:
            yield f"{name}, all of its change", with_residual_weight(model, 1.0), target, spent


def timed(method: Any, scans: Sequence[Scan]) -> tuple[Target, float]:
    """Enroll a target and return it with the CPU seconds."""
    started = time.process_time()
    target = method.enroll(scans, UNSEEN.name)
    return target, time.process_time() - started


def with_residual_weight(model: Any, weight: float) -> Any:
    """Return the same model with another residual weight."""
    other = copy.copy(model)
    other.residual_weight_ = weight
    return other


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
