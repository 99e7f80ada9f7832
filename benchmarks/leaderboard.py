"""Leaderboard: evaluate all registered backends in the same way.

    python benchmarks/leaderboard.py WORK [--phantom [FOLDER]] [--traveling OUT] [--sites OUT]
        [--backends A B] [--set METHOD.NAME=VALUE ...] [--minutes M] [--resolution MM]
        [--coarsen MM] [--folds 4] [--tissues] [--markdown docs/benchmarks.md]

Harmonized images and numbers are stored in WORK, so adding a backend does not repeat the others.
Three kinds of data can be used:

* `--phantom`: simulated subjects on four scanners, made in WORK, or a folder with cohort.tsv as
  written by `write_aligned`;
* `--traveling`: an output folder of this app whose subjects were scanned at several sites;
* `--sites`: an output folder without traveling subjects, for the questions scanner, biology and
  anatomy.

Output folders need the preprocess stage only.

Cross-validation: subjects are divided into folds, and each fold is harmonized by models fitted on
the other folds. Methods with networks train for M minutes per fold (default: their own number of
steps). Their models are stored in WORK.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import report_errors  # noqa: E402
from sections import put_section  # noqa: E402

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.deep.training.settings import Resources  # noqa: E402
from harmonizer.errors import HarmonizerError  # noqa: E402
from harmonizer.evaluation.run import COMBAT, EvaluationResult, evaluate  # noqa: E402
from harmonizer.evaluation.statistics.resampling import Statistics  # noqa: E402
from harmonizer.evaluation.verdicts import compute_verdicts  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from harmonizer.methods.base import Backend  # noqa: E402
from harmonizer.methods.statistical.tissue_matching import SEGMENTERS  # noqa: E402
from harmonizer.phantom import SCANNERS  # noqa: E402
from harmonizer.phantom.aligned import write_aligned  # noqa: E402
from harmonizer.preprocessing.transforms import resample  # noqa: E402
from harmonizer.segmentation.predict import NetworkSegmenter  # noqa: E402
from harmonizer.segmentation.segmentations import CachedSegmenter, Segment  # noqa: E402
from harmonizer.template import load_template, tissue_priors  # noqa: E402
from harmonizer.volume import write_mask, write_volume  # noqa: E402
from pipelines.outputs.collect import cohort_of, find_preprocessed  # noqa: E402
from pipelines.settings import named_value  # noqa: E402

SUBJECTS, TRAVELING_SUBJECTS = 8, 4  # of the phantom: per scanner, and besides
RESCALED = "only rescaled"
COLUMNS = (  # heading, test, reference or tissue, digits
    ("site F1", "site_f1_retrained", {}, 2),
    ("distance, R", "distribution_distance", {"tissue": "brain"}, 3),
    ("PSNR, dB", "traveling_pair", {"reference": "psnr"}, 1),
    ("SSIM", "traveling_pair", {"reference": "ssim"}, 3),
    ("RMSE, R", "traveling_pair", {"reference": "rmse"}, 4),
    ("identified", "identification", {}, 2),
    ("GM site R²", "marginal_r2", {"tissue": "GM"}, 2),
    ("GM site + subject R²", "conditional_r2", {"tissue": "GM"}, 2),
    ("age R²", "age_r2", {}, 2),
    ("flagged", "anatomy_flagged", {}, 2),
)
MARKS = {"yes": "yes", "partly": "partly", "no": "no", "unknown": "?"}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print, and put the section into the markdown file where one is named."""
    given = _parser().parse_args(argv)
    cohorts = dict(_cohorts(given))
    if not cohorts:
        print("name at least one of --phantom, --traveling, --sites.", file=sys.stderr)
        return 2
    keep_segmentations(given.work / "segmentations")
    parts = [f"`{_command(given)}`", __doc__.split("\n\n")[-1].strip()]
    for title, cohort in cohorts.items():
        parts.append(board(title, cohort, given))
        print(parts[-1], flush=True)
    if given.markdown:
        put_section(given.markdown, "Leaderboard", "\n\n".join(parts))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--phantom", type=Path, nargs="?", const=Path("made"))
    parser.add_argument("--traveling", type=Path, help="output folder with traveling subjects")
    parser.add_argument("--sites", type=Path, help="output folder with subjects of one site each")
    parser.add_argument("--backends", nargs="+", default=list(registry.names()))
    parser.add_argument("--set", nargs="*", default=[], metavar="METHOD.NAME=VALUE",
                        help="options of methods, such as cacd.preset=small")
    parser.add_argument("--minutes", type=float, help="training time for each fold")
    parser.add_argument("--modality", default="T1w")
    parser.add_argument("--resolution", type=int, default=1, help="of the output folders, mm")
    parser.add_argument("--coarsen", type=int, metavar="MM",
                        help="bring traveling and sites to this grid first: 2 takes an eighth of "
                        "the time of 1")
    parser.add_argument("--target", help="site; default: the largest")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--tissues", action="store_true", help="segment every image")
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--nprocs", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="file whose section is replaced")
    return parser


