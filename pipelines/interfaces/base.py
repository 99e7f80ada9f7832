"""Base classes of the interfaces: measure the duration, store expected errors as text."""

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
    """Inputs of all interfaces: the package version, so that a new version runs the node again."""

    version = traits.Str(__version__, usedefault=True, desc="version of this package")


class OutputSpec(TraitedSpec):
    """Outputs of all interfaces: the duration."""

    seconds = traits.Float(desc="wall time, seconds")


class ExplainedInterface(SimpleInterface):
    """Interface whose expected errors reach the user as text instead of a traceback.

    Subclasses implement `_work(folder)`, which stores its results in `self._results`.
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
            _leave(folder, f"{error.filename or folder}: {error.strerror}. Check disk space and "
                           "permissions, then run the same command again.")
            raise
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):  # numpy, torch
                _leave(folder, "out of memory. Lower --nprocs, or set the available memory with "
                               "--mem; the same command resumes.")
            raise
        self._results["seconds"] = round(time.perf_counter() - started, 2)
        return runtime

    def _work(self, folder: Path) -> None:
        raise NotImplementedError  # abstract; nipype's metaclass is incompatible with ABC


def _leave(folder: Path, message: str) -> None:
    """Store a message for the main process; a full disk must not hide the first error."""
    with contextlib.suppress(OSError):
        (folder / ERROR_FILE).write_text(message, encoding="utf-8")
