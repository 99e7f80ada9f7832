"""Compare the network's brain mask with the template's, and with labels or truth.

    python benchmarks/whole_heads.py BIDS OUT [--labels FOLDER] [--truth FOLDER] [--weights FILE]

OUT holds the app's derivatives of BIDS, whose native brain masks come from the template. Prints for
each image with such a mask:

* Dice of both masks, and of the network's mask with the template's shifted by 15 mm along the axis
  where this changes least (an example of a wrong mask);
* the volumes in liters;
* with labels: the fraction of the labels inside each mask, and Dice of each with the labels, closed
  by 6 mm and filled;
* with the truth of a phantom: Dice of both with the true brain, without and with the fluid around
  it.

The network gets the original image. Brain-extracted images are skipped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import existing_folder, printed, report_errors  # noqa: E402
from phantom_truth import true_brains  # noqa: E402
from sections import write_rows  # noqa: E402

from harmonizer.preprocessing.brain import is_brain_only  # noqa: E402
from harmonizer.preprocessing.conform import conform  # noqa: E402
from harmonizer.segmentation.brain import network_mask  # noqa: E402
from harmonizer.segmentation.segmentations import dice  # noqa: E402
from harmonizer.segmentation.weights_file import read_weights  # noqa: E402
from harmonizer.volume import Volume, write_mask  # noqa: E402

SHIFT_MM = 15.0
CLOSED_MM = 6.0  # the width of sulci that labels of tissue leave open


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each image, then the range of the agreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids", type=existing_folder)
    parser.add_argument("out", type=existing_folder, help="derivatives with brain masks")
    parser.add_argument("--labels", type=existing_folder,
                        help="folder searched for <stem>*_dseg.nii.gz")
    parser.add_argument("--truth", type=existing_folder, help="truth folder of a phantom dataset")
    parser.add_argument("--weights", type=Path, help="others than those of the package")
    parser.add_argument("--save", type=Path, help="folder for the network's masks, RAS+ grid")
    parser.add_argument("--tsv", type=Path, help="file for the lines")
    given = parser.parse_args(argv)
    rows = printed(measured(given), f"whole heads with masks in {given.out}")
    agreement = [row["dice"] for row in rows]
    shifted = [row["dice_shifted"] for row in rows]
    print(f"{len(rows)} heads: Dice {min(agreement):.3f}-{max(agreement):.3f}, median "
          f"{np.median(agreement):.3f}; with masks shifted by {SHIFT_MM:g} mm at most "
          f"{max(shifted):.3f}")
    for key in [key for key in rows[0] if key.endswith(("_closed", "_true", "_with_fluid"))]:
        known = [row[key] for row in rows if row[key] != "n/a"]
        if known:
            print(f"{key}: mean {np.mean(known):.3f}, least {min(known):.3f} of {len(known)}")
    if given.tsv:
        write_rows(rows, given.tsv)
    return 0


def measured(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Return one row for each whole head that has a mask from the template."""
    network = None if given.weights is None else read_weights(given.weights)
    for path in sorted(given.bids.glob("sub-*/**/anat/*.nii.gz")):
        stem, suffix = path.name.removesuffix(".nii.gz").rsplit("_", 1)
        desc = "brain" if suffix == "T1w" else f"brain{suffix}"
        ours = given.out / path.parent.relative_to(given.bids) / f"{stem}_desc-{desc}_mask.nii.gz"
        volume = conform(path).volume
        if not ours.is_file() or is_brain_only(volume):
            continue
        template = conform(ours).volume.data > 0
        began = time.process_time()
        found = network_mask(volume, network=network)
        row = {"image": f"{stem}_{suffix}", "cpu_s": round(time.process_time() - began, 1),
               **compared(volume, found, template)}
        if given.labels:
            row.update(against_labels(given.labels, stem, found, template))
        if given.truth:
            row.update(against_truth(given.truth, stem, suffix, found, template))
        if given.save:
            write_mask(given.save / f"{stem}_{suffix}_mask.nii.gz", found, volume.affine)
        yield row


def compared(volume: Volume, found: np.ndarray, template: np.ndarray) -> dict[str, float]:
    """Return Dice of both masks, and of the network's with a shifted mask."""
    liters = np.prod(volume.spacing) / 1e6
    moved = []
    for axis, spacing in enumerate(volume.spacing):
        for steps in (round(SHIFT_MM / spacing), -round(SHIFT_MM / spacing)):
            moved.append(dice(found, np.roll(template, steps, axis)))
    return {"dice": round(dice(found, template), 3), "dice_shifted": round(max(moved), 3),
            "network_l": round(found.sum() * liters, 2),
            "template_l": round(template.sum() * liters, 2)}


def against_labels(folder: Path, stem: str, found: np.ndarray, template: np.ndarray
                   ) -> dict[str, object]:
    """Return the fraction of labels in each mask, and Dice of each with the labels."""
    masks = {"network": found, "template": template}
    labels = sorted(folder.glob(f"**/{stem}*_dseg.nii.gz"))
    if not labels:
        return {f"{way}_{what}": "n/a" for what in ("contains", "closed") for way in masks}
    grid = conform(labels[0]).volume
    tissue = grid.data > 0
    brain = closed(tissue, grid.spacing)
    return {**{f"{way}_contains": round(float((mask & tissue).sum() / tissue.sum()), 3)
               for way, mask in masks.items()},
            **{f"{way}_closed": round(dice(mask, brain), 3) for way, mask in masks.items()}}


def closed(tissue: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Close labels with a ball of 6 mm and fill holes."""
    reach = [round(CLOSED_MM / size) for size in spacing]
    at = np.stack(np.meshgrid(*[np.arange(-n, n + 1) * size for n, size in zip(reach, spacing)],
                              indexing="ij"))
    ball = (at**2).sum(axis=0) <= CLOSED_MM**2 + 1e-3
    around = np.pad(tissue, [(n + 1, n + 1) for n in reach])
    whole = ndimage.binary_fill_holes(ndimage.binary_closing(around, ball))
    return whole[tuple(slice(n + 1, -n - 1) for n in reach)]


def against_truth(folder: Path, stem: str, suffix: str, found: np.ndarray, template: np.ndarray
                  ) -> dict[str, float]:
    """Return Dice of each mask with a phantom's true brain, without and with fluid."""
    truths = zip(("true", "with_fluid"), true_brains(folder, stem, suffix))
    return {f"{way}_{name}": round(dice(mask, truth), 3) for name, truth in truths
            for way, mask in (("network", found), ("template", template))}


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
