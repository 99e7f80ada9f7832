"""Training history: rows of history.tsv, TensorBoard if it is installed, and a debug log line."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import write_text

__all__ = ["History"]

LOGGER = logging.getLogger("harmonizer")


class History:
    """Losses and metrics by step, written to history.tsv after every row.

    Rows begin with ``step`` and ``minutes``. Losses are named ``group/term``; validation metrics
    have names without a slash. A cell that does not apply is empty.

    Parameters
    ----------
    folder : Path
        Where history.tsv is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self._board: Any = None

    def add(self, terms: Mapping[str, float]) -> None:
        """Accumulate the loss terms of one step for the next row."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def end_row(self, step: int, minutes: float, metrics: Mapping[str, float] | None = None
                ) -> None:
        """Write a row: means of the accumulated losses, and validation metrics."""
        means = {k: round(v / max(1, self._count), 6) for k, v in self._sums.items()}
        row = {"step": step, "minutes": round(minutes, 3), **means,
               **{k: round(float(v), 6) for k, v in (metrics or {}).items()}}
        self._sums, self._count = {}, 0
        self.rows.append(row)
        self.write()
        self._log(row)

    def columns(self) -> list[str]:
        """Return the names of all columns in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]

    def table(self) -> list[dict[str, Any]]:
        """Return the rows, each with every column."""
        return [{name: row.get(name, "") for name in self.columns()} for row in self.rows]

    def write(self) -> None:
        """Write history.tsv."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.columns(), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.table())
        write_text(self.folder / "history.tsv", stream.getvalue())

    def _log(self, row: Mapping[str, Any]) -> None:
        if self._board is None:
            self._board = _tensorboard(self.folder)
        for name, value in row.items():
            if self._board and name != "step":
                self._board.add_scalar(name, value, row["step"])
        LOGGER.debug("training: %s", ", ".join(f"{k} {v}" for k, v in row.items()))


def _tensorboard(folder: Path) -> Any:
    """Return a TensorBoard writer, or False if TensorBoard is not installed (it is optional)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(folder / "tensorboard"))
