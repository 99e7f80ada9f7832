"""Fit the blur coefficients of the texture step on simulated scanners.

    python tools/fit_texture_gains.py WORK [--output FILE] [--subjects 10] [--scanners 10]

Scanners are drawn at random (sequence, point spread, voxels, noise, gain, bias field); the named
scanners of the phantom are not used. Subjects come from a seed that no test or benchmark uses.
Tissue matching is fitted on three subjects at each scanner. The others are simulated at one
scanner, harmonized to another, and compared with the noise-free scan of the latter. The error after
the noise step is regressed on the structure in each band times the log ratio of the blurs. Pairs
are stored in WORK; a second run makes the missing ones.

The phantom has voxels of 2 mm, which do not resolve the finest band (0 to 0.6 mm). This band gets
the coefficient of the next one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from harmonizer.cohort import Cohort, Scan  # noqa: E402
from harmonizer.contrast.local_statistics import stack_probabilities  # noqa: E402
from harmonizer.contrast.texture import ScanTexture, measure_texture, pool_textures  # noqa: E402
from harmonizer.contrast.texture_transfer import (  # noqa: E402
    COEFFICIENTS_FILE,
    COEFFICIENTS_FORMAT,
    TextureGains,
    blur_change,
    texture_parts,
)
from harmonizer.files import atomic_path, write_json  # noqa: E402
from harmonizer.methods.base import ScanContext  # noqa: E402
from harmonizer.methods.statistical.tissue_matching import TissueMatching, TissueMatchingConfig  # noqa: E402
from harmonizer.phantom import SCANNERS  # noqa: E402
from harmonizer.phantom.aligned import aligned_image  # noqa: E402
from harmonizer.phantom.anatomy import make_subject  # noqa: E402
from harmonizer.phantom.dataset import plan_participants  # noqa: E402
from harmonizer.phantom.physics import Sequence as PulseSequence  # noqa: E402
from harmonizer.phantom.physics import signals  # noqa: E402
from harmonizer.phantom.scanner import Scanner  # noqa: E402
from harmonizer.segmentation.coarse import CoarseSegmenter  # noqa: E402
from harmonizer.volume import Volume, write_mask, write_volume  # noqa: E402

SCANNER_SEED, SUBJECT_SEED = 5, 501
REFERENCES = 3  # subjects of each scanner that tissue matching is fitted on
VOXEL_MM = 2.0
NAMED = 0.6  # of the scans whose site is known to the model
RIDGE = 0.01  # relative to the diagonal


@dataclass(frozen=True)
class Pair:
    """A scan in the target's contrast, its noise-free truth, and the target's texture."""

    image: Volume
    probabilities: np.ndarray
    truth: np.ndarray
    target: ScanTexture


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pairs, fit, and write the coefficients with their card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--output", type=Path, default=COEFFICIENTS_FILE)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--scanners", type=int, default=10)
    parser.add_argument("--nprocs", type=int, default=2)
    args = parser.parse_args(argv)
    make_pairs(args.work, args.subjects, args.scanners)
    pairs = list(read_pairs(args.work))
    blur, before, after = fit(pairs, args.nprocs)
    write_json(args.output, {
        "Format": COEFFICIENTS_FORMAT,
        "TargetMoreBlurred": [round(float(v), 4) for v in blur[0]],
        "TargetLessBlurred": [round(float(v), 4) for v in blur[1]],
        "Command": f"python tools/fit_texture_gains.py WORK --subjects {args.subjects} "
                   f"--scanners {args.scanners}",
        "Commit": _commit(),
        "Data": f"{len(pairs)} pairs of simulated T1w at {VOXEL_MM:g} mm: {args.scanners} randomly "
                f"drawn scanners (seed {SCANNER_SEED}), {args.subjects} subjects (seed "
                f"{SUBJECT_SEED}); no measured image",
        "MeanGainDBOnTheFit": {"NoiseStep": round(before, 3), "Both": round(after, 3)}})
    print(f"{len(pairs)} pairs: noise step {before:+.3f} dB, with blur {after:+.3f} dB, on the fit")
    return 0


def random_scanner(number: int, rng: np.random.Generator) -> Scanner:
    """Draw a scanner with gray matter between fluid and white matter on T1w."""
    while True:
        tesla = float(rng.choice([1.5, 3.0]))
        if rng.random() < 0.6:
            times = [float(rng.uniform(*limits)) for limits in
                     ((1700, 2500), (2, 4.5), (750, 1250), (7, 12))]
            sequence = PulseSequence("mprage", *times, int(rng.integers(120, 190)),
                                     float(rng.uniform(6, 10)))
        else:
            sequence = PulseSequence("spgr", float(rng.uniform(7, 13)), float(rng.uniform(2.5, 5)),
                                     flip=float(rng.uniform(10, 22)))
        fluid, gray, white = signals(tesla, sequence)[:3, 0]
        if white > 1.1 * gray > 1.1 * abs(fluid) * 0.9 and white > 0:
            break
    return Scanner(
        f"r{number}", "X", "Y", tesla, {"T1w": sequence}, psf_mm=float(rng.uniform(0.8, 2.2)),
        voxel_mm=tuple(float(v) for v in rng.uniform(0.9, 1.6, 3)),  # type: ignore[arg-type]
        noise=float(rng.uniform(0.015, 0.07)), gain=float(np.exp(rng.uniform(5, 9))),
        bias=float(rng.uniform(0.08, 0.36)), bias_seed=int(rng.integers(1, 9999)))


def make_pairs(work: Path, subjects: int, count: int) -> None:
    """Write references and pairs into a folder; finished ones are kept."""
    rng = np.random.default_rng(SCANNER_SEED)
    scanners = [random_scanner(number, rng) for number in range(count)]
    participants = plan_participants(subjects, SCANNERS[:1], SUBJECT_SEED)
    plan = [(who, source, scanners[target], rng.random() < NAMED)
            for who in participants[2 * REFERENCES:] for number, source in enumerate(scanners)
            for target in rng.choice([n for n in range(count) if n != number], 2, replace=False)]
    missing = [row for row in plan if not pair_path(work, *row[:3]).is_file()]
    if not missing:
        return
    bodies = {who.label: make_subject(who.seed, who.age, who.sex, VOXEL_MM)
              for who in participants}
    model = fitted_model(work, participants, bodies, scanners)
    for who, source, target, named in missing:
        body = bodies[who.label]
        scan = aligned_image(body, source)
        truth = aligned_image(body, source, as_scanner=replace(target, noise=0.0))
        known = ScanContext(source.name if named else None, {"age": who.age, "sex": who.sex})
        after = model.intensity_map(scan, model.target(target.name), source=known.source,
                                    covariates=known.covariates).apply(scan)
        _keep(pair_path(work, who, source, target), scan, y=after.data, C=truth.data,
              t=np.array(target.name))
        print(f"sub-{who.label} {source.name} to {target.name}", flush=True)


def pair_path(work: Path, who: Any, source: Scanner, target: Scanner) -> Path:
    """Return the file of a pair."""
    return work / f"train_{who.label}_{source.name}_{target.name}.npz"


def fitted_model(work: Path, participants: Sequence[Any], bodies: dict[str, Any],
                 scanners: Sequence[Scanner]) -> TissueMatching:
    """Fit tissue matching without the texture step on the references."""
    scans = []
    for number, scanner in enumerate(scanners):
        start = 0 if number % 2 else REFERENCES
        for who in participants[start:start + REFERENCES]:
            volume, name = aligned_image(bodies[who.label], scanner), f"{who.label}_{scanner.name}"
            _keep(work / f"ref_{scanner.name}_{who.label}.npz", volume, x=volume.data,
                  s=np.array(scanner.name))
            scans.append(Scan(
                name, f"{who.label}{scanner.name}", None, "T1w", scanner.name, "phantom",
                write_volume(work / "images" / f"{name}.nii.gz", volume),
                write_mask(work / "images" / f"{name}_mask.nii.gz", volume.mask, volume.affine),
                who.age, who.sex))
    return TissueMatching(TissueMatchingConfig(texture="keep")).fit(Cohort(tuple(scans)))


def _keep(path: Path, volume: Volume, **arrays: np.ndarray) -> None:
    """Arrays and the scan's tissue probabilities, cropped to its mask."""
    probabilities = stack_probabilities(CoarseSegmenter()(volume), volume)
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(volume.mask))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, m=volume.mask[box], sh=probabilities[(slice(None), *box)],
                 **{name: array[box] if array.ndim == 3 else array
                    for name, array in arrays.items()})


