"""The process of a run: environment variables, signals and worker processes."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harmonizer.errors import Terminated

from .settings import Settings

if TYPE_CHECKING:
    import psutil

__all__ = ["prepare_environment", "sigterm_raises", "stop_workers", "temporary_files_in"]


def prepare_environment(settings: Settings) -> None:
    """Set threads, determinism and no network access, before heavy imports.

    ITK gets one thread: with more, N4 and registration are not reproducible bit by bit. Child
    processes come from a fork server, because CUDA and threads do not survive a fork.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    """
    import multiprocessing

    threads = str(settings.omp_nthreads)
    os.environ.update(
        ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1",
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        OPENBLAS_NUM_THREADS=threads,
        NUMEXPR_NUM_THREADS=threads,
        NO_ET="1",
        NIPYPE_NO_ET="1",
        TEMPLATEFLOW_AUTOUPDATE="off",
        MPLBACKEND="Agg",
        CUBLAS_WORKSPACE_CONFIG=":4096:8",  # deterministic matrix products on CUDA
    )
    os.environ.setdefault("USER", "harmonizer")  # libraries need it; an unknown UID has none
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    multiprocessing.set_start_method(method, force=True)


@contextlib.contextmanager
def temporary_files_in(work_dir: Path) -> Iterator[None]:
    """Put temporary files into the work folder, also those of child processes.

    ANTs writes transforms of up to 100 MB for each scan, and `/tmp` of a container may be small
    (64 MiB under `apptainer run --containall`). A `TMPDIR` that is set is respected: a scheduler
    names the node's own disk. A work folder that is new and stays empty is removed at the end, so
    that a request that was refused leaves nothing.

    Parameters
    ----------
    work_dir : Path
        Work folder of the run.
    """
    if os.environ.get("TMPDIR"):
        yield
        return
    from multiprocessing import util

    util.get_temp_dir()  # sockets stay in /tmp: their paths have at most 107 bytes
    parent = Path(work_dir).resolve() / "tmp"
    is_new = not parent.parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    before = tempfile.tempdir
    folder = tempfile.mkdtemp(dir=parent)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR", None)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run uses it
            parent.rmdir()
            if is_new:  # a request that was refused leaves no folder
                parent.parent.rmdir()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, which otherwise ends Python without a message.

    While ANTs runs in this process (``--nprocs 1``), the signal takes effect after its step.
    """
    def stop(signum: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # others cannot set it
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_workers() -> None:
    """Kill the worker processes: a step of ANTs takes minutes, a scheduler waits for seconds.

    Files that they were writing have temporary names, so no output is incomplete. Python's resource
    tracker is needed when this process exits and is not killed; messages of the process pool about
    missing workers are suppressed.
    """
    import psutil

    logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL)
    children = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
                children.append(child)
    until = time.monotonic() + 5
    while time.monotonic() < until and not all(map(_has_ended, children)):
        time.sleep(0.02)


def _has_ended(process: psutil.Process) -> bool:
    """Return whether a process ended, without reading its exit code, which can be read once."""
    import psutil

    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
