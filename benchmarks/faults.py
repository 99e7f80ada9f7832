"""Test what a run leaves behind when it is killed, the disk is full or a folder is not writable.

    python benchmarks/faults.py FOLDER [kill] [sigterm] [disk] [jobs] [--kills 20] [--nprocs 1]

Each fault is applied to the same phantom study (two scans, 4 mm, `--sloppy`). The same command is
then run again, and its results are compared bit for bit with those of an undisturbed run. Images,
sidecars, tables, transforms and models are compared. Logs and HTML contain times and are not.

kill      SIGKILL to all processes at random moments (seeded) until a run ends by itself; this is
          repeated up to the number of kills. After each kill, every file with a final name must be
          complete
sigterm   SIGTERM at three random moments: exit code 143 within seconds, then the same command
disk      OUT on a disk that is too small (a tmpfs; needs root): exit code 74 and a message, then
          the disk grows; and OUT that becomes immutable during a run (chattr +i; needs root). The
          input is mounted read-only in both cases
jobs      ten jobs in parallel on one output folder, each for its own participant; their results
          must be those of one job for all
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ANSWER_S = 15  # a scheduler waits for 30 s before it kills
LIMIT_S = 3600
FINISHED = ("is reused", "are reused", "and reused", "already")


@dataclass(frozen=True)
class Bench:
    """Phantom study, flags, and the results of an undisturbed run."""

    folder: Path
    raw: Path
    flags: tuple[str, ...]
    results: dict[str, str]
    seconds: float  # of CPU

    def command(self, out: Path, *flags: str) -> list[str]:
        """Return the command line of a run into `out`, with a work folder beside it."""
        return [sys.executable, str(ROOT / "run.py"), str(self.raw), str(out), "participant",
                "group", "-w", str(out.with_name("work")), *self.flags, *flags]

    def out(self, name: str) -> Path:
        """Return an empty output folder; all have the same depth, as results link to input."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name / "out"

    def launch(self, out: Path, *flags: str) -> subprocess.Popen[str]:
        """Start a run in a process group of its own."""
        return subprocess.Popen(self.command(out, *flags), start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)

    def same(self, out: Path) -> bool:
        """Return whether the results are those of the undisturbed run; print files that differ."""
        found = results_of(out)
        wrong = sorted({*found, *self.results} - {
            name for name in found if found[name] == self.results.get(name)})
        if wrong:
            print(f"  {len(wrong)} files differ: {', '.join(wrong[:5])}")
        return not wrong


def main(argv: list[str] | None = None) -> int:
    """Run the chosen faults; return how many of them left wrong results."""
    arguments = parser().parse_args(argv)
    if unknown := set(arguments.faults) - set(FAULTS):
        raise SystemExit(f"{', '.join(sorted(unknown))}: not among {', '.join(FAULTS)}.")
    bench = prepare(Path(arguments.folder).resolve(), arguments)
    harm = 0
    for name in arguments.faults or list(FAULTS):
        answer = FAULTS[name](bench, arguments)
        print(f"{name}: {'survived' if answer else 'HARM DONE'}", flush=True)
        harm += not answer
    return harm


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("folder", help="for the study and all outputs; some hundred MB")
    command.add_argument("faults", nargs="*", metavar="FAULT", help=f"{', '.join(FAULTS)} (all)")
    command.add_argument("--kills", type=int, default=20)
    command.add_argument("--jobs", type=int, default=10)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--nprocs", type=int, default=1)
    return command


def prepare(folder: Path, arguments: argparse.Namespace) -> Bench:
    """Make the phantom and the undisturbed run."""
    from harmonizer.phantom.dataset import write_dataset

    raw = folder / "raw"
    if not raw.exists():
        write_dataset(raw, subjects=1, scanners=2, voxel_mm=4, seed=3)
    flags = ("--sloppy", "--skip-bids-validation", "--nprocs", str(arguments.nprocs),
             "--target", "birch")
    bench = Bench(folder, raw, flags, {}, 0.0)
    calm, before = bench.out("calm"), os.times()
    finish(bench, calm)
    after = os.times()
    seconds = (after.children_user + after.children_system
               - before.children_user - before.children_system)
    found = results_of(calm)
    print(f"undisturbed run: {seconds:.0f} CPU s, {len(found)} files", flush=True)
    return Bench(folder, raw, flags, found, seconds)


