"""Patch diffusion: where sampling begins, on phantom people whose truth is known.

    python benchmarks/patch_diffusion.py WORK --model MODEL [--held 1] [--target aspen]
        [--modes inversion noise] [--markdown docs/benchmarks.md]

MODEL is a fitted model folder (2 mm phantom, the four scanners). WORK keeps held-out people and
their scans as `benchmarks/trained.py` makes them: truth is the very same scan as the target scanner
would show it. PSNR and SSIM are taken in the brain, R is the truth's 0.5 to 99.5 % range. *scaled*
is the scan brought to the truth's median; *inversion* the default; *inversion, whole* adds
decode(target) - image; *noise* is the paper's start, from the borders alone, on the null's scale.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sections import put_section  # noqa: E402
from trained import Case, cases_of  # noqa: E402

from harmonizer.backends.patch_diffusion import PatchDiffusion  # noqa: E402
from harmonizer.evaluation.image import psnr, rmse, ssim  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402

NOISE = dict(begin="noise", strength=1.0, residual=False, sampling_steps=10, spacing="even",
             clip_sampling=True)
MODES = {
    "inversion": {},
    "inversion, guidance 0.6": dict(guidance=0.6),
    "inversion, whole": dict(residual=False),
    "noise": NOISE,
    "noise, blended at the end": {**NOISE, "fusion": "end"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Score every mode, print, and put the section into the markdown file where one is named."""
    given = _parser().parse_args(argv)
    cases = [c for c in cases_of(given.work, given.held, [given.target]) if c.source != c.target]
    model = PatchDiffusion.load(given.model)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for name, mode in _methods(model, given.modes):
        rows[name] = [_scored(mode, case) for case in cases]
        print(name, np.mean(rows[name], axis=0), flush=True)
    text = "\n\n".join([f"`{_command(given)}`", __doc__.split("\n\n")[2].strip(),
                        _table(rows), f"{len(cases)} cases, {given.held} people. "
                        + " ".join(model.training_facts())])
    if given.markdown:
        put_section(given.markdown, "Patch diffusion", text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--held", type=int, default=1)
    parser.add_argument("--target", default="aspen")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["inversion", "noise"])
    parser.add_argument("--markdown", type=Path)
    return parser


def _command(given: argparse.Namespace) -> str:
    modes = " ".join(f"'{mode}'" if " " in mode else mode for mode in given.modes)
    return (f"python benchmarks/patch_diffusion.py WORK --model MODEL --held {given.held} "
            f"--target {given.target} --modes {modes}")


def _methods(model: PatchDiffusion, modes: Sequence[str]
             ) -> Iterator[tuple[str, PatchDiffusion | None]]:
    """Names and methods, those that need no network first: no guidance is the null alone."""
    yield "scaled", None
    yield model.config.start, _with(model, guidance=0.0, sampling_steps=1, corrections=0)
    yield from ((mode, _with(model, **MODES[mode])) for mode in modes)


def _with(model: PatchDiffusion, **values: Any) -> PatchDiffusion:
    """The same model, sampled otherwise."""
    other = PatchDiffusion(replace(model.config, **values))
    other.__dict__ |= {k: v for k, v in model.__dict__.items() if k not in ("config", "_null")}
    return other


def _scored(method: PatchDiffusion | None, case: Case) -> tuple[float, ...]:
    """(PSNR dB, SSIM, RMSE in R, CPU seconds) of one case."""
    started = time.process_time()
    result = _result(method, case)
    spent = time.process_time() - started
    low, high = np.quantile(case.truth.in_mask(), [0.005, 0.995])
    one = (result.data, case.truth.data, case.truth.mask, float(high - low))
    return psnr(*one), ssim(*one), rmse(*one), spent


def _result(method: PatchDiffusion | None, case: Case) -> Volume:
    if method is None:
        gain = np.median(case.truth.in_mask()) / max(np.median(case.scan.in_mask()), 1e-9)
        return case.scan.with_data(case.scan.data * np.float32(gain))
    return method.harmonize(case.scan, method.target(case.target))


def _table(rows: dict[str, list[tuple[float, ...]]]) -> str:
    lines = ["| method | PSNR, dB | SSIM | RMSE, R | CPU s / volume |", "|---|---|---|---|---|"]
    for name, values in rows.items():
        a, b, c, d = np.mean(values, axis=0)
        lines.append(f"| {name} | {a:.2f} | {b:.4f} | {c:.4f} | {d:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
