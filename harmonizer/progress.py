"""Progress on stderr: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["LineProgress", "progress_bar", "reporter", "phases"]

LINE_INTERVAL_S = 60.0  # between two lines in a log file


class LineProgress:
    """Progress for output that is not a terminal: whole lines, no carriage returns.

    It has the part of the interface of `tqdm.tqdm` that is used here.

    Parameters
    ----------
    total : number of steps; may be changed later
    label : what is being done
    """

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.n = total, label, 0.0
        self.closed = False
        self._start = time.monotonic()
        self._printed = self._start

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, steps: float = 1) -> None:
        """Count steps; print a line if the last one was printed long enough ago."""
        self.n += steps
        now = time.monotonic()
        if now - self._printed >= LINE_INTERVAL_S:
            self._printed = now
            self.write(self._line(now - self._start))

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Ignore the text beside the bar; log files have separate lines for it."""

    def write(self, text: str, file: Any = None) -> None:
        """Print a line."""
        print(text, file=file or sys.stderr, flush=True)

    def close(self) -> None:
        """Print the last line, once."""
        if not self.closed:
            self.closed = True
            seconds = time.monotonic() - self._start
            self.write(f"{self.label}: {self._done()} in {_duration(seconds)}")

    def _done(self) -> str:
        return f"{self.n:g} of {self.total:g} steps"

    def _line(self, seconds: float) -> str:
        if not 0 < self.n < self.total:
            return f"{self.label}: {self._done()}"
        left = seconds / self.n * (self.total - self.n)
        return f"{self.label}: {self._done()}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    """Format seconds below two minutes, else hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def progress_bar(total: int, label: str) -> Any:
    """Return a bar with an estimate of the time left; a `LineProgress` where stderr is a file."""
    if not sys.stderr.isatty():
        return LineProgress(total, label)
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True,
                mininterval=0.5)


def reporter(label: str) -> tuple[Any, Callable[[int, int], None]]:
    """Return a bar and a callback for functions that report (done, total)."""
    bar = progress_bar(0, label)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, report


@contextmanager
def phases(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback for functions that report (phase, done, total), with a bar per phase."""
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
