"""Samplers, one small function each: DDPM, DDIM, its inversion, guidance and CFG++.

A `Denoiser` is any function (x, t) -> prediction; its condition is bound inside. `guided` makes
one of two. All loops are deterministic functions of their arguments; DDPM takes its noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .process import Prediction, split
from .schedules import Schedule

__all__ = ["Denoiser", "Parts", "PartsOf", "Walk", "straight", "parts_of", "guided", "ddpm_step",
           "ddim_step", "ddim", "ddim_inversion"]

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Parts(NamedTuple):
    """An image estimate and the noise to put back on it; guidance may take them from different
    conditions (CFG++)."""

    x0: torch.Tensor
    eps: torch.Tensor


PartsOf = Callable[[torch.Tensor, int], Parts]
Advance = Callable[[torch.Tensor, int, int], torch.Tensor]
Walk = Callable[[torch.Tensor, Sequence[tuple[int, int]], Advance], torch.Tensor]
"""(x, (from, to) of each step, what makes a step) -> x after the last step."""


def straight(x: torch.Tensor, steps: Sequence[tuple[int, int]], advance: Advance) -> torch.Tensor:
    """One step after the other, nothing kept."""
    for t, to in steps:
        x = advance(x, t, to)
    return x


def parts_of(denoise: Denoiser, schedule: Schedule, prediction: Prediction = "eps",
             clip: float | None = None) -> PartsOf:
    """A function (x, t) -> `Parts` from a denoiser; t is one time for the whole batch."""

    def parts(x: torch.Tensor, t: int) -> Parts:
        times = torch.full((len(x),), t, device=x.device)
        return Parts(*split(schedule, prediction, denoise(x, times), x, t, clip))

    return parts


def guided(with_condition: PartsOf, without: PartsOf, scale: float, *, plus: bool = False,
           schedule: Schedule | None = None) -> PartsOf:
    """Classifier-free guidance: e = e_u + scale (e_c - e_u).

    Parameters
    ----------
    plus : CFG++ (Chung 2024, arXiv 2406.08070): x0 from the guided e, noise put back from e_u;
        scale in [0, 1]. 0 is unconditional DDIM; 1 is not conditional DDIM (the noise differs)
    schedule : needed to make x0 of the guided e
    """
    if schedule is None:
        raise ValueError("guidance needs the schedule.")

    def parts(x: torch.Tensor, t: int) -> Parts:
        e_u, e_c = without(x, t).eps, with_condition(x, t).eps
        e = e_u + scale * (e_c - e_u)
        x0, _ = split(schedule, "eps", e, x, t)
        return Parts(x0, e_u if plus else e)

    return parts


def ddim_step(schedule: Schedule, parts: Parts, to: int) -> torch.Tensor:
    """x at time `to` (any other time or `CLEAN`), eta = 0 (Song 2021, arXiv 2010.02502 eq. 12)."""
    bar = schedule.abar(to, parts.x0)
    return bar.sqrt() * parts.x0 + (1 - bar).sqrt() * parts.eps


def ddpm_step(schedule: Schedule, parts: Parts, x: torch.Tensor, t: int, to: int,
              noise: torch.Tensor) -> torch.Tensor:
    """x at `to` < t, ancestral (Ho 2020, eq. 7), variance beta-tilde; none is added at `CLEAN`."""
    bar, bar_to = schedule.abar(t, x), schedule.abar(to, x)
    alpha = bar / bar_to
    beta = 1 - alpha
    mean = (bar_to.sqrt() * beta * parts.x0 + alpha.sqrt() * (1 - bar_to) * x) / (1 - bar)
    return mean + ((1 - bar_to) / (1 - bar) * beta).sqrt() * noise


def ddim(parts: PartsOf, schedule: Schedule, x: torch.Tensor, grid: Sequence[int],
         walk: Walk = straight) -> torch.Tensor:
    """From x at the last time of the grid down to its first; `walk` makes the steps."""
    return walk(x, list(zip(reversed(grid[1:]), reversed(grid[:-1]))),
                lambda y, t, to: ddim_step(schedule, parts(y, t), to))


def ddim_inversion(parts: PartsOf, schedule: Schedule, x: torch.Tensor, grid: Sequence[int],
                   corrections: int = 0, walk: Walk = straight) -> torch.Tensor:
    """From an image at the first time of the grid up to its last; the mirror of `ddim`.

    The plain mirror asks the network at x of the lower time. Each of the `corrections` solves the
    step for the x whose sampling step leads back (a fixed point; Pan 2023, arXiv 2309.04907):
    with 2 and a quadratic grid, 10 steps are more exact than 50 plain ones.
    """
    def climb(y: torch.Tensor, lower: int, upper: int) -> torch.Tensor:
        bar_l, bar_u = schedule.abar(lower, y), schedule.abar(upper, y)
        ratio = (bar_u / bar_l).sqrt()
        shift = (1 - bar_u).sqrt() - ratio * (1 - bar_l).sqrt()
        guess = y
        for _ in range(corrections + 1):
            guess = ratio * y + shift * parts(guess, upper if corrections else max(lower, 0)).eps
        return guess

    return walk(x, list(zip(grid[:-1], grid[1:])), climb)
