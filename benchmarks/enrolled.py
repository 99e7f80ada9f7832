"""A new target without training: a scanner that no fit saw, enrolled from a few scans.

    python benchmarks/enrolled.py CASES --models MODEL ... [--references 1 5] [--people 2]
        [--whole] [--markdown docs/benchmarks.md]

Each MODEL was trained by `benchmarks/trained.py` (WORK/training/model) and CASES is its WORK/held.
Scans of other people at the scanner elm are the references that a model enrolls; the held-out
people's scans at the four known scanners are brought there. Truth is the very same scan as elm
would show it, noise and all; PSNR in dB / SSIM in the brain, mean. `--whole` also uses all of the
networks' change. *enroll*: processor seconds.
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

from command_line import explained  # noqa: E402
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
    cases = list(cases_of(given.cases, given.people, [UNSEEN.name]))
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
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--markdown", type=Path)
    return parser


def _command(given: argparse.Namespace) -> str:
    models, counts = " ".join(["MODEL"] * len(given.models)), " ".join(map(str, given.references))
    return (f"`python benchmarks/enrolled.py CASES --models {models} --references {counts} "
            f"--people {given.people}{' --whole' if given.whole else ''}`")


def references_in(folder: Path, count: int) -> Cohort:
    """Other people's scans at the new scanner, made once."""
    if not (folder / "cohort.tsv").is_file():
        write_aligned(folder, [UNSEEN], people=count, design="nested", seed=SEED)
    return Cohort.from_tsv(folder / "cohort.tsv")


def enrolled(given: argparse.Namespace, references: Cohort, count: int
             ) -> Iterator[tuple[str, Any, Target, float]]:
    """(name, method, target, seconds): histogram matching, each start once, and the models."""
    scans = references.scans[:count]
    null = HistogramMatching().fit(references)
    yield "histogram_matching", null, *timed(null, scans)
    starts = set()
    for folder in given.models:
        name = read(folder)[0]["Backend"]
        model: Any = registry.get(name).load(folder)
        target, spent = timed(model, scans)
        if (start := model.config.baseline) not in starts:
            starts.add(start)
            yield f"{start}, as the baseline of {name}", shared(model, 0.0), target, spent
        yield f"{name}, {model.residual_weight_:.0%} of its change", model, target, spent
        if given.whole and model.residual_weight_ < 1:
            yield f"{name}, all of its change", shared(model, 1.0), target, spent


def timed(method: Any, scans: Sequence[Scan]) -> tuple[Target, float]:
    """The new target, and the processor seconds it took."""
    started = time.process_time()
    target = method.enroll(scans, UNSEEN.name)
    return target, time.process_time() - started


def shared(model: Any, share: float) -> Any:
    """The same model with another share of its change."""
    other = copy.copy(model)
    other.residual_weight_ = share
    return other


if __name__ == "__main__":
    raise SystemExit(explained(main))
