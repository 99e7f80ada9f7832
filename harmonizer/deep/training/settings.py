"""Two kinds of choices: `Pace` changes what is learned, `Resources` where and for how long.

A pace is part of a method's config and is kept in the model folder; resources are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..processor import trains_in_bf16

__all__ = ["Pace", "Resources", "Precision"]

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Pace:
    """How a training proceeds, counted in steps.

    Attributes
    ----------
    steps : at which it ends, if nothing ends it earlier
    ema : decay of the average of the weights, which is what a model ships; warmed up as
        min(ema, (1 + step) / (10 + step))
    log_every : steps of one line of history (means over them)
    validate_every : steps between two looks at the held-out people; 0 = never
    patience : looks without a better error until the training ends early; 0 = never
    save_every : steps between checkpoints
    """

    steps: int = 1000
    ema: float = 0.999
    log_every: int = 50
    validate_every: int = 0
    patience: int = 0
    save_every: int = 500


@dataclass(frozen=True)
class Resources:
    """Where a training runs and what it may take; changes no result but by rounding.

    Attributes
    ----------
    folder : checkpoints, history and the cache of volumes; with it a stopped training resumes;
        None is a temporary folder
    device : ``cpu``, ``cuda`` or ``cuda:N``
    devices, num_nodes : processes on each node, and nodes; more than one of either is gradient
        averaging over all of them (gloo on CPU, NCCL on GPU)
    precision : of training: bf16 is autocast to bfloat16; auto takes it on GPUs from Ampere
        on and on CPUs with AMX or AVX512-BF16. Inference is in fp32
    max_minutes : of this call; None = as long as the steps take
    threads : CPU threads of torch; None leaves them
    """

    folder: Path | None = None
    device: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    precision: Precision = "auto"
    max_minutes: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, "
                             f"got {self.precision!r}.")
        if self.devices < 1 or self.num_nodes < 1:
            raise ValueError("devices and num_nodes are 1 or more.")

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.devices * self.num_nodes

    @property
    def uses_bf16(self) -> bool:
        """Whether training runs in autocast to bfloat16."""
        if self.precision == "auto":
            return trains_in_bf16(self.device)
        return self.precision == "bf16"
