"""Command `python -m harmonizer.phantom OUT`: write a phantom study and its truth."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from ..errors import HarmonizerError
from .dataset import DESIGNS, write_dataset
from .scanner import MODALITIES, SCANNERS, UNSEEN

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; default: those of the process.

    Returns
    -------
    int
        Exit code: 0, or that of the error whose message was printed.
    """
    options = _parser().parse_args(argv)
    started = time.monotonic()
    try:
        study = write_dataset(
            options.out,
            subjects=options.subjects,
            scanners=_scanners(options.scanners),
            modalities=options.modalities,
            seed=options.seed,
            voxel_mm=options.voxel_mm,
            design=options.design,
            traveling_subjects=options.traveling_subjects,
            runs=options.runs,
            skull=not options.no_skull,
            truth=not options.no_truth,
            progress=lambda line: print(line, flush=True),
        )
    except HarmonizerError as error:
        print(f"phantom: {error}", file=sys.stderr)
        return error.exit_code
    seconds = time.monotonic() - started
    print(f"Wrote {len(study.participants)} subjects to {study.folder} in {seconds:.1f} s.")
    if not options.no_truth:
        print(f"Wrote the truth to {study.truth}.")
    return 0


def _scanners(words: Sequence[str]) -> int | list[str]:
    """Return the number of presets for a single number, else the names of scanners."""
    if len(words) == 1 and words[0].isdigit():
        return int(words[0])
    return list(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harmonizer.phantom",
        description="Write a digital phantom study: a BIDS dataset of simulated subjects on "
        "simulated scanners, and its truth in OUT-truth. The same seed gives the same bytes.",
    )
    names = ", ".join(scanner.name for scanner in (*SCANNERS, UNSEEN))
    add = parser.add_argument
    add("out", metavar="OUT", help="new or empty folder for the dataset")
    add("--subjects", type=int, default=4, metavar="N",
        help="traveling subjects, or subjects per scanner (nested, mixed); default 4")
    add("--scanners", nargs="+", default=["3"], metavar="N|NAME",
        help=f"number of presets (1-{len(SCANNERS)}), or some of {names}; default 3")
    add("--modalities", nargs="+", default=["T1w"], metavar="M",
        help=f"some of {' '.join(MODALITIES)}; default T1w")
    add("--voxel-mm", type=float, metavar="MM",
        help="smallest voxel side, the others in proportion; default: as the scanners have it")
    add("--seed", type=int, default=0, metavar="N", help="seed of every random choice; default 0")
    add("--design", choices=DESIGNS, default="traveling",
        help="traveling: each subject at all scanners; nested: each at one; mixed: both; "
        "default traveling")
    add("--traveling-subjects", type=int, default=1, metavar="N",
        help="traveling subjects of the mixed design; default 1")
    add("--runs", type=int, default=1, metavar="N", help="repeated scans in a session; default 1")
    add("--no-skull", action="store_true", help="brain-only images, as after skull stripping")
    add("--no-truth", action="store_true", help="write the dataset alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
