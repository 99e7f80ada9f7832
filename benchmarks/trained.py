"""Score a method with networks against voxelwise truth: trained and tested on different phantoms.

    python benchmarks/trained.py WORK --backend ihf [--minutes 12] [--set name=value ...]
        [--fit FOLDER] [--subjects 6] [--held 3] [--targets aspen dogwood]
        [--markdown docs/benchmarks.md]

Subjects of `harmonizer.phantom` are simulated as after preprocessing, at 2 mm, each scanned at one
of four scanners. The method and training-free methods are fitted on them. Validation subjects are
scanned at each of the four scanners and at a fifth that is not in the fit. The truth is the same
scan as acquired by the target scanner, including noise. PSNR and SSIM are computed in the brain; R
is the 0.5 to 99.5 % range of the truth. Rows and columns:

* *scaled*: the scan with the median of the truth;
* *same site*: for scans of the target site, RMSE in R between scan and result, with and without the
  site label;
* *structure*: structure term of SSIM against the source, mean over known and unknown scanners.

Subjects, scans and the training are stored in WORK, and the training resumes. FOLDER is an existing
phantom (`write_aligned`), of which subjects without travels are used.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import put_section  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.evaluation.metrics.image import psnr, rmse, ssim, ssim_structure  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from harmonizer.methods.base import Backend  # noqa: E402
from harmonizer.phantom import SCANNERS, UNSEEN  # noqa: E402
from harmonizer.phantom.aligned import aligned_image, write_aligned  # noqa: E402
from harmonizer.phantom.anatomy import make_subject  # noqa: E402
from harmonizer.phantom.dataset import plan_participants  # noqa: E402
from harmonizer.phantom.scanner import render  # noqa: E402
from harmonizer.volume import Volume, read_volume, write_mask, write_volume  # noqa: E402
from pipelines.settings import named_value  # noqa: E402

FIT_SEED, HELD_SEED = 1, 77
NULLS = ("moment_matching", "spectrum_swap", "histogram_matching", "tissue_matching")
COMPARED = NULLS[-2:]


@dataclass(frozen=True)
class TruthCase:
    """A scan, its target, and the true result."""

    subject: str
    source: str
    target: str
    scan: Volume
    truth: Volume

    @property
    def group(self) -> str:
        """Column of the table to which the case belongs."""
        if self.source == self.target:
            return "same"
        return "unseen" if self.source == UNSEEN.name else "known"


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, train, score, print, and put the section into the Markdown file if one is named."""
    given = _parser().parse_args(argv)
    subjects = cohort_of(given.fit or given.work / "fit", given.subjects)
    nulls = {name: registry.get(name)().fit(subjects) for name in NULLS}
    backend, seconds = trained(given, subjects)
    cases = list(cases_of(given.work / "held", given.held, given.targets))
    numbers, speed = scores(cases, {**nulls, given.backend: backend})
    text = "\n\n".join([f"`{_command(given)}`", __doc__.split("\n\n")[2].strip(),
                        *table(numbers, given.backend), _facts(backend, seconds, speed, cases)])
    print(text)
    (given.work / f"{given.backend}.json").write_text(json.dumps(numbers), encoding="utf-8")
    if given.markdown:
        put_section(given.markdown, given.title or given.backend.upper(), text)
    return 0


