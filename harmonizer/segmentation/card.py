"""Write a network's weights with a model card: training data, command, duration and accuracy."""

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

* **Training data**: images synthesized from {maps} label maps, and nothing else; {validation} of
  these were held out for validation. The label maps are the training label maps of SynthSeg
  (github.com/BBillot/SynthSeg, Apache-2.0; Billot et al., Medical Image Analysis 86:102789, 2023).
  No real image was used.
* **License** of the weights: that of this package. The license of the label maps (Apache-2.0)
  requires the notice above.
* **Command**:
  `python -m harmonizer.segmentation train LABEL_MAPS OUT --preset {preset} --seed {seed}{initial}`
* **Steps**: {steps}, one image each; {hours:.1f} hours; precision of the convolutions: {precision}.
* **SHA-256** of `{file}`: {sha256}

Mean Dice on 16 synthesized images of the held-out heads, any contrast, resolution, noise, cut:

| class | Dice |
|---|---|
{rows}

{lesions}Tumors, resections and infants were not part of the training.
`docs/concepts/segmentation.md` reports the accuracy on images with true labels.
"""


def write_model(
    out: Path, network: SegmenterNet, dice: Mapping[str, float], preset: str, seed: int
) -> Path:
    """Write weights and model card into the folder of a training run.

    The files are `segmenter.safetensors` and `segmenter.md`, or `brain.*` for two classes.

    Parameters
    ----------
    out : Path
        Folder of the run, see `train`.
    network : SegmenterNet
        The trained network.
    dice : mapping of str to float
        Mean Dice coefficient of each class on validation images.
    preset, seed
        Name of the training preset, and its seed.

    Returns
    -------
    Path
        The weights file.
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
        maps=len(about["LabelMaps"]), validation=training["n_validation_maps"],
        preset=preset, seed=seed,
        steps=training["steps"], hours=seconds.sum() / 3600, precision=training["precision"],
        sha256=sha256_of(path), file=path.name,
        initial=_initial_weights_option(about.get("InitialWeightsSha256")),
        lesions="" if whole_head else "White matter lesions were labeled as white matter. ",
        rows="\n".join(f"| {name} | {value:.3f} |" for name, value in dice.items()),
    ))
    return path


def file_of(out: Path, classes: int) -> Path:
    """Return the path of the weights in a run's folder, given the network's number of classes."""
    return out / ("brain.safetensors" if classes == len(BRAIN_CLASSES) else "segmenter.safetensors")


def _initial_weights_option(sha256: str | None) -> str:
    """Rest of the training command, and the initial weights that it names."""
    if sha256 is None:
        return ""
    return f" --initial-weights WEIGHTS`, where WEIGHTS has the SHA-256 `{sha256}"
