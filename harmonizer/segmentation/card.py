"""A network's model file with its card: what it was trained on, how, how long, how good."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..files import sha256_of, write_text
from .network import SegmenterNet
from .structures import BRAIN_CLASSES
from .weights_file import write_weights

__all__ = ["write_model", "file_of"]

SEGMENTER_HEADING = """# The segmenter

A 3D U-Net ({parameters:.2f} M parameters) that finds the brain and its tissues in an image of any
contrast. It works at 1 mm; see `harmonizer.segmentation`.
"""
BRAIN_HEADING = """# The brain in a whole head

A 3D U-Net ({parameters:.2f} M parameters) that finds the brain in a whole head of any contrast. It
works at 3 mm, along the axes of the world; see `harmonizer.segmentation.brain`.
"""
CARD = """\

* **Trained on** images synthesised from {maps} label maps, and on nothing else; {held_out} of these
  were held out for the numbers below. The label maps are the training label maps of SynthSeg
  (github.com/BBillot/SynthSeg, Apache-2.0; Billot et al., Medical Image Analysis 86:102789, 2023).
  No image of a person was seen.
* **Licence** of the weights: that of this package; the label maps' licence (Apache-2.0) asks for
  the notice above.
* **Command**:
  `python -m harmonizer.segmentation train LABEL_MAPS OUT --preset {preset} --seed {seed}{start}`
* **Steps**: {steps}, one image each; {hours:.1f} hours, bfloat16 convolutions where the precision
  says so ({precision}).
* **SHA-256** of `{file}`: {sha256}

Mean Dice on 16 synthesised images of the held-out heads, any contrast, resolution, noise, cut:

| class | Dice |
|---|---|
{rows}

{lesions}Tumours, resections and infants were not seen.
What it reaches on true labels: `docs/segmentation.md`.
"""


def write_model(
    out: Path, network: SegmenterNet, dice: Mapping[str, float], preset: str, seed: int
) -> Path:
    """Write weights and card where `train` was; returns the path of the weights.

    `segmenter.safetensors` and `segmenter.md`, or `brain.*` of a network for the brain alone.
    """
    about = json.loads((out / "training.json").read_text(encoding="utf-8"))
    training = about["Training"]
    seconds = np.loadtxt(out / "history.tsv", skiprows=1, usecols=1, ndmin=1)
    path = file_of(out, network.classes)
    whole_head = network.classes == len(BRAIN_CLASSES)
    write_weights(path, network, {"preset": preset, "seed": str(seed)})
    template = (BRAIN_HEADING if whole_head else SEGMENTER_HEADING) + CARD
    write_text(path.with_suffix(".md"), template.format(
        parameters=sum(p.numel() for p in network.parameters()) / 1e6,
        maps=len(about["LabelMaps"]), held_out=training["held_out"], preset=preset, seed=seed,
        steps=training["steps"], hours=seconds.sum() / 3600, precision=training["precision"],
        sha256=sha256_of(path), file=path.name, start=_begun_with(about.get("StartSha256")),
        lesions="" if whole_head else "White matter lesions were taught as white matter. ",
        rows="\n".join(f"| {name} | {value:.3f} |" for name, value in dice.items()),
    ))
    return path


def file_of(out: Path, classes: int) -> Path:
    """Where the weights of a network of so many classes lie in a training's folder."""
    return out / ("brain.safetensors" if classes == len(BRAIN_CLASSES) else "segmenter.safetensors")


def _begun_with(sha256: str | None) -> str:
    """The rest of the command, and which weights it named."""
    return "" if sha256 is None else f" --start WEIGHTS`, WEIGHTS being those of SHA-256 `{sha256}"
