"""Evaluate DISARM as in its paper, on phantom traveling subjects: to a site, and scanner-free.

    python benchmarks/disarm.py MODEL CASES --fit FOLDER [--subjects 3] [--target aspen]
        [--markdown docs/benchmarks.md]

MODEL was trained by `benchmarks/trained.py WORK --backend disarm` (WORK/training/model) on the
subjects of FOLDER (WORK/fit). CASES are its validation subjects (WORK/held). Each of them was
scanned at the four scanners of the fit and at a fifth that is not in the fit. All five scans are
harmonized to `--target`, and to the scanner-free target. Columns:

* *differences*: root mean square difference between two scans of one subject, each at median 1,
  over their range; mean over pairs of known scanners, and over pairs with the fifth;
* *structure*: structure term of SSIM between a scan and its result;
* *Anderson-Darling*: p of 999 permutations for the mean gray levels of the scanners, which are
  treated as independent, as in the paper;
* *codes named*: fraction of scans whose scanner is found from the anatomy code by the
  discriminator of the training;
* *scanner found*: the same by discriminant analysis of quantiles, fitted on the subjects of the
  fit: from the scan, from the baseline (scanner-free), and from the codes of both.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from scanner_found import judge, levels  # noqa: E402
from sections import put_section  # noqa: E402
from trained import cases_of, intensity_range, parser_for_a_model  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.evaluation.metrics.distribution import LEVELS  # noqa: E402
from harmonizer.evaluation.metrics.image import ssim_structure  # noqa: E402
from harmonizer.evaluation.statistics.distribution_tests import anderson_darling  # noqa: E402
from harmonizer.methods.base import ScanContext  # noqa: E402
from harmonizer.methods.learned.disarm.backend import Disarm  # noqa: E402
from harmonizer.methods.target import Target  # noqa: E402
from harmonizer.phantom import UNSEEN  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402

Scans = dict[str, dict[str, Volume]]
Method = Callable[[Volume, str], Volume]


def main(argv: Sequence[str] | None = None) -> int:
    """Score both ways, print; put the section into the markdown file if one is named."""
    given = parser_for_a_model(__doc__).parse_args(argv)
    model = Disarm.load(given.model)
    scans = scans_of(given.cases, given.subjects, given.target)
    aims = {f"to {given.target}": model.target(given.target),
            "scanner-free": model.target("scanner-free")}
    parts = [table(name, methods(model, aim), scans) for name, aim in aims.items()]
    found = found_from(model, Cohort.from_tsv(given.fit / "cohort.tsv"), scans,
                       aims["scanner-free"])
    text = "\n\n".join([f"`{_command(given)}`", *parts, " ".join([
        f"{given.subjects} subjects at {len(next(iter(scans.values())))} scanners. Codes named: "
        f"{named(model, scans):.2f} of those at scanners of the fit (chance "
        f"{1 / len(model.model_.sites):.2f}). Scanner found:",
        ", ".join(f"{share:.2f} from the {what}" for what, share in found.items()) + ".",
        *model.training_facts()])])
    print(text)
    if given.markdown:
        put_section(given.markdown, "DISARM, as its paper judges it", text)
    return 0


def _command(given: argparse.Namespace) -> str:
    return (f"python benchmarks/disarm.py MODEL CASES --fit FOLDER --subjects {given.subjects} "
            f"--target {given.target}")


def scans_of(folder: Path, subjects: int, target: str) -> Scans:
    """Return subject -> scanner -> scan."""
    scans: Scans = {}
    for case in cases_of(folder, subjects, [target]):
        scans.setdefault(case.subject, {})[case.source] = case.scan
    return scans


def methods(model: Disarm, aim: Target) -> dict[str, Method]:
    """Return the methods: scaling to median 1, the baseline, and DISARM."""
    return {
        "scaled": lambda scan, site: scan.with_data(scan.data / np.median(scan.in_mask())),
        f"{model.config.baseline} (its baseline)": lambda scan, site: model.baseline_only(
            scan, aim, ScanContext(source=site)),
        f"disarm, {model.residual_weight_:.0%} of its change": lambda scan, site: model.harmonize(
            scan, aim, source=site),
    }


def table(name: str, rows: dict[str, Method], scans: Scans) -> str:
    """Return the numbers of each method over all subjects as Markdown."""
    lines = [f"| {name} | differences, known scanners, % | with the unseen, % | structure | "
             "Anderson-Darling, p |", "|---|---|---|---|---|"]
    for method, change in rows.items():
        after = {who: {site: change(scan, site) for site, scan in mine.items()}
                 for who, mine in scans.items()}
        differences: dict[bool, list[float]] = {False: [], True: []}
        for mine in after.values():
            for one, two in itertools.combinations(mine, 2):
                differences[UNSEEN.name in (one, two)].append(difference_of(mine[one], mine[two]))
        kept = [ssim_structure(after[who][site].data, scan.data, scan.mask,
                               intensity_range(after[who][site]), intensity_range(scan))
                for who, mine in scans.items() for site, scan in mine.items()]
        lines.append(f"| {method} | {100 * np.mean(differences[False]):.2f} | "
                     f"{100 * np.mean(differences[True]):.2f} | {np.mean(kept):.4f} | "
                     f"{same_levels(after):.2f} |")
    return "\n".join(lines)


def difference_of(one: Volume, two: Volume) -> float:
    """Return the root mean square difference of two scans at median 1, over their mean range."""
    mask = one.mask & two.mask
    a, b = (v.data[mask] / np.median(v.data[mask]) for v in (one, two))
    low, high = np.mean([np.quantile(v, [0.005, 0.995]) for v in (a, b)], axis=0)
    return float(np.sqrt(np.mean((a - b) ** 2)) / (high - low))


def same_levels(after: Scans) -> float:
    """Return p of the Anderson-Darling test over all scanners."""
    flat = [(site, scan) for mine in after.values() for site, scan in mine.items()]
    levels = np.array([np.quantile(scan.in_mask(), LEVELS) for _, scan in flat])
    return float(anderson_darling(levels, [site for site, _ in flat]).p)


def named(model: Disarm, scans: Scans) -> float:
    """Return the fraction of scans whose scanner the discriminator of codes finds."""
    import torch

    right = []
    for mine in scans.values():
        for site in model.model_.sites:
            output = np.zeros(len(model.model_.sites))
            for code, m in codes_of(model, mine[site]):
                with torch.no_grad():
                    output += model.model_.networks["content"](
                        code, model.model_.tensor(m[None, None]))[0].cpu().numpy() * m.sum()
            right.append(model.model_.sites[int(output.argmax())] == site)
    return float(np.mean(right))


def codes_of(model: Disarm, volume: Volume) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield anatomy code (1, channels, i/2, j/2, k/2) and mask (i, j, k) of patches with brain."""
    import torch

    from harmonizer.deep.patches import PatchGrid, fit_patch

    scan = model.inference.network_input(volume)
    patch = fit_patch(model.config.patch, scan.image.shape)
    grid = PatchGrid(scan.image.shape, patch, patch)
    for x, m in zip(grid.cut(scan.image), grid.cut(scan.mask)):
        if m.any():
            with torch.no_grad():
                yield model.model_.networks["anatomy"].code(model.model_.tensor(x[None, None])), m


