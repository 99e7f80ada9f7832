"""Noise schedules in closed form: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.

Times are whole numbers 0..T-1, T - 1 the noisiest, and `CLEAN` (-1) is the image itself with
abar = 1, so that "from the image" and "to the image" need no case of their own. Which of the times
a sampler visits is a grid, a strictly increasing tuple that starts with `CLEAN`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch

__all__ = ["CLEAN", "Schedule", "Kind", "Spacing"]

CLEAN = -1

Kind = Literal["linear", "cosine"]
Spacing = Literal["leading", "even", "quadratic"]


@dataclass(frozen=True)
class Schedule:
    """How much of the image is left at each time.

    Attributes
    ----------
    steps : T, number of times
    kind : ``linear`` betas of Ho 2020 (arXiv 2006.11239), `first` to `last`; ``cosine`` of Nichol
        and Dhariwal 2021 (arXiv 2102.09672), s = 0.008, betas at most 0.999
    first, last : of the linear betas, at T = 1000; for another T they are scaled by 1000 / T, so
        that the last time is as noisy as with 1000
    """

    steps: int = 1000
    kind: Kind = "linear"
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"schedule must be one of {get_args(Kind)}, got {self.kind!r}.")
        if self.steps < 2:
            raise ValueError(f"a schedule has 2 or more times, got {self.steps}.")

    @cached_property
    def betas(self) -> torch.Tensor:
        """(T,) float64."""
        if self.kind == "linear":
            scale = 1000 / self.steps
            betas = torch.linspace(self.first * scale, self.last * scale, self.steps).double()
            return betas.clamp(max=0.999)
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        left = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)

    @cached_property
    def _bars(self) -> torch.Tensor:
        """(T + 1,) abar, with that of `CLEAN`, 1, at the end, where index -1 finds it."""
        bars = torch.cumprod(1 - self.betas, 0)
        return torch.cat([bars, torch.ones(1, dtype=torch.float64)])

    def abar(self, t: torch.Tensor | int, like: torch.Tensor | None = None) -> torch.Tensor:
        """abar at t (any shape, int64, `CLEAN` allowed), shaped to multiply (N, ...) `like`."""
        bars = self._bars[torch.as_tensor(t, device="cpu")]
        if like is None:
            return bars
        bars = bars.to(device=like.device, dtype=like.dtype)
        return bars.reshape(bars.shape + (1,) * (like.ndim - bars.ndim))

    def grid(self, count: int, spacing: Spacing = "leading", strength: float = 1.0
             ) -> tuple[int, ...]:
        """`CLEAN` and `count` times up to `strength` T.

        ``leading``: multiples of T // count from 0 (DDIM's and the CACD code's "ddimN");
        ``even``: equal steps that end at the last time; ``quadratic``: the same with steps that
        grow, finer near the image, which makes inversion several dB more exact.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength lies in (0, 1], got {strength}.")
        top = max(count, int(round(strength * self.steps)))
        if not 1 <= count <= self.steps:
            raise ValueError(f"{count} steps do not fit into {self.steps} times.")
        if spacing == "leading":
            return (CLEAN, *(i * (top // count) for i in range(count)))
        if spacing not in get_args(Spacing):
            raise ValueError(f"spacing must be one of {get_args(Spacing)}, got {spacing!r}.")
        power = 2 if spacing == "quadratic" else 1
        times = [round(top * ((i + 1) / count) ** power) - 1 for i in range(count)]
        for i in range(count):  # rounding may repeat a time near the image
            times[i] = max(times[i], (times[i - 1] if i else CLEAN) + 1)
        return (CLEAN, *times)