def _command(given: argparse.Namespace) -> str:
    """Return the command line without the folders of this computer."""
    words = ["python benchmarks/leaderboard.py WORK"]
    words += [f"--{name}" + ("" if name == "phantom" else " OUT")
              for name in ("phantom", "traveling", "sites") if getattr(given, name)]
    if list(given.backends) != list(registry.names()):
        words.append(f"--backends {' '.join(given.backends)}")
    words += [f"--set {' '.join(given.set)}"] if given.set else []
    words += [f"--minutes {given.minutes:g}"] if given.minutes else []
    words += [f"--coarsen {given.coarsen}"] if given.coarsen else []
    words += ["--tissues"] if given.tissues else []
    return " ".join([*words, f"--folds {given.folds}"])


def keep_segmentations(folder: Path) -> None:
    """Cache segmentations, so that each image is segmented once for all folds and calls."""
    for name, make in SEGMENTERS.items():
        SEGMENTERS[name] = partial(_keeping, make, folder)


def _keeping(make: Callable[[], Segment], folder: Path) -> Segment:
    return CachedSegmenter(make(), folder)


def _cohorts(given: argparse.Namespace) -> Iterator[tuple[str, Cohort]]:
    if given.phantom is not None:
        folder = given.work / "phantom" if str(given.phantom) == "made" else given.phantom
        if not (folder / "cohort.tsv").is_file():
            write_aligned(folder, SCANNERS, subjects=SUBJECTS, design="mixed",
                          traveling_subjects=TRAVELING_SUBJECTS)
        yield "Phantom", Cohort.from_tsv(folder / "cohort.tsv")
    for title, folder in (("Traveling subjects", given.traveling), ("Sites", given.sites)):
        if folder is not None:
            found = find_preprocessed(folder.resolve(), given.resolution, (given.modality,))
            cohort = cohort_of(found)
            yield title, (cohort if given.coarsen is None else coarsened(
                cohort, given.coarsen, given.work / f"{_label(title)}-{given.coarsen}mm"))


def coarsened(cohort: Cohort, resolution_mm: int, folder: Path) -> Cohort:
    """Return the cohort on the template grid of another resolution; existing files are reused.

    Tissue maps are not resampled: methods segment the coarse images.
    """
    grid, done = load_template(resolution_mm), []
    for scan in cohort:
        image, mask = (folder / f"{scan.scan_id}{end}.nii.gz" for end in ("", "_mask"))
        if not mask.is_file():
            volume = resample(scan.read(), grid, antialias=True)
            write_volume(image, volume.with_data(np.where(volume.mask, volume.data, 0)))
            write_mask(mask, volume.mask, volume.affine)
        done.append(replace(scan, image=image, mask=mask, tissues={}))
    return Cohort(tuple(done))


