"""Training of the residual U-Net on simulated pairs: loss, batches, validation, presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....deep.processor import trains_in_bf16
from ....deep.training.loop import TrainingOutcome, step_seed, train
from ....deep.training.settings import Resources, TrainingSchedule
from ....deep.training.task import Batch, OptimizerGroup, TrainingTask
from ....errors import InputError
from ....files import read_json, write_json
from .channels import CHANNELS, CONDITIONS
from .network import ResidualUNet, without_local_mean
from .store import Pair, PairStore, condition_statistics

__all__ = ["PRESETS", "NORMALIZATION", "UNetSettings", "ResidualTransfer", "train_unet",
           "residual_loss", "relative_errors", "validation_sums"]

NORMALIZATION = "normalization.json"
KNEE = 0.3  # relative error where the Charbonnier loss becomes linear
SMALLEST = 0.004  # lower bound of the baseline error by which a patch is weighted
REFRESH_EVERY = 50  # steps between searches for new pairs


@dataclass(frozen=True)
class UNetSettings:
    """Settings of a training.

    Attributes
    ----------
    steps, batch, patch : number of steps, patches of a step, voxels along a patch's side
    learning_rate, warmup, decay : peak rate of AdamW, steps to reach it, final part of the steps
        in which it falls to zero
    ema : decay of the average of the weights
    gradient_weight : of the L1 error of the image gradient
    validate_every, validation_pairs : steps between validations, and pairs of one
    kind_weights : how often pairs of a kind of study are drawn, relative to others
    widths : of the network
    seed : of weights and batches
    """

    steps: int = 4000
    batch: int = 4
    patch: int = 40
    learning_rate: float = 8e-4
    warmup: int = 50
    decay: float = 0.35
    ema: float = 0.998
    gradient_weight: float = 0.5
    validate_every: int = 250
    validation_pairs: int = 24
    kind_weights: tuple[tuple[str, float], ...] = (
        ("coarse", 1.0), ("mixed", 0.6), ("fine", 0.6), ("fine_native", 0.8))
    widths: tuple[int, ...] = (48, 48, 48)
    seed: int = 0


PRESETS = {
    "tiny": UNetSettings(steps=20, batch=2, patch=16, validate_every=10, validation_pairs=2,
                         widths=(8, 8, 8)),
    "cpu": UNetSettings(),
    "gpu": UNetSettings(steps=60_000, batch=16, patch=64, learning_rate=1e-3, ema=0.9995,
                        validate_every=1000, validation_pairs=64),
}
"""`cpu`: about two hours of two cores; `gpu`: a few hours of one GPU."""


def residual_loss(residual: torch.Tensor, wrong: torch.Tensor, mask: torch.Tensor,
                  gradient_weight: float) -> dict[str, torch.Tensor]:
    """Compute the Charbonnier loss of fine detail and the L1 loss of its gradient.

    The network leaves smooth differences to the baseline, so they are subtracted from the error.
    The error of a patch is divided by that of the baseline.

    Parameters
    ----------
    residual, wrong : (N, I, J, K) output, and truth - baseline
    mask : (N, I, J, K)
    gradient_weight : of the gradient's error
    """
    weight = 1 / mask.sum().clamp_min(1)
    fine = without_local_mean(wrong[:, None], mask[:, None])[:, 0]
    error = (residual - fine) * mask
    value = (_charbonnier(error / _root_mean_square(fine, mask)) * mask).sum() * weight
    edges = residual.new_zeros(())
    for axis in range(1, 4):
        step, both = _steps(residual - wrong, mask, axis)
        usual, _ = _steps(wrong, mask, axis)
        size = (usual.abs() * both).sum(dim=(1, 2, 3)) / both.sum(dim=(1, 2, 3)).clamp_min(1)
        size = size.clamp_min(SMALLEST)[:, None, None, None]
        edges = edges + (step.abs() * both / size).sum() * weight / 3
    return {"value": value, "edges": gradient_weight * edges}


def _root_mean_square(error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the root mean square inside the mask, (N, 1, 1, 1), at least `SMALLEST`."""
    square = (error ** 2 * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1)
    return square.sqrt().clamp_min(SMALLEST)[:, None, None, None]


