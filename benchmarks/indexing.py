"""How long a large dataset takes before the first image is touched.

    python benchmarks/indexing.py FOLDER [--participants 2000] [--sessions 1]

makes a BIDS tree of tiny images below FOLDER (one T1w for each session, a sidecar, two tables) and
prints CPU and wall seconds of what every run does first: index it with pybids, read all headers,
sidecars and tables, find the sites. Then the same with a database: made once, opened by one of many
jobs. Each in a process of its own, imports included, as a user waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VENDORS = ("Siemens", "Philips", "GE")


def main(argv: list[str] | None = None) -> int:
    """Make the tree, measure each way in; returns 1 if one of them lost a scan."""
    arguments = parser().parse_args(argv)
    if arguments.one:
        return one(Path(arguments.folder), arguments.one, arguments.label)
    folder = Path(arguments.folder)
    raw, scans = folder / "raw", arguments.participants * arguments.sessions
    start = time.perf_counter()
    make_tree(raw, arguments.participants, arguments.sessions)
    print(f"{scans} scans of {arguments.participants} participants made in "
          f"{time.perf_counter() - start:.1f} s")
    print("way in\tCPU s\twall s\tscans")
    answers = [measure(folder, "none"), measure(folder, "make"), measure(folder, "open"),
               measure(folder, "open", "0001")]
    return int(answers != [scans, scans, scans, arguments.sessions])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("folder", help="an empty folder; the tree is made in it")
    command.add_argument("--participants", type=int, default=2000)
    command.add_argument("--sessions", type=int, default=1)
    command.add_argument("--one", choices=("none", "make", "open"), help=argparse.SUPPRESS)
    command.add_argument("--label", help=argparse.SUPPRESS)
    return command


def make_tree(root: Path, participants: int, sessions: int) -> None:
    """A dataset of 4 x 4 x 4 images, each a little different from the others."""
    import nibabel as nib
    import numpy as np

    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "many", "BIDSVersion": "1.9.0"}')
    rows = ["participant_id\tsite\tage\tsex"]
    content = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int32), np.eye(4)).to_bytes())
    for number in range(participants):
        label = f"{number:04d}"
        rows.append(f"sub-{label}\tsite{number % 20}\t{20 + number % 60}\t{'FM'[number % 2]}")
        for session in range(sessions):
            ses = f"ses-{session + 1}" if sessions > 1 else ""
            stem = "_".join(part for part in (f"sub-{label}", ses, "T1w") if part)
            folder = root / f"sub-{label}" / ses / "anat"
            folder.mkdir(parents=True)
            content[352:356] = (number * sessions + session).to_bytes(4, "little")
            (folder / f"{stem}.nii").write_bytes(content)
            facts = {"Manufacturer": VENDORS[number % 3], "MagneticFieldStrength": 3}
            (folder / f"{stem}.json").write_text(json.dumps(facts))
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")


def measure(folder: Path, way: str, label: str | None = None) -> int:
    """Print one line of the table; returns the number of scans that were found."""
    words = [sys.executable, __file__, str(folder), "--one", way]
    words += ["--label", label] if label else []
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - start, os.times()
    cpu = (after.children_user + after.children_system
           - before.children_user - before.children_system)
    names = {"none": "without a database", "make": "with a database, made",
             "open": "with a database, opened"}
    name = names[way] + (", one participant" if label else "")
    print(f"{name}\t{cpu:.1f}\t{wall:.1f}\t{done.stdout.strip()}", flush=True)
    return int(done.stdout)


def one(folder: Path, way: str, label: str | None) -> int:
    """What a run does first, with or without a database; prints how many scans it found."""
    from pipelines.dataset.index import collect
    from pipelines.settings import Settings

    collection = collect(Settings(
        folder / "raw", folder / "out", ["participant"],
        participant_label=[label] if label else [],
        bids_database_dir=None if way == "none" else folder / "database"))
    print(len(collection.records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