def read_pairs(work: Path) -> Iterator[Pair]:
    """All pairs, each with the texture of its target's references."""
    affine, sites = np.diag([VOXEL_MM] * 3 + [1.0]), {}
    for path in sorted(work.glob("ref_*.npz")):
        with np.load(path) as one:
            sites.setdefault(str(one["s"]), []).append(
                measure_texture(Volume(one["x"], affine, one["m"]), one["sh"]))
    for path in sorted(work.glob("train_*.npz")):
        with np.load(path) as one:
            yield Pair(Volume(one["y"], affine, one["m"]), one["sh"], one["C"],
                       pool_textures(sites[str(one["t"])]))


def fit(pairs: Sequence[Pair], nprocs: int) -> tuple[np.ndarray, float, float]:
    """Ridge coefficients (2, 3 bands), and mean gain in dB of the noise step and of both."""
    moments, products, rows = np.zeros((2, 3, 3)), np.zeros((2, 3)), []
    with ProcessPoolExecutor(nprocs) as pool:
        found = list(pool.map(_regression, pairs))
    for error, left, design, less in found:
        weight = 1 / (np.mean(error ** 2) * len(error))
        moments[less] += weight * design.T @ design
        products[less] += weight * design.T @ left
        rows.append((error, left, design, less))
    blur = np.stack([_ridge(*way) for way in zip(moments, products)])

    def gain(after: np.ndarray, before: np.ndarray) -> float:
        return float(-10 * np.log10(np.mean(after ** 2) / np.mean(before ** 2)))

    noise_step = np.mean([gain(left, error) for error, left, *_ in rows])
    both = np.mean([gain(left - design @ blur[less], error) for error, left, design, less in rows])
    return blur, float(noise_step), float(both)


