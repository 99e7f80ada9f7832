"""Measure time and memory of methods with networks, for one volume in one process.

    python benchmarks/speed.py WORK [--backends cacd ...] [--presets small] [--devices cpu]
        [--set name=value ...] [--resolution 1] [--threads 1] [--minutes 20]
        [--markdown docs/benchmarks.md]

There is a row for each method, preset, device and option (`sampling_steps=2 sampling_steps=8` gives
two rows). One process trains a single step on two phantom scans and saves the model. Another loads
it and harmonizes one scan to the other's scanner, without a baseline. Untrained networks take as
long as trained ones. Columns:

* *load*: reading the model, including the import of torch;
* *volume*: wall and CPU seconds of one `harmonize`;
* *peak*: resident memory of that process, and on a GPU the memory of torch;
* *step*: wall seconds of the training step.

A row that takes longer than M minutes is marked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import printed, report_errors  # noqa: E402
from peak_memory import peak_gb  # noqa: E402
from sections import put_section  # noqa: E402

BACKENDS = ("cacd", "ihf", "disarm", "patch_diffusion")
COLUMNS = ("method", "preset", "device", "set", "weights, M", "load, s", "volume, s", "CPU s",
           "peak, GB", "on the GPU, GB", "step, s")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print row by row; with `--phase`, do one half of a row."""
    given = _parser().parse_args(argv)
    if given.phase:
        print(json.dumps({"fit": fit_once, "apply": apply_once}[given.phase](given)))
        return 0
    cohort_in(given.work, given.resolution)
    rows = printed(row_of(given, *chosen) for chosen in itertools.product(
        given.backends, given.presets, given.devices, given.set or [""]))
    text = "\n".join(["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|",
                      *("| " + " | ".join(str(row[c]) for c in COLUMNS) + " |" for row in rows)])
    if given.markdown:
        put_section(given.markdown, "Learned methods: time and memory",
                    f"{_command(given)}\n\n{text}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--presets", nargs="+", default=["small"])
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--resolution", type=int, default=1, help="mm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--phase", choices=["fit", "apply"], help=argparse.SUPPRESS)
    return parser


def _command(given: argparse.Namespace) -> str:
    chosen = f" --set {' '.join(given.set)}" if given.set else ""
    return (f"`python benchmarks/speed.py WORK --backends {' '.join(given.backends)} --presets "
            f"{' '.join(given.presets)} --devices {' '.join(given.devices)}{chosen} --resolution "
            f"{given.resolution} --threads {given.threads}`")


def row_of(given: argparse.Namespace, backend: str, preset: str, device: str, setting: str
           ) -> dict[str, Any]:
    """Measure one row: two processes."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {"method": backend, "preset": preset, "device": device, "set": setting}
    command = [sys.executable, __file__, str(given.work), "--backends", backend, "--presets",
               preset, "--devices", device, "--resolution", str(given.resolution), "--threads",
               str(given.threads), *(["--set", setting] if setting else [])]
    for phase in ("fit", "apply"):
        try:
            done = subprocess.run([*command, "--phase", phase], capture_output=True, text=True,
                                  timeout=60 * given.minutes)
        except subprocess.TimeoutExpired:
            return row | {"volume, s": f"{phase}: over {given.minutes:g} minutes"}
        if done.returncode:
            return row | {"volume, s": f"{phase}: {(done.stderr.splitlines() or ['killed'])[-1]}"}
        row |= json.loads(done.stdout.splitlines()[-1])
    return row


def cohort_in(work: Path, resolution: int) -> Any:
    """Make two phantom scans at two scanners, once."""
    from harmonizer.cohort import Cohort
    from harmonizer.phantom import SCANNERS
    from harmonizer.phantom.aligned import write_aligned

    folder = work / f"{resolution}mm"
    if not (folder / "cohort.tsv").is_file():
        write_aligned(folder, SCANNERS[:2], subjects=1, design="nested", resolution_mm=resolution)
    return Cohort.from_tsv(folder / "cohort.tsv")


def _folder(given: argparse.Namespace) -> Path:
    """Return the model folder of one row."""
    setting = given.set[0].replace("=", "-") if given.set else "plain"
    name = f"{given.backends[0]}_{given.presets[0]}_{given.resolution}mm_{setting}"
    return Path(given.work / name)


def fit_once(given: argparse.Namespace) -> dict[str, Any]:
    """Train one step and save; return the seconds of the step."""
    from harmonizer.deep.training.settings import Resources
    from harmonizer.methods import registry
    from pipelines.settings import named_value

    kind: Any = registry.get(given.backends[0])
    random_filters = {"vgg": "none"} if kind.name == "ihf" else {}
    backend = kind(kind.config_from({
        "preset": given.presets[0], "baseline": "none", "validation_fraction": 0.0, "steps": 1,
        "validate_every": 0, "weight_residual": False, **random_filters,
        **dict(map(named_value, given.set))}))
    backend.resources = Resources(device=given.devices[0], threads=given.threads)
    backend.fit(cohort_in(given.work, given.resolution), seed=1)
    backend.save(_folder(given))
    return {"step, s": f"{60 * backend.training_.minutes:.1f}"}


def apply_once(given: argparse.Namespace) -> dict[str, Any]:
    """Load a model and harmonize one scan; return seconds and memory."""
    started = time.monotonic()
    import torch

    from harmonizer.methods import registry

    torch.set_num_threads(given.threads)
    device = given.devices[0]
    backend: Any = registry.get(given.backends[0]).load(_folder(given)).on(device)
    loaded = time.monotonic()
    scan, other = cohort_in(given.work, given.resolution)
    volume = scan.read()
    begun, cpu = time.monotonic(), time.process_time()
    backend.harmonize(volume, backend.target(other.site), source=scan.site)
    spent, cpu = time.monotonic() - begun, time.process_time() - cpu
    weights = sum(p.numel() for n in backend.model_.networks.values() for p in n.parameters())
    held = torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else 0
    return {"weights, M": f"{weights / 1e6:.2f}", "load, s": f"{loaded - started:.1f}",
            "volume, s": f"{spent:.1f}", "CPU s": f"{cpu:.1f}", "peak, GB": f"{peak_gb():.2f}",
            "on the GPU, GB": f"{held:.2f}" if held else ""}


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
