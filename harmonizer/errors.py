"""One family of errors, each with the exit code that the app answers with.

A message says what was expected, what came, and what to do next. The app prints it without a
traceback; anything that is not a `HarmonizerError` is a fault of ours and says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "HarmonizerError",
    "UsageError",
    "InputError",
    "UnavailableError",
    "OutputError",
    "InternalError",
    "Terminated",
    "did_you_mean",
]


class HarmonizerError(Exception):
    """Base of every error that is explained to the user."""

    exit_code = 1


class UsageError(HarmonizerError):
    """The command line or a configuration file asks for something that cannot be done."""

    exit_code = 2


class InputError(HarmonizerError):
    """An image, table or folder that was given cannot be used (EX_DATAERR)."""

    exit_code = 65


class UnavailableError(HarmonizerError):
    """A device or a model that was asked for is not there (EX_UNAVAILABLE)."""

    exit_code = 69


class OutputError(HarmonizerError):
    """Results cannot be written: the disk is full, or the folder is not writable (EX_IOERR)."""

    exit_code = 74


class InternalError(HarmonizerError):
    """We broke our own contract (EX_SOFTWARE); the message asks for a report."""

    exit_code = 70


class Terminated(KeyboardInterrupt):
    """A scheduler asked this process to end (SIGTERM, SIGUSR1): like Ctrl-C, but not by hand."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that lists what is known and, where one is near, what was probably meant.

    >>> did_you_mean("histogram", ["histogram_matching", "spectrum_swap"])
    "Did you mean 'histogram_matching'? Known: histogram_matching, spectrum_swap."
    """
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    guess = f"Did you mean {lower[near[0]]!r}? " if near else ""
    return f"{guess}Known: {', '.join(names) or 'none'}."
