"""Compare ways to start the sampling of patch diffusion, on phantom subjects with known truth.

    python benchmarks/patch_diffusion.py MODEL CASES --fit FOLDER [--subjects 2] [--target aspen]
        [--modes inversion noise ...] [--residual-weight 1.0] [--markdown docs/benchmarks.md]

MODEL was trained by `benchmarks/trained.py WORK --backend patch_diffusion --fit FOLDER`
(WORK/training/model). CASES are its validation subjects (WORK/held), at the other scanners and at a
fifth that is not in the fit. The truth is the same scan as acquired by the target scanner,
including noise. PSNR and SSIM are computed in the brain; R is the 0.5 to 99.5 % range of the truth.
Rows:

* *scaled*: the scan with the median of the truth;
* *inversion*: the default;
* *inversion, whole*: decode(target) - image is added;
* *noise*: sampling from noise with the anatomical prior alone, as in the paper.

Each uses the residual weight of the model, or that of `--residual-weight`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from enrolled import with_residual_weight  # noqa: E402
from scanner_found import judge, levels  # noqa: E402
from sections import put_section  # noqa: E402
from trained import TruthCase, cases_of, intensity_range, parser_for_a_model, scaled  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.evaluation.metrics.image import psnr, rmse, ssim, ssim_structure  # noqa: E402
from harmonizer.methods.learned.patch_diffusion.anatomy_prior import AnatomyPrior  # noqa: E402
from harmonizer.methods.learned.patch_diffusion.backend import PatchDiffusion  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402

NOISE = dict(begin="noise", strength=1.0, residual=False, sampling_steps=10, spacing="even",
             clip_sampling=True)
MODES: dict[str, dict[str, Any]] = {
    "inversion": {},
    "inversion, guidance 0.6": dict(guidance=0.6),
    "inversion, whole": dict(residual=False),
    "noise": NOISE,
    "noise, blended at the end": {**NOISE, "fusion": "end"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Score every mode, print; put the section into the markdown file if one is named."""
    given = _parser().parse_args(argv)
    model = PatchDiffusion.load(given.model)
    cases = [case for case in cases_of(given.cases, given.subjects, [given.target])
             if case.source != case.target]
    leaks = leaks_of(Cohort.from_tsv(given.fit / "cohort.tsv"))
    rows: dict[str, list[tuple[float, ...]]] = {}
    for name, method in _methods(model, given.modes, given.residual_weight):
        rows[name] = [_scored(method, case) for case in cases]
        print(name, np.mean(rows[name], axis=0).round(4), flush=True)
        if given.markdown:
            put_section(given.markdown, "Patch diffusion: where sampling begins",
                        _text(given, model, rows, leaks))
    return 0


def _text(given: argparse.Namespace, model: PatchDiffusion,
          rows: dict[str, list[tuple[float, ...]]], leaks: dict[str, float]) -> str:
    count = len(next(iter(rows.values())))
    fractions = ", ".join(f"{name} {fraction:.2f}" for name, fraction in leaks.items())
    facts = [f"{count} cases, {given.subjects} held-out subjects.", *model.training_facts(),
             "Fraction of scans whose site is predicted from 21 quantiles in the brain "
             f"(discriminant analysis, leave one subject out): {fractions}."]
    return "\n\n".join([f"`{_command(given)}`", _table(rows), " ".join(facts)])


def _parser() -> argparse.ArgumentParser:
    parser = parser_for_a_model(__doc__, subjects=2)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["inversion", "noise"])
    parser.add_argument("--residual-weight", type=float, help="0 to 1; default: that of the model")
    return parser


def _command(given: argparse.Namespace) -> str:
    modes = " ".join(f"'{mode}'" if " " in mode else mode for mode in given.modes)
    chosen = given.residual_weight
    weight = "" if chosen is None else f" --residual-weight {chosen:g}"
    return (f"python benchmarks/patch_diffusion.py MODEL CASES --fit FOLDER --subjects "
            f"{given.subjects} --target {given.target} --modes {modes}{weight}")


def leaks_of(cohort: Cohort) -> dict[str, float]:
    """Return how often the site is predicted from the image, the prior, and the perturbed prior."""
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

    found: dict[str, list[np.ndarray]] = {"image": [], "prior": [], "perturbed prior": []}
    rng, prior = np.random.default_rng(0), AnatomyPrior()
    for scan in cohort:
        volume = scan.read()
        maps = (volume.data / np.median(volume.in_mask()), prior(volume.data, volume.mask),
                prior(volume.data, volume.mask, float(rng.uniform(-0.5, 0.5))))
        for values, data in zip(found.values(), maps):
            values.append(levels(data[volume.mask]))
    sites, subjects = [scan.site for scan in cohort], [scan.subject for scan in cohort]
    return {name: float(cross_val_score(judge(), np.array(values), sites, groups=subjects,
                                        cv=LeaveOneGroupOut()).mean())
            for name, values in found.items()}


def _methods(model: PatchDiffusion, modes: Sequence[str], weight: float | None
             ) -> Iterator[tuple[str, PatchDiffusion | None]]:
    """Return names and methods; a residual weight of 0 is the baseline alone."""
    yield "scaled", None
    yield f"{model.config.baseline} (its baseline)", _with(model, 0.0)
    used = model.residual_weight_ if weight is None else weight
    yield from ((f"{mode}, {used:.0%} of its change", _with(model, used, **MODES[mode]))
                for mode in modes)


def _with(model: PatchDiffusion, weight: float, **values: Any) -> PatchDiffusion:
    """Return the same model with other sampling options."""
    other: PatchDiffusion = with_residual_weight(model, weight)
    other.config = replace(model.config, **values)
    other.model_ = copy(model.model_)
    other.model_.config = other.config
    return other


def _scored(method: PatchDiffusion | None, case: TruthCase) -> tuple[float, ...]:
    """Return PSNR (dB), SSIM, RMSE (in R), structure and CPU seconds of one case."""
    started = time.process_time()
    result = _result(method, case)
    spent = time.process_time() - started
    one = (result.data, case.truth.data, case.truth.mask, intensity_range(case.truth))
    kept = ssim_structure(result.data, case.scan.data, case.scan.mask, intensity_range(result),
                          intensity_range(case.scan))
    return psnr(*one), ssim(*one), rmse(*one), kept, spent


def _result(method: PatchDiffusion | None, case: TruthCase) -> Volume:
    if method is None:
        return scaled(case)
    return method.harmonize(case.scan, method.target(case.target), source=case.source)


def _table(rows: dict[str, list[tuple[float, ...]]]) -> str:
    lines = ["| method | PSNR, dB | SSIM | RMSE, R | structure | CPU s / volume |",
             "|---|---|---|---|---|---|"]
    for name, values in rows.items():
        a, b, c, d, e = np.mean(values, axis=0)
        lines.append(f"| {name} | {a:.2f} | {b:.4f} | {c:.4f} | {d:.4f} | {e:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
