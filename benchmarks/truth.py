"""Score training-free backends against voxelwise truth, on subjects that are not in the fit.

    python benchmarks/truth.py OUT [--truth TRUTH.tsv] [--backends A B] [--fit others|disjoint]
                               [--labels FOLDER] [--cache FOLDER]

A backend may have options: `tissue_matching:segmenter=atropos`. With true labels, from the truth
table or from a FOLDER of `sub-X*_dseg.nii.gz` (1 CSF, 2 GM, 3 WM), `segmenter=labels` is possible,
and the contrast of gray and white matter is scored: log(WM median / GM median), after minus truth.

OUT is an output folder of which the preprocess stage has run. The truth is a table (columns scan,
target_site, image, mask; the phantom writes one). For traveling subjects whose scans lie on one
grid, it is the subject's own preprocessed scan at the target site.

For each subject the backends are fitted on all *other* subjects (`others`), or on one half of them
at the source and on the other half at the target site (`disjoint`), which is harder and more
realistic. Every ordered pair of sites is scored on the subject's own grid inside the true mask. R,
the range of PSNR and SSIM, is the 0.5 to 99.5 % range of the target site's scans. `none` is the
preprocessed image, `scaled` the same with the target's median. The truth of the phantom has no bias
field, so its overall level differs from that of the target's scans after N4; compare the PSNR at
the best gain there.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import write_rows  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.evaluation.metrics.image import psnr, ssim  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from harmonizer.methods.base import Backend  # noqa: E402
from harmonizer.methods.native_grid import apply_with_head, change_of  # noqa: E402
from harmonizer.methods.statistical.tissue_matching import SEGMENTERS  # noqa: E402
from harmonizer.preprocessing.transforms import read_itk_affine, resample  # noqa: E402
from harmonizer.segmentation.segmentations import CachedSegmenter  # noqa: E402
from harmonizer.tissues import TISSUES  # noqa: E402
from harmonizer.volume import Volume, read_volume  # noqa: E402
from pipelines.outputs.collect import Preprocessed, cohort_of, find_preprocessed  # noqa: E402


@dataclass(frozen=True)
class TruthCase:
    """One scan, one target site, and the true result."""

    item: Preprocessed
    target: str
    truth: Path
    mask: Path
    labels: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Print the table; with `--tsv` also write all numbers."""
    args = parse(argv)
    found = find_preprocessed(args.out.resolve(), args.resolution, (args.modality,))
    if not found:
        print(f"{args.out}: no preprocessed {args.modality} at {args.resolution} mm. Run the "
              "preprocess stage first (sloppy runs: --resolution 2).", file=sys.stderr)
        return 65
    cases = from_table(found, args.truth) if args.truth else same_subject(found)
    if args.labels:
        cases = [replace(case, labels=labels_of(case, args.labels)) for case in cases]
    prepare_segmenters(cases, args.cache)
    rows = []
    for subject in sorted({case.item.scan.subject for case in cases}):
        mine = [case for case in cases if case.item.scan.subject == subject][::args.every]
        others = cohort_of([i for i in found if i.scan.subject != subject])
        rows += score_subject(mine, others, args.backends, args.fit)
        print(f"sub-{subject}: {len(mine)} cases", file=sys.stderr)
    report(rows)
    if args.tsv:
        write_rows(rows, args.tsv)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--truth", type=Path, help="table of truth images")
    parser.add_argument("--backends", nargs="+", default=sorted(registry.BUILT_IN))
    parser.add_argument("--fit", choices=("others", "disjoint"), default="others")
    parser.add_argument("--modality", default="T1w")
    parser.add_argument("--resolution", type=int, default=1)
    parser.add_argument("--labels", type=Path, help="folder of true tissue labels")
    parser.add_argument("--cache", type=Path, help="keep segmentations here")
    parser.add_argument("--every", type=int, default=1, help="score every n-th case only")
    parser.add_argument("--tsv", type=Path, help="write every number here")
    return parser.parse_args(argv)


