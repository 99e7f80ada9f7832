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
from functools import partial
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from queue import Queue
from typing import Any

import torch

from ...errors import HarmonizerError, Terminated
from .settings import Resources
from .signals import PassOn, ignore_signals

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
    """work(ranks, *args) in every process; returns what the first one returned, and raises what any
    of them said is wrong (a `HarmonizerError`).

    `work` is a function of a module: on one node without a scheduler, processes are spawned. Under
    `srun` or `torchrun` each is there already, with its rank in the environment.
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
    if _started_outside():
        return fabric.launch(partial(_in_process, work, args))
    # Fabric rebuilds arguments and answers (frozen dataclasses cannot be) and reads its pipe after
    # the processes have ended, which those with more than 64 KiB to say never do.
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    manager = SyncManager(ctx=get_context("spawn"))
    manager.start(ignore_signals)  # a scheduler tells all processes of a job to stop
    with manager, PassOn() as stop:
        said = manager.Queue()
        try:
            fabric.launch(partial(_spawned, work, args, said))
        except ProcessRaisedException:
            if said.empty():
                raise
        except ProcessExitedException:
            if not stop.asked:
                raise
            raise Terminated("training was asked to stop before it began.") from None
        answers = [said.get() for _ in range(said.qsize())]
    for answer in answers:
        if isinstance(answer, (HarmonizerError, Terminated)):
            raise answer
    return answers[0]


def _spawned(work: Callable[..., Any], args: tuple[Any, ...], said: Queue[Any], fabric: Any
             ) -> None:
    """One of the processes that were started here: the first one's answer, anybody's error."""
    try:
        answer = _in_process(work, args, fabric)
    except HarmonizerError as error:
        said.put(error)
        raise  # which ends the others
    except Terminated as error:  # all of them save and stop at the same step
        said.put(error)
        return
    if fabric.global_rank == 0:
        said.put(answer)


def _in_process(work: Callable[..., Any], args: tuple[Any, ...], fabric: Any) -> Any:
    return work(Ranks(fabric.global_rank, fabric.world_size, str(fabric.device)), *args)


def _started_outside() -> bool:
    """Whether a scheduler has started one process for each device."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return tasks or "TORCHELASTIC_RUN_ID" in os.environ
