"""Training the networks on synthesised images: one loop, resumable at any step.

    python -m harmonizer.segmentation train LABEL_MAPS OUT --preset cpu-1h

Step n sees image n of the seed, so a run that was stopped goes on as if it had not been. What is
shipped is the exponential moving average of the weights. Nothing but synthesised images is seen.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..deep.networks.blocks import pixel_unshuffle
from ..errors import InputError, UsageError
from ..files import atomic_path, sha256_of, write_json
from .label_maps import LabelMap
from .network import BLOCK, SegmenterNet
from .synthesis import SynthesisSettings, synthesise
from .train_settings import TrainingSettings
from .weights_file import read_weights

__all__ = ["train", "validate", "segmentation_loss"]

LOG = logging.getLogger("harmonizer.segmentation")
CHECKPOINT = "checkpoint.safetensors"
VALIDATION_SEED = 1_000_003


def train(
    maps: Sequence[LabelMap],
    out: Path,
    settings: TrainingSettings,
    *,
    device: str = "cpu",
    workers: int = 0,
    save_every: int = 200,
    start: Path | None = None,
) -> SegmenterNet:
    """Train, or go on training in `out`; returns the network with its averaged weights.

    `start` names a weights file to begin with; without one, weights are drawn from the seed.
    Writes `checkpoint.safetensors` (weights, average, optimiser, step), `history.tsv` (step,
    seconds, loss, learning rate) and `training.json` (the settings) into `out`.

    Raises
    ------
    UsageError
        If `out` holds a run with other settings, label maps or weights to begin with.
    InputError
        If fewer label maps are given than are held out, plus one; if `start` cannot be read or is
        of another network.
    """
    if len(maps) <= settings.held_out:
        raise InputError(
            f"{len(maps)} label maps, of which {settings.held_out} would be held out: none is "
            "left to train on. Give more label maps."
        )
    torch.manual_seed(settings.seed)
    network = _fresh(settings, start)
    out.mkdir(parents=True, exist_ok=True)
    _same_run(out, settings, maps, start)
    state = _State(network.to(device), settings)
    state.restore(out / CHECKPOINT)
    used = maps[: len(maps) - settings.held_out]
    started = time.monotonic()
    for image, target in _images(used, settings, state.step, workers):
        loss = state.update(image.to(device), target.to(device))
        now = time.monotonic()
        _note(out, state, loss, now - started)
        started = now
        if state.step % save_every == 0 or state.step == settings.steps:
            state.save(out / CHECKPOINT)
    return state.averaged()


def validate(
    network: SegmenterNet,
    maps: Sequence[LabelMap],
    count: int = 16,
    seed: int = VALIDATION_SEED,
    synthesis: SynthesisSettings | None = None,
) -> dict[str, float]:
    """Mean Dice of each class over synthesised images of these maps, where the class is present."""
    synthesis = synthesis or SynthesisSettings()
    sums = torch.zeros(len(synthesis.classes), 2)
    device = next(network.parameters()).device
    for index in range(count):
        image, target = synthesise(maps, seed, index, synthesis)
        with torch.inference_mode():
            found = network(image[None, None].to(device)).argmax(1)[0].cpu()
        truth = pixel_unshuffle(target[None, None], BLOCK)[0]
        for c in torch.unique(truth).tolist():
            one, two = found == c, truth == c
            dice = 2 * float((one & two).sum()) / float(one.sum() + two.sum())
            sums[c] += torch.tensor([dice, 1.0])
    return {name: float(s / n) for name, (s, n) in zip(synthesis.classes, sums.tolist()) if n}


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus one minus the mean soft Dice of the classes that are present.

    Parameters
    ----------
    logits : (N, C, ...) float
    target : (N, ...) int64, 0..C-1
    """
    logits, target = logits.flatten(2), target.flatten(1)
    logp = functional.log_softmax(logits, dim=1)
    entropy = functional.nll_loss(logp, target)
    p = logp.exp()
    classes = logits.shape[1]
    hit = p.gather(1, target[:, None])[:, 0].flatten()
    counts = torch.bincount(target.flatten(), minlength=classes).float()
    both = torch.zeros(classes, device=p.device).index_add(0, target.flatten(), hit)
    present = counts > 0
    dice = 2 * both[present] / (p.sum(dim=(0, 2))[present] + counts[present])
    return entropy + 1 - dice.mean()


