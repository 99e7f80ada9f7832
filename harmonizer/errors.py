"""Exceptions with the exit code of the app.

A message states what was expected, what was found, and what to do next. The app prints it without
a traceback. Any exception that is not a `HarmonizerError` is a bug and is reported as one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "HarmonizerError",
    "UsageError",
    "InputError",
    "NotEstimableError",
    "UnavailableError",
    "OutputError",
    "InternalError",
    "Terminated",
    "did_you_mean",
]


class HarmonizerError(Exception):
    """Base class of all errors with a message for the user."""

    exit_code = 1


class UsageError(HarmonizerError):
    """The command line or a configuration file requests something impossible."""

    exit_code = 2


class InputError(HarmonizerError):
    """An input image, table or folder cannot be used (EX_DATAERR)."""

    exit_code = 65


class NotEstimableError(InputError):
    """A statistic cannot be estimated from these data, such as a site effect from one site.

    The evaluation reports it as a row without a value and with the message as the reason. Every
    other exception in a statistic is a fault and is not caught.
    """


class UnavailableError(HarmonizerError):
    """A requested device or model is not available (EX_UNAVAILABLE)."""

    exit_code = 69


class OutputError(HarmonizerError):
    """Results cannot be written: the disk is full, or the folder is not writable (EX_IOERR)."""

    exit_code = 74


class InternalError(HarmonizerError):
    """A bug in this package (EX_SOFTWARE); the message asks for a report."""

    exit_code = 70


class Terminated(KeyboardInterrupt):
    """A scheduler asked this process to end (SIGTERM, SIGUSR1); handled like Ctrl-C."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """List the known words and suggest the most similar one.

    Parameters
    ----------
    word : str
        The unknown word.
    known : iterable of str
        The known words.

    Returns
    -------
    str
        One or two sentences for an error message.

    Examples
    --------
    >>> did_you_mean("histogram", ["histogram_matching", "spectrum_swap"])
    "Did you mean 'histogram_matching'? Known: histogram_matching, spectrum_swap."
    """
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    guess = f"Did you mean {lower[near[0]]!r}? " if near else ""
    return f"{guess}Known: {', '.join(names) or 'none'}."
