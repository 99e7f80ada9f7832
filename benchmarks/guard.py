"""Measure the errors of the anatomy guard: flags of perfect images, detection of changed anatomy.

    python benchmarks/guard.py WORK [--subjects 6] [--same-grid BIDS]
        [--markdown docs/benchmarks.md]

The data are phantom subjects at 2 mm, `--subjects` for each of four scanners, without rescans
except for the second set of limits. The result of a perfect harmonization to the first scanner is
known: the same scan as acquired by that scanner, including noise. It must not be flagged. The same
image must be flagged if a lesion is added or erased, if it is replaced by the mean image, or if it
is shifted by a voxel. Images and numbers are stored in WORK, and an interrupted command resumes.

`--same-grid BIDS` names simulated traveling subjects, brain only, with all scans of a subject on
one grid. The scan of the first session is the truth of the others; its measures are listed (at
2 mm).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import put_section  # noqa: E402

from harmonizer.cohort import Cohort, Scan  # noqa: E402
from harmonizer.evaluation.cache import cached, file_key  # noqa: E402
from harmonizer.evaluation.paired_metrics import label_tissues  # noqa: E402
from harmonizer.evaluation.questions.anatomy import GUARDED, compare_anatomy  # noqa: E402
from harmonizer.evaluation.questions.anatomy_limits import (  # noqa: E402
    Tolerance,
    check_anatomy,
    learn_tolerance,
    tolerance_from_pairs,
)
from harmonizer.phantom import SCANNERS, make_subject, render  # noqa: E402
from harmonizer.phantom.aligned import aligned_image  # noqa: E402
from harmonizer.phantom.dataset import Participant, plan_participants  # noqa: E402
from harmonizer.preprocessing.transforms import isotropic_grid, resample  # noqa: E402
from harmonizer.template import tissue_priors  # noqa: E402
from harmonizer.volume import Volume, read_volume, write_mask, write_volume  # noqa: E402

RESOLUTION = 2
TARGET = SCANNERS[0]
LESION_MM = (-27.0, 12.0, 24.0)  # left frontal white matter
RADII_MM = (3.0, 5.0)
Change = Callable[[Scan, Volume, Volume], tuple[Volume, Volume]]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, and put it into the markdown file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--subjects", type=int, default=6, help="for each scanner")
    parser.add_argument("--same-grid", type=Path, metavar="BIDS")
    parser.add_argument("--markdown", type=Path, help="file whose section is replaced")
    given = parser.parse_args(argv)
    scans = list(made(given.work, given.subjects))
    text = report(given.work, Cohort(tuple(scans)))
    if given.same_grid:
        text += "\n\n" + "\n".join(true_pairs(given.same_grid))
    print(text)
    if given.markdown:
        put_section(given.markdown, "The anatomy guard", text)
    return 0


def made(work: Path, subjects: int) -> Iterator[Scan]:
    """Return the scans; simulate their ``rescan`` and ``truth`` if missing."""
    for who in plan_participants(subjects, SCANNERS, 0, "nested"):
        scanner, name = who.scanners[0], f"sub-{who.label}_T1w"
        if not (work / "mask" / f"{name}.nii.gz").is_file():
            _make(work, who, name)
        yield Scan(name, who.label, None, "T1w", scanner.name, "phantom",
                   work / "before" / f"{name}.nii.gz", work / "mask" / f"{name}.nii.gz", who.age,
                   who.sex)


def _make(work: Path, who: Participant, name: str) -> None:
    subject, scanner = make_subject(who.seed, who.age, who.sex, float(RESOLUTION)), who.scanners[0]
    shown = {seen.name: render(subject, seen) for seen in (scanner, TARGET)}
    for folder, seen, visit in (("before", scanner, 0), ("rescan", scanner, 1),
                                ("truth", TARGET, 0)):
        volume = aligned_image(subject, scanner, rescan=visit, as_scanner=seen,
                               rendered=shown[seen.name])
        write_volume(work / folder / f"{name}.nii.gz", volume)
    write_mask(work / "mask" / f"{name}.nii.gz", volume.mask, volume.affine)


def changes(mean: np.ndarray) -> dict[str, Change]:
    """Return functions of (scan, source, truth) that give the source and the image to check."""
    def painted(radius: float) -> Change:
        return lambda scan, source, truth: (source, with_lesion(truth, radius))

    def erased(radius: float) -> Change:
        return lambda scan, source, truth: (with_lesion(source, radius), truth)

    found: dict[str, Change] = {
        "perfect": lambda scan, source, truth: (source, truth),
        **{f"perfect, a lesion of {2 * r:.0f} mm painted in": painted(r) for r in RADII_MM},
        **{f"perfect, a lesion of {2 * r:.0f} mm erased": erased(r) for r in RADII_MM},
        "everybody made the mean": lambda scan, source, truth: (
            source, truth.with_data(np.where(truth.mask, mean, 0))),
        "perfect, blurred by 2 mm": lambda scan, source, truth: (
            source, truth.with_data(ndimage.gaussian_filter(truth.data, 1) * truth.mask)),
        "perfect, one voxel aside": lambda scan, source, truth: (
            source, truth.with_data(np.roll(truth.data, 1, axis=0) * truth.mask)),
    }
    return found


def with_lesion(volume: Volume, radius_mm: float) -> Volume:
    """Add a ball with the intensity of fluid (T1w)."""
    center = np.linalg.inv(volume.affine) @ [*LESION_MM, 1]
    away = (np.indices(volume.shape) - center[:3].reshape(3, 1, 1, 1)) * RESOLUTION
    ball = np.sum(away**2, axis=0) <= radius_mm**2
    return volume.with_data(np.where(ball & volume.mask, np.percentile(volume.in_mask(), 3),
                                     volume.data))


def nearest_mean(volume: Volume) -> np.ndarray:
    """Label voxels by the nearest of three mean intensities, a segmentation at no cost."""
    sure = label_tissues(tissue_priors(RESOLUTION))
    means = np.array([volume.data[(sure == code) & volume.mask].mean() for code in (1, 2, 3)])
    nearest = np.abs(volume.data[..., None] - means).argmin(axis=-1) + 1
    return np.where(volume.mask, nearest, 0).astype(np.uint8)


def report(work: Path, cohort: Cohort) -> str:
    """Return the text of the section."""
    limits = {
        "simulated": learn_tolerance(cohort, nearest_mean, mapper=partial(_cached_map, work)),
        "real": tolerance_from_pairs([
            _stored(work, scan, "rescan", lambda scan=scan: compare_anatomy(
                scan.read(), read_volume(_beside(scan, "rescan"), scan.mask), nearest_mean))
            for scan in cohort], f"{len(cohort)} real rescans"),
    }
    rows = {name: [
        _stored(work, scan, name, lambda scan=scan, change=change: _measured(scan, change))
        for scan in cohort] for name, change in changes(_mean(cohort)).items()}
    head = " | ".join(f"flagged, limits from {len(cohort) if k == 'real' else t.pairs} {k} rescans"
                      for k, t in limits.items())
    lines = ["`python benchmarks/guard.py WORK`", "",
             f"{len(cohort)} phantom scans at {RESOLUTION} mm, {len(cohort.sites)} scanners, "
             f"brought to {TARGET.name}; tissues by the nearest mean.", "",
             f"| images | {head} | broken measures, simulated |", "|---|---|---|---|"]
    for name, values in rows.items():
        cells = [_flagged(values, tolerance) for tolerance in limits.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {_broken(values, limits['simulated'])} |")
    lines += ["", "| measure | " + " | ".join(f"limit, {k}" for k in limits)
              + " | perfect, worst | perfect, median |", "|---|---|---|---|---|"]
    for name, (words, higher) in GUARDED.items():
        values = np.array([v[name] for v in rows["perfect"]])
        cells = [f"{t.limits[name]:.3g}" for t in limits.values()]
        worst = values.min() if higher else values.max()
        lines.append(f"| {words} | {' | '.join(cells)} | {worst:.3g} | {np.median(values):.3g} |")
    return "\n".join(lines)


def true_pairs(bids: Path) -> Iterator[str]:
    """Return a table of the measures between scans and their truth."""
    names = [name for name in GUARDED if name not in ("dice", "ravd")]
    yield "| to the subject's own scan at the first session | " + " | ".join(
        GUARDED[name][0] for name in names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for subject in sorted(bids.glob("sub-*")):
        scans = [_at_two_mm(path) for path in sorted(subject.glob("ses-*/anat/*_T1w.nii.gz"))]
        for number, scan in enumerate(scans[1:], start=2):
            found = compare_anatomy(scan, scans[0])
            yield f"| {subject.name}, session {number} | " + " | ".join(
                f"{found[name]:.3g}" for name in names) + " |"


def _at_two_mm(path: Path) -> Volume:
    volume = read_volume(path)
    volume = volume.with_mask(volume.data > 0)
    coarse = resample(volume, isotropic_grid(volume, RESOLUTION), antialias=True)
    return coarse.with_data(np.where(coarse.mask, coarse.data, 0))


def _mean(cohort: Cohort) -> np.ndarray:
    return np.mean([read_volume(_beside(scan, "truth")).data for scan in cohort], axis=0)


def _beside(scan: Scan, folder: str) -> Path:
    return scan.image.parents[1] / folder / scan.image.name


def _stored(work: Path, scan: Scan, name: str, compute: Callable[[], dict[str, float]]
          ) -> dict[str, float]:
    return cached(work / "cache", file_key([scan.image, _beside(scan, "truth")], name), compute)


def _cached_map(work: Path, compute: Callable[[tuple[Scan, int]], dict[str, float]],
             jobs: Sequence[tuple[Scan, int]]) -> list[dict[str, float]]:
    """Map a function over simulated rescans and store each result."""
    return [_stored(work, job[0], f"simulated {job[1]}", lambda job=job: compute(job))
            for job in jobs]


def _measured(scan: Scan, change: Change) -> dict[str, float]:
    source, result = change(scan, scan.read(), read_volume(_beside(scan, "truth"), scan.mask))
    return compare_anatomy(source, result, nearest_mean)


def _flagged(values: list[dict[str, float]], tolerance: Tolerance) -> str:
    flagged = sum(not check_anatomy(v, tolerance).ok for v in values)
    return f"{flagged} of {len(values)}"


def _broken(values: list[dict[str, float]], tolerance: Tolerance) -> str:
    counts = {words.split(" (")[0].split(",")[0]: sum(
        any(r.startswith(words) for r in check_anatomy(v, tolerance).reasons) for v in values)
        for words, _ in GUARDED.values()}
    return ", ".join(f"{words} {count}" for words, count in counts.items() if count) or "none"


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
