"""Forward diffusion process, and conversion between the three prediction types of a network.

With a = sqrt(abar_t) and s = sqrt(1 - abar_t), a noisy image is x_t = a x_0 + s eps. A network
predicts eps, x_0, or the velocity v = a eps - s x_0.

References
----------
Salimans and Ho 2022, "Progressive distillation for fast sampling of diffusion models",
arXiv:2202.00512 (v-prediction).
"""

from __future__ import annotations

from typing import Literal

import torch

from .schedules import Schedule

__all__ = ["Prediction", "add_noise", "training_target", "predict_x0_eps"]

Prediction = Literal["eps", "x0", "v"]


def add_noise(schedule: Schedule, x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
              ) -> torch.Tensor:
    """Return the noisy images x_t of clean images.

    Parameters
    ----------
    x0 : Tensor, shape (N, ...)
        Clean images.
    t : Tensor, shape (N,), int64
        Timestep of each image.
    eps : Tensor, shape (N, ...)
        Standard normal noise.
    """
    bar = schedule.abar(t, x0)
    return bar.sqrt() * x0 + (1 - bar).sqrt() * eps


def training_target(schedule: Schedule, prediction: Prediction, x0: torch.Tensor, t: torch.Tensor,
                    eps: torch.Tensor) -> torch.Tensor:
    """Return what a network of the given prediction type should output.

    Parameters
    ----------
    prediction : {"eps", "x0", "v"}
        Prediction type of the network.
    x0, t, eps : Tensor
        As in `add_noise`.
    """
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    bar = schedule.abar(t, x0)
    return bar.sqrt() * eps - (1 - bar).sqrt() * x0


def predict_x0_eps(schedule: Schedule, prediction: Prediction, model_output: torch.Tensor,
                   x: torch.Tensor, t: torch.Tensor | int, clip: float | None = None
                   ) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert a network's output into estimates of the clean image and the noise.

    Parameters
    ----------
    prediction : {"eps", "x0", "v"}
        Prediction type of the network.
    model_output, x : Tensor, shape (N, ...)
        Network output and the noisy image that it was computed from.
    t : Tensor, shape (N,), or int
        Timesteps of `x`.
    clip : float, optional
        Clamp x_0 to [-clip, clip] and recompute eps from it, as the samplers of DDPM and CACD do.
        DDIM inversion is then inexact.

    Returns
    -------
    x0, eps : Tensor, shape (N, ...)
    """
    bar = schedule.abar(t, x)
    a, s = bar.sqrt(), (1 - bar).sqrt()
    if prediction == "eps":
        x0, eps = (x - s * model_output) / a, model_output
    elif prediction == "x0":
        x0, eps = model_output, (x - a * model_output) / s
    else:
        x0, eps = a * x - s * model_output, a * model_output + s * x
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
        eps = (x - a * x0) / s
    return x0, eps
