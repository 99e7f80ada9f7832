"""The loop: batches to players, gradients to weights, weights to their average.

Everything that is drawn in step n of process r is drawn from (seed, n, r), by `Game.batch` and by
torch's generators alike. So a checkpoint need not hold the state of any generator, and a training
that was killed and resumed gives the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import InternalError, UsageError
from ..networks.blocks import to_layout
from ..processor import torch_threads
from .checkpoint import below, fill_optimiser, optimiser_tensors, read_checkpoint, write_checkpoint
from .history import History
from .processes import Ranks
from .settings import Pace, Resources
from .signals import Stop
from .task import Batch, Game, Player

__all__ = ["CHECKPOINT", "Outcome", "step_seed", "train"]

LOGGER = logging.getLogger("harmonizer")
CHECKPOINT = "checkpoint.safetensors"

Progress = Callable[[int, int], None]


@dataclass
class Outcome:
    """What a training leaves.

    Attributes
    ----------
    weights : averaged weights by ``network.parameter``; of the best look where people were held out
    steps : done over all calls; `best` is the step that the weights are of
    minutes : over all calls
    why : what ended it: ``steps``, ``patience``, ``time`` or ``signal``
    numbers : the held-out numbers of the weights, empty without a look
    history : rows of history.tsv
    """

    weights: dict[str, torch.Tensor]
    steps: int
    best: int
    minutes: float
    why: str
    numbers: dict[str, float]
    history: list[dict[str, Any]] = field(default_factory=list)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A 63-bit seed of one step of one process."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


def train(game: Game, pace: Pace, resources: Resources, folder: Path, seed: int, *,
          ranks: Ranks | None = None, progress: Progress | None = None) -> Outcome:
    """Play until the steps, the time, the patience or a signal ends it; resume if begun before.

    Parameters
    ----------
    folder : of checkpoint and history
    progress : called with (steps done, steps in all) by the first process

    Raises
    ------
    UsageError
        If the folder holds the checkpoint of another game (`Game.identity`).
    InternalError
        If a term of a loss, or a gradient, is not finite; the term is named.
    """
    ranks = ranks or Ranks(device=resources.device)
    folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(resources.threads), _seeding(ranks.device), Stop() as stop:
        state = _State(game, pace, resources, folder, seed, ranks)
        state.restore()
        why = state.play(stop, progress or _say_nothing)
        ranks.wait()
    return state.outcome(why)


class _State:
    """Networks, average, best average, optimisers and step: all that a checkpoint holds."""

    def __init__(self, game: Game, pace: Pace, resources: Resources, folder: Path, seed: int,
                 ranks: Ranks) -> None:
        self.game, self.pace, self.resources, self.seed = game, pace, resources, seed
        self.folder, self.ranks, self.history = folder, ranks, History(folder)
        for network in game.networks.values():
            network.to(ranks.device).train()
            to_layout(network)
        self.players = game.players()
        self.optimisers = {p.name: _optimiser(p, self._parameters(p)) for p in self.players}
        self.average = self._weights()
        self.best: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.step = self.best_step = self.waited = 0
        self.minutes = 0.0

    def play(self, stop: Stop, progress: Progress) -> str:
        """Steps until something ends them; says what."""
        started, before = time.monotonic(), self.minutes
        limit = self.resources.max_minutes
        why = ""
        while not why:
            self.minutes = before + (time.monotonic() - started) / 60
            why = self._ends(stop, limit is not None and self.minutes - before >= limit)
            if why:
                break
            self._one_step()
            if self.ranks.first:
                progress(self.step, self.pace.steps)
            self.minutes = before + (time.monotonic() - started) / 60
            self._look_and_save()
        if why != "steps" or self.step % self.pace.save_every:
            self._save()
        return why

    def _ends(self, stop: Stop, late: bool) -> str:
        if self.step >= self.pace.steps:
            return "steps"
        if self.pace.patience and self.waited >= self.pace.patience:
            return "patience"
        if self.ranks.any(stop.asked):
            return "signal"
        return "time" if self.ranks.any(late) else ""

    def _one_step(self) -> None:
        torch.manual_seed(step_seed(self.seed, self.step, self.ranks.rank))
        began = time.perf_counter()
        batch = _moved(self.game.batch(self.step, self.ranks.rank), self.ranks.device)
        said: dict[str, float] = {"seconds/data": time.perf_counter() - began}
        for player in self.players:
            if player.plays_at(self.step):
                said |= self._turn(player, batch)
        self.step += 1
        decay = min(self.pace.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            weights = self._weights(copy=False)
            torch._foreach_lerp_([self.average[k] for k in weights], list(weights.values()),
                                 1 - decay)
        said["seconds/step"] = time.perf_counter() - began
        self.history.add(said)

    def _turn(self, player: Player, batch: Batch) -> dict[str, float]:
        """One update of one player; its terms as numbers."""
        bf16 = self.resources.uses_bf16
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=bf16):
            terms = player.loss(batch)
        said = {f"{player.name}/{name}": float(value.detach()) for name, value in terms.items()}
        self._refuse_strange(player, said)
        parameters = self._parameters(player)
        total = sum(term.float() for term in terms.values())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g.contiguous()
                     for g, p in zip(gradients, parameters)]
        self.ranks.average(gradients)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, player.clip)
        self._refuse_strange(player, {f"{player.name}/gradient": float(norm)})
        if player.rate_factor is not None:
            for group in self.optimisers[player.name].param_groups:
                group["lr"] = player.learning_rate * player.rate_factor(self.step)
        self.optimisers[player.name].step()
        return {**said, f"{player.name}/gradient": float(norm)}

    def _refuse_strange(self, player: Player, said: Mapping[str, float]) -> None:
        bad = [name for name, value in said.items() if not np.isfinite(value)]
        if bad:
            raise InternalError(
                f"training: {', '.join(bad)} became {said[bad[0]]} at step {self.step}. The last "
                f"checkpoint in {self.folder} is sound; lower the learning rate, or --precision "
                "fp32."
            )

    def _look_and_save(self) -> None:
        pace = self.pace
        numbers: dict[str, float] = {}
        if pace.validate_every and (self.step % pace.validate_every == 0
                                    or self.step == pace.steps):
            numbers = self._look()
        if self.ranks.first and (numbers or self.step % pace.log_every == 0
                                 or self.step == pace.steps):
            self.history.row(self.step, self.minutes, numbers)
        if self.step % pace.save_every == 0:
            self._save()

    def _look(self) -> dict[str, float]:
        """Score the averaged weights; keep them if they are the best so far."""
        numbers: dict[str, float] = {}
        if self.ranks.first:
            with self._averaged():
                numbers = {k: float(v) for k, v in self.game.score().items()}
        better = "error" in numbers and numbers["error"] < self.numbers.get("error", np.inf)
        if self.ranks.any(better):
            self.best = {k: v.clone() for k, v in self.average.items()}
            self.numbers, self.best_step, self.waited = numbers, self.step, 0
        elif self.ranks.any(bool(numbers)):
            self.waited += 1
        return numbers

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The networks with their averaged weights, in evaluation mode, without gradients."""
        weights = self._weights()
        self._put(self.average)
        for network in self.game.networks.values():
            network.eval()
        try:
            with torch.no_grad(), _seeding(self.ranks.device):
                yield
        finally:
            self._put(weights)
            for network in self.game.networks.values():
                network.train()

    def _parameters(self, player: Player) -> list[torch.nn.Parameter]:
        return [p for name in player.networks for p in self.game.networks[name].parameters()]

    def _weights(self, copy: bool = True) -> dict[str, torch.Tensor]:
        return {f"{name}.{k}": v.detach().clone() if copy else v.detach()
                for name, network in self.game.networks.items()
                for k, v in network.named_parameters()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, network in self.game.networks.items():
                for k, parameter in network.named_parameters():
                    parameter.copy_(weights[f"{name}.{k}"])

    def _save(self) -> None:
        if not self.ranks.first:
            return
        tensors = {f"net.{k}": v for k, v in self._weights(copy=False).items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, optimiser in self.optimisers.items():
            tensors |= {f"opt.{name}.{k}": v for k, v in optimiser_tensors(optimiser).items()}
        write_checkpoint(self.folder / CHECKPOINT, tensors, {
            "identity": self.game.identity, "step": self.step, "minutes": self.minutes,
            "best_step": self.best_step, "waited": self.waited, "numbers": self.numbers,
            "history": self.history.rows,
        })

    def restore(self) -> None:
        """Go on from the folder's checkpoint, if there is one and it is of this game."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        tensors, facts = read_checkpoint(path)
        if facts["identity"] != json.loads(json.dumps(self.game.identity)):
            raise UsageError(
                f"{path} is of another training (other settings, seed or scans). Give the same "
                "ones to go on with it, or remove it to start anew."
            )
        self._put(below(tensors, "net."))
        self.average = {k: v.to(self.ranks.device) for k, v in below(tensors, "ema.").items()}
        self.best = {k: v.to(self.ranks.device) for k, v in below(tensors, "best.").items()}
        for name, optimiser in self.optimisers.items():
            fill_optimiser(optimiser, below(tensors, f"opt.{name}."))
        self.step, self.minutes = facts["step"], facts["minutes"]
        self.best_step, self.waited = facts["best_step"], facts["waited"]
        self.numbers, self.history.rows = facts["numbers"], facts["history"]
        LOGGER.info("training goes on from step %d of %d", self.step, self.pace.steps)

    def outcome(self, why: str) -> Outcome:
        """The best averaged weights where people were held out, else the last ones."""
        weights = self.best or self.average
        return Outcome({k: v.cpu() for k, v in weights.items()}, self.step,
                       self.best_step if self.best else self.step, self.minutes, why,
                       dict(self.numbers), self.history.table())


def _optimiser(player: Player, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if player.weight_decay else torch.optim.Adam
    return kind(parameters, lr=player.learning_rate, betas=player.betas,
                weight_decay=player.weight_decay)


def _moved(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@contextlib.contextmanager
def _seeding(device: torch.device) -> Iterator[None]:
    """Torch's generators as they were before, whatever is seeded inside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def _say_nothing(done: int, total: int) -> None:
    return None