def finish(bench: Bench, out: Path, *flags: str) -> str:
    """Run to the end, which must succeed; return the output."""
    process = bench.launch(out, *flags)
    output, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}:\n{output}")
    return output


def results_of(out: Path) -> dict[str, str]:
    """Return path -> SHA-256 of the files that depend only on input and seed."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(".tmp-") and path.suffix != ".html"
        and path.relative_to(out).parts[0] != "logs"
    }


def half_written(out: Path) -> Iterator[str]:
    """Return files with a final name that cannot be read to the end."""
    import nibabel as nib
    import numpy as np

    for path in sorted(out.rglob("*")):
        if not path.is_file() or path.name.startswith(".tmp-"):
            continue
        try:
            if path.name.endswith(".nii.gz"):
                np.asanyarray(nib.load(path).dataobj)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except Exception as error:  # any failure to read is what is looked for
            yield f"{path}: {error}"


def kill(bench: Bench, arguments: argparse.Namespace) -> bool:
    """Kill runs at random moments; each run continues where the killed one stopped."""
    rng = random.Random(arguments.seed)
    out, kills, endings, reused, sound = bench.out("killed"), 0, 0, 0, True
    while kills < arguments.kills or out.exists():
        process = bench.launch(out)
        allowed = rng.uniform(0.05, 0.95) * bench.seconds
        if kills < arguments.kills and lives_for(process, allowed):
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            broken = list(half_written(out)) if out.exists() else []
            sound &= not broken
            print(f"  kill {kills} after {allowed:.1f} CPU s: {len(results_of(out))} of "
                  f"{len(bench.results)} files there, {len(broken)} broken {broken[:1]}",
                  flush=True)
            continue
        output, _ = process.communicate(timeout=LIMIT_S)
        endings += 1
        reused += any(word in output for word in FINISHED)
        same = process.returncode == 0 and bench.same(out)
        print(f"  a run ended by itself: exit code {process.returncode}, bits "
              f"{'equal' if same else 'DIFFER'}", flush=True)
        sound &= same
        bench.out("killed")
    print(f"  {kills} kills, {endings} runs to the end, {reused} of them reused finished work")
    return sound


def lives_for(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait until a run has used some CPU seconds; return False if it ended before.

    CPU seconds do not depend on the load of the computer.
    """
    import psutil

    with contextlib.suppress(psutil.Error):
        main = psutil.Process(process.pid)
        while process.poll() is None:
            times = [p.cpu_times() for p in (main, *main.children(recursive=True))]
            if sum(t.user + t.system + t.children_user + t.children_system
                   for t in times) >= seconds:
                return True
            time.sleep(0.05)
    return False


def sigterm(bench: Bench, arguments: argparse.Namespace) -> bool:
    """Send SIGTERM to the main process alone, as docker does, with worker processes."""
    rng, sound = random.Random(arguments.seed), True
    out = bench.out("terminated")
    for _ in range(3):
        process = bench.launch(out, "--nprocs", "2")
        wait_for_log(out, process)
        lives_for(process, rng.uniform(0.05, 0.5) * bench.seconds)
        start = time.perf_counter()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=LIMIT_S)
        seconds = time.perf_counter() - start
        good = process.returncode == 143 and "same command resumes" in output and seconds < ANSWER_S
        ended = process.returncode == 0  # it was faster than we
        print(f"  exit code {process.returncode} after {seconds:.1f} s", flush=True)
        sound &= good or ended
    finish(bench, out)
    return sound and bench.same(out)


