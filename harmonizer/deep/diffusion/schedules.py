"""Noise schedules in closed form: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.

Timesteps are integers 0..T-1; T - 1 is the noisiest. `T_CLEAN` (-1) stands for the image itself,
with abar = 1. A sampler visits a grid: a strictly increasing tuple of timesteps that starts with
`T_CLEAN`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch

__all__ = ["T_CLEAN", "Schedule", "Kind", "Spacing"]

T_CLEAN = -1
REFERENCE_TIMESTEPS = 1000  # at which `first_beta` and `last_beta` are given
MAX_BETA = 0.999

Kind = Literal["linear", "cosine"]
Spacing = Literal["leading", "even", "quadratic"]


@dataclass(frozen=True)
class Schedule:
    """Noise schedule of a diffusion model.

    Attributes
    ----------
    timesteps : int
        Number T of timesteps, >= 2.
    kind : {"linear", "cosine"}
        Linear betas of Ho et al. 2020, or the cosine schedule of Nichol and Dhariwal 2021 with
        s = 0.008 and betas of at most 0.999.
    first_beta, last_beta : float
        Ends of the linear betas at T = 1000. Other T scale them by 1000 / T, so that the last
        timestep is equally noisy.

    References
    ----------
    Ho et al. 2020, arXiv:2006.11239; Nichol and Dhariwal 2021, arXiv:2102.09672.
    """

    timesteps: int = 1000
    kind: Kind = "linear"
    first_beta: float = 1e-4
    last_beta: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"schedule: expected one of {get_args(Kind)}, got {self.kind!r}.")
        if self.timesteps < 2:
            raise ValueError(f"timesteps: expected 2 or more, got {self.timesteps}.")

    @cached_property
    def betas(self) -> torch.Tensor:
        """Variances of the forward steps, shape (T,), float64."""
        if self.kind == "linear":
            scale = REFERENCE_TIMESTEPS / self.timesteps
            betas = torch.linspace(self.first_beta * scale, self.last_beta * scale,
                                   self.timesteps).double()
            return betas.clamp(max=MAX_BETA)
        t = torch.arange(self.timesteps + 1, dtype=torch.float64) / self.timesteps
        signal = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=MAX_BETA)

    @cached_property
    def _abars(self) -> torch.Tensor:
        """abar, shape (T + 1,); the last is 1, where index `T_CLEAN` finds it."""
        abars = torch.cumprod(1 - self.betas, 0)
        return torch.cat([abars, torch.ones(1, dtype=torch.float64)])

    def abar(self, t: torch.Tensor | int, like: torch.Tensor | None = None) -> torch.Tensor:
        """Return the cumulative signal level abar at given timesteps.

        Parameters
        ----------
        t : int or Tensor of int64
            Timesteps, `T_CLEAN` included.
        like : Tensor, shape (N, ...), optional
            Shape the result so that it broadcasts against this batch, in its dtype and device.
        """
        bars = self._abars[torch.as_tensor(t, device="cpu")]
        if like is None:
            return bars
        bars = bars.to(device=like.device, dtype=like.dtype)
        return bars.reshape(bars.shape + (1,) * (like.ndim - bars.ndim))

    def grid(self, count: int, spacing: Spacing = "leading", strength: float = 1.0
             ) -> tuple[int, ...]:
        """Choose the timesteps of a sampler.

        Parameters
        ----------
        count : int
            Number of sampling steps, 1 to T.
        spacing : {"leading", "even", "quadratic"}
            ``leading``: multiples of T // count from 0, as in DDIM. ``even``: equal steps that end
            at the last timestep. ``quadratic``: the same with growing steps, finer near the image;
            inversion is several dB more exact.
        strength : float
            Fraction of the T timesteps that is used, in (0, 1].

        Returns
        -------
        tuple of int
            `T_CLEAN` and `count` increasing timesteps.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength: expected a number in (0, 1], got {strength}.")
        top = max(count, int(round(strength * self.timesteps)))
        if not 1 <= count <= self.timesteps:
            raise ValueError(f"sampling_steps: expected 1 to {self.timesteps}, got {count}.")
        if spacing == "leading":
            return (T_CLEAN, *(i * (top // count) for i in range(count)))
        if spacing not in get_args(Spacing):
            raise ValueError(f"spacing: expected one of {get_args(Spacing)}, got {spacing!r}.")
        power = 2 if spacing == "quadratic" else 1
        timesteps = [round(top * ((i + 1) / count) ** power) - 1 for i in range(count)]
        for i in range(count):  # rounding may repeat a timestep near the image
            timesteps[i] = max(timesteps[i], (timesteps[i - 1] if i else T_CLEAN) + 1)
        return (T_CLEAN, *timesteps)
