"""CFG++ guidance whose strength does not depend on the number of sampling steps.

With rho = sqrt((1 - abar) / abar) and d = e_c - e_u, a CFG++ step from timestep t to p is, in units
of x / sqrt(abar),

    x_p = x_t - (rho_t - rho_p) e_u - rho_t lambda d.

Every step shifts the image by rho_t lambda d however short it is, so a fixed lambda guides more
strongly with more steps. `guidance_scales` therefore defines guidance as the lambda of a sampler
with `REFERENCE_STEPS` even steps. A step of any length gets the total shift of the reference steps
that it replaces; with r = T / REFERENCE_STEPS,

    lambda_t = guidance * (integral of rho from p to t) / (integral of rho from t - r to t).

Guidance 0 is unconditional DDIM. Guidance 1 is not CFG of weight 1, because the noise is e_u's.

References
----------
Chung et al. 2024, "CFG++: Manifold-constrained classifier free guidance for diffusion models",
arXiv:2406.08070.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .process import predict_x0_eps
from .samplers import Denoised, Denoiser
from .schedules import T_CLEAN, Schedule

__all__ = ["REFERENCE_STEPS", "guidance_scales", "cfg_plus"]

REFERENCE_STEPS = 50  # sampling steps of Hache et al. 2026


def guidance_scales(schedule: Schedule, grid: Sequence[int], guidance: float) -> dict[int, float]:
    """Compute the CFG++ scale lambda of every step of a sampling grid.

    Parameters
    ----------
    grid : sequence of int
        Increasing timesteps; see `Schedule.grid`.
    guidance : float
        Scale at `REFERENCE_STEPS` even steps, >= 0.

    Returns
    -------
    dict
        Timestep -> lambda; may exceed 1 where steps are long.
    """
    bars = schedule.abar(torch.arange(schedule.timesteps))
    rho = ((1 - bars) / bars).sqrt()
    length = max(1, schedule.timesteps // REFERENCE_STEPS)
    return {t: guidance * float(rho[max(t_next, T_CLEAN) + 1:t + 1].sum()
                                / rho[max(t + 1 - length, 0):t + 1].sum())
            for t_next, t in zip(grid[:-1], grid[1:])}


def cfg_plus(conditional: Denoiser, unconditional: Denoiser, scales: Mapping[int, float],
             schedule: Schedule, clip: float | None = None) -> Denoiser:
    """Combine a conditional and an unconditional denoiser by CFG++.

    The clean image comes from the guided noise, the noise itself from the unconditional denoiser.

    Parameters
    ----------
    scales : mapping
        Timestep -> lambda; where it is 0 the conditional denoiser is not evaluated.
    clip : float, optional
        Bound of the estimated clean image.
    """

    def denoise(x: torch.Tensor, t: int) -> Denoised:
        plain = unconditional(x, t)
        if not scales[t]:
            return plain
        eps = plain.eps + scales[t] * (conditional(x, t).eps - plain.eps)
        return Denoised(predict_x0_eps(schedule, "eps", eps, x, t, clip)[0], plain.eps)

    return denoise
