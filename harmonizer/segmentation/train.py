"""Train the segmentation networks on synthesized images.

    python -m harmonizer.segmentation train LABEL_MAPS OUT --preset cpu-1h

Step n uses image n of the seed, so an interrupted run resumes to the same bits. The exported
weights are the exponential moving average. Only synthesized images are used.
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

from ..deep.networks.blocks import pixel_unshuffle, to_channels_last
from ..errors import InputError, UsageError
from ..files import atomic_path, sha256_of, write_json
from .label_maps import LabelMap
from .network import BLOCK_VOXELS, SegmenterNet
from .synthesis import SynthesisSettings, synthesize
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
    initial_weights: Path | None = None,
) -> SegmenterNet:
    """Train a network, or resume the training in a folder.

    Writes `checkpoint.safetensors` (weights, average, optimizer, step), `history.tsv` (step,
    seconds, loss) and `training.json` (settings, digests of the label maps) into `out`.

    Parameters
    ----------
    maps : sequence of LabelMap
        Label maps. The last `settings.n_validation_maps` are not used for training.
    out : Path
        Folder of the run.
    settings : TrainingSettings
        Settings of the run.
    device : str
        torch device, such as "cpu" or "cuda".
    workers : int
        Processes that synthesize images; 0 synthesizes in this process.
    save_every : int
        Steps between two checkpoints.
    initial_weights : Path, optional
        Weights file to start from; by default, weights are drawn from the seed.

    Returns
    -------
    SegmenterNet
        The network with averaged weights, in evaluation mode.

    Raises
    ------
    UsageError
        If `out` holds a run with other settings, label maps or initial weights.
    InputError
        If no label map is left for training, or if `initial_weights` cannot be read or belongs to
        another network.
    """
    if len(maps) <= settings.n_validation_maps:
        raise InputError(
            f"expected more than {settings.n_validation_maps} label maps, of which "
            f"{settings.n_validation_maps} are kept for validation, got {len(maps)}: none is left "
            "for training. Give more label maps."
        )
    torch.manual_seed(settings.seed)
    network = _initial_network(settings, initial_weights)
    out.mkdir(parents=True, exist_ok=True)
    _check_run(out, settings, maps, initial_weights)
    state = _TrainingState(network.to(device), settings)
    state.restore(out / CHECKPOINT)
    training_maps = maps[: len(maps) - settings.n_validation_maps]
    last = time.monotonic()
    for image, target in _images(training_maps, settings, state.step, workers):
        loss = state.update(image.to(device), target.to(device))
        now = time.monotonic()
        _log_step(out, state, loss, now - last)
        last = now
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
    """Compute the mean Dice coefficient of each class on synthesized images.

    Parameters
    ----------
    network : SegmenterNet
        The network.
    maps : sequence of LabelMap
        Label maps to synthesize from.
    count, seed : int
        Number of images, and their seed.
    synthesis : SynthesisSettings, optional
        Settings of the images.

    Returns
    -------
    dict of str to float
        Mean over the images that hold the class.
    """
    synthesis = synthesis or SynthesisSettings()
    sums = torch.zeros(len(synthesis.classes), 2)
    device = next(network.parameters()).device
    for index in range(count):
        image, target = synthesize(maps, seed, index, synthesis)
        with torch.inference_mode():
            found = network(image[None, None].to(device)).argmax(1)[0].cpu()
        truth = pixel_unshuffle(target[None, None], BLOCK_VOXELS)[0]
        for c in torch.unique(truth).tolist():
            one, two = found == c, truth == c
            dice = 2 * float((one & two).sum()) / float(one.sum() + two.sum())
            sums[c] += torch.tensor([dice, 1.0])
    return {name: float(s / n) for name, (s, n) in zip(synthesis.classes, sums.tolist()) if n}


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute cross-entropy plus soft Dice loss, averaged over the classes that are present.

    Parameters
    ----------
    logits : (N, C, ...) Tensor
        Logits of C classes.
    target : (N, ...) int64 Tensor
        Class indices, 0 to C - 1.

    Returns
    -------
    Tensor
        Scalar.
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


def _initial_network(settings: TrainingSettings, initial_weights: Path | None) -> SegmenterNet:
    """Network at step 0."""
    network = SegmenterNet(len(settings.classes), settings.widths)
    if initial_weights is not None:
        given = read_weights(initial_weights)
        if given.config != network.config:
            raise InputError(f"{initial_weights}: expected a network of {network.config}, got "
                             f"{given.config}. Give weights of the same preset's network.")
        network.load_state_dict(given.state_dict())
    return network


class _TrainingState:
    """State of a training: network, averaged weights, optimizer and step."""

    def __init__(self, network: SegmenterNet, settings: TrainingSettings) -> None:
        self.network = to_channels_last(network)
        self.settings = settings
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step = 0

    def update(self, image: torch.Tensor, target: torch.Tensor) -> float:
        """Take one optimizer step on an (I, J, K) image and its labels; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        half = self.settings.precision == "bf16"
        with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
            logits = self.network(image[None, None])
        labels = pixel_unshuffle(target[None, None], BLOCK_VOXELS).long()
        loss = segmentation_loss(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return float(loss.detach())

    def averaged(self) -> SegmenterNet:
        """Return a new network with the averaged weights, in evaluation mode."""
        network = SegmenterNet(**self.network.config)
        network.load_state_dict(self.average)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        from safetensors.torch import save_file

        tensors = {f"net.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v.contiguous() for k, v in self.average.items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{k}": v.contiguous() for k, v in slots.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(self.step)})

    def restore(self, path: Path) -> None:
        """Load a checkpoint, if there is one."""
        from safetensors import safe_open

        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no __iter__)
            self.step = int(file.metadata()["step"])
        self.network.load_state_dict(_strip_prefix(tensors, "net."))
        device = next(self.network.parameters()).device
        self.average = {k: v.to(device) for k, v in _strip_prefix(tensors, "ema.").items()}
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _strip_prefix(tensors, "opt.").items():
            number, name = key.split(".", 1)
            slots.setdefault(int(number), {})[name] = value
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})


