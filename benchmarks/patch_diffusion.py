"""Patch diffusion: where sampling begins, on phantom people whose truth is known.

    python benchmarks/patch_diffusion.py WORK --fit STUDY --cases CASES [--minutes 12]
        [--people 6] [--held 2] [--target aspen] [--coarsen 1] [--set name=value ...]
        [--modes inversion noise ...] [--markdown docs/benchmarks.md]

Phantom people as preprocessing leaves them, at 2 mm, `--coarsen 2`: means of 2 x 2 x 2 voxels. The
method is fitted on people of STUDY (`write_aligned`, as `benchmarks/referee.py` makes them), each
at one of four scanners. CASES are those of `benchmarks/trained.py`: other people at the other three
scanners and at a fifth that no fit saw; truth is the very same scan as the target scanner would
show it, noise and all. PSNR and SSIM are taken in the brain, R is the truth's 0.5 to 99.5 % range.
*none* is the scan, *scaled* the scan brought to the truth's median, *inversion* the default;
*inversion, whole* adds decode(target) - image; *noise* is the paper's start, from the borders
alone, on the null's scale.

WORK keeps scans and the training, which goes on where it stopped.
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

from harmonizer.anatomy_prior import AnatomyPrior  # noqa: E402
from harmonizer.backends.patch_diffusion import PatchDiffusion  # noqa: E402
from harmonizer.cohort import Cohort, Scan  # noqa: E402
from harmonizer.evaluation.image import psnr, rmse, ssim  # noqa: E402
from harmonizer.training.settings import Resources  # noqa: E402
from harmonizer.volume import Volume, write_mask, write_volume  # noqa: E402
from pipelines.settings import named_value  # noqa: E402

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
    """Train, score every mode, print; put the section into the markdown file if one is named."""
    given = _parser().parse_args(argv)
    model, seconds = _trained(given)
    cases, left = list(_cases(given)), leaks_of(_cohort(given))
    rows: dict[str, list[tuple[float, ...]]] = {}
    for name, mode in _methods(model, given.modes):
        rows[name] = [_scored(name, mode, case) for case in cases]
        print(name, np.mean(rows[name], axis=0).round(4), flush=True)
        if given.markdown:
            put_section(given.markdown, "Patch diffusion", _text(given, model, seconds, rows, left))
    return 0


def _text(given: argparse.Namespace, model: PatchDiffusion, seconds: float,
          rows: dict[str, list[tuple[float, ...]]], left: dict[str, float]) -> str:
    count = len(next(iter(rows.values())))
    leaks = ", ".join(f"{name} {share:.2f}" for name, share in left.items())
    facts = [f"{count} cases, {given.held} held-out people.", *model.training_facts(),
             f"{seconds:.0f} CPU seconds of fitting in this call.",
             "Share of scans whose site 21 quantiles in the brain give away (discriminant "
             f"analysis, leave one person out, chance 0.25): {leaks}."]
    return "\n\n".join([f"`{_command(given)}`", __doc__.split("\n\n")[2].strip(), _table(rows),
                        " ".join(facts)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--coarsen", type=int, default=1)
    parser.add_argument("--people", type=int, default=6, help="of each scanner in the fit")
    parser.add_argument("--held", type=int, default=2)
    parser.add_argument("--target", default="aspen")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["inversion", "noise"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--markdown", type=Path)
    return parser


def _command(given: argparse.Namespace) -> str:
    modes = " ".join(f"'{mode}'" if " " in mode else mode for mode in given.modes)
    chosen = f" --set {' '.join(given.set)}" if given.set else ""
    return (f"python benchmarks/patch_diffusion.py WORK --fit STUDY --cases CASES --minutes "
            f"{given.minutes:g} --coarsen {given.coarsen} --people {given.people} --held "
            f"{given.held} --target {given.target} --modes {modes}{chosen}")


def _trained(given: argparse.Namespace) -> tuple[PatchDiffusion, float]:
    """The method after its training, and CPU seconds of this call."""
    model = PatchDiffusion(PatchDiffusion.config_from(dict(map(named_value, given.set))))
    model.resources = Resources(folder=given.work / "training", threads=given.threads,
                                max_minutes=given.minutes)
    started = time.process_time()
    model.fit(_cohort(given), seed=1)
    model.save(given.work / "model")
    return model, time.process_time() - started


def _cohort(given: argparse.Namespace) -> Cohort:
    """The people to fit on, each scanned once, written once."""
    folder = given.work / "fit"
    if not (folder / "cohort.tsv").is_file():
        whole = Cohort.from_tsv(given.fit / "cohort.tsv")
        chosen, seen = [], set()
        for site in whole.sites:
            for scan in whole.of_site(site):
                count = sum(s.site == site for s in chosen)
                if scan.subject not in seen and count < given.people:
                    seen.add(scan.subject)
                    chosen.append(_coarser_scan(scan, folder, given.coarsen))
        Cohort(tuple(chosen)).to_tsv(folder / "cohort.tsv")
    return Cohort.from_tsv(folder / "cohort.tsv")


def _coarser_scan(scan: Scan, folder: Path, factor: int) -> Scan:
    volume = coarser(scan.read(), factor)
    return replace(scan, image=write_volume(folder / f"{scan.scan_id}.nii.gz", volume),
                   mask=write_mask(folder / f"{scan.scan_id}_mask.nii.gz", volume.mask,
                                   volume.affine))


def coarser(volume: Volume, factor: int) -> Volume:
    """Means over blocks of voxels, of the brain alone; a block is brain if half of it is."""
    sides = tuple(-(-n // factor) for n in volume.shape)
    widths = [(0, side * factor - n) for side, n in zip(sides, volume.shape)]

    def blocks(array: np.ndarray) -> np.ndarray:
        i, j, k = sides
        padded = np.pad(array.astype(np.float64), widths)
        return padded.reshape(i, factor, j, factor, k, factor).mean(axis=(1, 3, 5))

    share = blocks(volume.mask)
    mask = share >= 0.5
    data = np.where(mask, blocks(np.where(volume.mask, volume.data, 0)) / np.maximum(share, 0.1), 0)
    affine = volume.affine @ np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] += volume.affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    return Volume(data.astype(np.float32), affine, mask)


def leaks_of(cohort: Cohort) -> dict[str, float]:
    """How often a site is guessed from the scaled image, the prior, and the perturbed prior."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import LeaveOneOut, cross_val_score

    found: dict[str, list[np.ndarray]] = {"image": [], "prior": [], "perturbed prior": []}
    rng, prior = np.random.default_rng(0), AnatomyPrior()
    for scan in cohort:
        volume = scan.read()
        maps = (volume.data / np.median(volume.in_mask()), prior(volume.data, volume.mask),
                prior(volume.data, volume.mask, float(rng.uniform(-0.5, 0.5))))
        for values, data in zip(found.values(), maps):
            values.append(np.quantile(data[volume.mask], np.linspace(0.02, 0.98, 21)))
    sites = [scan.site for scan in cohort]
    judge = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return {name: float(cross_val_score(judge, np.array(values), sites, cv=LeaveOneOut()).mean())
            for name, values in found.items()}