def wait_for_log(out: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the app writes its log; before that, Python handles the signal."""
    while not list((out / "logs").glob("run_*")) and process.poll() is None:
        time.sleep(0.1)


def disk(bench: Bench, arguments: argparse.Namespace) -> bool:
    """Fill a disk that grows later, and make an output folder immutable."""
    if os.geteuid() != 0:
        print("  left out: mounting needs root")
        return True
    with mounted_read_only(bench.raw):
        return full_disk(bench) & unwritable(bench)


def full_disk(bench: Bench) -> bool:
    """Run with OUT and work folder on a tmpfs with a third of the necessary size."""
    mount = bench.folder / "small"
    mount.mkdir(exist_ok=True)
    needed = sum(p.stat().st_size for p in (bench.folder / "calm/out").rglob("*") if p.is_file())
    with tmpfs(mount, max(needed // 3, 1 << 20)):
        out = mount / "out"
        process = bench.launch(out)
        output, _ = process.communicate(timeout=LIMIT_S)
        good = process.returncode == 74 and "No space left" in output and "Traceback" not in output
        print("" if good else output, end="")
        print(f"  full disk: exit code {process.returncode}; "
              f"{output.strip().splitlines()[-2:]}", flush=True)
        broken = list(half_written(out))
        system("mount", "-o", "remount,size=4g", str(mount))
        finish(bench, out)
        return good and not broken and bench.same(out)


def unwritable(bench: Bench) -> bool:
    """Make the output folder immutable after the first image was written."""
    out = bench.out("immutable")
    process = bench.launch(out)
    while not list(out.rglob("*_desc-preproc_T1w.nii.gz")) and process.poll() is None:
        time.sleep(0.05)
    system("chattr", "-R", "+i", str(out))
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        system("chattr", "-R", "-i", str(out))
    print(f"  unwritable: exit code {process.returncode}; {output.strip().splitlines()[-2:]}",
          flush=True)
    good = process.returncode == 74 and "Traceback" not in output
    print("" if good else output, end="")
    finish(bench, out)
    return good and bench.same(out)


def system(*words: str) -> None:
    """Run a system command that must succeed."""
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def tmpfs(mount: Path, size: int) -> Iterator[None]:
    """Mount a disk in memory with some number of bytes."""
    system("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount))
    try:
        yield
    finally:
        system("umount", "-l", str(mount))


@contextlib.contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    """Mount a folder read-only."""
    system("mount", "--bind", str(folder), str(folder))
    try:
        system("mount", "-o", "remount,bind,ro", str(folder))
        yield
    finally:
        system("umount", str(folder))


def jobs(bench: Bench, arguments: argparse.Namespace) -> bool:
    """Run several jobs at once, each with its own participant, work folder and process."""
    from harmonizer.phantom.dataset import write_dataset

    raw = bench.folder / "many"
    if not raw.exists():
        write_dataset(raw, subjects=(arguments.jobs + 1) // 2, scanners=2, voxel_mm=4, seed=4,
                      design="nested")
    labels = sorted(p.name.removeprefix("sub-") for p in raw.glob("sub-*"))[:arguments.jobs]
    together, alone = bench.out("together"), bench.out("alone")
    flags = ["participant", "--stages", "preprocess", "--sloppy", "--nprocs", "1",
             "--skip-bids-validation"]
    words = [sys.executable, str(ROOT / "run.py"), str(raw)]
    started = [subprocess.Popen(
        [*words, str(together), *flags, "-w", str(together.with_name(f"work-{label}")),
         "--participant-label", label], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=ROOT) for label in labels]
    codes = []
    for process in started:
        output, _ = process.communicate(timeout=LIMIT_S)
        codes.append(process.returncode)
        if process.returncode:
            print(output)
    subprocess.run([*words, str(alone), *flags, "-w", str(alone.with_name("work")),
                    "--participant-label", *labels], check=True, capture_output=True, cwd=ROOT)
    first, second = results_of(together), results_of(alone)
    print(f"  {len(labels)} jobs at once: exit codes {sorted(set(codes))}, {len(first)} files, "
          f"{len(second)} from one job, {sum(first.get(n) != v for n, v in second.items())} differ")
    return set(codes) == {0} and first == second


FAULTS: dict[str, Callable[[Bench, argparse.Namespace], bool]] = {
    "kill": kill, "sigterm": sigterm, "disk": disk, "jobs": jobs,
}

if __name__ == "__main__":
    sys.exit(main())
