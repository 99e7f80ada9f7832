"""Measure time, memory and quality of preprocessing, with one process per image.

    python benchmarks/preprocessing.py BIDS_FOLDER_OR_IMAGES... [--labels FOLDER] [--mosaics FOLDER]

Prints one line per image: CPU and wall seconds and peak memory of all steps (reading, conform,
rough N4, brain extraction, N4, affine, resampling), volume of the mask, and the result of the
quality check. Options:

* `--labels`, a folder with `<stem>*_dseg.nii.gz`: fraction of the labels inside the mask, and
  volume of the mask over that of the labels; `--drop-label` ignores a class, such as sulcal CSF;
* `--truth`, as written by `harmonizer.phantom`: Dice of the mask with the brain, and with the brain
  and the fluid around it (CSF within 4 mm, which skull-stripping masks contain, Hoopes 2022);
* `--mosaics`: a PNG per image with the mask on the image, and the outline of the template on the
  registered image;
* `--tilt`: rotate and shift each head first, in the header only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw")


def main(argv: list[str] | None = None) -> int:
    """Run the table; return 1 if an image failed."""
    arguments = parser().parse_args(argv)
    if arguments.one:
        print(json.dumps(measure(Path(arguments.inputs[0]), arguments)))
        return 0
    images = find_images(arguments.inputs, arguments.suffix)
    if not images:
        raise SystemExit(f"no {' or '.join(arguments.suffix)} images in "
                         f"{', '.join(arguments.inputs)}.")
    print("\t".join(COLUMNS), flush=True)
    failed = 0
    for image in images:
        row = run_one(image, arguments)
        failed += "error" in row
        print("\t".join(_cell(row.get(name, "")) for name in COLUMNS), flush=True)
    return int(failed > 0)


COLUMNS = (
    "image", "cpu_s", "wall_s", "peak_mb", "method", "mask_l", "containment", "volume_ratio",
    "dice_brain", "dice_brain_and_fluid",
    "scales", "mi", "edge", "overlap", "registered_overlap", "registered_mi", "verdict", "error",
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("inputs", nargs="+", help="BIDS folders or images")
    command.add_argument("--suffix", nargs="+", default=list(SUFFIXES), choices=SUFFIXES)
    command.add_argument("--labels", type=Path, help="folder searched for <stem>*_dseg.nii.gz")
    command.add_argument("--truth", type=Path, help="truth folder of a phantom dataset")
    command.add_argument("--drop-label", type=int, action="append", default=[])
    command.add_argument("--mosaics", type=Path, help="folder for one PNG per image")
    command.add_argument("--save", type=Path, help="folder for masks, on the RAS+ grid")
    command.add_argument("--tilt", type=float, nargs=6, metavar=("RX", "RY", "RZ", "X", "Y", "Z"),
                         help="degrees and mm by which each head is moved first")
    command.add_argument("--skull-strip", default="auto", choices=("auto", "force", "skip"))
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--sloppy", action="store_true")
    command.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return command


def find_images(inputs: list[str], suffixes: list[str]) -> list[Path]:
    """Find the named images, and those in `anat` folders of the named folders."""
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_file():
            found.append(item)
            continue
        for suffix in suffixes:
            found += sorted(item.glob(f"sub-*/anat/*_{suffix}.nii.gz"))
            found += sorted(item.glob(f"sub-*/ses-*/anat/*_{suffix}.nii.gz"))
    return found


def run_one(image: Path, arguments: argparse.Namespace) -> dict:
    """Measure one image in a separate process."""
    command = [sys.executable, __file__, str(image), "--one", "--seed", str(arguments.seed)]
    for name in ("labels", "truth", "mosaics", "save"):
        value = getattr(arguments, name)
        command += [f"--{name}", str(value)] if value else []
    for label in arguments.drop_label:
        command += ["--drop-label", str(label)]
    if arguments.tilt:
        command += ["--tilt", *map(str, arguments.tilt)]
    command += ["--skull-strip", arguments.skull_strip, *(["--sloppy"] * arguments.sloppy)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"image": image.name, "error": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(path: Path, arguments: argparse.Namespace) -> dict:
    """Preprocess one image and measure; figures and scores are made after the measurement."""
    from peak_memory import peak_gb

    began = time.perf_counter()
    result = preprocess(path, arguments)
    wall = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    quality, registration = result["brain"].quality, result["registration"]
    row = {
        "image": path.name, "cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall,
        "peak_mb": 1e3 * peak_gb(), "method": result["brain"].method,
        "mask_l": quality.volume_l, "mi": quality.mutual_information,
        "scales": "/".join(f"{s:.2f}" for s in quality.scales),
        "edge": quality.edge_fraction, "overlap": quality.overlap,
        "registered_overlap": registration.overlap,
        "registered_mi": registration.mutual_information,
        "verdict": "; ".join(quality.reasons) or "good",
    }
    if arguments.labels:
        row.update(label_scores(path, result, arguments))
    if arguments.truth:
        row.update(truth_scores(path, result["volume"], arguments.truth))
    if arguments.save:
        from harmonizer.volume import write_mask

        mask = result["volume"].mask
        write_mask(arguments.save / f"{stem(path)}_mask.nii.gz", mask, result["volume"].affine)
    if arguments.mosaics:
        draw_mosaic(arguments.mosaics / f"{stem(path)}.png", result)
    return row


def preprocess(path: Path, arguments: argparse.Namespace) -> dict:
    """Run all steps of the pipeline as in the workflow."""
    from harmonizer.preprocessing.bias import correct_bias
    from harmonizer.preprocessing.brain import extract_brain
    from harmonizer.preprocessing.conform import conform
    from harmonizer.preprocessing.registration import register_to_template
    from harmonizer.preprocessing.transforms import resample
    from harmonizer.template import load_template
    from harmonizer.volume import Volume

    volume = conform(path).volume
    if arguments.tilt:
        volume = Volume(volume.data, tilted(volume, arguments.tilt))
    options = {"sloppy": arguments.sloppy}
    rough, _ = correct_bias(volume, rough=True, **options)
    brain = extract_brain(
        rough, skull_strip=arguments.skull_strip, seed=arguments.seed, **options
    )
    corrected, field = correct_bias(volume.with_mask(brain.mask), **options)
    registration = register_to_template(corrected, brain.matrix, seed=arguments.seed, **options)
    template = load_template(2 if arguments.sloppy else 1)
    moved = resample(corrected, template, registration.matrix)
    return {"volume": corrected, "field": field, "brain": brain, "registration": registration,
            "moved": moved}


def tilted(volume, tilt: list[float]):
    """Return the affine after rotating (degrees) and shifting (mm) the head about its center."""
    import numpy as np
    from scipy.spatial.transform import Rotation

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", tilt[:3], degrees=True).as_matrix()
    center = (volume.affine @ [*((np.array(volume.shape) - 1) / 2), 1])[:3]
    turn[:3, 3] = center - turn[:3, :3] @ center + tilt[3:]
    return turn @ volume.affine


def stem(path: Path) -> str:
    """Return a file name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def label_scores(path: Path, result: dict, arguments: argparse.Namespace) -> dict:
    """Return the fraction of labels inside the mask, and mask volume over label volume."""
    import numpy as np

    from harmonizer.preprocessing.conform import conform

    source = stem(path).rsplit("_", 1)[0]
    found = sorted(arguments.labels.glob(f"**/{source}*_dseg.nii.gz"))
    if not found or not stem(path).endswith("_T1w"):
        return {}
    labels = conform(found[0]).volume.data
    wanted = (labels > 0) & ~np.isin(labels, arguments.drop_label)
    mask = result["volume"].mask
    return {
        "containment": float((mask & wanted).sum() / wanted.sum()),
        "volume_ratio": float(mask.sum() / (labels > 0).sum()),
    }


