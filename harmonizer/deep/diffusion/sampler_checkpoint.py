"""A long sampling goes on where it was stopped: the last finished step of each walk, on disk."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...files import atomic_path
from .samplers import Advance

__all__ = ["KeptSteps"]


class KeptSteps:
    """Walks (`harmonizer.deep.diffusion.samplers.Walk`) whose steps outlive the process.

    Walks are told apart by the order in which they begin and by the x that they begin with; the
    rest (network, condition, device) is the folder's: it belongs to one sampling. Only the last x
    of each walk is kept, so that a walk costs a volume of disk. A file that cannot be read or has
    another shape counts as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._begun = folder, 0

    def walk(self, x: torch.Tensor, steps: Sequence[tuple[int, int]], advance: Advance
             ) -> torch.Tensor:
        """x after the last step; the steps that are there are not made again."""
        first = zlib.crc32(x.detach().cpu().contiguous().numpy().tobytes())
        name, self._begun = f"walk-{self._begun:04d}-{first:08x}", self._begun + 1
        done, x = self._found(name, x, len(steps))
        for number in range(done, len(steps)):
            x = advance(x, *steps[number])
            self._keep(name, number + 1, x)
        return x

    def _found(self, name: str, x: torch.Tensor, most: int) -> tuple[int, torch.Tensor]:
        """(finished steps, x after them)."""
        for number in range(most, 0, -1):
            try:
                array = np.load(self._path(name, number), allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if array.shape == tuple(x.shape) and array.dtype == np.float32:
                return number, torch.from_numpy(array).to(x)
        return 0, x

    def _keep(self, name: str, number: int, x: torch.Tensor) -> None:
        with atomic_path(self._path(name, number)) as path:
            np.save(path, x.detach().cpu().float().numpy())
        self._path(name, number - 1).unlink(missing_ok=True)

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}_step-{number:04d}.npy"
