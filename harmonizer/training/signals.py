"""A scheduler's word to stop is a reason to save, not to die.

SIGTERM (preemption, `scancel`) ends the training after the current step with a checkpoint; so does
SIGUSR1 (`sbatch --signal=USR1@120`: two minutes before the time limit), after which the job is put
back into SLURM's queue. Either way the same command goes on where it stopped.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from types import FrameType, TracebackType

__all__ = ["Stop"]

LOGGER = logging.getLogger("harmonizer")


class Stop:
    """Within the block, `asked` tells whether a signal came; handlers are put back after it."""

    def __init__(self) -> None:
        self.asked = False
        self._requeue = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._requeue and kind is None:
            _requeue()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._requeue = number == signal.SIGUSR1
        LOGGER.warning("training: got signal %d; saving, then stopping.", number)


def _requeue() -> None:
    """Ask SLURM to start this job again; the first process asks for all."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_PROCID", "0") == "0":
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True,
                                check=False)
        LOGGER.warning("training: job %s put back into the queue: %s", job,
                       answer.stderr.strip() or "yes")
