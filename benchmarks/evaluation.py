"""Measure time and memory of the evaluation, and extrapolate to a thousand scans.

    python benchmarks/evaluation.py WORK [--scans 25 50 100] [--many 250 500 1000] [--fine OUT]
        [--markdown FILE]
    python benchmarks/evaluation.py WORK --small

Two parts grow differently and are measured separately.

* *Images*: phantom scans at 2 mm on four scanners, before and after histogram matching. Each run is
  a separate process, first without a cache, then with one more covariate.
* *Numbers*: tests, intervals and permutations after the images are closed, on many tiny scans.

`--fine OUT`, an output folder of this app, adds the cost of two scans at 1 mm. `--small` measures
only one small brain at 1 mm (the template at 2 mm, taken as 1 mm): what a scan, a simulated rescan
and another target cost if every image is segmented in both contrasts, and as the evaluation does
it, and whether both give the same verdict. Results are stored in WORK, and an interrupted command
resumes; delete WORK/measured to measure again. Seconds are CPU seconds of one process, because the
clock time depends on the load of the computer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from peak_memory import peak_gb  # noqa: E402
from sections import put_section  # noqa: E402

from harmonizer.cohort import Cohort, Scan  # noqa: E402
from harmonizer.evaluation.paired_metrics import label_tissues  # noqa: E402
from harmonizer.files import write_json  # noqa: E402
from harmonizer.phantom import SCANNERS  # noqa: E402
from harmonizer.phantom.aligned import write_aligned  # noqa: E402
from harmonizer.segmentation.predict import NetworkSegmenter  # noqa: E402
from harmonizer.segmentation.segmentations import Segment  # noqa: E402
from harmonizer.template import load_template, tissue_priors  # noqa: E402
from harmonizer.volume import Volume, write_mask, write_volume  # noqa: E402

TARGET = "aspen"
TRAVELING_SUBJECTS = 3
FINE, TINY = 2, 8  # mm
FINE_SCANS = 2  # of those at 1 mm
CORES = 16
GOAL = 1000  # scans


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, and put it into the markdown file where one is named."""
    given = _parser().parse_args(argv)
    if given.small:
        return _small(given.work)
    if given.one:
        return _one(Path(given.one), given.tissues)
    if given.one_fine:
        return _one_fine(given.one_fine, given.work, given.tissues)
    images = [measured(cohort_of(given.work, n, max(given.scans)), given.work, given.tissues)
              for n in given.scans]
    numbers = [measured(tiny_cohort(given.work, n), given.work, "simple") for n in given.many]
    fine = [] if given.fine is None else [measured(given.fine, given.work, given.tissues,
                                                   "--one-fine")]
    text = report(images, numbers, given.tissues, fine)
    print(text)
    if given.markdown:
        put_section(given.markdown, "Evaluation: time and memory", text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--scans", type=int, nargs="*", default=[25, 50, 100])
    parser.add_argument("--many", type=int, nargs="*", default=[250, 500, 1000])
    parser.add_argument("--tissues", choices=("none", "simple", "network"), default="none",
                        help="segmentation of every image (default: none)")
    parser.add_argument("--markdown", type=Path, help="file whose section is replaced")
    parser.add_argument("--fine", type=Path, metavar="OUT", help="preprocessed scans at 1 mm")
    parser.add_argument("--small", action="store_true",
                        help="only the cost of one small brain at 1 mm, by what is segmented")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--one-fine", type=Path, help=argparse.SUPPRESS)
    return parser


def cohort_of(work: Path, count: int, most: int) -> Path:
    """Make a folder with `count` of `most` scans of a phantom study and their harmonized images."""
    study = work / f"phantom-{FINE}mm-{most}"
    if not (study / "cohort.tsv").is_file():
        write_aligned(study, SCANNERS, subjects=most // 4 - TRAVELING_SUBJECTS, design="mixed",
                      traveling_subjects=TRAVELING_SUBJECTS, resolution_mm=FINE)
    scans = in_order(Cohort.from_tsv(study / "cohort.tsv"))[:count]
    return _harmonized(Cohort(scans), work / f"run-{FINE}mm-{count}")


def in_order(cohort: Cohort) -> tuple[Scan, ...]:
    """Order scans so that each first part has all sites and traveling subjects in proportion."""
    settled = [s for s in cohort if s.session is None]
    rank = {s.scan_id: [o.site for o in settled[:i]].count(s.site) for i, s in enumerate(settled)}
    settled.sort(key=lambda s: (rank[s.scan_id], s.site))
    roaming = [[s for s in cohort if s.subject == who]
               for who in cohort.where(lambda s: s.session is not None).subjects]
    part = -(-len(settled) // max(len(roaming), 1))
    blocks = [settled[i:i + part] for i in range(0, len(settled), part)]
    order: list[Scan] = []
    for i, block in enumerate(blocks):
        order += [*(roaming[i] if i < len(roaming) else []), *block]
    return tuple(order)


def tiny_cohort(work: Path, count: int) -> Path:
    """Return `count` scans at 8 mm, each a phantom subject with its own folds and age."""
    few = work / f"phantom-{TINY}mm"
    if not (few / "cohort.tsv").is_file():
        write_aligned(few, SCANNERS, subjects=4, design="nested", resolution_mm=TINY)
    base = Cohort.from_tsv(few / "cohort.tsv").scans
    folder = work / f"tiny-{count}"
    scans = []
    for i in range(count):
        rng, scan = np.random.default_rng(i), base[i % len(base)]
        volume = scan.read()
        own = volume.data * (1 + rng.normal(0, 0.05, volume.shape))
        name = f"sub-{i:04d}_T1w"
        scans.append(replace(
            scan, scan_id=name, subject=f"{i:04d}", age=float(rng.uniform(20, 80)),
            image=write_volume(folder / f"{name}.nii.gz", volume.with_data(own)),
            mask=write_mask(folder / f"{name}_mask.nii.gz", volume.mask, volume.affine)))
    return _harmonized(Cohort(tuple(scans)), work / f"run-tiny-{count}")


def _harmonized(chosen: Cohort, folder: Path) -> Path:
    """Write `before.tsv` and `after.tsv`: the scans, and their images after histogram matching."""
    from harmonizer.methods import registry

    if not (folder / "after.tsv").is_file():
        model = registry.get("histogram_matching")().fit(chosen, seed=1)
        done = []
        for scan in chosen:
            result = model.harmonize(scan.read(), model.target(TARGET), source=scan.site)
            path = write_volume(folder / "after" / f"{scan.scan_id}.nii.gz", result)
            done.append(replace(scan, image=path))
        Cohort(tuple(done)).to_tsv(folder / "after.tsv")
    chosen.to_tsv(folder / "before.tsv")
    return folder


def nearest_mean(volume: Volume) -> np.ndarray:
    """Label voxels by the nearest of three mean intensities, where the template is certain.

    This segmentation costs nothing, so that only the evaluation is measured.
    """
    resolution = int(round(float(volume.spacing[0])))
    sure = label_tissues(tissue_priors(resolution))
    means = np.array([volume.data[(sure == code) & volume.mask].mean() for code in (1, 2, 3)])
    nearest = np.abs(volume.data[..., None] - means).argmin(axis=-1) + 1
    return np.where(volume.mask, nearest, 0).astype(np.uint8)


def measured(folder: Path, work: Path, tissues: str, what: str = "--one") -> dict[str, float]:
    """Return the numbers of a run without cache and one with it, or of a scan at 1 mm."""
    path = work / "measured" / f"{folder.resolve().name}{what}-{tissues}.json"
    if path.is_file():
        return json.loads(path.read_text())
    command = [sys.executable, __file__, str(work), what, str(folder), "--tissues", tissues]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1",
                                "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"})
    numbers = json.loads(found.stdout.splitlines()[-1])
    print(f"{folder.name}: {numbers}", file=sys.stderr)
    write_json(path, numbers)
    return numbers


