"""Handling of termination signals from a scheduler: save a checkpoint, then stop.

SIGTERM (preemption, `scancel`) ends the training after the current step with a checkpoint. SIGUSR1
(`sbatch --signal=USR1@120`: two minutes before the time limit) also requeues the SLURM job. The
same command then resumes the training.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from types import FrameType, TracebackType
from typing import TypeVar

__all__ = ["StopSignal", "SignalForwarder", "ignore_signals"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

LOGGER = logging.getLogger("harmonizer")


class _SignalHandler(ABC):
    """Context manager that records in `received` whether a signal came."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, object] = {}

    def __enter__(self: H) -> H:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @abstractmethod
    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""


H = TypeVar("H", bound=_SignalHandler)


class StopSignal(_SignalHandler):
    """Signal handler of a training process, which checks `received` after each step."""

    def __init__(self) -> None:
        super().__init__()
        self._requeue = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if self._requeue and kind is None:
            _requeue()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._requeue = number == signal.SIGUSR1
        LOGGER.warning("training: received signal %d; saving, then stopping.", number)


class SignalForwarder(_SignalHandler):
    """Signal handler of a parent process: forwards signals to the children started within it."""

    def __enter__(self) -> SignalForwarder:
        self._others = set(multiprocessing.active_children())
        return super().__enter__()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        for child in set(multiprocessing.active_children()) - self._others:
            if child.pid is not None:
                os.kill(child.pid, number)


def ignore_signals() -> None:
    """Ignore termination signals in a process that others need until they have saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _requeue() -> None:
    """Ask SLURM to requeue this job; the first process asks for all."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_PROCID", "0") == "0":
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True,
                                check=False)
        LOGGER.warning("training: requeued job %s: %s", job, answer.stderr.strip() or "ok")