def _strip_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


class _SynthesizedImages(torch.utils.data.Dataset):
    """Images of a seed for the steps that remain; image n belongs to step n."""

    def __init__(self, maps: Any, settings: TrainingSettings, first: int) -> None:
        self.maps, self.settings, self.first = maps, settings, first

    def __len__(self) -> int:
        return max(0, self.settings.steps - self.first)

    def __getitem__(self, n: int) -> Any:
        step = self.first + n
        how = self.settings.synthesis_at(step)
        return synthesize(self.maps, self.settings.seed, step, how)


def _images(maps: Any, settings: TrainingSettings, first: int, workers: int
            ) -> torch.utils.data.DataLoader:
    data = _SynthesizedImages(maps, settings, first)
    return torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)


def _check_run(out: Path, settings: TrainingSettings, maps: Sequence[LabelMap],
              initial_weights: Path | None) -> None:
    """Write the run's description, or raise if the folder holds another run."""
    expected: dict[str, Any] = {
        "Training": asdict(settings),
        "LabelMaps": {m.name: m.sha256 for m in maps},
    }
    if initial_weights is not None:
        expected["InitialWeightsSha256"] = sha256_of(initial_weights)
    expected = json.loads(json.dumps(expected))
    path = out / "training.json"
    if not path.exists():
        write_json(path, expected)
    elif json.loads(path.read_text(encoding="utf-8")) != expected:
        raise UsageError(
            f"{path} describes another training, with other settings, label maps or initial "
            "weights. Give the same ones to resume it, or another output folder."
        )


def _log_step(out: Path, state: _TrainingState, loss: float, seconds: float) -> None:
    """Append a line to the history; every fiftieth step is also logged with the remaining time."""
    path = out / "history.tsv"
    if not path.exists():
        path.write_text("step\tseconds\tloss\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{state.step}\t{seconds:.2f}\t{loss:.4f}\n")
    if state.step % 50 == 0:
        steps = state.settings.steps
        left = (steps - state.step) * seconds / 60
        LOG.info("step %d of %d, loss %.3f, %.0f min left", state.step, steps, loss, left)