def _ridge(moments: np.ndarray, products: np.ndarray) -> np.ndarray:
    """(3,) coefficients; the finest band, which is not resolved, gets that of the next one."""
    inner = moments[1:, 1:]
    ridge = RIDGE * max(float(np.diag(inner).mean()), 1e-12) * np.eye(2)
    middle, coarse = np.linalg.solve(inner + ridge, products[1:])
    return np.array([middle, middle, coarse])


def _regression(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the terms of the regression for one pair.

    Returns
    -------
    before, after : ndarray, shape (n,)
        Error before and after the noise step.
    structure : ndarray, shape (n, 3)
        Structure of each band times the log ratio of the blur.
    less_blurred : int
        Whether the target is less blurred.
    """
    image, mask = pair.image, pair.image.mask
    assert mask is not None
    source = measure_texture(image, pair.probabilities)
    gains = TextureGains.between(source, pair.target, np.zeros((2, 3)))
    change = blur_change(source, pair.target)
    parts = list(texture_parts(image.data * mask, mask, image.spacing, pair.probabilities, gains))
    error = (pair.truth - image.data)[mask].astype(np.float64)
    left = error - sum(part.less_noise for part in parts)[mask]
    design = np.stack([change * part.structure[mask] for part in parts], axis=1)
    return error, left, design, int(change < 0)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                           capture_output=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
