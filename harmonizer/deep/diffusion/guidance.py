"""CFG++ whose strength does not depend on the number of steps.

With rho = sqrt((1 - abar) / abar) and d = e_c - e_u, a CFG++ step from t to p (Chung 2024, arXiv
2406.08070) is, in units of x / sqrt(abar),

    x_p = x_t - (rho_t - rho_p) e_u - rho_t lambda d,

so that every step pushes by rho_t lambda, however short it is: guidance grows with the number of
steps, 0.6 at 50 steps is 0.12 at 250 (as plain CFG it would be a weight of rho_t lambda / (rho_t -
rho_p): about 5 at 50 steps, 22 at 250). Here `guidance` is the lambda of a sampler with
`REFERENCE` even steps, the paper's 50, and any other step pushes as much as those together would
that it stands for: with r = T / REFERENCE the length of theirs,

    lambda_t = guidance * (integral of rho from p to t) / (integral of rho from t - r to t),

which is `guidance` at every step of the reference's own grid.

0 is unconditional DDIM; 1 is not CFG with weight 1, whose noise is e_c's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .process import split
from .samplers import Parts, PartsOf
from .schedules import CLEAN, Schedule

__all__ = ["REFERENCE", "scales_of", "cfg_plus"]

REFERENCE = 50  # steps of the paper's sampler


def scales_of(schedule: Schedule, grid: Sequence[int], guidance: float) -> dict[int, float]:
    """lambda at each time of a grid (`Schedule.grid`); may exceed 1 where steps are long."""
    bars = schedule.abar(torch.arange(schedule.steps))
    rho = ((1 - bars) / bars).sqrt()
    length = max(1, schedule.steps // REFERENCE)
    return {t: guidance * float(rho[max(to, CLEAN) + 1:t + 1].sum()
                                / rho[max(t + 1 - length, 0):t + 1].sum())
            for to, t in zip(grid[:-1], grid[1:])}


def cfg_plus(with_style: PartsOf, without: PartsOf, scales: Mapping[int, float],
             schedule: Schedule, clip: float | None = None) -> PartsOf:
    """x0 of the guided noise (held in [-clip, clip]), renoised by the unconditional one.

    `scales` is lambda by time.
    """

    def parts(x: torch.Tensor, t: int) -> Parts:
        plain = without(x, t)
        if not scales[t]:
            return plain
        e = plain.eps + scales[t] * (with_style(x, t).eps - plain.eps)
        return Parts(split(schedule, "eps", e, x, t, clip)[0], plain.eps)

    return parts