def _one(folder: Path, tissues: str) -> int:
    """Run both evaluations of one cohort in this process, and print a line of JSON."""
    import shutil

    from harmonizer.evaluation.run import evaluate

    before, after = (Cohort.from_tsv(folder / f"{name}.tsv") for name in ("before", "after"))
    resolution = int(round(float(before.scans[0].read().spacing[0])))
    load_template(resolution)
    given = {"segment": _segmenter(tissues), "cache": folder / "cache", "permutations": 200,
             "priors": tissue_priors(resolution)}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    times = []
    for covariates in (("age",), ("sex",)):
        started = time.process_time()
        evaluate(before, {"histogram_matching": after}, TARGET, covariates=covariates, **given)
        times.append(time.process_time() - started)
    print(json.dumps({"scans": len(before), "first": times[0], "again": times[1],
                      "peak_mb": 1e3 * peak_gb()}))
    return 0


def _one_fine(out: Path, work: Path, tissues: str) -> int:
    """Measure a scan and its harmonized image at 1 mm, and one simulated rescan."""
    from harmonizer.evaluation.metrics.scan_features import ScanJob, measure_scan
    from harmonizer.evaluation.paired_metrics import measure_cohort
    from harmonizer.evaluation.questions.anatomy import compare_anatomy
    from harmonizer.evaluation.questions.rescans import simulated_rescan
    from harmonizer.methods import registry
    from pipelines.outputs.collect import cohort_of, find_preprocessed

    before = Cohort(cohort_of(find_preprocessed(out.resolve(), 1, ("T1w",))).scans[:FINE_SCANS])
    model = registry.get("moment_matching")().fit(before, seed=1)
    target, priors, segment = before.largest_site, tissue_priors(1), _segmenter(tissues)
    after = Cohort(tuple(replace(scan, image=write_volume(
        work / "fine" / f"{scan.scan_id}.nii.gz",
        model.harmonize(scan.read(), model.target(target), source=scan.site))) for scan in before))
    started = time.process_time()
    measure_cohort(before, after, target, priors=priors)
    for scan, result in zip(before, after):
        measure_scan(ScanJob(scan, {"x": result}, label_tissues(priors), (0.0, 1000.0), segment,
                             limits=SMALL_LIMITS))
    first = (time.process_time() - started) / len(before)
    started, volume = time.process_time(), before.scans[0].read()
    compare_anatomy(volume, simulated_rescan(volume, 0), segment, same_contrast=True)
    print(json.dumps({"scans": len(before), "first": first, "peak_mb": 1e3 * peak_gb(),
                      "rescan": time.process_time() - started}))
    return 0


