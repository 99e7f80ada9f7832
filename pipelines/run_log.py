"""Log of a run: on the screen and in ``OUT/logs``."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
from pathlib import Path

__all__ = ["log_environment", "start_logging", "stop_logging"]

LOGGER = logging.getLogger("harmonizer")
PACKAGE_LOGGERS = ("harmonizer", "pipelines")
HANDLER_NAME = "harmonizer-run"
SCHEDULER_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "PBS_JOBID",
                       "JOB_ID", "LSB_JOBID")


class _LogFile(logging.FileHandler):
    """A log file that gives up silently on a full disk; the screen still shows the record."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


def start_logging(verbose: int, path: Path) -> None:
    """Log to the screen (stderr) and to a file.

    The screen shows progress and warnings; with ``-v`` also details of this package and
    Nipype, with ``-vv`` of all libraries. The file always has the details of this package. The
    handlers belong to the root logger, so that Nipype adds none of its own.

    Parameters
    ----------
    verbose : int
        0, 1 or 2.
    path : Path
        Log file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    screen, file = logging.StreamHandler(sys.stderr), _LogFile(path, encoding="utf-8")
    screen.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    screen.setLevel(logging.INFO if verbose == 0 else logging.DEBUG)
    screen.addFilter(lambda record: verbose > 0 or _is_shown(record))
    root = logging.getLogger()
    stop_logging()
    for handler in (screen, file):
        handler.set_name(HANDLER_NAME)
        root.addHandler(handler)
    root.setLevel(logging.WARNING if verbose < 2 else logging.INFO)
    for name in PACKAGE_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.captureWarnings(True)


def stop_logging() -> None:
    """Close the handlers, so that a second run in one process does not write into the first log."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.get_name() == HANDLER_NAME]:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # of a full disk; the screen shows it
            handler.close()


def log_environment(command: str) -> None:
    """Log the command line, versions, machine and scheduler job, for bug reports."""
    from .stages.methods_text import software_versions

    LOGGER.info("Command: %s", command)
    versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
    LOGGER.debug("Versions: Python %s, %s", platform.python_version(), versions)
    LOGGER.debug("Machine: %s, %s", platform.node(), platform.platform())
    job = [f"{name}={os.environ[name]}" for name in SCHEDULER_VARIABLES if os.environ.get(name)]
    if job:
        LOGGER.debug("Scheduler: %s", " ".join(job))


def _is_shown(record: logging.LogRecord) -> bool:
    """Return whether the screen shows a message: those of this package, and warnings of Nipype."""
    own = record.name.partition(".")[0] in PACKAGE_LOGGERS
    return own or (record.levelno >= logging.WARNING and record.name != "py.warnings")
