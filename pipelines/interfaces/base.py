"""What all interfaces share: they time themselves and leave an explained error as a file."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits

from harmonizer import __version__
from harmonizer.errors import HarmonizerError
from harmonizer.preprocessing.ants_bridge import set_itk_threads

__all__ = ["ERROR_FILE", "InputSpec", "OutputSpec", "ExplainedInterface"]

ERROR_FILE = "harmonizer_error.txt"


class InputSpec(BaseInterfaceInputSpec):
    """Every result depends on the version of the code that made it."""

    version = traits.Str(__version__, usedefault=True, desc="version of this package")


class OutputSpec(TraitedSpec):
    """Every step says how long it took."""

    seconds = traits.Float(desc="wall time, seconds")


class ExplainedInterface(SimpleInterface):
    """An interface whose expected errors reach the user as text and not as a traceback.

    Subclasses fill in `_work(folder)`, which puts its results into `self._results`.
    """

    input_spec = InputSpec
    output_spec = OutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        started = time.perf_counter()
        folder = Path(runtime.cwd)
        (folder / ERROR_FILE).unlink(missing_ok=True)
        set_itk_threads(1)
        try:
            self._work(folder)
        except HarmonizerError as error:
            _leave(folder, str(error))
            raise
        except OSError as error:
            _leave(folder, f"{error.filename or folder}: {error.strerror}. Check the disk's room "
                           "and the permissions, then give the same command again.")
            raise
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):  # numpy, torch
                _leave(folder, "the machine's memory ran out. Lower --nprocs, or say with --mem "
                               "how much there is; the same command goes on.")
            raise
        self._results["seconds"] = round(time.perf_counter() - started, 2)
        return runtime

    def _work(self, folder: Path) -> None:
        raise NotImplementedError  # an abstract method; nipype's metaclass leaves no room for ABC


def _leave(folder: Path, message: str) -> None:
    """Leave a message for the main process; a full disk must not hide the first error."""
    with contextlib.suppress(OSError):
        (folder / ERROR_FILE).write_text(message, encoding="utf-8")
