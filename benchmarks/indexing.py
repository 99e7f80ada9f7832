"""Measure the time until the first image of a large dataset is read.

    python benchmarks/indexing.py FOLDER [--participants 2000] [--sessions 1]

Makes a BIDS dataset of tiny images in FOLDER (one T1w image per session, a sidecar, two tables).
Prints CPU and wall seconds of the first steps of every run: index the dataset with pybids, read all
headers, sidecars and tables, find the sites. The same is measured with a database, when it is
created and when one of many jobs opens it. Each measurement is a separate process and includes
imports.
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
    """Make the dataset and measure; return 1 if a scan was not found."""
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
    """Return the parser of the command line."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("folder", help="an empty folder; the tree is made in it")
    command.add_argument("--participants", type=int, default=2000)
    command.add_argument("--sessions", type=int, default=1)
    command.add_argument("--one", choices=("none", "make", "open"), help=argparse.SUPPRESS)
    command.add_argument("--label", help=argparse.SUPPRESS)
    return command


def make_tree(root: Path, participants: int, sessions: int) -> None:
    """Make a dataset of different 4 x 4 x 4 images."""
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
    """Print one line of the table; return the number of scans that were found."""
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
    """Run the first steps with or without a database; print how many scans were found."""
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