SMALL_GAMMA = 1.5  # of the harmonized image of --small
SMALL_RESCANS = 3
SMALL_LIMITS = {"ssim_structure": 0.9, "gradient_agreement": 0.9, "edge_displacement": 1.0,
                "largest_change": 0.2, "dice": 0.9, "ravd": 0.05}


def _small(work: Path) -> int:
    """Cost of one small brain at 1 mm, with every segmentation and with those that are needed."""
    scan, result = _small_images(work)
    segment = _segmenter("network")
    segment(scan.read())  # reads the weights
    lines = ["| segmentations | scan | simulated rescan | scan again, other target | verdict |",
             "|---|---|---|---|---|"]
    for name, needed in (("all, nothing kept", False), ("needed, and kept", True)):
        lines.append(f"| {name} | " + " | ".join(_small_row(work, scan, result, segment, needed))
                     + " |")
    print("\n".join(lines))
    return 0


def _small_images(work: Path) -> tuple[Scan, Scan]:
    template = load_template(FINE)
    affine = np.eye(4)
    noise = 2 * np.random.default_rng(0).normal(size=template.shape)
    data = 100 * template.data / np.percentile(template.in_mask(), 99) + noise
    mask = write_mask(work / "small" / "mask.nii.gz", template.mask, affine)
    images = {"before": data, "after": 100 * (np.maximum(data, 0) / 100) ** SMALL_GAMMA}
    return tuple(Scan("sub-1_T1w", "1", None, "T1w", TARGET, "template", write_volume(
        work / "small" / f"{name}.nii.gz", Volume(np.where(template.mask, image, 0), affine)),
        mask) for name, image in images.items())  # type: ignore[return-value]