def truth_scores(path: Path, volume, truth: Path) -> dict:
    """Return Dice of the mask with the true brain, without and with the fluid around it."""
    from phantom_truth import true_brains

    from harmonizer.segmentation.segmentations import dice

    brain, with_fluid = true_brains(truth, *stem(path).rsplit("_", 1))
    return {
        "dice_brain": dice(volume.mask, brain),
        "dice_brain_and_fluid": dice(volume.mask, with_fluid),
    }


def draw_mosaic(path: Path, result: dict) -> None:
    """Draw the mask on the image, and the template on the registered image."""
    import numpy as np

    from harmonizer.preprocessing.transforms import isotropic_grid, resample
    from harmonizer.template import load_template, tissue_priors

    volume, moved = result["volume"], result["moved"]
    small = resample(volume, isotropic_grid(volume, 1.0), antialias=True)
    rows = _strips(small.data, [(small.mask, "red")], small.mask)
    resolution = int(round(float(moved.spacing[0])))
    template = load_template(resolution)
    white = np.asarray(tissue_priors(resolution)["WM"]) > 0.5
    rows += _strips(moved.data, [(template.mask, "cyan"), (white, "yellow")], template.mask)
    _figure(path, rows)


def _strips(data, masks, where, count: int = 7) -> list:
    """Return slices along each axis through the box of `where`: (slice, [(mask slice, color)])."""
    import numpy as np

    box = np.argwhere(where)
    low, high = box.min(axis=0), box.max(axis=0)
    limit = np.percentile(data[where], 99.5) * 1.1
    rows = []
    for axis in range(3):
        places = np.linspace(low[axis], high[axis], count + 2)[1:-1].round().astype(int)
        rows.append([
            (np.take(data, k, axis=axis).T / limit,
             [(np.take(mask, k, axis=axis).T, color) for mask, color in masks])
            for k in places
        ])
    return rows


def _figure(path: Path, rows: list) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(14, 11), facecolor="black")
    for line, tiles in zip(axes, rows):
        for axis, (picture, masks) in zip(line, tiles):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, origin="lower")
            for mask, color in masks:
                if mask.any() and not mask.all():
                    axis.contour(mask, [0.5], colors=color, linewidths=0.6)
            axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="black")
    plt.close(figure)


def _cell(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
