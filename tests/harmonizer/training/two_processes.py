"""Run by test_loop.py: a small game in two processes over gloo."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from harmonizer.training.loop import train  # noqa: E402
from harmonizer.training.players import Game, Player  # noqa: E402
from harmonizer.training.processes import launch  # noqa: E402
from harmonizer.training.settings import Pace, Resources  # noqa: E402


class Mean(Game):
    """One number that is drawn to each process' own data: it ends between them."""

    def __init__(self) -> None:
        self.networks = {"line": torch.nn.Linear(1, 1, bias=False)}
        torch.nn.init.zeros_(self.networks["line"].weight)
        self.identity = {}

    def players(self):
        return (Player("line", ("line",), self.loss, 0.1),)

    def batch(self, step, rank):
        return {"goal": torch.tensor(1.0 + 2 * rank)}

    def loss(self, batch):
        return {"square": (self.networks["line"](torch.ones(1, 1)) - batch["goal"]).square().sum()}


def work(ranks, folder):
    """The weight of each process after training."""
    game = Mean()
    train(game, Pace(120, save_every=1000), Resources(precision="fp32", threads=1),
          Path(folder), 1, ranks=ranks)
    mine = game.networks["line"].weight.detach().reshape(1)
    gathered = [torch.zeros(1) for _ in range(ranks.size)]
    torch.distributed.all_gather(gathered, mine)
    return [float(g) for g in gathered]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        one, two = launch(work, Resources(devices=2), name)
    print(f"same weights: {one == two}, data of both: {abs(one - 2) < 0.1}", one, two)
