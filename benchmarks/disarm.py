"""DISARM on phantom people whose truth is known: to a scanner, and scanner-free.

    python benchmarks/disarm.py WORK [--minutes 12] [--people 22] [--fit 22] [--held 3]
        [--judged 3] [--set name=value ...] [--markdown docs/benchmarks.md]

People of `harmonizer.phantom` at 2 mm, as preprocessing leaves them, are scanned at one of four
scanners each and DISARM is fitted on them; other people, held out, are scanned at all four. *To a
scanner*: each scan is brought to each other scanner (of `--targets`); truth is the very same scan
as that scanner would show it, noise and all; PSNR and SSIM in the brain, R is the truth's 0.5 to
99.5 % range.
*Scanner-free*: the root mean square difference between two scans of one person, over the range,
mean over pairs of scanners; *structure* is SSIM's structure term between a scan and its
scanner-free image. *none* is the scan, *scaled* the scan at the truth's (scanner-free: its own)
median. *Codes named*: share of held-out scans whose scanner is found from the anatomy code by the
network that was trained against it.

WORK keeps people, truth and the training, which goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sections import put_section  # noqa: E402

from harmonizer.backends.base import Known  # noqa: E402
from harmonizer.backends.disarm import Disarm  # noqa: E402
from harmonizer.backends.histogram_matching import HistogramMatching  # noqa: E402
from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.evaluation.image import psnr, ssim, ssim_structure  # noqa: E402
from harmonizer.phantom import SCANNERS  # noqa: E402
from harmonizer.phantom.aligned import aligned_image, write_aligned  # noqa: E402
from harmonizer.phantom.anatomy import make_person  # noqa: E402
from harmonizer.phantom.dataset import Participant, plan_participants  # noqa: E402
from harmonizer.phantom.scanner import render  # noqa: E402
from harmonizer.training.settings import Resources  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402
from pipelines.settings import named_value  # noqa: E402

NAMES = [scanner.name for scanner in SCANNERS]
Method = Callable[[Volume, str, Volume], Volume]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, print; put the section into the markdown file if one is named."""
    given = _parser().parse_args(argv)
    everyone = _people(given)
    travellers = [who for who in plan_participants(given.people, SCANNERS, 0, "mixed", given.held)
                  if who.travels]
    labels = {who.label for who in travellers}
    model = _trained(given, _of_the_fit(everyone, labels, given.fit))
    scans = [_scans(given, who) for who in travellers[:given.judged]]
    pairs = _table_of_pairs(model, scans, given.targets)
    print(pairs, *model.training_facts(), sep="\n", flush=True)
    text = "\n\n".join([
        f"`{_command(given)}`", __doc__.split("\n\n")[2].strip(), pairs,
        _table_of_free(model, scans),
        " ".join([f"{len(scans)} held-out people. Codes named: {_named(model, scans):.2f} of them "
                  f"(chance {1 / len(NAMES):.2f}).", _speed(model, scans), *model.training_facts()])
    ])
    print(text)
    if given.markdown:
        put_section(given.markdown, "DISARM", text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--people", type=int, default=22, help="of each scanner")
    parser.add_argument("--fit", type=int, help="of them in the fit; all by default")
    parser.add_argument("--held", type=int, default=3)
    parser.add_argument("--judged", type=int, help="of those held out; all by default")
    parser.add_argument("--targets", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--markdown", type=Path)
    return parser


def _command(given: argparse.Namespace) -> str:
    chosen = f" --set {' '.join(given.set)}" if given.set else ""
    more = "".join(f" --{name} {vars(given)[name]}" for name in ("fit", "judged")
                   if vars(given)[name])
    more += "" if given.targets == NAMES else f" --targets {' '.join(given.targets)}"
    return (f"python benchmarks/disarm.py WORK --minutes {given.minutes:g} --people {given.people} "
            f"--held {given.held}{more}{chosen}")


def _people(given: argparse.Namespace) -> Cohort:
    folder = given.work / "phantom"
    if not (folder / "cohort.tsv").is_file():
        write_aligned(folder, SCANNERS, people=given.people, design="mixed",
                      travellers=given.held, resolution_mm=2)
    return Cohort.from_tsv(folder / "cohort.tsv")


def _of_the_fit(everyone: Cohort, held: set[str], count: int | None) -> Cohort:
    """The first `count` people of each scanner who are not held out."""
    chosen = [subject for site in NAMES
              for subject in [s for s in everyone.of_site(site).subjects if s not in held][:count]]
    return everyone.of_subjects(chosen)


def _trained(given: argparse.Namespace, cohort: Cohort) -> Disarm:
    model = Disarm(Disarm.config_from(dict(map(named_value, given.set))))
    model.resources = Resources(folder=given.work / "training", threads=given.threads,
                                max_minutes=given.minutes)
    model.fit(cohort, seed=1)
    model.save(given.work / "model")
    return model


def _scans(given: argparse.Namespace, who: Participant) -> dict[tuple[str, str], Volume]:
    """(scanner, as seen by) -> scan of one person; kept in WORK/truth."""
    folder = given.work / "truth"
    folder.mkdir(parents=True, exist_ok=True)
    everyone = Cohort.from_tsv(given.work / "phantom" / "cohort.tsv")
    real = {scan.site: scan.read() for scan in everyone.of_subjects([who.label])}
    scans = {(name, name): real[name] for name in NAMES}
    missing = [goal for goal in SCANNERS
               if not all((folder / f"{who.label}_{name}_{goal.name}.npy").is_file()
                          for name in NAMES)]
    person = make_person(who.seed, who.age, who.sex, 2.0) if missing else None
    for goal in missing:
        shown = render(person, goal, "T1w")
        for scanner in SCANNERS:
            seen = aligned_image(person, scanner, "T1w", resolution_mm=2, seen_by=goal,
                                 rendered=shown)
            np.save(folder / f"{who.label}_{scanner.name}_{goal.name}.npy", seen.data)
    for name, goal in itertools.permutations(NAMES, 2):
        data = np.load(folder / f"{who.label}_{name}_{goal}.npy")
        scans[name, goal] = real[name].with_data(data)
    return scans


def _scaled(scan: Volume, site: str, truth: Volume) -> Volume:
    """The scan at the truth's median."""
    gain = np.median(truth.in_mask()) / np.median(scan.in_mask())
    return scan.with_data(scan.data * np.float32(gain))


def _table_of_pairs(model: Disarm, scans: list[dict[tuple[str, str], Volume]],
                    targets: list[str]) -> str:
    """PSNR and SSIM against the truth, mean over people and ordered pairs of scanners."""
    null = HistogramMatching()
    methods: dict[str, Method] = {
        "none": lambda scan, site, truth: scan, "scaled": _scaled,
        "histogram_matching": lambda scan, site, truth: null._map(
            scan, {"quantiles": model.target(site).style["start.quantiles"]}).apply(scan),
        "disarm": lambda scan, site, truth: model.harmonize(scan, model.target(site)),
    }
    rows = ["| to a scanner | PSNR, dB | SSIM | pairs nearer than histogram_matching |",
            "|---|---|---|---|"]
    found = {name: np.array([_compared(method(one[a, a], b, one[a, b]), one[a, b]) for one in scans
                             for a, b in itertools.permutations(NAMES, 2) if b in targets])
             for name, method in methods.items()}
    for name, values in found.items():
        nearer = int((values[:, 0] > found["histogram_matching"][:, 0]).sum())
        rows.append(f"| {name} | {values[:, 0].mean():.2f} | {values[:, 1].mean():.4f} | "
                    f"{nearer} of {len(values)} |")
    return "\n".join(rows)


def _compared(image: Volume, truth: Volume) -> tuple[float, float]:
    low, high = np.quantile(truth.in_mask(), [0.005, 0.995])
    return (psnr(image.data, truth.data, truth.mask, high - low),
            ssim(image.data, truth.data, truth.mask, high - low))


def _table_of_free(model: Disarm, scans: list[dict[tuple[str, str], Volume]]) -> str:
    """How far scans of one person are from each other, and from themselves before."""
    target = model.target("scanner-free")
    methods: dict[str, Callable[[Volume], Volume]] = {
        "scaled": lambda scan: scan,
        model.config.start: lambda scan: model._first_guess(scan, target, Known()),
        "disarm": lambda scan: model.harmonize(scan, target),
    }
    rows = ["| scanner-free | difference of two scans, % of range | structure kept |",
            "|---|---|---|"]
    for name, method in methods.items():
        apart, kept = [], []
        for one in scans:
            after = {site: method(one[site, site]) for site in NAMES}
            apart += [_apart(after[a], after[b]) for a, b in itertools.combinations(NAMES, 2)]
            kept += [_structure(one[site, site], after[site]) for site in NAMES]
        rows.append(f"| {name} | {100 * np.mean(apart):.2f} | {np.mean(kept):.4f} |")
    return "\n".join(rows)


def _apart(one: Volume, two: Volume) -> float:
    """Root mean square difference of two scans at median 1, over their mean range."""
    mask = one.mask & two.mask
    a, b = (v.data[mask] / np.median(v.data[mask]) for v in (one, two))
    low, high = np.mean([np.quantile(v, [0.005, 0.995]) for v in (a, b)], axis=0)
    return float(np.sqrt(np.mean((a - b) ** 2)) / (high - low))


def _structure(before: Volume, after: Volume) -> float:
    scaled = _scaled(before, "", after)
    low, high = np.quantile(after.in_mask(), [0.005, 0.995])
    return ssim_structure(scaled.data, after.data, after.mask, high - low)


def _named(model: Disarm, scans: list[dict[tuple[str, str], Volume]]) -> float:
    """Share of scans whose scanner the discriminator of codes finds."""
    import torch

    right = []
    for one in scans:
        for site in NAMES:
            shown = model._shown(one[site, site])
            unit, mask = shown.unit, shown.mask
            said = np.zeros(len(model.labels_))
            for x, m in model._brain_patches(unit, mask):
                with torch.no_grad():
                    code = model.networks_["anatomy"].code(model._tensor(x[None, None]))
                    said += model.networks_["content"](code, model._tensor(m[None, None])
                                                       )[0].cpu().numpy() * m.sum()
            right.append(model.labels_[int(said.argmax())] == site)
    return float(np.mean(right))


def _speed(model: Disarm, scans: list[dict[tuple[str, str], Volume]]) -> str:
    scan = scans[0][NAMES[0], NAMES[0]]
    target = model.target(NAMES[1])
    started = time.process_time()
    model.harmonize(scan, target)
    return f"A volume of {scan.shape} takes {time.process_time() - started:.1f} CPU seconds."


if __name__ == "__main__":
    raise SystemExit(main())