def found_from(model: Disarm, cohort: Cohort, scans: Scans, free: Target) -> dict[str, float]:
    """Return the fraction of scans whose scanner is found: from scans, baselines, codes of both."""
    known = [(scan.site, scan.read(), scan.read_tissues()) for scan in cohort]
    held = [(site, mine[site], {}) for mine in scans.values() for site in model.model_.sites]
    sites, rows = zip(
        *(
            (site, _levels_of_all(model, volume, free, ScanContext(site, tissues=tissues)))
            for site, volume, tissues in [*known, *held]
        )
    )
    n = len(known)
    return {what: float(judge().fit([row[what] for row in rows[:n]], sites[:n])
                        .score([row[what] for row in rows[n:]], sites[n:])) for what in rows[0]}


def _levels_of_all(model: Disarm, volume: Volume, free: Target, context: ScanContext
                   ) -> dict[str, np.ndarray]:
    """Return the features of one scan: of its intensities, its baseline and the codes of both."""
    first = model.baseline_only(volume, free, context)
    return {"scan": levels_of(volume), "baseline": levels_of(first),
            "codes of the scan": levels_of_codes(model, volume),
            "codes of the baseline": levels_of_codes(model, first)}


def levels_of(volume: Volume) -> np.ndarray:
    """Return 21 quantiles of a scan at median 1."""
    values = volume.in_mask()
    return levels(values / np.median(values))


def levels_of_codes(model: Disarm, volume: Volume) -> np.ndarray:
    """Return 21 quantiles of each channel of the anatomy code in the brain, (21 * channels,)."""
    values = [code[0].cpu().numpy()[:, m[::2, ::2, ::2] > 0] for code, m in codes_of(model, volume)]
    return levels(np.concatenate(values, axis=1))


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
