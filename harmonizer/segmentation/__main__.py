"""`python -m harmonizer.segmentation`: train the segmenter, use it, or look at what it is shown."""

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
    """Run one of the commands; returns the exit code (see `harmonizer.errors`)."""
    given = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        given.run(given)
    except HarmonizerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    from .train_settings import PLANS, PRESETS

    parser = argparse.ArgumentParser(prog="python -m harmonizer.segmentation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train on images synthesised from label maps")
    train.add_argument("label_maps", type=Path, help="folder of SynthSeg's training label maps")
    train.add_argument("out", type=Path, help="a run that stopped there is gone on with")
    train.add_argument("--preset", choices=(*PLANS, *PRESETS), default="cpu-1h",
                       help="a plan (cpu-, gpu-, whole-heads): presets, each in its own folder")
    train.add_argument("--seed", type=int, default=0, help="the next one for each next preset")
    train.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    train.add_argument("--threads", type=int, default=2, help="of the CPU")
    train.add_argument("--workers", type=int, default=0, help="processes that synthesise images")
    train.add_argument("--start", type=Path, help="weights to begin with; default: random ones")
    train.set_defaults(run=_train)
    use = commands.add_parser("segment", help="find the tissues of a brain")
    use.add_argument("image", type=Path, help="NIfTI, any contrast")
    use.add_argument("--mask", type=Path, required=True, help="brain mask on the same grid")
    use.add_argument("--out", type=Path, required=True, help="folder for the results")
    use.add_argument("--threads", type=int, default=1)
    use.set_defaults(run=_segment)
    head = commands.add_parser("brain", help="find the brain in a whole head")
    head.add_argument("image", type=Path, help="NIfTI, any contrast")
    head.add_argument("--out", type=Path, required=True, help="file for the mask")
    head.set_defaults(run=_brain)
    draw = commands.add_parser("draw", help="write synthesised images, to look at")
    draw.add_argument("label_maps", type=Path)
    draw.add_argument("out", type=Path)
    draw.add_argument("--preset", choices=PRESETS, default="first", help="whose images")
    draw.add_argument("--count", type=int, default=10)
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(run=_draw)
    return parser


def _train(given: argparse.Namespace) -> None:
    import torch

    from ..deep.processor import torch_threads
    from .label_maps import load_label_maps
    from .train_settings import PLANS

    if given.device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"--device {given.device} was asked for, but there is no CUDA device.")
    maps, presets, weights = load_label_maps(given.label_maps), PLANS.get(given.preset), given.start
    with torch_threads(given.threads):
        for n, preset in enumerate(presets or (given.preset,)):
            out = given.out / f"{n + 1}-{preset}" if presets else given.out
            weights = _train_preset(given, maps, preset, given.seed + n, out, weights)
    print(weights)


def _train_preset(given: argparse.Namespace, maps: Sequence[LabelMap], preset: str, seed: int,
                  out: Path, start: Path | None) -> Path:
    """Train, or go on; the weights' path. What was finished is not judged again."""
    from .card import file_of, write_model
    from .train import train, validate

    settings = _settings(preset, seed, given.device)
    network = train(maps, out, settings, device=given.device, workers=given.workers, start=start)
    done = file_of(out, len(settings.classes))
    if done.with_suffix(".md").exists():  # the card is written last
        return done
    unseen = maps[len(maps) - settings.held_out :] or maps
    dice = validate(network, unseen, synthesis=settings.phases[-1].synthesis)
    return write_model(out, network, dice, preset, seed)


def _settings(preset: str, seed: int, device: str) -> TrainingSettings:
    """The preset's; in single precision where bfloat16 would take minutes a step."""
    from ..deep.processor import trains_in_bf16
    from .train_settings import PRESETS

    settings = replace(PRESETS[preset], seed=seed)
    if settings.precision == "bf16" and not trains_in_bf16(device):
        LOG.warning("%s does not multiply bfloat16 (CPU: AMX, AVX512-BF16; GPU: Ampere): training "
                    "in single precision, which takes about three times as long; the weights "
                    "differ by rounding", device)
        settings = replace(settings, precision="fp32")
    return settings


def _segment(given: argparse.Namespace) -> None:
    from ..volume import load_nifti, read_volume, write_labels, write_volume
    from .predict import doubt, segment

    path = given.image
    volume, header = read_volume(path, given.mask), load_nifti(path).header
    found = segment(volume, threads=given.threads)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    start = given.out / (name.rsplit("_", 1)[0] if "_" in name else name)
    for tissue, share in found.tissues.items():
        write_volume(f"{start}_label-{tissue}_probseg.nii.gz", volume.with_data(share),
                     header=header)
    write_labels(f"{start}_dseg.nii.gz", found.classes, volume.affine, header=header)
    millilitres = {t: round(float(s.sum() * np.prod(volume.spacing)) / 1e3)
                   for t, s in found.tissues.items()}
    print(f"{path}: " + ", ".join(f"{t} {ml} ml" for t, ml in millilitres.items())
          + f", support {found.support:.2f}")
    if (warning := doubt(found.support)) is not None:
        print(f"warning: {path}: {warning}", file=sys.stderr)


def _brain(given: argparse.Namespace) -> None:
    from ..volume import load_nifti, read_volume, write_mask
    from .brain import network_mask

    volume = read_volume(given.image)
    mask = network_mask(volume)
    write_mask(given.out, mask, volume.affine, header=load_nifti(given.image).header)
    print(f"{given.image}: {mask.sum() * np.prod(volume.spacing) / 1e6:.2f} litres")


def _draw(given: argparse.Namespace) -> None:
    from ..volume import Volume, write_labels, write_volume
    from .label_maps import load_label_maps
    from .synthesis import synthesise
    from .train_settings import PRESETS

    maps, how = load_label_maps(given.label_maps), PRESETS[given.preset].phases[-1].synthesis
    for index in range(given.count):
        image, target = synthesise(maps, given.seed, index, how)
        volume = Volume(image.numpy(), np.diag([how.voxel_mm] * 3 + [1.0]))
        write_volume(given.out / f"seed-{given.seed}_index-{index}_image.nii.gz", volume)
        write_labels(given.out / f"seed-{given.seed}_index-{index}_dseg.nii.gz", target.numpy(),
                     volume.affine)


if __name__ == "__main__":
    sys.exit(main())
