"""Test the segmenter on traveling subjects with known tissues: Dice and variance of volumes.

    python benchmarks/traveling_tissues.py BIDS --truth TRUTH [--weights FILE] [--threads 1]

BIDS holds T1w images of each subject from several scanners on one grid, or derivatives of them, of
which the preprocessed images are segmented. TRUTH holds `sub-X_seg-tissue_dseg.nii.gz` (1 CSF, 2
GM, 3 WM) and `sub-X_desc-brain_mask.nii.gz`, the mask that is used, for each subject. Prints for
each scan Dice of the most probable tissues, their mean, the same for the network alone, and volumes
in ml. Then it prints means by scanner, and the coefficient of variation (n - 1) of the volumes of a
subject across scanners.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import existing_folder, printed, report_errors  # noqa: E402

from harmonizer.segmentation.predict import segment  # noqa: E402
from harmonizer.segmentation.segmentations import as_labels, dice  # noqa: E402
from harmonizer.segmentation.weights_file import read_weights  # noqa: E402
from harmonizer.tissues import TISSUES  # noqa: E402
from harmonizer.volume import read_volume  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each scan, then means by scanner and standard deviation by subject."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids", type=existing_folder)
    parser.add_argument("--truth", type=existing_folder, required=True)
    parser.add_argument("--weights", type=Path, help="others than those of the package")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    rows = printed(measured(given), "T1w images of subjects with a sub-X_seg-tissue_dseg.nii.gz")
    for scanner in dict.fromkeys(row["scanner"] for row in rows):
        here = [row for row in rows if row["scanner"] == scanner]
        print(f"{scanner}:", *(f"{key} {np.mean([row[key] for row in here]):.3f}"
                               for key in (*TISSUES, "mean", "alone")))
    print("all:", *(f"{key} {np.mean([row[key] for row in rows]):.4f}"
                    for key in ("mean", "alone")))
    for subject in dict.fromkeys(row["subject"] for row in rows):
        volumes = {tissue: [row[f"{tissue}_ml"] for row in rows if row["subject"] == subject]
                   for tissue in TISSUES}
        print(f"{subject}, volumes differences by", *(f"{tissue} {differences(values):.2f} %"
                                               for tissue, values in volumes.items()))
    return 0


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return one row for each scan of a subject with known tissues."""
    network = None if given.weights is None else read_weights(given.weights)
    for path in scans(given.bids):
        entities = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
        subject = f"sub-{entities['sub']}"
        truth = given.truth / f"{subject}_seg-tissue_dseg.nii.gz"
        if not truth.is_file():
            continue
        labels = np.rint(read_volume(truth).data).astype(np.uint8)
        mask = read_volume(given.truth / f"{subject}_desc-brain_mask.nii.gz").data > 0
        scan = read_volume(path).with_mask(mask)
        found = segment(scan, network=network, threads=given.threads).tissues
        alone = segment(scan, network=network, threads=given.threads, borders=False).tissues
        after, before = (agreement(fractions, labels) for fractions in (found, alone))
        yield {"subject": subject, "scanner": entities.get("ses", ""),
               **{tissue: round(value, 4) for tissue, value in after.items()},
               "mean": round(float(np.mean(list(after.values()))), 4),
               "alone": round(float(np.mean(list(before.values()))), 4),
               **{f"{tissue}_ml": round(volume(found[tissue], scan.affine), 2)
                  for tissue in TISSUES}}


def scans(folder: Path) -> list[Path]:
    """Return T1w images of a dataset, or preprocessed ones on native grids of derivatives."""
    images = sorted(folder.glob("sub-*/**/anat/*_T1w.nii.gz"))
    made = [path for path in images if "_desc-preproc_" in path.name and "_space-" not in path.name]
    return made or images


def agreement(fractions: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Return Dice of the most probable tissues with the truth."""
    likeliest = as_labels(fractions)
    return {tissue: dice(likeliest == code, labels == code)
            for code, tissue in enumerate(TISSUES, start=1)}


def volume(fractions: np.ndarray, affine: np.ndarray) -> float:
    """Return the volume of a tissue in ml."""
    return float(fractions.sum(dtype=np.float64) * abs(np.linalg.det(affine[:3, :3])) / 1000)


def differences(values: Sequence[float]) -> float:
    """Return the coefficient of variation in percent."""
    return float(100 * np.std(values, ddof=1) / np.mean(values))


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
