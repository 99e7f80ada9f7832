"""Settings of a training: `TrainingSchedule` changes what is learned, `Resources` does not.

The schedule is part of a method's config and is saved in the model folder; resources are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..processor import trains_in_bf16

__all__ = ["TrainingSchedule", "Resources", "Precision"]

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class TrainingSchedule:
    """Length of a training and intervals within it, in optimizer steps.

    Attributes
    ----------
    steps : int
        Number of steps, unless something ends the training earlier.
    ema : float
        Decay of the exponential moving average of the weights, in [0, 1). The averaged weights are
        the result. The decay is warmed up as min(ema, (1 + step) / (10 + step)).
    log_every : int
        Steps between rows of the history; a row holds means over them.
    validate_every : int
        Steps between validations; 0 = never.
    patience : int
        Validations without improvement after which the training ends; 0 = never.
    save_every : int
        Steps between checkpoints.
    """

    steps: int = 1000
    ema: float = 0.999
    log_every: int = 50
    validate_every: int = 0
    patience: int = 0
    save_every: int = 500


@dataclass(frozen=True)
class Resources:
    """Hardware and time of a training; results depend on them only by rounding.

    Attributes
    ----------
    folder : Path, optional
        Checkpoints, history and the cache of volumes. A stopped training resumes from it. Default:
        a temporary folder.
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    devices, num_nodes : int
        Processes on each node, and number of nodes. Gradients are averaged over all processes.
    precision : {"auto", "bf16", "fp32"}
        Precision of training. bf16 is autocast to bfloat16; auto uses it on GPUs from Ampere on
        and on CPUs with AMX or AVX512-BF16. Inference always runs in fp32.
    max_minutes : float, optional
        Time limit of this call. Default: none.
    threads : int, optional
        CPU threads of torch. Default: unchanged.
    workers : int
        Processes that prepare batches ahead of each training process; see `loader`.
    """

    folder: Path | None = None
    device: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    precision: Precision = "auto"
    max_minutes: float | None = None
    threads: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {get_args(Precision)}, "
                             f"got {self.precision!r}.")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, got {self.workers}.")
        if self.devices < 1 or self.num_nodes < 1:
            raise ValueError("devices and num_nodes: expected 1 or more, got "
                             f"{self.devices} and {self.num_nodes}.")

    @property
    def process_count(self) -> int:
        """Number of processes on all nodes."""
        return self.devices * self.num_nodes

    @property
    def uses_bf16(self) -> bool:
        """Whether training runs in autocast to bfloat16."""
        if self.precision == "auto":
            return trains_in_bf16(self.device)
        return self.precision == "bf16"
