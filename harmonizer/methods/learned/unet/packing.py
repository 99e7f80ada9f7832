"""Export of trained weights, with their validated residual weight and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .... import __version__
from ....deep.training.checkpoint import read_checkpoint, with_prefix
from ....deep.training.loop import CHECKPOINT
from ....errors import InputError
from ....files import read_json, sha256_of, write_text
from .channels import CHANNELS, CONDITIONS
from .network import ResidualUNet
from .scan_card import CARD_NAMES
from .store import Pair, PairStore
from .training import NORMALIZATION, validation_sums
from .weights import write_weights

__all__ = ["pack_weights", "network_of"]

MODALITY = "T1w"  # the only modality that is simulated, and thus validated
UNSEEN_SCAN = 1.5  # deviation of a new scan from its site's card over that of a scan of the fit
MIN_CARD_STD = 0.02  # smaller values are raised: they would dominate the distance of cards
MIN_IDENTITY_PAIRS = 8

CARD = """\
# Weights of the method `unet`

A residual 3D U-Net ({parameters:.2f} M parameters) that corrects tissue matching on T1w images; see
`harmonizer.methods.learned.unet`.

* **Trained on** simulated scans alone (`harmonizer.simulation`): anatomies are deformed label maps
  (the training label maps of SynthSeg, github.com/BBillot/SynthSeg, Apache-2.0; Billot et al.,
  Medical Image Analysis 86:102789, 2023) and phantom subjects bent from MNI152NLin2009aSym (ICBM,
  Fonov 2009, as bundled with nilearn). No scan of a subject was used. {pairs} pairs of {studies}
  simulated studies. The weights are the averages at the last step: no data chose among steps.
* **License** of the weights: that of this package; the label maps' license (Apache-2.0) asks for
  the notice above.
* **Command**: `python -m harmonizer.methods.learned.unet train LABEL_MAPS OUT`; settings:
  `{settings}`
* **Version** of the package: {version}
* **Steps**: {steps}; {minutes:.0f} minutes of one CPU core, {precision}.
* **SHA-256** of `{file}`: {sha256}
* **Validated on** {modality}, weight of the residual {weight:.2f}: {count} pairs of {held_out}
  other simulated studies, with other label maps, phantom subjects and scanners. Mean square error
  in the brain against the noise-free truth: {gain:+.2f} dB over tissue matching, better in
  {better:.0f} % of the pairs. On other modalities the residual is not used.

What it reaches on data that neither training nor selection saw: `docs/research/2026-12-unet.md`.
"""


def network_of(folder: Path) -> tuple[ResidualUNet, dict[str, Any]]:
    """Return the network with the averaged weights of the last step, and the training's facts."""
    tensors, facts = read_checkpoint(folder / CHECKPOINT)
    numbers = read_json(folder / NORMALIZATION)
    weights = with_prefix(tensors, "ema.")
    settings = facts["identity"]["settings"]
    network = ResidualUNet(len(CHANNELS), len(CONDITIONS), tuple(settings["widths"]))
    network.load_state_dict({
        **{name.removeprefix("unet."): tensor for name, tensor in weights.items()},
        "center": torch.tensor(numbers["center"]), "scale": torch.tensor(numbers["scale"])})
    return network.eval(), facts


def pack_weights(folder: Path, pairs: Path, path: Path) -> Path:
    """Write the weights and their card; return the path of the weights.

    Raises
    ------
    InputError
        If the store holds no validation pairs, or too few identity pairs.
    """
    network, facts = network_of(folder)
    store = PairStore(pairs)
    usable = [pair for pair in store.validation if not pair.identity]
    if not usable:
        raise InputError(f"{pairs}: no validation pairs, so nothing can be validated. Prepare "
                         "validation studies (--validation-studies).")
    weight, gains = validated_weight(network, usable)
    about = {"Modalities": {MODALITY: round(weight, 3)}, "CardStd": card_std(store),
             "Steps": facts["step"],
             "Minutes": round(facts["minutes"], 1), "Version": __version__,
             "ValidationGainDb": round(float(np.mean(gains)), 3)}
    write_weights(path, network, about)
    write_text(path.with_suffix(".md"), CARD.format(
        parameters=sum(p.numel() for p in network.parameters()) / 1e6, pairs=len(store.training),
        studies=len({p.study for p in store.training}),
        held_out=len({p.study for p in store.validation}),
        settings=json.dumps(facts["identity"]["settings"]), version=__version__,
        steps=facts["step"], minutes=facts["minutes"],
        precision="bfloat16 autocast where the CPU has it",
        file=path.name, sha256=sha256_of(path),
        modality=MODALITY, weight=weight, gain=float(np.mean(gains)),
        better=100 * float(np.mean(np.array(gains) > 0)), count=len(gains)))
    return path


def validated_weight(network: ResidualUNet, pairs: Sequence[Pair]) -> tuple[float, list[float]]:
    """Compute the weight of the residual that minimizes the error on validation pairs.

    Returns
    -------
    weight : float
        0 to 1. The error of a pair is relative to that of its baseline.
    gains : list of float
        Gain of each pair over the baseline at full weight, dB.
    """
    product = square = 0.0
    gains = []
    with torch.no_grad():
        for pair in pairs:
            before, cross, power = validation_sums(network, pair)
            product, square = product + cross / before, square + power / before
            after = before - 2 * cross + power
            gains.append(float(-10 * np.log10(max(after, 1e-12) / before)))
    return float(np.clip(product / max(square, 1e-12), 0, 1)), gains


def card_std(store: PairStore) -> list[float]:
    """Return the standard deviation of each number of a card between scans of one scanner."""
    n = len(CARD_NAMES)
    differences = np.array([pair.condition[n:2 * n] - pair.condition[:n]
                      for pair in (*store.training, *store.validation) if pair.identity])
    if len(differences) < MIN_IDENTITY_PAIRS:
        raise InputError(f"{store.folder}: {len(differences)} identity pairs, expected "
                         f"{MIN_IDENTITY_PAIRS} or more. Prepare more studies.")
    std = UNSEEN_SCAN * np.sqrt(np.mean(differences ** 2, axis=0))
    return [float(v) for v in np.maximum(std, MIN_CARD_STD)]