def _small_row(work: Path, scan: Scan, result: Scan, segment: Segment, needed: bool
               ) -> tuple[str, ...]:
    """Processor seconds of a scan, of a rescan and of the scan with another target; the verdict."""
    import shutil

    from harmonizer.evaluation.cache import cached_summary
    from harmonizer.evaluation.metrics.scan_features import ScanJob, measure_scan
    from harmonizer.evaluation.questions.anatomy import compare_anatomy
    from harmonizer.evaluation.questions.anatomy_limits import Tolerance, check_anatomy
    from harmonizer.evaluation.questions.rescans import simulated_rescan

    cache = work / "small" / "cache" if needed else None
    shutil.rmtree(work / "small" / "cache", ignore_errors=True)
    job = ScanJob(scan, {"x": result}, label_tissues(tissue_priors(FINE)), (0.0, 130.0), segment,
                  cache, limits=SMALL_LIMITS if needed else None)
    times = [time.process_time()]
    found = measure_scan(job)
    times.append(time.process_time())
    volume = scan.read()
    known = cached_summary(cache, volume, (scan.image, scan.mask), segment)
    for seed in range(SMALL_RESCANS):
        compare_anatomy(volume, simulated_rescan(volume, seed), segment, of_source=known,
                        same_contrast=needed)
    times.append(time.process_time())
    measure_scan(replace(job, gray_range=(0.0, 140.0)))
    times.append(time.process_time())
    seconds = np.diff(times) / [1, SMALL_RESCANS, 1]
    check = check_anatomy(found.anatomy["x"], Tolerance(SMALL_LIMITS))
    return (*(f"{value:.1f} s" for value in seconds), "kept" if check.ok else "flagged")


def _segmenter(name: str) -> Segment | None:
    return {"none": None, "simple": nearest_mean,
            "network": NetworkSegmenter(quick=True)}[name]


def report(images: list[dict[str, float]], numbers: list[dict[str, float]], tissues: str,
           fine: list[dict[str, float]]) -> str:
    """Return the text of the section."""
    asked = f"--tissues {tissues}{' --fine OUT' if fine else ''}"
    lines = [f"`python benchmarks/evaluation.py WORK {asked}`: one process, processor seconds. "
             "Before "
             "and after one method, 200 permutations, ComBat beside it.", "",
             "| scans | what | nothing kept | per scan | again, other covariate | peak |",
             "|---|---|---|---|---|---|"]
    for what, rows in ((f"phantom at {FINE} mm", images), (f"phantom at {TINY} mm", numbers)):
        lines += [f"| {r['scans']} | {what} | {r['first']:.0f} s | {r['first'] / r['scans']:.2f} s "
                  f"| {r['again']:.1f} s | {r['peak_mb']:.0f} MB |" for r in rows]
    if len(images) > 1 and numbers:
        lines += ["", _outlook(images, numbers)]
    lines += ["\n" + _at_one_mm(one) for one in fine]
    return "\n".join(lines)


def _at_one_mm(one: dict[str, float]) -> str:
    hours = GOAL * one["first"] / 3600
    return (f"Measured at 1 mm, {one['scans']} scans: {one['first']:.1f} s for a scan and its "
            f"harmonized image, {one['rescan']:.1f} s for a simulated rescan, {one['peak_mb']:.0f} "
            f"MB. {GOAL} scans are {hours:.1f} processor hours of images "
            f"without traveling subjects, {60 * hours / CORES:.0f} minutes on {CORES} cores.")


def _outlook(images: list[dict[str, float]], numbers: list[dict[str, float]]) -> str:
    """Extrapolate to a thousand scans on 16 cores: images by the slope, numbers as measured."""
    opened = [r["first"] - r["again"] for r in images]
    scans = [r["scans"] for r in images]
    slope, start = np.polyfit(scans, opened, 1)
    growth = _exponent([r["scans"] for r in numbers], [r["again"] for r in numbers])
    last = numbers[-1]
    rest = last["again"] * (GOAL / last["scans"]) ** max(growth, 1.0)
    hours = ((max(start, 0) + slope * GOAL) / CORES + rest) / 3600
    fine = (8 * (max(start, 0) + slope * GOAL) / CORES + rest) / 3600
    return (f"Opening images costs {slope:.2f} s a scan (and {max(start, 0):.0f} s for the guard's "
            f"limits), however many there are; the numbers alone grow as n^{growth:.1f} and take "
            f"{last['again']:.0f} s for {last['scans']} scans. {GOAL} scans on {CORES} cores: "
            f"about {60 * hours:.0f} min at 2 mm and, with eight times the voxels, "
            f"{60 * fine:.0f} min at 1 mm. Memory grows by "
            f"{1000 * _slope(numbers):.0f} MB per thousand scans in the main process; each other "
            "process holds one pair of images and their maps.")


def _exponent(sizes: list[float], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else 1.0


def _slope(rows: list[dict[str, float]]) -> float:
    """Return the peak memory per scan, MB."""
    if len(rows) < 2:
        return 0.0
    return max(float(np.polyfit([r["scans"] for r in rows], [r["peak_mb"] for r in rows], 1)[0]), 0)


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
