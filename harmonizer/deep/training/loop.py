"""The training loop: update every optimizer group, average the weights, validate, save.

Everything drawn in step n of process r is drawn from (seed, n, r), by `TrainingTask.batch` and by
torch's generators. A checkpoint therefore holds no generator state, and a training that was killed
and resumed gives the same weights as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import InternalError, UsageError
from ..networks.blocks import to_channels_last
from ..processor import torch_threads
from .checkpoint import (
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    with_prefix,
    write_checkpoint,
)
from .history import History
from .loader import BatchLoader
from .processes import DistributedContext
from .settings import Resources, TrainingSchedule
from .signals import StopSignal
from .task import Batch, OptimizerGroup, TrainingTask

__all__ = ["CHECKPOINT", "TrainingOutcome", "step_seed", "train"]

LOGGER = logging.getLogger("harmonizer")
CHECKPOINT = "checkpoint.safetensors"

Progress = Callable[[int, int], None]


@dataclass
class TrainingOutcome:
    """Result of a training.

    Attributes
    ----------
    weights : dict of str to Tensor
        Averaged weights by ``network.parameter``: those of the best validation, or the last ones
        if nothing was validated.
    steps : int
        Steps done over all calls.
    best_step : int
        Step of the weights.
    minutes : float
        Duration over all calls.
    stop_reason : {"steps", "patience", "time", "signal"}
        What ended the training.
    metrics : dict of str to float
        Validation metrics of the weights; empty without a validation.
    history : list of dict
        Rows of history.tsv.
    waiting_fraction : float
        Fraction of the time of all steps in which the training waited for data, 0 to 1.
    """

    weights: dict[str, torch.Tensor]
    steps: int
    best_step: int
    minutes: float
    stop_reason: str
    metrics: dict[str, float]
    history: list[dict[str, Any]] = field(default_factory=list)
    waiting_fraction: float = 0.0


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the 63-bit seed of one step of one process."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


def train(task: TrainingTask, schedule: TrainingSchedule, resources: Resources, folder: Path,
          seed: int, *, distributed: DistributedContext | None = None,
          progress: Progress | None = None) -> TrainingOutcome:
    """Train until the steps, the time limit, the patience or a signal ends it; resume if possible.

    Parameters
    ----------
    folder : Path
        Checkpoint and history.
    distributed : DistributedContext, optional
        Default: a single process on the device of `resources`.
    progress : callable, optional
        Called with (steps done, total steps) by the first process.

    Returns
    -------
    TrainingOutcome

    Raises
    ------
    UsageError
        If the folder holds the checkpoint of another task (`TrainingTask.identity`).
    InternalError
        If a loss term or a gradient is not finite; the message names it.
    """
    distributed = distributed or DistributedContext(device=resources.device)
    folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(resources.threads), _forked_rng(distributed.device), StopSignal() as stop:
        trainer = _Trainer(task, schedule, resources, folder, seed, distributed)
        trainer.restore()
        stop_reason = trainer.run(stop, progress or _no_progress)
        distributed.barrier()
    return trainer.outcome(stop_reason)


class _Trainer:
    """Networks, averaged weights, best weights, optimizers and step: what a checkpoint holds."""

    def __init__(self, task: TrainingTask, schedule: TrainingSchedule, resources: Resources,
                 folder: Path, seed: int, distributed: DistributedContext) -> None:
        self.task, self.schedule, self.resources, self.seed = task, schedule, resources, seed
        self.folder, self.distributed, self.history = folder, distributed, History(folder)
        for network in task.networks.values():
            network.to(distributed.device).train()
            to_channels_last(network)
        self.groups = task.optimizer_groups()
        self.optimizers = {group.name: group.make_optimizer(self._parameters(group))
                           for group in self.groups}
        self.average = self._weights()
        self.best: dict[str, torch.Tensor] = {}
        self.metrics: dict[str, float] = {}
        self.step = self.best_step = self.validations_without_gain = 0
        self.minutes = self.seconds_waited = self.seconds_of_steps = 0.0

    def run(self, stop: StopSignal, progress: Progress) -> str:
        """Make steps until something ends the training; return the reason."""
        started, before = time.monotonic(), self.minutes
        limit = self.resources.max_minutes
        with BatchLoader(self.task, self.step, self.schedule.steps, self.distributed.rank,
                         self.resources.workers) as loader:
            while True:
                self.minutes = before + (time.monotonic() - started) / 60
                timed_out = limit is not None and self.minutes - before >= limit
                reason = self._stop_reason(stop, timed_out)
                if reason:
                    break
                self._train_step(loader)
                if self.distributed.is_first:
                    progress(self.step, self.schedule.steps)
                self.minutes = before + (time.monotonic() - started) / 60
                self._validate_and_save()
        if reason != "steps" or self.step % self.schedule.save_every:
            self._save()
        LOGGER.info("training: %d steps in %.1f minutes; %.0f %% of the time of the steps was "
                    "spent waiting for data", self.step, self.minutes,
                    100 * self.waiting_fraction)
        return reason

    @property
    def waiting_fraction(self) -> float:
        """Fraction of the time of all steps in which the training waited for data."""
        return self.seconds_waited / max(self.seconds_of_steps, 1e-9)

    def _stop_reason(self, stop: StopSignal, timed_out: bool) -> str:
        """Return why the training ends here, or an empty string."""
        patience = self.schedule.patience
        if self.step >= self.schedule.steps:
            return "steps"
        if patience and self.validations_without_gain >= patience:
            return "patience"
        if self.distributed.any(stop.received):
            return "signal"
        return "time" if self.distributed.any(timed_out) else ""

    def _train_step(self, loader: BatchLoader) -> None:
        torch.manual_seed(step_seed(self.seed, self.step, self.distributed.rank))
        started = time.perf_counter()
        batch = _to_device(loader.batch(self.step), self.distributed.device)
        waited = time.perf_counter() - started
        terms: dict[str, float] = {}
        for group in self.groups:
            if group.is_active_at(self.step):
                terms |= self._update(group, batch)
        self.step += 1
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            weights = self._weights(copy=False)
            torch._foreach_lerp_([self.average[k] for k in weights], list(weights.values()),
                                 1 - decay)
        terms |= {"seconds/data": waited, "seconds/step": time.perf_counter() - started}
        self.seconds_waited += terms["seconds/data"]
        self.seconds_of_steps += terms["seconds/step"]
        self.history.add(terms)

    def _update(self, group: OptimizerGroup, batch: Batch) -> dict[str, float]:
        """Make one update of one group; return its loss terms and gradient norm."""
        bf16 = self.resources.uses_bf16
        with torch.autocast(self.distributed.device.type, torch.bfloat16, enabled=bf16):
            losses = group.loss(batch)
        terms = {f"{group.name}/{name}": float(value.detach()) for name, value in losses.items()}
        self._require_finite(terms)
        parameters = self._parameters(group)
        total = reduce(torch.add, (loss.float() for loss in losses.values()))
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g.contiguous()
                     for g, p in zip(found, parameters)]
        self.distributed.average(gradients)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        norm = {f"{group.name}/gradient":
                float(torch.nn.utils.clip_grad_norm_(parameters, group.clip))}
        self._require_finite(norm)
        if group.rate_factor is not None:
            for settings in self.optimizers[group.name].param_groups:
                settings["lr"] = group.learning_rate * group.rate_factor(self.step)
        self.optimizers[group.name].step()
        return {**terms, **norm}

    def _require_finite(self, terms: Mapping[str, float]) -> None:
        bad = [name for name, value in terms.items() if not np.isfinite(value)]
        if bad:
            raise InternalError(
                f"training: {', '.join(bad)} became {terms[bad[0]]} at step {self.step}. The last "
                f"checkpoint in {self.folder} is valid; lower the learning rate, or use "
                "--precision fp32."
            )

    def _validate_and_save(self) -> None:
        schedule, is_last = self.schedule, self.step == self.schedule.steps
        metrics: dict[str, float] = {}
        if schedule.validate_every and (self.step % schedule.validate_every == 0 or is_last):
            metrics = self._validate()
        if self.distributed.is_first and (metrics or self.step % schedule.log_every == 0
                                          or is_last):
            self.history.end_row(self.step, self.minutes, metrics)
        if self.step % schedule.save_every == 0:
            self._save()

    def _validate(self) -> dict[str, float]:
        """Validate the averaged weights; keep them if they are the best so far."""
        metrics: dict[str, float] = {}
        if self.distributed.is_first:
            with self._averaged_weights():
                metrics = {k: float(v) for k, v in self.task.validate().items()}
        better = "error" in metrics and metrics["error"] < self.metrics.get("error", np.inf)
        if self.distributed.any(better):
            self.best = {k: v.clone() for k, v in self.average.items()}
            self.metrics, self.best_step, self.validations_without_gain = metrics, self.step, 0
        elif self.distributed.any(bool(metrics)):
            self.validations_without_gain += 1
        return metrics

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the networks, in evaluation mode without gradients."""
        weights = self._weights()
        self._load(self.average)
        for network in self.task.networks.values():
            network.eval()
        try:
            with torch.no_grad(), _forked_rng(self.distributed.device):
                yield
        finally:
            self._load(weights)
            for network in self.task.networks.values():
                network.train()

    def _parameters(self, group: OptimizerGroup) -> list[torch.nn.Parameter]:
        return [p for name in group.networks for p in self.task.networks[name].parameters()]

    def _weights(self, copy: bool = True) -> dict[str, torch.Tensor]:
        return {f"{name}.{k}": v.detach().clone() if copy else v.detach()
                for name, network in self.task.networks.items()
                for k, v in network.named_parameters()}

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, network in self.task.networks.items():
                for k, parameter in network.named_parameters():
                    parameter.copy_(weights[f"{name}.{k}"])

    def _save(self) -> None:
        if not self.distributed.is_first:
            return
        tensors = {f"net.{k}": v for k, v in self._weights(copy=False).items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, optimizer in self.optimizers.items():
            tensors |= {f"opt.{name}.{k}": v for k, v in optimizer_tensors(optimizer).items()}
        write_checkpoint(self.folder / CHECKPOINT, tensors, {
            "identity": self.task.identity, "step": self.step, "minutes": self.minutes,
            "best_step": self.best_step, "metrics": self.metrics,
            "validations_without_gain": self.validations_without_gain,
            "history": self.history.rows,
            "seconds": [self.seconds_waited, self.seconds_of_steps],
        })

    def restore(self) -> None:
        """Resume from the folder's checkpoint, if there is one of this task."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        tensors, facts = read_checkpoint(path)
        if facts["identity"] != json.loads(json.dumps(self.task.identity)):
            raise UsageError(
                f"{path} is of another training (other settings, seed or scans). Use the same "
                "ones to resume it, or remove it to start again."
            )
        device = self.distributed.device
        self._load(with_prefix(tensors, "net."))
        self.average = {k: v.to(device) for k, v in with_prefix(tensors, "ema.").items()}
        self.best = {k: v.to(device) for k, v in with_prefix(tensors, "best.").items()}
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, with_prefix(tensors, f"opt.{name}."))
        self.step, self.minutes = facts["step"], facts["minutes"]
        self.best_step, self.metrics = facts["best_step"], facts["metrics"]
        self.validations_without_gain = facts["validations_without_gain"]
        self.history.rows = facts["history"]
        self.seconds_waited, self.seconds_of_steps = facts["seconds"]
        LOGGER.info("training: resuming from step %d of %d", self.step, self.schedule.steps)

    def outcome(self, stop_reason: str) -> TrainingOutcome:
        """Return the best averaged weights, or the last ones if nothing was validated."""
        weights = self.best or self.average
        return TrainingOutcome({k: v.cpu() for k, v in weights.items()}, self.step,
                               self.best_step if self.best else self.step, self.minutes,
                               stop_reason, dict(self.metrics), self.history.table(),
                               self.waiting_fraction)


def _to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@contextlib.contextmanager
def _forked_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's generators after the block."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def _no_progress(done: int, total: int) -> None:
    return None
