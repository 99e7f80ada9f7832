"""The segmenter on people who travelled and whose tissues are known: Dice, and who has the volumes.

    python benchmarks/travelling_tissues.py BIDS --truth TRUTH [--weights FILE] [--threads 1]

BIDS holds each person's T1w images from several scanners on one grid, or is what the app made of
them (then its preprocessed images are segmented). TRUTH holds a `sub-X_seg-tissue_dseg.nii.gz`
(1 CSF, 2 GM, 3 WM) and a `sub-X_desc-brain_mask.nii.gz`, the mask that is used, for each person.
A line for each scan: Dice of the likeliest tissues, the mean of the three, the same by the network
alone, and volumes in ml (sums of shares). Then means by scanner, and how far the volumes of one
person lie apart across scanners (coefficient of variation, n - 1).
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

from command_line import existing_folder, explained, printed  # noqa: E402

from harmonizer.segmentation.predict import segment  # noqa: E402
from harmonizer.segmentation.segmentations import as_labels, dice  # noqa: E402
from harmonizer.segmentation.weights_file import read_weights  # noqa: E402
from harmonizer.tissues import TISSUES  # noqa: E402
from harmonizer.volume import read_volume  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each scan, then means by scanner and spread by person."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids", type=existing_folder)
    parser.add_argument("--truth", type=existing_folder, required=True)
    parser.add_argument("--weights", type=Path, help="others than those of the package")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    rows = printed(measured(given), "T1w images of people with a sub-X_seg-tissue_dseg.nii.gz")
    for scanner in dict.fromkeys(row["scanner"] for row in rows):
        here = [row for row in rows if row["scanner"] == scanner]
        print(f"{scanner}:", *(f"{key} {np.mean([row[key] for row in here]):.3f}"
                               for key in (*TISSUES, "mean", "alone")))
    print("all:", *(f"{key} {np.mean([row[key] for row in rows]):.4f}"
                    for key in ("mean", "alone")))
    for person in dict.fromkeys(row["person"] for row in rows):
        volumes = {tissue: [row[f"{tissue}_ml"] for row in rows if row["person"] == person]
                   for tissue in TISSUES}
        print(f"{person}, volumes apart by", *(f"{tissue} {apart(values):.2f} %"
                                               for tissue, values in volumes.items()))
    return 0


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each scan of a person with known tissues."""
    network = None if given.weights is None else read_weights(given.weights)
    for path in scans(given.bids):
        entities = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
        person = f"sub-{entities['sub']}"
        truth = given.truth / f"{person}_seg-tissue_dseg.nii.gz"
        if not truth.is_file():
            continue
        labels = np.rint(read_volume(truth).data).astype(np.uint8)
        mask = read_volume(given.truth / f"{person}_desc-brain_mask.nii.gz").data > 0
        scan = read_volume(path).with_mask(mask)
        found = segment(scan, network=network, threads=given.threads).tissues
        alone = segment(scan, network=network, threads=given.threads, borders=False).tissues
        after, before = (agreement(shares, labels) for shares in (found, alone))
        yield {"person": person, "scanner": entities.get("ses", ""),
               **{tissue: round(value, 4) for tissue, value in after.items()},
               "mean": round(float(np.mean(list(after.values()))), 4),
               "alone": round(float(np.mean(list(before.values()))), 4),
               **{f"{tissue}_ml": round(volume(found[tissue], scan.affine), 2)
                  for tissue in TISSUES}}


def scans(folder: Path) -> list[Path]:
    """T1w images of a dataset; of derivatives, the preprocessed ones on the scans' own grids."""
    images = sorted(folder.glob("sub-*/**/anat/*_T1w.nii.gz"))
    made = [path for path in images if "_desc-preproc_" in path.name and "_space-" not in path.name]
    return made or images


def agreement(shares: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Dice of each tissue, the likeliest against the true."""
    likeliest = as_labels(shares)
    return {tissue: dice(likeliest == code, labels == code)
            for code, tissue in enumerate(TISSUES, start=1)}


def volume(shares: np.ndarray, affine: np.ndarray) -> float:
    """In ml."""
    return float(shares.sum(dtype=np.float64) * abs(np.linalg.det(affine[:3, :3])) / 1000)


def apart(values: Sequence[float]) -> float:
    """Coefficient of variation in per cent."""
    return float(100 * np.std(values, ddof=1) / np.mean(values))


if __name__ == "__main__":
    raise SystemExit(explained(main))
