"""DDIM sampling and inversion as deterministic functions of their arguments.

A `Predictor` is a network with its condition bound: (x, t) -> raw prediction. A `Denoiser` returns
the estimates of the clean image and of the noise that a sampler needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .process import Prediction, predict_x0_eps
from .schedules import Schedule

__all__ = ["Predictor", "Denoised", "Denoiser", "SamplerStep", "StepRunner", "run_steps",
           "denoiser_of", "ddim_step", "ddim", "ddim_inversion"]

Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""((N, ...) noisy images, (N,) timesteps) -> network output, the same shape."""


class Denoised(NamedTuple):
    """Estimates of the clean image and of the noise in a noisy image.

    Guidance may take the two from different conditions (CFG++).
    """

    x0: torch.Tensor
    eps: torch.Tensor


Denoiser = Callable[[torch.Tensor, int], Denoised]
SamplerStep = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(x, timestep of x, next timestep) -> x at the next timestep."""
StepRunner = Callable[[torch.Tensor, Sequence[tuple[int, int]], SamplerStep], torch.Tensor]
"""(x, (timestep, next timestep) of each step, step function) -> x after the last step."""


def run_steps(x: torch.Tensor, steps: Sequence[tuple[int, int]], step: SamplerStep
              ) -> torch.Tensor:
    """Apply all sampling steps in order, without checkpoints."""
    for t, t_next in steps:
        x = step(x, t, t_next)
    return x


def denoiser_of(predict: Predictor, schedule: Schedule, prediction: Prediction = "eps",
                clip: float | None = None) -> Denoiser:
    """Wrap a network as a denoiser.

    Parameters
    ----------
    predict : Predictor
        Network with its condition bound.
    prediction : {"eps", "x0", "v"}
        Prediction type of the network.
    clip : float, optional
        Bound of the estimated clean image; see `predict_x0_eps`.

    Returns
    -------
    Denoiser
        Function of a batch and of one timestep for the whole batch.
    """

    def denoise(x: torch.Tensor, t: int) -> Denoised:
        timesteps = torch.full((len(x),), t, device=x.device)
        return Denoised(*predict_x0_eps(schedule, prediction, predict(x, timesteps), x, t, clip))

    return denoise


def ddim_step(schedule: Schedule, denoised: Denoised, t_next: int) -> torch.Tensor:
    """Return x at another timestep with eta = 0 (Song 2021, arXiv:2010.02502, eq. 12).

    Parameters
    ----------
    denoised : Denoised
        Estimates at the current timestep.
    t_next : int
        Any timestep, or `T_CLEAN` for the image itself.
    """
    bar = schedule.abar(t_next, denoised.x0)
    return bar.sqrt() * denoised.x0 + (1 - bar).sqrt() * denoised.eps


def ddim(denoise: Denoiser, schedule: Schedule, x: torch.Tensor, grid: Sequence[int],
         runner: StepRunner = run_steps) -> torch.Tensor:
    """Sample from the last timestep of a grid down to its first.

    Parameters
    ----------
    denoise : Denoiser
        Conditional or guided denoiser.
    x : Tensor, shape (N, ...)
        Noisy images at the last timestep of the grid.
    grid : sequence of int
        Increasing timesteps; see `Schedule.grid`.
    runner : StepRunner
        Executes the steps; `SamplerCheckpoint.run` makes them resumable.
    """
    return runner(x, list(zip(reversed(grid[1:]), reversed(grid[:-1]))),
                  lambda y, t, t_next: ddim_step(schedule, denoise(y, t), t_next))


def ddim_inversion(denoise: Denoiser, schedule: Schedule, x: torch.Tensor, grid: Sequence[int],
                   corrections: int = 0, runner: StepRunner = run_steps) -> torch.Tensor:
    """Invert DDIM: encode images at the first timestep of a grid as noise at its last.

    Plain inversion evaluates the network at x of the lower timestep. Each correction is a
    fixed-point iteration towards the x whose sampling step leads back exactly (Pan 2023,
    arXiv:2309.04907). With 2 corrections and a quadratic grid, 10 steps are more exact than 50
    plain ones.

    Parameters
    ----------
    denoise, schedule, grid, runner
        As in `ddim`.
    x : Tensor, shape (N, ...)
        Images at the first timestep of the grid.
    corrections : int
        Fixed-point iterations of each step, >= 0.
    """
    def invert_step(y: torch.Tensor, lower: int, upper: int) -> torch.Tensor:
        bar_l, bar_u = schedule.abar(lower, y), schedule.abar(upper, y)
        ratio = (bar_u / bar_l).sqrt()
        shift = (1 - bar_u).sqrt() - ratio * (1 - bar_l).sqrt()
        estimate = y
        for _ in range(corrections + 1):
            t = upper if corrections else max(lower, 0)
            estimate = ratio * y + shift * denoise(estimate, t).eps
        return estimate

    return runner(x, list(zip(grid[:-1], grid[1:])), invert_step)
