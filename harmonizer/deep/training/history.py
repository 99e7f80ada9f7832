"""What a training tells: rows of history.tsv, TensorBoard where it is installed, a log line."""

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
    """Rows of numbers by step; the file is whole after every row.

    `rows` begin with ``step`` and ``minutes``; losses are named ``player/term``; held-out numbers
    by themselves. A cell that does not apply is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self._board: Any = None

    def add(self, terms: Mapping[str, float]) -> None:
        """Collect the terms of one step for the next row."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def row(self, step: int, minutes: float, more: Mapping[str, float] | None = None) -> None:
        """End a row: means of what was collected, and held-out numbers."""
        means = {k: round(v / max(1, self._count), 6) for k, v in self._sums.items()}
        row = {"step": step, "minutes": round(minutes, 3), **means,
               **{k: round(float(v), 6) for k, v in (more or {}).items()}}
        self._sums, self._count = {}, 0
        self.rows.append(row)
        self.write()
        self._tell(row)

    def columns(self) -> list[str]:
        """Names of all columns in the order in which they came."""
        return list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]

    def table(self) -> list[dict[str, Any]]:
        """The rows, each with every column."""
        return [{name: row.get(name, "") for name in self.columns()} for row in self.rows]

    def write(self) -> None:
        """history.tsv in the training's folder."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.columns(), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.table())
        write_text(self.folder / "history.tsv", stream.getvalue())

    def _tell(self, row: Mapping[str, Any]) -> None:
        if self._board is None:
            self._board = _tensorboard(self.folder)
        for name, value in row.items():
            if self._board and name != "step":
                self._board.add_scalar(name, value, row["step"])
        LOGGER.debug("training: %s", ", ".join(f"{k} {v}" for k, v in row.items()))


def _tensorboard(folder: Path) -> Any:
    """A writer if TensorBoard is installed, else False: it is a comfort, not a need."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(folder / "tensorboard"))
