"""Checkpoints of long sampling runs, so that a stopped run resumes within a volume."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...files import atomic_path
from .samplers import SamplerStep

__all__ = ["SamplerCheckpoint"]


class SamplerCheckpoint:
    """A `StepRunner` that saves the result of every finished step.

    Runs are identified by the order in which they begin and by a checksum of their first x. The
    folder must belong to one sampling: same network, condition and device. Only the last x of each
    run is kept, so a run needs one volume of disk space. An unreadable file, or one of another
    shape, counts as absent.

    Parameters
    ----------
    folder : Path
        Where the files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._run_count = folder, 0

    def run(self, x: torch.Tensor, steps: Sequence[tuple[int, int]], step: SamplerStep
            ) -> torch.Tensor:
        """Apply all steps, starting after the last one that was saved.

        Parameters
        ----------
        x : Tensor
            State before the first step.
        steps : sequence of (int, int)
            (timestep, next timestep) of each step.
        step : SamplerStep
            Function that makes one step.
        """
        checksum = zlib.crc32(x.detach().cpu().contiguous().numpy().tobytes())
        name = f"run-{self._run_count:04d}-{checksum:08x}"
        self._run_count += 1
        done, x = self._load(name, x, len(steps))
        for number in range(done, len(steps)):
            x = step(x, *steps[number])
            self._save(name, number + 1, x)
        return x

    def _load(self, name: str, x: torch.Tensor, step_count: int) -> tuple[int, torch.Tensor]:
        """Return the number of finished steps and x after them."""
        for number in range(step_count, 0, -1):
            try:
                array = np.load(self._path(name, number), allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if array.shape == tuple(x.shape) and array.dtype == np.float32:
                return number, torch.from_numpy(array).to(x)
        return 0, x

    def _save(self, name: str, number: int, x: torch.Tensor) -> None:
        with atomic_path(self._path(name, number)) as path:
            np.save(path, x.detach().cpu().float().numpy())
        self._path(name, number - 1).unlink(missing_ok=True)

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}_step-{number:04d}.npy"
