"""What a benchmark's command line does with what it is given: folders, rows, mistakes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harmonizer.errors import HarmonizerError


def existing_folder(text: str) -> Path:
    """A folder named on a command line; one that is not there is a mistake of the command's."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return path


def report_errors(main: Callable[[], int]) -> int:
    """The exit code of a benchmark; what the app explains is output, without a traceback."""
    try:
        return main()
    except HarmonizerError as error:
        print(error, file=sys.stderr)
        return 1


def printed(rows: Iterable[dict[str, Any]], expected: str = "rows") -> list[dict[str, Any]]:
    """The rows, each of them printed as soon as it is there.

    Raises
    ------
    SystemExit
        With a sentence that names what was `expected`, if there is none.
    """
    done = []
    for row in rows:
        done.append(row)
        print(" ".join(str(value) for value in row.values()), flush=True)
    if not done:
        raise SystemExit(f"nothing to measure: no {expected}.")
    return done
