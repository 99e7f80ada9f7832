"""Score the brain mask in synthesized whole heads at 1 mm, whose truth is known.

    python benchmarks/synthesized_heads.py LABEL_MAPS [--count 6] [--seed 777] [--weights FILE]
                                           [--template]

Heads are synthesized from the two label maps that the training does not use: *familiar* as T1w,
T2w, FLAIR or PDw images of 1 mm; *any* with any contrast, a third with thick slices, a fifth
defaced. The field of view is complete. The truth is all brain tissue and the fluid within 4 mm of
it. Prints one line per head; `--template` adds brain extraction by the template (half a minute per
head).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import existing_folder, printed, report_errors  # noqa: E402

from harmonizer.preprocessing.bias import correct_bias  # noqa: E402
from harmonizer.preprocessing.brain import extract_brain  # noqa: E402
from harmonizer.segmentation.brain import network_mask  # noqa: E402
from harmonizer.segmentation.label_maps import load_label_maps  # noqa: E402
from harmonizer.segmentation.segmentations import dice  # noqa: E402
from harmonizer.segmentation.synthesis import synthesize  # noqa: E402
from harmonizer.segmentation.train_settings import PRESETS, WHOLE_HEADS  # noqa: E402
from harmonizer.segmentation.weights_file import read_weights  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402

HEAD = replace(WHOLE_HEADS[-1].synthesis, voxel_mm=1.0, crop=(192, 224, 208), stripped=0.0, cut=0.0)
KINDS = {"familiar": replace(HEAD, familiar=1.0, defaced=0.0, thick=0.0, turned=0.0,
                             rotation_deg=10.0),
         "any": replace(HEAD, familiar=0.0, defaced=0.2, thick=0.3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each head, then mean and minimum of each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=existing_folder)
    parser.add_argument("--count", type=int, default=6, help="heads of each kind")
    parser.add_argument("--seed", type=int, default=777, help="of the heads; no training's")
    parser.add_argument("--weights", type=Path, help="others than those of the package")
    parser.add_argument("--template", action="store_true", help="the template's way as well")
    given = parser.parse_args(argv)
    rows = printed(measured(given))
    for kind, way in product(KINDS, ("network", "template")[: 1 + given.template]):
        values = [row[f"{way}_dice"] for row in rows if row["kind"] == kind]
        print(f"{kind}, {way}: mean Dice {np.mean(values):.3f}, least {min(values):.3f} of "
              f"{len(values)}")
    return 0


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return one row for each head: Dice of each mask, and volumes in liters."""
    maps = load_label_maps(given.label_maps)[-PRESETS["brain"].n_validation_maps:]
    network = None if given.weights is None else read_weights(given.weights)
    for kind, settings in KINDS.items():
        for index in range(given.count):
            image, truth = synthesize(maps, given.seed, index, settings)
            brain = truth.numpy() > 0
            head = Volume(image.numpy(), np.eye(4))
            masks = {"network": network_mask(head, network=network)}
            if given.template:
                rough, _ = correct_bias(head, rough=True)
                masks["template"] = extract_brain(rough, skull_strip="force").mask
            yield {"kind": kind, "head": index, "true_l": round(brain.sum() / 1e6, 2),
                   **{f"{way}_dice": round(dice(mask, brain), 3) for way, mask in masks.items()},
                   **{f"{way}_l": round(mask.sum() / 1e6, 2) for way, mask in masks.items()}}


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
