"""What a network may predict (eps, x0 or v), and the loss that teaches it.

With a = sqrt(abar) and s = sqrt(1 - abar): x_t = a x_0 + s eps, and v = a eps - s x_0 (Salimans
and Ho 2022, arXiv 2202.00512). `split` gives (x_0, eps) back from any of the three.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from .schedules import Schedule

__all__ = ["Prediction", "noised", "goal", "split", "check_prediction"]

Prediction = Literal["eps", "x0", "v"]


def check_prediction(prediction: str) -> None:
    """ValueError for a word that is none of the three."""
    if prediction not in get_args(Prediction):
        raise ValueError(f"prediction must be one of {get_args(Prediction)}, got {prediction!r}.")


def noised(schedule: Schedule, x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
           ) -> torch.Tensor:
    """x_t of (N, ...) images at (N,) times."""
    bar = schedule.abar(t, x0)
    return bar.sqrt() * x0 + (1 - bar).sqrt() * eps


def goal(schedule: Schedule, prediction: Prediction, x0: torch.Tensor, t: torch.Tensor,
         eps: torch.Tensor) -> torch.Tensor:
    """What the network should say, given the truth."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    bar = schedule.abar(t, x0)
    return bar.sqrt() * eps - (1 - bar).sqrt() * x0


def split(schedule: Schedule, prediction: Prediction, said: torch.Tensor, x: torch.Tensor,
          t: torch.Tensor | int, clip: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_0, eps) from what the network said of x at t.

    `clip` bounds x_0 to [-clip, clip] and derives eps anew from it, as DDPM's and CACD's samplers
    do; it makes inversion inexact.
    """
    bar = schedule.abar(t, x)
    a, s = bar.sqrt(), (1 - bar).sqrt()
    if prediction == "eps":
        x0, eps = (x - s * said) / a, said
    elif prediction == "x0":
        x0, eps = said, (x - a * said) / s
    else:
        x0, eps = a * x - s * said, a * said + s * x
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
        eps = (x - a * x0) / s
    return x0, eps