def _fresh(settings: TrainingSettings, start: Path | None) -> SegmenterNet:
    """The network at step 0."""
    network = SegmenterNet(len(settings.classes), settings.widths)
    if start is not None:
        given = read_weights(start)
        if given.config != network.config:
            raise InputError(f"{start}: holds a network of {given.config}, expected "
                             f"{network.config}. Begin with weights of the same preset's network.")
        network.load_state_dict(given.state_dict())
    return network


class _State:
    """Network, average, optimiser and step: everything that a checkpoint holds."""

    def __init__(self, network: SegmenterNet, settings: TrainingSettings) -> None:
        self.network = network.to(memory_format=torch.channels_last_3d)
        self.settings = settings
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step = 0

    def update(self, image: torch.Tensor, target: torch.Tensor) -> float:
        """One step on a (I, J, K) image and its (I, J, K) truth; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate_at(self.step)
        half = self.settings.precision == "bf16"
        with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
            logits = self.network(image[None, None])
        loss = segmentation_loss(logits.float(), pixel_unshuffle(target[None, None], BLOCK).long())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return float(loss.detach())

    def averaged(self) -> SegmenterNet:
        """A new network with the averaged weights, ready for use."""
        network = SegmenterNet(**self.network.config)
        network.load_state_dict(self.average)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write everything, atomically."""
        from safetensors.torch import save_file

        tensors = {f"net.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v.contiguous() for k, v in self.average.items()}
        for i, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{k}": v.contiguous() for k, v in slots.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(self.step)})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        from safetensors import safe_open

        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            self.step = int(file.metadata()["step"])
        self.network.load_state_dict(_below(tensors, "net."))
        device = next(self.network.parameters()).device
        self.average = {k: v.to(device) for k, v in _below(tensors, "ema.").items()}
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _below(tensors, "opt.").items():
            number, name = key.split(".", 1)
            slots.setdefault(int(number), {})[name] = value
        state = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": slots, "param_groups": state["param_groups"]})


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


class _Synthesised(torch.utils.data.Dataset):
    """Image n of a seed, for n of the steps that are still to do."""

    def __init__(self, maps, settings: TrainingSettings, first: int) -> None:
        self.maps, self.settings, self.first = maps, settings, first

    def __len__(self) -> int:
        return max(0, self.settings.steps - self.first)

    def __getitem__(self, n: int):
        step = self.first + n
        how = self.settings.synthesis_at(step)
        return synthesise(self.maps, self.settings.seed, step, how)


def _images(maps, settings: TrainingSettings, first: int, workers: int):
    data = _Synthesised(maps, settings, first)
    return torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)


def _same_run(out: Path, settings: TrainingSettings, maps: Sequence[LabelMap],
              start: Path | None) -> None:
    """Write what is being trained, or refuse to go on with something else."""
    wanted: dict[str, Any] = {
        "Training": asdict(settings),
        "LabelMaps": {m.name: m.sha256 for m in maps},
    }
    if start is not None:
        wanted["StartSha256"] = sha256_of(start)
    wanted = json.loads(json.dumps(wanted))
    path = out / "training.json"
    if not path.exists():
        write_json(path, wanted)
    elif json.loads(path.read_text(encoding="utf-8")) != wanted:
        raise UsageError(
            f"{path} describes another training (other settings, label maps or "
            "weights to begin with). Give the same ones to go on with it, or another output folder."
        )


def _note(out: Path, state: _State, loss: float, seconds: float) -> None:
    """One line of history; every fiftieth step is said aloud, with what is left."""
    path = out / "history.tsv"
    if not path.exists():
        path.write_text("step\tseconds\tloss\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{state.step}\t{seconds:.2f}\t{loss:.4f}\n")
    if state.step % 50 == 0:
        steps = state.settings.steps
        left = (steps - state.step) * seconds / 60
        LOG.info("step %d of %d, loss %.3f, %.0f min left", state.step, steps, loss, left)
