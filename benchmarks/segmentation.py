"""Score the segmenter against known tissues: Dice for each contrast, and for mirrored images.

    python benchmarks/segmentation.py BIDS --truth TRUTH [--suffix T1w T2w] [--flip] [--tsv FILE]

BIDS and TRUTH are a phantom dataset of `python -m harmonizer.phantom`. Each image is segmented
inside the true brain, once as it is and once inverted (1.3 times the 99.5th percentile of the brain
minus the image), a contrast that no scanner has. The result is Dice of the most probable tissue,
for CSF, gray and white matter. `--flip` also computes Dice between the result and that of the
mirrored image, mirrored back.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import io_orientation

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import existing_folder, printed, report_errors  # noqa: E402
from sections import write_rows  # noqa: E402

from harmonizer.segmentation.predict import segment  # noqa: E402
from harmonizer.segmentation.segmentations import as_labels, dice  # noqa: E402
from harmonizer.tissues import TISSUES  # noqa: E402
from harmonizer.volume import Volume, read_volume  # noqa: E402

CODES = {name: code for code, name in enumerate(TISSUES, start=1)}  # also of the truth's dseg.tsv


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each image and contrast, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids", type=existing_folder)
    parser.add_argument("--truth", type=existing_folder, required=True)
    parser.add_argument("--suffix", nargs="+", default=["T1w"])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--tsv", type=Path, help="file for the lines")
    given = parser.parse_args(argv)
    rows = printed(measured(given), f"{' or '.join(given.suffix)} images with labels of the truth")
    for contrast in dict.fromkeys(row["contrast"] for row in rows):
        means = [row["mean"] for row in rows if row["contrast"] == contrast]
        print(f"{contrast}: mean Dice {np.mean(means):.3f}, least {min(means):.3f} of {len(means)}")
    if given.tsv:
        write_rows(rows, given.tsv)
    return 0


def measured(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Return one row for each image and contrast."""
    for suffix in given.suffix:
        for path in sorted(given.bids.rglob(f"*_{suffix}.nii.gz")):
            truth = (given.truth / path.parent.relative_to(given.bids)
                     / path.name.replace(f"_{suffix}.nii.gz", f"_desc-{suffix}_dseg.nii.gz"))
            if not truth.is_file():
                continue
            labels = np.rint(read_volume(truth).data).astype(np.uint8)
            plain = read_volume(path).with_mask(np.isin(labels, list(CODES.values())))
            for contrast, volume in ((suffix, plain), (f"{suffix}, inverted", inverted(plain))):
                started = time.process_time()
                found = likeliest(volume)
                seconds = time.process_time() - started
                found_of = {name: dice(found == code, labels == code)
                            for name, code in CODES.items()}
                row = {"image": path.name, "contrast": contrast,
                       **{name: round(value, 3) for name, value in found_of.items()},
                       "mean": round(float(np.mean(list(found_of.values()))), 3),
                       "cpu_s": round(seconds, 1)}
                if given.flip:
                    row["flip"] = round(flipped(volume, found), 3)
                yield row


def inverted(volume: Volume) -> Volume:
    """Invert the contrast inside the mask."""
    top = 1.3 * np.percentile(volume.in_mask(), 99.5)
    return volume.with_data(np.where(volume.mask, np.maximum(top - volume.data, 0), 0))


def likeliest(volume: Volume) -> np.ndarray:
    """Return the label of the most probable tissue (I, J, K), 0 outside the mask."""
    return as_labels(segment(volume).tissues)


def flipped(volume: Volume, found: np.ndarray) -> float:
    """Return the lowest Dice of a tissue between an image and its mirrored image.

    The image is mirrored from left to right, whichever axis that is, and keeps its affine.
    """
    axis = int(np.argmin(io_orientation(volume.affine)[:, 0]))
    mirror = Volume(np.flip(volume.data, axis).copy(), volume.affine,
                    np.flip(volume.mask, axis).copy())
    back = np.flip(likeliest(mirror), axis)
    return min(dice(back == code, found == code) for code in CODES.values())


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