def _steps(error: torch.Tensor, mask: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return differences of neighbors along an axis, and where both lie in the mask."""
    n = error.shape[axis]
    return (error.narrow(axis, 1, n - 1) - error.narrow(axis, 0, n - 1),
            mask.narrow(axis, 1, n - 1) * mask.narrow(axis, 0, n - 1))


def _charbonnier(error: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(error ** 2 + KNEE ** 2) - KNEE


class ResidualTransfer(TrainingTask):
    """Training task of the residual U-Net."""

    def __init__(self, store: PairStore, settings: UNetSettings, center: np.ndarray,
                 scale: np.ndarray) -> None:
        self.store, self.settings = store, settings
        torch.manual_seed(settings.seed)
        network = ResidualUNet(len(CHANNELS), len(CONDITIONS), settings.widths)
        network.center.copy_(torch.as_tensor(center, dtype=torch.float32))
        network.scale.copy_(torch.as_tensor(scale, dtype=torch.float32))
        self.network = network
        self.networks = {"unet": network}
        # A finished training may be continued with more steps.
        self.identity = {"method": "unet", "settings": {**asdict(settings), "steps": None,
                                                        "decay": None, "validate_every": None,
                                                        "kind_weights": None}}
        self.validation = chosen_for_validation(store.validation, settings.validation_pairs)

    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """Return the only optimizer group."""
        s = self.settings
        return (OptimizerGroup("unet", ("unet",), self.loss, learning_rate=s.learning_rate,
                       weight_decay=1e-4, clip=1.0, rate_factor=self.rate_factor),)

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate: linear warm-up, constant, cosine decay."""
        s = self.settings
        first = s.steps * (1 - s.decay)
        late = min(max((step - first) / max(s.steps - first, 1), 0.0), 1.0)
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late))
        return min(1.0, (step + 1) / s.warmup) * falling

    def batch(self, step: int, rank: int) -> Batch:
        """Draw mirrored and permuted patches with random gains and noisy conditioning."""
        if step % REFRESH_EVERY == 0:
            self.store.refresh()
        s = self.settings
        rng = np.random.default_rng(step_seed(s.seed + 1, step, rank))
        patches, conditions = [], []
        std = self.network.scale.cpu().numpy()
        for _ in range(s.batch):
            patch, condition = self.store.draw(rng, s.patch, dict(s.kind_weights))
            gain, own = np.exp(rng.normal(0, 0.03, 2)).astype(np.float32)
            patch[[0, -1]] *= gain
            patch[1] *= own
            patches.append(patch)
            conditions.append(condition + std * rng.normal(0, 0.2, len(condition)))
        arrays = torch.from_numpy(np.stack(patches))
        return {"input": arrays[:, :-1], "truth": arrays[:, -1],
                "condition": torch.from_numpy(np.stack(conditions).astype(np.float32))}

    def loss(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """See `residual_loss`."""
        x, s = batch["input"], self.settings
        residual = self.network(x, batch["condition"])[:, 0].float()
        return residual_loss(residual, batch["truth"] - x[:, 0], x[:, CHANNELS.index("mask")],
                             s.gradient_weight)

    def validate(self) -> Mapping[str, float]:
        """Return the error relative to the baseline (geometric mean) and the gain in dB."""
        both = [relative_errors(self.network, pair) for pair in self.validation]
        found = [whole for whole, _ in both]
        logs = [math.log(e) for e, pair in zip(found, self.validation) if not pair.identity]
        if not logs:
            return {}
        fine = [math.log(e) for _, e in both]
        numbers = {"gain_db_fine": -10 / math.log(10) * float(np.mean(fine)),
                   "error": math.exp(float(np.mean(logs)) / 2),
                   "gain_db": -10 / math.log(10) * float(np.mean(logs)),
                   "better": float(np.mean([v < 0 for v in logs]))}
        for kind in sorted({p.kind for p in self.validation}):
            part = [math.log(e) for e, p in zip(found, self.validation)
                    if p.kind == kind and not p.identity]
            if part:
                numbers[f"gain_db_{kind}"] = -10 / math.log(10) * float(np.mean(part))
        return numbers


def chosen_for_validation(pairs: list[Pair], count: int) -> list[Pair]:
    """Select at most `count` pairs that are not identity pairs, evenly over the list."""
    usable = [pair for pair in pairs if not pair.identity]
    if len(usable) <= count:
        return usable
    return [usable[int(i)] for i in np.linspace(0, len(usable) - 1, count)]


def predicted(network: ResidualUNet, pair: Pair) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return residual, truth - baseline and level inside the mask of a pair, (n,) each."""
    arrays = np.asarray(pair.open(), np.float32)
    padding = [(0, 0)] + [(0, -n % network.multiple) for n in arrays.shape[1:]]
    stack = torch.from_numpy(np.pad(arrays, padding))
    device = next(network.parameters()).device
    condition = torch.from_numpy(pair.condition)[None].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=trains_in_bf16(str(device))):
        residual = network(stack[None, :-1].to(device), condition)[0, 0].float().cpu()
    mask = stack[CHANNELS.index("mask")] > 0
    level = torch.tensordot(torch.from_numpy(pair.level), stack[2:5], 1)
    return residual[mask], (stack[-1] - stack[0])[mask], level[mask]


def relative_errors(network: ResidualUNet, pair: Pair) -> tuple[float, float]:
    """Return the mean square error of the network over that of the baseline, inside the mask.

    Returns
    -------
    whole, fine : float
        With and without the offsets of the subject's tissues (`Pair.level`).
    """
    residual, wrong, level = predicted(network, pair)
    return tuple(float(((residual - part) ** 2).mean()  # type: ignore[return-value]
                       / (part ** 2).mean().clamp_min(1e-12)) for part in (wrong, wrong - level))


def validation_sums(network: ResidualUNet, pair: Pair) -> tuple[float, float, float]:
    """Return the means of error^2, error x residual and residual^2 inside the mask of a pair.

    The error is that of the baseline.
    """
    residual, wrong, _ = predicted(network, pair)
    return (float((wrong ** 2).mean().clamp_min(1e-12)), float((wrong * residual).mean()),
            float((residual ** 2).mean()))


def train_unet(folder: Path, pairs: Path, settings: UNetSettings, resources: Resources, *,
               progress: Any = None) -> tuple[TrainingOutcome, ResidualUNet]:
    """Train, or resume a training, in `folder`; return its outcome and the averaged network.

    Raises
    ------
    InputError
        If `pairs` holds no training pairs.
    UsageError
        If `folder` holds a training with other settings.
    """
    store = PairStore(pairs)
    if not store.training:
        raise InputError(f"{pairs}: no training pairs. Prepare some first.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NORMALIZATION
    if not path.exists():
        center, scale = condition_statistics(store.training)
        write_json(path, {"center": center.tolist(), "scale": scale.tolist()})
    normalization = read_json(path)
    task = ResidualTransfer(store, settings, np.array(normalization["center"]),
                            np.array(normalization["scale"]))
    schedule = TrainingSchedule(steps=settings.steps, ema=settings.ema, log_every=50,
                validate_every=settings.validate_every, save_every=100)
    outcome = train(task, schedule, replace(resources, folder=folder), folder, settings.seed,
                    progress=progress)
    network = ResidualUNet(**task.network.config)
    network.load_state_dict({**{k.removeprefix("unet."): v for k, v in outcome.weights.items()},
                             "center": task.network.center, "scale": task.network.scale})
    return outcome, network.eval()