def parser_for_a_model(doc: str, subjects: int = 3) -> argparse.ArgumentParser:
    """Return a parser for benchmarks of a model that was trained here."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=subjects)
    parser.add_argument("--target", default="aspen")
    parser.add_argument("--markdown", type=Path)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--subjects", type=int, default=6, help="of each scanner in the fit")
    parser.add_argument("--held", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=["aspen", "dogwood"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", default="training", help="of the training, in WORK")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--title")
    return parser


def _command(given: argparse.Namespace) -> str:
    chosen = f" --set {' '.join(given.set)}" if given.set else ""
    fit = " --fit FOLDER" if given.fit else ""
    return (f"python benchmarks/trained.py WORK --backend {given.backend} --minutes "
            f"{given.minutes:g}{fit} --subjects {given.subjects} --held {given.held} --targets "
            f"{' '.join(given.targets)}{chosen}")


def cohort_of(folder: Path, subjects: int) -> Cohort:
    """Simulate the subjects of the fit once."""
    if not (folder / "cohort.tsv").is_file():
        write_aligned(folder, SCANNERS, subjects=subjects, design="nested", seed=FIT_SEED)
    known = Cohort.from_tsv(folder / "cohort.tsv")
    home = known.where(lambda scan: scan.session is None)
    return Cohort(tuple(scan for site in home.sites
                        for scan in home.of_site(site).scans[:subjects]))


def trained(given: argparse.Namespace, subjects: Cohort) -> tuple[Backend, float]:
    """Train the backend; return it with the CPU seconds of this call."""
    from harmonizer.deep.training.settings import Resources

    kind = registry.get(given.backend)
    backend: Any = kind(kind.config_from(dict(map(named_value, given.set))))
    if kind.capabilities.trained:
        backend.resources = Resources(folder=given.work / given.folder, threads=given.threads,
                                      max_minutes=given.minutes)
    started = time.process_time()
    backend.fit(subjects, seed=1)
    backend.save(given.work / given.folder / "model")
    return backend, time.process_time() - started


def cases_of(folder: Path, held: int, targets: Sequence[str]) -> Iterator[TruthCase]:
    """Simulate the scans of each validation subject and their truth for each target, once."""
    for who in plan_participants(held, SCANNERS, HELD_SEED):
        shown: dict[str, np.ndarray] = {}
        subject = None
        for source in (*SCANNERS, UNSEEN):
            for target in (s for s in (*SCANNERS, UNSEEN) if s.name in targets):
                stem = f"{who.label}_{source.name}_{target.name}"
                paths = [folder / f"{stem}_{what}.nii.gz" for what in ("scan", "truth", "mask")]
                if not paths[2].is_file():
                    subject = subject or make_subject(who.seed, who.age, who.sex, 2.0)
                    _make(paths, subject, source, target, shown)
                yield TruthCase(who.label, source.name, target.name, read_volume(paths[0],
                paths[2]),
                           read_volume(paths[1], paths[2]))


def _make(paths: list[Path], subject: Any, source: Any, target: Any,
          shown: dict[str, np.ndarray]) -> None:
    """Return scan, truth and mask; a scan of the target site is its own truth."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for scanner in (source, target):
        if scanner.name not in shown:
            shown[scanner.name] = render(subject, scanner, "T1w")
    scan = truth = aligned_image(subject, source, rendered=shown[source.name])
    if source is not target:
        truth = aligned_image(subject, source, as_scanner=target, rendered=shown[target.name])
    write_volume(paths[0], scan)
    write_volume(paths[1], truth)
    write_mask(paths[2], scan.mask, scan.affine)


def scores(cases: Sequence[TruthCase], backends: dict[str, Backend]
           ) -> tuple[list[dict[str, Any]], float]:
    """Return numbers of each case and method, and seconds per volume of the last method."""
    rows, spent = [], dict.fromkeys(backends, 0.0)
    for case in cases:
        rows.append(row_of("scaled", case, scaled(case)))
        for name, backend in backends.items():
            started = time.process_time()
            target = backend.target(case.target)
            result = backend.harmonize(case.scan, target, source=case.source)
            spent[name] += time.process_time() - started
            rows.append(row_of(name, case, result))
            if case.group == "same":
                rows.append(row_of(name, replace(case, source="?"),
                                   backend.harmonize(case.scan, target), "same, not named"))
    return rows, list(spent.values())[-1] / len(cases)


