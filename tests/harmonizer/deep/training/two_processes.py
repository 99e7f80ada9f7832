"""Run by test_loop.py: a small task, then a method's fit, in two processes over gloo."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from harmonizer.cohort import Cohort  # noqa: E402
from harmonizer.deep.training.loop import train  # noqa: E402
from harmonizer.deep.training.processes import launch  # noqa: E402
from harmonizer.deep.training.settings import Resources, TrainingSchedule  # noqa: E402
from harmonizer.deep.training.task import OptimizerGroup, TrainingTask  # noqa: E402
from harmonizer.errors import InputError  # noqa: E402
from harmonizer.methods import registry  # noqa: E402
from tests.contract.brains import scan_of  # noqa: E402


class Mean(TrainingTask):
    """One number that is drawn to each process' own data: it ends between them."""

    def __init__(self) -> None:
        self.networks = {"line": torch.nn.Linear(1, 1, bias=False)}
        torch.nn.init.zeros_(self.networks["line"].weight)
        self.identity = {}

    def optimizer_groups(self):
        return (OptimizerGroup("line", ("line",), self.loss, 0.1),)

    def batch(self, step, rank):
        return {"target": torch.tensor(1.0 + 2 * rank)}

    def loss(self, batch):
        return {
            "square": (self.networks["line"](torch.ones(1, 1)) - batch["target"]).square().sum()
        }


def all_tasks(distributed, folder):
    """Print what the first process finds; then an error of all of them, found where they work."""
    one, two = weights(distributed, folder / "whole")
    reason = preempted(distributed, folder / "preempted")
    if distributed.is_first:
        print(f"same weights: {one == two}, data of both: {abs(one - 2) < 0.1}", one, two)
        print("ended by", reason, flush=True)
    raise InputError("found by one that was started")


def weights(distributed, folder):
    """The weight of each process after training."""
    task = Mean()
    train(task, TrainingSchedule(120, save_every=1000), Resources(precision="fp32", threads=1),
          folder, 1, distributed=distributed)
    mine = task.networks["line"].weight.detach().reshape(1)
    gathered = [torch.zeros(1) for _ in range(distributed.size)]
    torch.distributed.all_gather(gathered, mine)
    return [float(g) for g in gathered]


class Preempted(Mean):
    """A scheduler's SIGTERM to the process that waits, while step 3's data is drawn."""

    def batch(self, step, rank):
        if (step, rank) == (3, 0):
            os.kill(os.getppid(), signal.SIGTERM)
        return super().batch(step, rank)


def preempted(distributed, folder):
    return train(Preempted(), TrainingSchedule(10 ** 6), Resources(precision="fp32"), folder, 1,
                 distributed=distributed).stop_reason


def fitted(cohort, devices):
    """The quickest method with networks."""
    kind = registry.get("patch_diffusion")
    backend = kind(kind.config_from({"preset": "tiny", "weight_residual": False, "steps": 4}))
    backend.resources = dataclasses.replace(backend.resources, devices=devices, precision="fp32")
    return backend.fit(cohort, seed=1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        try:
            launch(all_tasks, Resources(devices=2), Path(name))
        except InputError as error:
            print(error)
        cohort = Cohort(tuple(scan_of(Path(name), p, "A" if p < 3 else "B") for p in range(6)))
        backend = fitted(cohort, 2)
        made = backend.harmonize(cohort.scans[5].read(), backend.target("A"))
        print(f"{backend.training_.device}, {backend.training_.steps} steps, finite: "
              f"{np.isfinite(made.data).all()}")
