"""Score a model on scanners that are not in its fit: traveling subjects with voxelwise truth.

    python benchmarks/unseen.py OUT --model MODEL ... [--target SITE] [--every 1] [--tsv ROWS.tsv]
                                [--markdown docs/benchmarks.md --title CACD]

OUT holds preprocessed scans of traveling subjects, with all scans of a subject on one grid. Each
MODEL was fitted on other subjects and scanners. For each subject and scanner except SITE, the other
subjects' scans at SITE are the references: models enroll them, and methods without a model are
fitted on them. The truth is the subject's own scan at SITE. Columns, in the brain and on the
subject's own grid:

* PSNR and SSIM, with R = 0.5 to 99.5 % of the references;
* anatomy: structure term of SSIM against the source;
* flicker: through-plane gradient of log(after / before) over that of log(before), template grid;
* seconds of the change.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import put_section, write_rows  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.contrast.intensity_map import IntensityMap  # noqa: E402
from harmonizer.evaluation.metrics.image import psnr, ssim, ssim_structure  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from harmonizer.methods.model_folder import read  # noqa: E402
from harmonizer.methods.native_grid import apply_with_head, change_of  # noqa: E402
from harmonizer.methods.target import Target  # noqa: E402
from harmonizer.preprocessing.transforms import read_itk_affine  # noqa: E402
from harmonizer.volume import Volume, read_volume  # noqa: E402
from pipelines.outputs.collect import Preprocessed, cohort_of, find_preprocessed  # noqa: E402
from pipelines.outputs.tissues import probabilities_of_scan  # noqa: E402

NULLS = ("moment_matching", "histogram_matching", "spectrum_swap")


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = parse(argv)
    found = find_preprocessed(args.out.resolve(), args.resolution, ("T1w",))
    target = args.target or cohort_of(found).largest_site
    models = {name: registry.get(name).load(folder).on(args.device)
              for folder in args.model for name in [read(folder)[0]["Backend"]]}
    rows: list[dict[str, Any]] = []
    items = [item for item in found if item.scan.site != target][::args.every]
    for who, mine in itertools.groupby(items, lambda item: item.scan.subject):
        references = cohort_of([i for i in found if i.scan.subject != who
                                and i.scan.site == target])
        methods = aimed(models, references, target)
        for item in mine:
            rows += score(item, found, target, references, methods)
            print(f"{item.scan.scan_id}: done", file=sys.stderr, flush=True)
            if args.tsv:
                write_rows(rows, args.tsv)
    text = table(rows)
    print(text)
    if args.markdown:
        put_section(args.markdown, args.title, text)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--target", help="site to aim at (default: the largest)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resolution", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="score every n-th scan only")
    parser.add_argument("--tsv", type=Path, help="write every number here")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--title", default="Unseen scanners")
    return parser.parse_args(argv)


def aimed(trained: dict[str, Any], references: Cohort, site: str) -> dict[str, tuple[Any, Target]]:
    """Return method -> (method, its target)."""
    nulls = {name: registry.get(name)().fit(references) for name in NULLS}
    return {**{name: (null, null.target(site)) for name, null in nulls.items()},
            **{name: (model, model.enroll(references, site)) for name, model in trained.items()}}


def score(item: Preprocessed, found: tuple[Preprocessed, ...], site: str, references: Cohort,
          methods: dict[str, tuple[Any, Target]]) -> list[dict[str, Any]]:
    """Return all numbers of one scan."""
    mine = [i for i in found if (i.scan.subject, i.scan.site) == (item.scan.subject, site)]
    truth = read_volume(mine[0].paths.image("preproc"), item.paths.mask())
    native = read_volume(item.paths.image("preproc"), item.paths.mask())
    template = item.scan.read()
    values = np.concatenate([scan.read().in_mask()[::7] for scan in references])
    low, middle, high = np.percentile(values, [0.5, 50, 99.5])
    matrix = read_itk_affine(item.paths.to_template)
    rows = []
    for name, change, seconds in changes(item, template, methods):
        after, on_template = native.data, template.data
        if name == "scaled":
            gain = np.float32(middle / np.median(native.in_mask()))
            after, on_template = gain * after, gain * on_template
        elif change is not None:
            after = apply_with_head(change, native, matrix).data
            on_template = change.apply(template).data
        std = float(high - low)
        own = float(np.ptp(np.percentile(native.in_mask(), [0.5, 99.5])))
        its = float(np.ptp(np.percentile(after[native.mask], [0.5, 99.5])))
        rows.append({
            "scan": item.scan.scan_id, "source": item.scan.site, "method": name,
            "psnr": psnr(truth.data, after, truth.mask, std),
            "ssim": ssim(truth.data, after, truth.mask, std),
            "anatomy": ssim_structure(native.data, after, native.mask, own, its),
            "flicker": flicker(template, on_template), "seconds": seconds})
    return rows


def changes(item: Preprocessed, template: Volume, methods: dict[str, tuple[Any, Target]]) -> Any:
    """Yield (method, its change or None, seconds of the change)."""
    yield "none", None, 0.0
    yield "scaled", None, 0.0
    tissues, own = probabilities_of_scan(item.paths)
    for name, (method, target) in methods.items():
        started = time.monotonic()
        change: IntensityMap = change_of(method, template, target,
                                         tissues=tissues if own else None)
        yield name, change, time.monotonic() - started


def flicker(before: Volume, after: np.ndarray) -> float:
    """Return the mean through-plane gradient of log(after / before) over that of log(before)."""
    assert before.mask is not None
    dim = 0.1 * np.median(before.in_mask())
    inside = before.mask & (before.data > dim) & (after > 0)
    pairs = inside[:, :, 1:] & inside[:, :, :-1]
    own = np.log(np.where(inside, before.data, 1))
    ratio = np.log(np.where(inside, after, 1)) - own
    steps = [np.abs(np.diff(x, axis=2))[pairs].mean() for x in (ratio, own)]
    return float(steps[0] / steps[1])


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over scans, with the gain over histogram matching, as Markdown."""
    null = {row["scan"]: row["psnr"] for row in rows if row["method"] == "histogram_matching"}
    lines = ["| method | PSNR, dB | against histogram matching | SSIM | anatomy | flicker | s |",
             "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        gains = [row["psnr"] - null[row["scan"]] for row in mine]
        mean = {k: np.mean([row[k] for row in mine])
                for k in ("psnr", "ssim", "anatomy", "flicker", "seconds")}
        lines.append(f"| {name} | {mean['psnr']:.2f} | {np.mean(gains):+.2f} ({min(gains):+.2f} to "
                     f"{max(gains):+.2f}) | {mean['ssim']:.3f} | {mean['anatomy']:.3f} | "
                     f"{mean['flicker']:.2f} | {mean['seconds']:.1f} |")
    return f"{len(null)} scans.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