def scaled(case: TruthCase) -> Volume:
    """Scale a scan to the median of the truth."""
    gain = np.median(case.truth.in_mask()) / max(np.median(case.scan.in_mask()), 1e-9)
    return case.scan.with_data(case.scan.data * np.float32(gain))


def row_of(method: str, case: TruthCase, result: Volume, group: str | None = None
           ) -> dict[str, Any]:
    """Return the numbers of one result."""
    truth, mask = case.truth, case.truth.mask
    same = np.array_equal(result.data, truth.data)
    one = (result.data, truth.data, mask, intensity_range(truth))
    return {"method": method, "group": group or case.group, "subject": case.subject,
            "source": case.source, "target": case.target, "rmse": rmse(*one),
            "psnr": None if same else psnr(*one), "ssim": ssim(*one),
            "structure": ssim_structure(result.data, case.scan.data, mask,
                                        intensity_range(result), intensity_range(case.scan))}


def intensity_range(image: Volume) -> float:
    """Return R of an image: its 0.5 to 99.5 % range in the brain."""
    low, high = np.quantile(image.in_mask(), [0.005, 0.995])
    return float(high - low)


def table(rows: list[dict[str, Any]], method: str) -> list[str]:
    """Return means over cases, and comparisons with training-free methods, as Markdown."""
    lines = ["| method | known scanner, PSNR dB / SSIM | unseen scanner, PSNR dB / SSIM "
             "| same site named, RMSE | not named | structure |", "|---|---|---|---|---|---|"]
    for name in ("scaled", *NULLS, method):
        def mean(number: str, *groups: str, name: str = name) -> float:
            return _mean(rows, name, groups, number)

        cells = [f"{mean('psnr', g):.2f} / {mean('ssim', g):.4f}" for g in ("known", "unseen")]
        cells += [f"{mean('rmse', g):.4f}" for g in ("same", "same, not named")]
        cells.append(f"{mean('structure', 'known', 'unseen'):.4f}")
        lines.append(f"| {name} | " + " | ".join(cells).replace("nan", "") + " |")
    output = [_against(rows, method, null, group)
            for null in COMPARED for group in ("known", "unseen")]
    return ["\n".join(lines), " ".join(s for s in output if s)]


def _mean(rows: list[dict[str, Any]], method: str, groups: Sequence[str], name: str) -> float:
    values = [r[name] for r in rows if r["method"] == method and r["group"] in groups
              and r[name] is not None]
    return float(np.mean(values)) if values else float("nan")


def _against(rows: list[dict[str, Any]], method: str, null: str, group: str) -> str:
    """Return the difference from another method, with the standard deviation over subjects."""
    def of(name: str) -> dict[tuple[str, ...], float]:
        return {(r["subject"], r["source"], r["target"]): r["psnr"] for r in rows
                if (r["method"], r["group"]) == (name, group)}

    ours, theirs = of(method), of(null)
    if not ours:
        return ""
    differences = {key: ours[key] - theirs[key] for key in ours}
    means = [np.mean([v for k, v in differences.items() if k[0] == p])
             for p in sorted({k[0] for k in differences})]
    values = np.array(list(differences.values()))
    subjects = (f"sd over subjects {np.std(means, ddof=1):.2f}" if len(means) > 1
                else "one subject")
    return (f"{group.capitalize()} scanners: {method} minus {null} {values.mean():+.2f} dB "
            f"({subjects}), from {values.min():+.2f} to {values.max():+.2f}; better in "
            f"{(values > 0).sum()} of {len(values)} cases.")


def _facts(backend: Any, seconds: float, speed: float, cases: Sequence[TruthCase]) -> str:
    facts = backend.training_facts()
    subjects = len({case.subject for case in cases})
    return " ".join([*facts, f"{seconds:.0f} CPU seconds in this call; {speed:.1f} CPU seconds for "
                     f"a volume of 2 mm. {len(cases)} cases of {subjects} held-out subjects."])


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
