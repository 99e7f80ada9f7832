"""Command line for the weights of the backend `unet`: simulate pairs, train, export.

    python -m harmonizer.methods.learned.unet prepare LABEL_MAPS PAIRS [--studies 40] [--worker 0/2]
    python -m harmonizer.methods.learned.unet train LABEL_MAPS OUT --preset cpu [--pairs PAIRS]
    python -m harmonizer.methods.learned.unet pack OUT WEIGHTS.safetensors [--pairs PAIRS]

`train` simulates missing pairs, trains, and exports the weights with their card. An interrupted
command resumes when it is run again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ....errors import HarmonizerError, UsageError

LOG = logging.getLogger("harmonizer")
ORDER = ("coarse", "mixed", "coarse", "fine_native", "coarse", "fine")
"""Kinds of successive studies."""
VALIDATION_ORDER = ("coarse", "fine_native", "coarse", "mixed")
DEFAULT_SEED = 20260101


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        given.run(given)
    except HarmonizerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harmonizer.methods.learned.unet",
                                     description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="simulate studies and store their pairs")
    prepare.add_argument("label_maps", type=Path, help="folder of SynthSeg's label maps")
    prepare.add_argument("pairs", type=Path, help="folder for the pairs")
    _add_studies(prepare)
    prepare.add_argument("--worker", default="0/1", metavar="K/N",
                         help="simulate every N-th study from the K-th on (default: %(default)s)")
    prepare.set_defaults(run=_prepare)
    train = commands.add_parser("train", help="simulate missing pairs, train, export weights")
    train.add_argument("label_maps", type=Path)
    train.add_argument("out", type=Path, help="folder for checkpoint, history and weights")
    train.add_argument("--pairs", type=Path, help="folder of the pairs (default: OUT/pairs)")
    train.add_argument("--preset", choices=("tiny", "cpu", "gpu"), default="cpu")
    train.add_argument("--steps", type=int, help="training steps (default: of the preset)")
    train.add_argument("--max-minutes", type=float, help="time limit of this call")
    train.add_argument("--device", default="cpu")
    train.add_argument("--threads", type=int, default=1)
    _add_studies(train)
    train.set_defaults(run=_train)
    pack = commands.add_parser("pack", help="export the weights of a training")
    pack.add_argument("out", type=Path)
    pack.add_argument("weights", type=Path)
    pack.add_argument("--pairs", type=Path)
    pack.set_defaults(run=_pack)
    return parser


def _add_studies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--studies", type=int, default=40, help="training studies (default: 40)")
    parser.add_argument("--validation-studies", type=int, default=4)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)


def _prepare(given: argparse.Namespace) -> None:
    worker, workers = _worker_of(getattr(given, "worker", "0/1"))
    for kind, index in planned_studies(given.studies, given.validation_studies)[worker::workers]:
        _prepare_one(given, kind, index)


def planned_studies(training: int, validation: int) -> list[tuple[str, int]]:
    """Return kind and index of every study, validation studies first."""
    from .pairs import VALIDATION_FROM

    return [(VALIDATION_ORDER[n % len(VALIDATION_ORDER)], VALIDATION_FROM + n)
            for n in range(validation)] \
        + [(ORDER[n % len(ORDER)], n) for n in range(training)]


def _prepare_one(given: argparse.Namespace, kind: str, index: int) -> None:
    from ....deep.processor import torch_threads
    from ....segmentation.label_maps import label_map_paths
    from .pairs import prepare_study

    count, started = len(label_map_paths(given.label_maps)), time.monotonic()
    with torch_threads(1):
        prepare_study(given.pairs, given.label_maps, count, kind, given.seed, index)
    LOG.info("study %d (%s): %.0f s", index, kind, time.monotonic() - started)


def _worker_of(text: str) -> tuple[int, int]:
    try:
        worker, workers = (int(part) for part in text.split("/"))
    except ValueError:
        worker, workers = -1, 0
    if not 0 <= worker < workers:
        raise UsageError(f"--worker expects K/N with 0 <= K < N, such as 0/2; got {text!r}.")
    return worker, workers


def _train(given: argparse.Namespace) -> None:
    from ....deep.training.settings import Resources
    from .training import PRESETS, train_unet

    given.pairs = given.pairs or given.out / "pairs"
    _prepare(given)
    settings = PRESETS[given.preset]
    if given.steps is not None:
        settings = replace(settings, steps=given.steps)
    resources = Resources(device=given.device, threads=given.threads,
                          max_minutes=given.max_minutes)
    outcome, _ = train_unet(given.out, given.pairs, settings, resources, progress=_progress)
    LOG.info("ended after %d steps (%s), %.0f minutes", outcome.steps, outcome.stop_reason,
             outcome.minutes)
    given.weights = given.out / "unet.safetensors"
    _pack(given)


def _progress(done: int, total: int) -> None:
    if done % 100 == 0:
        LOG.info("step %d of %d", done, total)


def _pack(given: argparse.Namespace) -> None:
    from .packing import pack_weights

    path = pack_weights(given.out, given.pairs or given.out / "pairs", given.weights)
    print(path)




if __name__ == "__main__":
    sys.exit(main())
