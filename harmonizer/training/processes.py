"""One process for each device: Lightning Fabric starts them, we average the gradients.

Why Fabric under a loop of our own and not Lightning's Trainer:

* its checkpoints, also those that it writes when a cluster preempts a job, are pickles;
* its `ddp` starts run.py's argv again in every process, preprocessing included;
* a game of several players with several forwards each does not go through one DDP module;
* a training on one device needs none of it: here it imports nothing of Lightning.

What Fabric has is not rebuilt: finding SLURM's and torchrun's ranks, spawning, process groups.
Gradients are averaged in one flat buffer after the backward pass, so that any number of networks
and forwards may take part; the models here are small enough for that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .settings import Resources

__all__ = ["Ranks", "launch"]

LOGGER = logging.getLogger("harmonizer")


class Ranks:
    """This process among its siblings; alone by default."""

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this process writes and validates."""
        return self.rank == 0

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start:start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all get the same answer."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return bool(told)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def launch(work: Callable[..., Any], resources: Resources, *args: Any) -> Any:
    """work(ranks, *args) in every process; returns what the first one returned.

    `work` is a function of a module and the arguments are plain values: on one node without a
    scheduler, processes are spawned. Under `srun` or `torchrun` each is there already, with its
    rank in the environment.
    """
    if resources.world == 1:
        return work(Ranks(device=resources.device), *args)
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    gpu = resources.device.startswith("cuda")
    strategy = DDPStrategy(start_method="popen" if _started_outside() else "spawn",
                           process_group_backend="nccl" if gpu else "gloo")
    fabric = Fabric(accelerator="cuda" if gpu else "cpu", devices=resources.devices,
                    num_nodes=resources.num_nodes, strategy=strategy)
    return fabric.launch(_in_process, work, *args)


def _in_process(fabric: Any, work: Callable[..., Any], *args: Any) -> Any:
    ranks = Ranks(fabric.global_rank, fabric.world_size, str(fabric.device))
    return work(ranks, *args)


def _started_outside() -> bool:
    """Whether a scheduler has started one process for each device."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return tasks or "TORCHELASTIC_RUN_ID" in os.environ
