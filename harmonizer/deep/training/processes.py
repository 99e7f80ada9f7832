"""Distributed training: one process for each device, started by Lightning Fabric.

Lightning's Trainer is not used: its checkpoints are pickles, and its `ddp` strategy runs the whole
command line in every process. A task with several optimizers and forward passes also does not fit
into one DDP module. Fabric finds the ranks of SLURM and torchrun,
spawns processes and creates process groups. Gradients are averaged in one flat buffer after the
backward pass, so any number of networks may take part. Training on one device imports nothing of
Lightning.
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
from .signals import SignalForwarder, ignore_signals

__all__ = ["DistributedContext", "launch"]

LOGGER = logging.getLogger("harmonizer")


class DistributedContext:
    """Rank of this process, and collective operations; a single process by default.

    Parameters
    ----------
    rank, size : int
        Number of this process, and of all.
    device : str
        Device of this process.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and validates."""
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
        """Return whether the flag is set in any process; the same answer in all of them."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return bool(value)

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            torch.distributed.barrier()


def launch(work: Callable[..., Any], resources: Resources, *args: Any) -> Any:
    """Call work(distributed, *args) in every process.

    Processes are spawned on one node without a scheduler. Under `srun` or `torchrun` each exists
    already, with its rank in the environment.

    Parameters
    ----------
    work : callable
        Function of a module, because processes are spawned.

    Returns
    -------
    Any
        The result of the first process.

    Raises
    ------
    HarmonizerError
        That any process raised.
    """
    if resources.process_count == 1:
        return work(DistributedContext(device=resources.device), *args)
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    gpu = resources.device.startswith("cuda")
    strategy = DDPStrategy(start_method="popen" if _started_by_scheduler() else "spawn",
                           process_group_backend="nccl" if gpu else "gloo")
    fabric = Fabric(accelerator="cuda" if gpu else "cpu", devices=resources.devices,
                    num_nodes=resources.num_nodes, strategy=strategy)
    if _started_by_scheduler():
        return fabric.launch(partial(_run, work, args))
    return _spawn(work, args, fabric)


def _spawn(work: Callable[..., Any], args: tuple[Any, ...], fabric: Any) -> Any:
    """Spawn processes that report through a managed queue.

    Fabric would rebuild arguments and results (frozen dataclasses cannot be), and it reads its
    pipe after the processes have ended, which never happens if a result exceeds 64 KiB.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    manager = SyncManager(ctx=get_context("spawn"))
    manager.start(ignore_signals)  # a scheduler signals all processes of a job
    with manager, SignalForwarder() as stop:
        results = manager.Queue()
        try:
            fabric.launch(partial(_run_and_report, work, args, results))
        except ProcessRaisedException:
            if results.empty():
                raise
        except ProcessExitedException:
            if not stop.received:
                raise
            raise Terminated("training received a stop signal before it began.") from None
        answers = [results.get() for _ in range(results.qsize())]
    for answer in answers:
        if isinstance(answer, (HarmonizerError, Terminated)):
            raise answer
    return answers[0]


def _run_and_report(work: Callable[..., Any], args: tuple[Any, ...], results: Queue[Any],
                    fabric: Any) -> None:
    """Run one spawned process; report the first one's result and the errors of all."""
    try:
        answer = _run(work, args, fabric)
    except HarmonizerError as error:
        results.put(error)
        raise  # which ends the other processes
    except Terminated as error:  # all processes save and stop at the same step
        results.put(error)
        return
    if fabric.global_rank == 0:
        results.put(answer)


def _run(work: Callable[..., Any], args: tuple[Any, ...], fabric: Any) -> Any:
    context = DistributedContext(fabric.global_rank, fabric.world_size, str(fabric.device))
    return work(context, *args)


def _started_by_scheduler() -> bool:
    """Return whether a scheduler has started one process for each device."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return tasks or "TORCHELASTIC_RUN_ID" in os.environ
