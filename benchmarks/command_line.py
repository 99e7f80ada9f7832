"""Helpers for the command lines of the benchmarks: folders, rows and errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harmonizer.errors import HarmonizerError


def existing_folder(text: str) -> Path:
    """Return the path of an existing folder; argparse reports any other."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return path


def report_errors(main: Callable[[], int]) -> int:
    """Run a benchmark and return its exit code; errors of the app are printed in one line."""
    try:
        return main()
    except HarmonizerError as error:
        print(error, file=sys.stderr)
        return 1


def printed(rows: Iterable[dict[str, Any]], expected: str = "rows") -> list[dict[str, Any]]:
    """Print rows one by one and return them.

    Raises
    ------
    SystemExit
        If there is no row; the message names what was `expected`.
    """
    done = []
    for row in rows:
        done.append(row)
        print(" ".join(str(value) for value in row.values()), flush=True)
    if not done:
        raise SystemExit(f"nothing to measure: no {expected}.")
    return done