def _label(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def board(title: str, cohort: Cohort, given: argparse.Namespace) -> str:
    """Return the table of one data set."""
    target = given.target if given.target in cohort.sites else cohort.largest_site
    work = given.work / _label(title)
    variants, seconds, failed = {}, {}, []
    for name in given.backends:
        started = time.process_time()
        try:
            variants[name] = harmonized(name, cohort, target, work / name, given)
        except HarmonizerError as error:
            failed.append(f"{name} could not take part: {error}")
        seconds[name] = (time.process_time() - started) / len(cohort)
    resolution = int(round(float(cohort.scans[0].read().spacing[0])))
    segment = (CachedSegmenter(NetworkSegmenter(quick=True), work / "cache")
               if given.tissues else None)
    ruling = evaluate(cohort, variants, target, segment=segment,
                     priors=tissue_priors(resolution), permutations=given.permutations,
                     workers=given.nprocs, cache=work / "cache", covariates=_known(cohort))
    ruling.statistics.to_tsv(work / "group_statistics.tsv")
    subjects = len(cohort.subjects)
    head = (f"### {title}\n\n{len(cohort)} scans of {subjects} subjects at "
            f"{len(cohort.sites)} sites, "
            f"{resolution} mm, to {target}.")
    return "\n".join([head, "", *table(ruling, list(variants)), *(f"\n{line}" for line in failed)])


def _known(cohort: Cohort) -> tuple[str, ...]:
    return tuple(n for n in ("age", "sex") if any(getattr(s, n) is not None for s in cohort))


def harmonized(name: str, cohort: Cohort, target: str, folder: Path, given: argparse.Namespace
               ) -> Cohort:
    """Harmonize every scan by a model fitted on other subjects; existing images are reused."""
    done = []
    for number, held in enumerate(dealt(cohort, given.folds)):
        rest = cohort.where(lambda scan, held=held: scan.subject not in held)
        model = None
        for scan in cohort.of_subjects(held):
            path = folder / f"{scan.scan_id}.nii.gz"
            if not path.is_file():
                model = model or fitted(name, rest, folder / f"fold-{number}", given)
                result = model.harmonize(
                    scan.read(), model.target(target), source=scan.site,
                    covariates={**scan.covariates, "age": scan.age, "sex": scan.sex},
                    tissues=scan.read_tissues())
                write_volume(path, result)
            done.append(replace(scan, image=path))
    return Cohort(tuple(done))


def fitted(name: str, cohort: Cohort, folder: Path, given: argparse.Namespace) -> Backend:
    """Fit a method on a cohort; a training in the folder is resumed."""
    kind = registry.get(name)
    own = [word.removeprefix(f"{name}.") for word in given.set if word.startswith(f"{name}.")]
    backend: Any = kind(kind.config_from(dict(map(named_value, own))))
    if kind.capabilities.trained:
        backend.resources = Resources(folder=folder, max_minutes=given.minutes)
    backend.fit(cohort, seed=1)
    if kind.capabilities.trained:
        backend.save(folder / "model")
    return backend


def dealt(cohort: Cohort, folds: int) -> list[list[str]]:
    """Divide subjects into `folds` parts, site by site, so that every part has all sites."""
    home = {who: min(s.site for s in cohort if s.subject == who) for who in cohort.subjects}
    order = sorted(home, key=lambda who: (home[who], who))
    count = max(2, min(folds, len(order)))
    return [order[part::count] for part in range(count)]


def table(ruling: EvaluationResult, methods: Sequence[str]) -> list[str]:
    """Return a table of unharmonized and rescaled images, every method, and ComBat as Markdown."""
    rows = [("unharmonized", "", "before"), (RESCALED, "", "rescaled"),
            *((name, name, "") for name in methods), ("ComBat on features", COMBAT, "")]
    cells = {name: [_cell(ruling.statistics, *column[1:], backend, stage)
                    for column in COLUMNS] for name, backend, stage in rows}
    shown = [i for i in range(len(COLUMNS)) if any(row[i] for row in cells.values())]
    chance = ruling.statistics.select(name="site_chance", backend="").rows
    lines = ["| method | " + " | ".join(COLUMNS[i][0] for i in shown)
             + " | scanner gone | subject there | biology there | anatomy stayed |",
             "|---" * (len(shown) + 5) + "|"]
    for name, backend, _ in rows:
        if not any(cells[name]):
            continue
        verdicts = ([MARKS[a.answer] for a in compute_verdicts(ruling.statistics, name)]
                    if backend in methods else [""] * 4)
        lines.append("| " + " | ".join([name, *(cells[name][i] for i in shown), *verdicts]) + " |")
    if chance and chance[0].known:
        lines += ["", f"Chance guesses the site with an F1 of {chance[0].low:.2f} to "
                  f"{chance[0].high:.2f}."]
    return lines


def _cell(statistics: Statistics, test: str, more: dict[str, str], digits: int, backend: str,
          stage: str) -> str:
    found = statistics.select(name=test, backend=backend, **more)
    found = found.select(stage=stage) if stage else found
    known = [row for row in found.rows if row.known]
    if not known or (stage == "rescaled" and test != "traveling_pair"):
        return ""
    value = known[0].effect
    return "< -10" if value < -10 and test == "age_r2" else f"{np.round(value, digits):.{digits}f}"


if __name__ == "__main__":
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    raise SystemExit(report_errors(main))
