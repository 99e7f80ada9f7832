"""Measure the memory of one participant in each step, and compare it with the app's estimates.

    python benchmarks/memory.py BIDS_DIR FOLDER LABEL [FLAG ...]

Runs `participant --stages preprocess` for one participant in one process. The resident memory of
all processes is sampled four times a second, and the peak of every step is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LOOK_S = 0.25
STEP = re.compile(r'Executing "(\w+)"')
Moments = list[tuple[float, str]]


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 1 if a step uses more memory than estimated."""
    given = sys.argv[1:] if argv is None else argv
    if len(given) < 3:
        print(__doc__)
        return 64
    raw, folder, label, *flags = given
    begun, looks, code = measure([
        sys.executable, str(ROOT / "run.py"), raw, str(Path(folder) / "out"), "participant",
        "--stages", "preprocess", "--participant-label", label, "--nprocs", "1", "-vv",
        "--skip-bids-validation", "-w", str(Path(folder) / "work"), *flags])
    return code or table(peaks(begun, looks))


def measure(command: list[str]) -> tuple[Moments, list[tuple[float, float]], int]:
    """Return start times of the steps, samples of (time, GB), and the exit code of a run."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begun: Moments = []
    reader = threading.Thread(target=listen, args=(process.stdout, begun))
    reader.start()
    looks = []
    while process.poll() is None:
        looks.append((time.monotonic(), memory_of(process.pid)))
        time.sleep(LOOK_S)
    reader.join()
    return begun, looks, process.returncode


def listen(stream, begun: Moments) -> None:
    """Record when each step begins."""
    for line in stream:
        if found := STEP.search(line):
            begun.append((time.monotonic(), found[1]))


def memory_of(pid: int) -> float:
    """Return the resident GB of a process and its children."""
    import psutil

    total = 0
    try:
        for process in (main := psutil.Process(pid), *main.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:
        return 0.0
    return total / 1e9


def peaks(begun: Moments, looks: list[tuple[float, float]]) -> dict[str, float]:
    """Return step -> largest GB between its beginning and that of the next step."""
    ends = [when for when, _ in begun[1:]] + [float("inf")]
    return {step: max((gb for when, gb in looks if start <= when < end), default=0.0)
            for (start, step), end in zip(begun, ends)}


def table(found: dict[str, float]) -> int:
    """Print steps, peaks and estimates; return 1 if an estimate is too low."""
    from pipelines.workflows.preprocessing import MEM_GB

    print("| step | peak, GB | announced |\n|---|---|---|")
    for step, gb in found.items():
        print(f"| {step} | {gb:.2f} | {MEM_GB[step]:g} |")
    return int(any(gb > MEM_GB[step] for step, gb in found.items()))


if __name__ == "__main__":
    sys.exit(main())
