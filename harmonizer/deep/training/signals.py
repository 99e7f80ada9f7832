"""A scheduler's word to stop is a reason to save, not to die.

SIGTERM (preemption, `scancel`) ends the training after the current step with a checkpoint; so does
SIGUSR1 (`sbatch --signal=USR1@120`: two minutes before the time limit), after which the job is put
back into SLURM's queue. Either way the same command goes on where it stopped.

A process that only waits for those that train (`launch`) passes the word on to them.
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

__all__ = ["Stop", "PassOn", "ignore_signals"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

LOGGER = logging.getLogger("harmonizer")


class _Listener(ABC):
    """Within the block, `asked` tells whether a signal came; handlers are put back after it."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self: L) -> L:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @abstractmethod
    def _heard(self, number: int, frame: FrameType | None) -> None:
        """What the signal means here."""


L = TypeVar("L", bound=_Listener)


class Stop(_Listener):
    """For the process that trains: it looks at `asked` after each step."""

    def __init__(self) -> None:
        super().__init__()
        self._requeue = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if self._requeue and kind is None:
            _requeue()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._requeue = number == signal.SIGUSR1
        LOGGER.warning("training: got signal %d; saving, then stopping.", number)


class PassOn(_Listener):
    """For the process that waits: those that were started within the block get the signal too."""

    def __enter__(self) -> PassOn:
        self._others = set(multiprocessing.active_children())
        return super().__enter__()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        for child in set(multiprocessing.active_children()) - self._others:
            if child.pid is not None:
                os.kill(child.pid, number)


def ignore_signals() -> None:
    """For a process that others need until they have saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _requeue() -> None:
    """Ask SLURM to start this job again; the first process asks for all."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_PROCID", "0") == "0":
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True,
                                check=False)
        LOGGER.warning("training: job %s put back into the queue: %s", job,
                       answer.stderr.strip() or "yes")
