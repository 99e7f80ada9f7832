"""Make the gallery: the reports of a phantom study, and the picture of all its brains.

    python tools/gallery.py docs/gallery --folder /scratch/gallery
        [--subjects 10] [--traveling-subjects 4] [--scanners 4] [--voxel-mm 1] [--sloppy]
        [--nprocs N] [--picture docs/images/wall-of-brains.png]

By default, 10 subjects at each of 4 sites and 4 traveling subjects, 56 scans at 1 mm: about 3
processor hours. FOLDER keeps the phantom, the results and the work folder; the same command
continues from there. The gallery has the group report and the reports of a few subjects: the first
of each site, and up to 4 with a flagged image.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harmonizer.errors import HarmonizerError  # noqa: E402
from harmonizer.evaluation.metrics.distribution import QuantileTable  # noqa: E402
from harmonizer.evaluation.table import Metrics  # noqa: E402
from harmonizer.files import atomic_path  # noqa: E402
from harmonizer.phantom.dataset import write_dataset  # noqa: E402
from harmonizer.reports.group import target_curve  # noqa: E402
from harmonizer.reports.wall import make_wall, wall_picture, wall_slice  # noqa: E402
from pipelines.outputs.figures import load_slices  # noqa: E402
from pipelines.outputs.selection import Selection  # noqa: E402
from pipelines.settings import Settings  # noqa: E402
from pipelines.stages.evaluation import rewrite_group_report  # noqa: E402

MAX_FLAGGED_PAGES = 4
SEED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Make the gallery and return the exit code; an error is printed in one line."""
    given = _parser().parse_args(argv)
    out = given.folder / "out"
    try:
        if not (given.folder / "bids").is_dir():
            _write_phantom(given)
        flags = ["--sloppy"] if given.sloppy else []
        flags += ["--nprocs", str(given.nprocs)] if given.nprocs else []
        done = subprocess.run([
            sys.executable, str(ROOT / "run.py"), str(given.folder / "bids"), str(out),
            "participant", "group", "-w", str(given.folder / "work"), *flags])
        if done.returncode not in (0, 1):  # 1: some scans failed, and the report names them
            return done.returncode
        settings = Settings(given.folder / "bids", out, ["participant", "group"],
                            sloppy=given.sloppy)
        selection = Selection(settings, reads_bids_dir=False)
        collect(settings, selection, given.gallery)
        if given.picture:
            write_picture(settings, selection, given.picture)
    except HarmonizerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("gallery", type=Path, help="folder of the reports, such as docs/gallery")
    add("--folder", type=Path, required=True, help="folder of phantom, results and work")
    add("--subjects", type=int, default=10, help="subjects of each site")
    add("--traveling-subjects", type=int, default=4, help="subjects scanned at all sites")
    add("--scanners", type=int, default=4, help="number of sites")
    add("--voxel-mm", type=float, default=1.0, help="smallest voxel side")
    add("--nprocs", type=int, help="processes; default: as many as processors")
    add("--sloppy", action="store_true", help="coarse and fast, to try the command")
    add("--picture", type=Path, help="also write a PNG of one slice of every scan")
    return parser


def _write_phantom(given: argparse.Namespace) -> None:
    """Write the phantom under another name first: an interrupted one is written anew."""
    unfinished = given.folder / "bids-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    write_dataset(unfinished, subjects=given.subjects, scanners=given.scanners, seed=SEED,
                  voxel_mm=given.voxel_mm, design="mixed", truth=False,
                  traveling_subjects=given.traveling_subjects,
                  progress=lambda line: print(line, flush=True))
    unfinished.rename(given.folder / "bids")


def collect(settings: Settings, selection: Selection, gallery: Path) -> None:
    """Copy the pages of some subjects, and write the group report with links to these."""
    gallery.mkdir(parents=True, exist_ok=True)
    for page in gallery.glob("sub-*.html"):
        page.unlink()
    metrics = Metrics.from_tsv(settings.output_dir / "metrics.tsv")
    first = {item.scan.site: item.scan.subject for item in reversed(selection.find())}
    flagged = dict.fromkeys(row.subject for row in metrics.select(measure="anatomy_held")
                            if row.value == 0)
    for subject in {*first.values(), *list(flagged)[:MAX_FLAGGED_PAGES]}:
        name = f"sub-{subject}.html"
        shutil.copyfile(settings.output_dir / name, gallery / name)
    print(rewrite_group_report(settings, selection, gallery))


def write_picture(settings: Settings, selection: Selection, path: Path) -> None:
    """Write one slice of every scan before, only rescaled and after harmonization as a PNG."""
    found = {item.scan_id: load_slices(item.paths, f"harmonize-{settings.desc}", ("axial",))
             for item in selection.find()}
    slices = {scan: wall_slice(one) for scan, one in found.items() if one is not None}
    quantiles = QuantileTable.from_tsv(
        settings.output_dir / "metrics_quantiles.tsv").select(tissue="brain")
    metrics = Metrics.from_tsv(settings.output_dir / "metrics.tsv")
    target = metrics.select(measure="wasserstein_to_target").distinct("reference")[0]
    wall = make_wall(slices, quantiles, target_curve(quantiles, target))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(wall_picture(wall))
    print(path)


if __name__ == "__main__":
    sys.exit(main())