def _cases(given: argparse.Namespace) -> Iterator[Case]:
    """Held-out people's scans at the other scanners, and at the one that is not in the fit."""
    for case in cases_of(given.cases, given.held, [given.target]):
        if case.source != case.target:
            yield replace(case, scan=coarser(case.scan, given.coarsen),
                          truth=coarser(case.truth, given.coarsen))


def _methods(model: PatchDiffusion, modes: Sequence[str]
             ) -> Iterator[tuple[str, PatchDiffusion | None]]:
    """Names and methods, those that need no network first: no guidance is the null alone."""
    yield "none", None
    yield "scaled", None
    yield model.config.start, _with(model, guidance=0.0, sampling_steps=1, corrections=0)
    yield from ((mode, _with(model, **MODES[mode])) for mode in modes)


def _with(model: PatchDiffusion, **values: Any) -> PatchDiffusion:
    """The same model, sampled otherwise."""
    other = PatchDiffusion(replace(model.config, **values))
    other.__dict__ |= {k: v for k, v in model.__dict__.items() if k not in ("config", "_null")}
    if other.config.start == model.config.start:
        other._null = model._null
    return other


def _scored(name: str, method: PatchDiffusion | None, case: Case) -> tuple[float, ...]:
    """(PSNR dB, SSIM, RMSE in R, CPU seconds) of one case."""
    started = time.process_time()
    result = case.scan if name == "none" else _result(method, case)
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
