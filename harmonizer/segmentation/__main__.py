"""Command line of the segmentation: train the networks, apply them, or draw training images."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import HarmonizerError, UsageError

if TYPE_CHECKING:
    from .label_maps import LabelMap
    from .train_settings import TrainingSettings

LOG = logging.getLogger("harmonizer.segmentation")


def main(argv: list[str] | None = None) -> int:
    """Run a command of `python -m harmonizer.segmentation`.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code, see `harmonizer.errors`.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        args.run(args)
    except HarmonizerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    from .train_settings import PLANS, PRESETS

    parser = argparse.ArgumentParser(prog="python -m harmonizer.segmentation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train on images synthesized from label maps")
    train.add_argument("label_maps", type=Path, help="folder of SynthSeg's training label maps")
    train.add_argument("out", type=Path, help="output folder; an interrupted run in it is resumed")
    train.add_argument("--preset", choices=(*PLANS, *PRESETS), default="cpu-1h",
                       help="a preset, or a plan (cpu-*, gpu-*, whole-heads) of several presets, "
                            "each in its own folder")
    train.add_argument("--seed", type=int, default=0,
                       help="random seed; each further preset of a plan uses the next seed")
    train.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    train.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    train.add_argument("--workers", type=int, default=0, help="processes that synthesize images")
    train.add_argument("--initial-weights", type=Path,
                       help="weights file to start from; by default, weights are random")
    train.set_defaults(run=_train)
    use = commands.add_parser("segment", help="segment the tissues of a brain")
    use.add_argument("image", type=Path, help="NIfTI, any contrast")
    use.add_argument("--mask", type=Path, required=True, help="brain mask on the same grid")
    use.add_argument("--out", type=Path, required=True, help="output folder")
    use.add_argument("--threads", type=int, default=1)
    use.set_defaults(run=_segment)
    head = commands.add_parser("brain", help="find the brain in a whole head")
    head.add_argument("image", type=Path, help="NIfTI, any contrast")
    head.add_argument("--out", type=Path, required=True, help="output file, the mask")
    head.set_defaults(run=_brain)
    draw = commands.add_parser("draw", help="write synthesized images for inspection")
    draw.add_argument("label_maps", type=Path)
    draw.add_argument("out", type=Path)
    draw.add_argument("--preset", choices=PRESETS, default="first", help="preset to draw")
    draw.add_argument("--count", type=int, default=10)
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(run=_draw)
    return parser


def _train(args: argparse.Namespace) -> None:
    import torch

    from ..deep.processor import torch_threads
    from .label_maps import load_label_maps
    from .train_settings import PLANS

    if args.device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"--device {args.device} needs a CUDA device, but none was found. Use "
                         "--device cpu.")
    maps, presets = load_label_maps(args.label_maps), PLANS.get(args.preset)
    weights = args.initial_weights
    with torch_threads(args.threads):
        for n, preset in enumerate(presets or (args.preset,)):
            out = args.out / f"{n + 1}-{preset}" if presets else args.out
            weights = _train_preset(args, maps, preset, args.seed + n, out, weights)
    print(weights)


def _train_preset(args: argparse.Namespace, maps: Sequence[LabelMap], preset: str, seed: int,
                  out: Path, initial_weights: Path | None) -> Path:
    """Train or resume one preset and return the weights' path; finished presets are skipped."""
    from .card import file_of, write_model
    from .train import train, validate

    settings = _settings(preset, seed, args.device)
    network = train(maps, out, settings, device=args.device, workers=args.workers,
                    initial_weights=initial_weights)
    done = file_of(out, len(settings.classes))
    if done.with_suffix(".md").exists():  # the card is written last
        return done
    validation_maps = maps[len(maps) - settings.n_validation_maps :] or maps
    dice = validate(network, validation_maps, synthesis=settings.phases[-1].synthesis)
    return write_model(out, network, dice, preset, seed)


def _settings(preset: str, seed: int, device: str) -> TrainingSettings:
    """Return the settings of a preset, in single precision on devices without fast bfloat16."""
    from ..deep.processor import trains_in_bf16
    from .train_settings import PRESETS

    settings = replace(PRESETS[preset], seed=seed)
    if settings.precision == "bf16" and not trains_in_bf16(device):
        LOG.warning("%s has no bfloat16 instructions (CPU: AMX, AVX512-BF16; GPU: Ampere or "
                    "later): training in single precision, which takes about three times as long. "
                    "The weights differ by rounding.", device)
        settings = replace(settings, precision="fp32")
    return settings


def _segment(args: argparse.Namespace) -> None:
    from ..volume import load_nifti, read_volume, write_labels, write_volume
    from .predict import low_confidence_warning, segment

    path = args.image
    volume, header = read_volume(path, args.mask), load_nifti(path).header
    found = segment(volume, threads=args.threads)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    stem = args.out / (name.rsplit("_", 1)[0] if "_" in name else name)
    for tissue, probability in found.tissues.items():
        write_volume(f"{stem}_label-{tissue}_probseg.nii.gz",
                     volume.with_data(probability), header=header)
    write_labels(f"{stem}_dseg.nii.gz", found.classes, volume.affine, header=header)
    volumes_ml = {t: round(float(p.sum() * np.prod(volume.spacing)) / 1e3)
                  for t, p in found.tissues.items()}
    print(f"{path}: " + ", ".join(f"{t} {ml} ml" for t, ml in volumes_ml.items())
          + f", contrast-to-noise ratio {found.contrast_to_noise:.2f}")
    if (warning := low_confidence_warning(found.contrast_to_noise)) is not None:
        print(f"warning: {path}: {warning}", file=sys.stderr)


def _brain(args: argparse.Namespace) -> None:
    from ..volume import load_nifti, read_volume, write_mask
    from .brain import network_mask

    volume = read_volume(args.image)
    mask = network_mask(volume)
    write_mask(args.out, mask, volume.affine, header=load_nifti(args.image).header)
    print(f"{args.image}: {mask.sum() * np.prod(volume.spacing) / 1e6:.2f} liters")


def _draw(args: argparse.Namespace) -> None:
    from ..volume import Volume, write_labels, write_volume
    from .label_maps import load_label_maps
    from .synthesis import synthesize
    from .train_settings import PRESETS

    maps, settings = load_label_maps(args.label_maps), PRESETS[args.preset].phases[-1].synthesis
    for index in range(args.count):
        image, target = synthesize(maps, args.seed, index, settings)
        volume = Volume(image.numpy(), np.diag([settings.voxel_mm] * 3 + [1.0]))
        write_volume(args.out / f"seed-{args.seed}_index-{index}_image.nii.gz", volume)
        write_labels(args.out / f"seed-{args.seed}_index-{index}_dseg.nii.gz", target.numpy(),
                     volume.affine)


if __name__ == "__main__":
    sys.exit(main())
