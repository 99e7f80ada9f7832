"""Progress bars on stderr, with an estimate of the time that is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar", "reporter", "phases"]


def progress_bar(total: int, label: str) -> Any:
    """A bar with an estimate on stderr; on no terminal a line every half minute."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 30.0)


def reporter(label: str) -> tuple[Any, Callable[[int, int], None]]:
    """(bar, callback) for functions that report (done, total)."""
    bar = progress_bar(0, label)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, report


@contextmanager
def phases(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback for functions that report (phase, done, total); each phase has a bar."""
    bars: dict[str, Any] = {}

    def report(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            bars[phase] = progress_bar(total, f"{label} {phase}")
        bars[phase].update(done - bars[phase].n)
        if done == total:
            bars[phase].close()

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()