def from_table(found: tuple[Preprocessed, ...], table: Path) -> list[TruthCase]:
    """Return the cases of a truth table, other sites only."""
    by_id = {item.scan.scan_id: item for item in found}
    cases = []
    with open(table, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            item = by_id.get(Path(row["scan"]).name.split(".")[0])
            if item is not None and row["target_site"] != item.scan.site:
                cases.append(TruthCase(item, row["target_site"], table.parent / row["image"],
                                  table.parent / row["mask"],
                                  table.parent / row["labels"] if row.get("labels") else None))
    return cases


def same_subject(found: tuple[Preprocessed, ...]) -> list[TruthCase]:
    """Return cases of traveling subjects whose scans lie on one grid."""
    cases = []
    for item in found:
        for other in found:
            if other.scan.subject == item.scan.subject and other.scan.site != item.scan.site:
                cases.append(TruthCase(item, other.scan.site, other.paths.image("preproc"),
                                  item.paths.mask()))
    return cases


def labels_of(case: TruthCase, folder: Path) -> Path:
    """Return the true labels of a subject, on the grid of the scans."""
    return next(folder.glob(f"sub-{case.item.scan.subject}*_dseg.nii.gz"))


def prepare_segmenters(cases: list[TruthCase], cache: Path | None) -> None:
    """Add the true labels as a segmenter, and cache the results of the others."""
    for name, make in list(SEGMENTERS.items()):
        if cache is not None:
            SEGMENTERS[name] = lambda make=make: CachedSegmenter(make(), cache)
    known = {}
    for case in cases:
        if case.labels is not None and case.item.scan_id not in known:
            known[case.item.scan_id] = case
    if known:
        answers = {key_of(case.item.scan.read()): case for case in known.values()}
        SEGMENTERS["labels"] = lambda: partial(true_probabilities, answers)


def key_of(volume: Volume) -> tuple[float, ...]:
    """Return a checksum that identifies an image."""
    values = volume.in_mask().astype(np.float64)
    return (len(values), float(values.sum()), float((values ** 2).sum()))


def true_probabilities(answers: dict[tuple[float, ...], TruthCase], volume: Volume
                     ) -> dict[str, np.ndarray]:
    """Return the true labels as probabilities on the template grid."""
    case = answers[key_of(volume)]
    labels = read_volume(case.labels)
    matrix = read_itk_affine(case.item.paths.to_template)
    return {name: resample(labels.with_data(labels.data == code), volume, matrix).data * volume.mask
            for code, name in enumerate(TISSUES, start=1)}


def score_subject(cases: list[TruthCase], others: Cohort, backends: list[str], how: str
                  ) -> list[dict]:
    """Return all numbers of one subject, with models fitted on other subjects."""
    rows = []
    fitted: dict[tuple[str, str, str], Backend] = {}
    for case in cases:
        pair = (case.item.scan.site, case.target)
        training = others if how == "others" else disjoint(others, *pair)
        for name in backends:
            key = (name, *pair) if how == "disjoint" else (name, "", "")
            if key not in fitted:
                fitted[key] = backend_named(name).fit(training, seed=1)
        models = {name: fitted[(name, *pair) if how == "disjoint" else (name, "", "")]
                  for name in backends}
        rows += score(case, models, training.of_site(case.target))
    return rows


def backend_named(text: str) -> Backend:
    """Create the backend `name` or `name:option=value,option=value`, not fitted yet."""
    name, _, options = text.partition(":")
    kind = registry.get(name)
    pairs = dict(option.split("=") for option in options.split(",") if option)
    return kind(kind.config_from({k: float(v) if v.replace(".", "").isdigit() else v
                                  for k, v in pairs.items()}))


def disjoint(cohort: Cohort, source: str, target: str) -> Cohort:
    """Divide subjects: half at the source site, the other half at the target site."""
    subjects = list(cohort.subjects)
    here, there = set(subjects[::2]), set(subjects[1::2])
    return cohort.where(lambda s: (s.site == source and s.subject in here)
                        or (s.site == target and s.subject in there))


def score(case: TruthCase, models: dict[str, Backend], target_scans: Cohort) -> list[dict]:
    """Return PSNR and SSIM of one case for every method."""
    truth = read_volume(case.truth, case.mask)
    native = read_volume(case.item.paths.image("preproc"), case.item.paths.mask())
    values = np.concatenate([scan.read().in_mask()[::7] for scan in target_scans])
    low, middle, high = np.percentile(values, [0.5, 50, 99.5])
    candidates = dict(candidates_of(case, models, native, float(middle)))
    return [{"scan": case.item.scan.scan_id, "source": case.item.scan.site, "target": case.target,
             "method": name,
             "psnr": psnr(truth.data, result, truth.mask, float(high - low)),
             "ssim": ssim(truth.data, result, truth.mask, float(high - low)),
             "leveled": leveled(truth, result, float(high - low)),
             "contrast": contrast_error(case, result, truth)}
            for name, result in candidates.items()]


def leveled(truth: Volume, result: np.ndarray, width: float) -> float:
    """Return PSNR after the gain that maximizes it."""
    y, t = (image[truth.mask].astype(np.float64) for image in (result, truth.data))
    return psnr(truth.data, result * np.float32((y @ t) / (y @ y)), truth.mask, width)


def contrast_error(case: TruthCase, result: np.ndarray, truth: Volume) -> float:
    """Return log(WM median / GM median) minus that of the truth; NaN without labels."""
    if case.labels is None:
        return float("nan")
    labels = np.where(truth.mask, read_volume(case.labels).data, 0)
    after, wanted = ([float(np.median(image[labels == code])) for code in (2, 3)]
                     for image in (result, truth.data))
    return float(np.log(after[1] / after[0]) - np.log(wanted[1] / wanted[0]))


def candidates_of(
    case: TruthCase, models: dict[str, Backend], native: Volume, middle: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield method and image on the subject's own grid."""
    yield "none", native.data
    yield "scaled", native.data * np.float32(middle / np.median(native.in_mask()))
    template = case.item.scan.read()
    matrix = read_itk_affine(case.item.paths.to_template)
    for name, model in models.items():
        scan = case.item.scan
        change = change_of(model, template, model.target(case.target), source=scan.site,
                           covariates={**scan.covariates, "age": scan.age, "sex": scan.sex})
        yield name, apply_with_head(change, native, matrix).data


def report(rows: list[dict]) -> None:
    """Print means by method and by pair of sites."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    pairs = sorted({(row["source"], row["target"]) for row in rows})
    print(f"n = {len(rows) // len(methods)} cases; PSNR dB / SSIM, mean (minimum)"
          "; last: absolute error of log GM/WM contrast")
    print("| pair | " + " | ".join(methods) + " |")
    print("|---" * (len(methods) + 1) + "|")
    for pair in [*pairs, None]:
        cells = []
        for method in methods:
            chosen = [r for r in rows if r["method"] == method
                      and pair in (None, (r["source"], r["target"]))]
            p, s = [r["psnr"] for r in chosen], [r["ssim"] for r in chosen]
            cells.append(f"{np.mean(p):.1f} ({min(p):.1f}) / {np.mean(s):.3f} ({min(s):.3f})")
        name = "**all**" if pair is None else f"{pair[0]} > {pair[1]}"
        print(f"| {name} | " + " | ".join(cells) + " |")
    level = [np.mean([r["leveled"] for r in rows if r["method"] == m]) for m in methods]
    print("| PSNR at the best gain | " + " | ".join(f"{value:.1f}" for value in level) + " |")
    contrast = [np.mean([abs(r["contrast"]) for r in rows if r["method"] == m]) for m in methods]
    print("| contrast | " + " | ".join(f"{value:.3f}" for value in contrast) + " |")


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
