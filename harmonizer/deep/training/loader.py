"""Batches of a training in order of steps, prepared ahead by worker processes where asked.

A batch is a pure function of (seed, step, rank), so the number of workers changes no bit of a
training. It is always made with one torch thread, because sums depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..processor import torch_threads
from .signals import ignore_signals
from .task import Batch, TrainingTask

__all__ = ["BatchLoader"]

PREFETCHED_BATCHES = 2  # of each worker


class BatchLoader:
    """Context manager that returns the batches of a task one step after another.

    Parameters
    ----------
    task : TrainingTask
    first, last : int
        Range of steps; `last` is not included.
    rank : int
        Number of this process of a distributed training.
    workers : int
        Worker processes; 0 prepares each batch when it is needed. Tasks whose batches are not safe
        in other processes (`TrainingTask.supports_workers`) use none.
    """

    def __init__(self, task: TrainingTask, first: int, last: int, rank: int, workers: int) -> None:
        self._steps = _Steps(task, first, last, rank)
        self._workers = min(workers, max(last - first, 0)) if task.supports_workers else 0
        self._batches: Iterator[Any] | None = None

    def __enter__(self) -> BatchLoader:
        if self._workers:  # forked, so that networks need not be copied
            self._batches = iter(DataLoader(
                self._steps, batch_size=None, num_workers=self._workers,
                collate_fn=_as_arrays, prefetch_factor=PREFETCHED_BATCHES,
                multiprocessing_context="fork", worker_init_fn=_start_worker))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._batches = None  # ends the workers

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; steps must follow one another."""
        if self._batches is None:
            return self._steps[step - self._steps.first]
        return _as_tensors(next(self._batches))


class _Steps(Dataset[Any]):
    """The batches of a range of steps."""

    def __init__(self, task: TrainingTask, first: int, last: int, rank: int) -> None:
        self.task, self.first, self.last, self.rank = task, first, last, rank

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, number: int) -> Batch:
        with torch_threads(1 if self.task.supports_workers else None):
            return self.task.batch(self.first + number, self.rank)


def _start_worker(number: int) -> None:
    """Leave termination signals to the training process, which ends its workers."""
    ignore_signals()


def _as_arrays(batch: Any) -> dict[str, Any]:
    """Convert tensors to arrays, which reach the training through a pipe.

    Tensors would pass through shared memory, of which containers often have 64 MB.
    """
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _as_tensors(batch: Batch) -> dict[str, Any]:
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
