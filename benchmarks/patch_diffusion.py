"""Patch diffusion: where sampling begins, on phantom people whose truth is known.

    python benchmarks/patch_diffusion.py MODEL CASES --fit FOLDER [--people 2] [--target aspen]
        [--modes inversion noise ...] [--share 1.0] [--markdown docs/benchmarks.md]

MODEL was trained by `benchmarks/trained.py WORK --backend patch_diffusion --fit FOLDER`
(WORK/training/model) and CASES are its held-out people (WORK/held): at the other known scanners and
at a fifth that no fit saw; truth is the very same scan as the target scanner would show it, noise
and all. PSNR and SSIM are taken in the brain, R is the truth's 0.5 to 99.5 % range. *scaled* is the
scan brought to the truth's median, *inversion* the default; *inversion, whole* adds decode(target)
- image; *noise* is the paper's start, from the borders alone, on the null's scale. Each uses the
share of the networks' change that the model found best for its default, or `--share`.
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

from command_line import explained  # noqa: E402
from enrolled import shared  # noqa: E402
from scanner_found import judge, levels  # noqa: E402
from sections import put_section  # noqa: E402
from trained import Case, cases_of, parser_for_a_model, scaled, spread_of  # noqa: E402

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
    cases = [case for case in cases_of(given.cases, given.people, [given.target])
             if case.source != case.target]
    leaks = leaks_of(Cohort.from_tsv(given.fit / "cohort.tsv"))
    rows: dict[str, list[tuple[float, ...]]] = {}
    for name, method in _methods(model, given.modes, given.share):
        rows[name] = [_scored(method, case) for case in cases]
        print(name, np.mean(rows[name], axis=0).round(4), flush=True)
        if given.markdown:
            put_section(given.markdown, "Patch diffusion: where sampling begins",
                        _text(given, model, rows, leaks))
    return 0


def _text(given: argparse.Namespace, model: PatchDiffusion,
          rows: dict[str, list[tuple[float, ...]]], leaks: dict[str, float]) -> str:
    count = len(next(iter(rows.values())))
    shares = ", ".join(f"{name} {share:.2f}" for name, share in leaks.items())
    facts = [f"{count} cases, {given.people} held-out people.", *model.training_facts(),
             "Share of scans whose site 21 quantiles in the brain give away (discriminant "
             f"analysis, leave one person out): {shares}."]
    return "\n\n".join([f"`{_command(given)}`", _table(rows), " ".join(facts)])


def _parser() -> argparse.ArgumentParser:
    parser = parser_for_a_model(__doc__, people=2)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["inversion", "noise"])
    parser.add_argument("--share", type=float, help="of the change, 0 to 1")
    return parser


def _command(given: argparse.Namespace) -> str:
    modes = " ".join(f"'{mode}'" if " " in mode else mode for mode in given.modes)
    share = f" --share {given.share:g}" if given.share is not None else ""
    return (f"python benchmarks/patch_diffusion.py MODEL CASES --fit FOLDER --people "
            f"{given.people} --target {given.target} --modes {modes}{share}")


def leaks_of(cohort: Cohort) -> dict[str, float]:
    """How often a site is guessed from the scaled image, the prior, and the perturbed prior."""
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

    found: dict[str, list[np.ndarray]] = {"image": [], "prior": [], "perturbed prior": []}
    rng, prior = np.random.default_rng(0), AnatomyPrior()
    for scan in cohort:
        volume = scan.read()
        maps = (volume.data / np.median(volume.in_mask()), prior(volume.data, volume.mask),
                prior(volume.data, volume.mask, float(rng.uniform(-0.5, 0.5))))
        for values, data in zip(found.values(), maps):
            values.append(levels(data[volume.mask]))
    sites, people = [scan.site for scan in cohort], [scan.subject for scan in cohort]
    return {name: float(cross_val_score(judge(), np.array(values), sites, groups=people,
                                        cv=LeaveOneGroupOut()).mean())
            for name, values in found.items()}


def _methods(model: PatchDiffusion, modes: Sequence[str], share: float | None
             ) -> Iterator[tuple[str, PatchDiffusion | None]]:
    """Names and methods, those that need no network first: a share of 0 is the start alone."""
    yield "scaled", None
    yield f"{model.config.baseline} (its baseline)", _with(model, 0.0)
    used = model.residual_weight_ if share is None else share
    yield from ((f"{mode}, {used:.0%} of its change", _with(model, used, **MODES[mode]))
                for mode in modes)


def _with(model: PatchDiffusion, share: float, **values: Any) -> PatchDiffusion:
    """The same model, sampled otherwise."""
    other: PatchDiffusion = shared(model, share)
    other.config = replace(model.config, **values)
    other.model_ = copy(model.model_)
    other.model_.config = other.config
    return other


def _scored(method: PatchDiffusion | None, case: Case) -> tuple[float, ...]:
    """(PSNR dB, SSIM, RMSE in R, structure to the source, CPU seconds) of one case."""
    started = time.process_time()
    result = _result(method, case)
    spent = time.process_time() - started
    one = (result.data, case.truth.data, case.truth.mask, spread_of(case.truth))
    kept = ssim_structure(result.data, case.scan.data, case.scan.mask, spread_of(result),
                          spread_of(case.scan))
    return psnr(*one), ssim(*one), rmse(*one), kept, spent


def _result(method: PatchDiffusion | None, case: Case) -> Volume:
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
    raise SystemExit(explained(main))
