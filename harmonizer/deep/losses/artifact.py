"""Artifact loss of IHF-Harmony: difference of feature statistics.

References
----------
Zhu et al. 2026, "IHF-Harmony", eq. 4.
"""

from __future__ import annotations

import torch

__all__ = ["artifact_loss"]

KEPT_FRACTION = 0.9

Statistics = list[tuple[torch.Tensor, torch.Tensor]]


def artifact_loss(output: Statistics, target: Statistics, kept_fraction: float = KEPT_FRACTION
                  ) -> torch.Tensor:
    """Compare means and standard deviations of the channels that differ least.

    The other channels differ because the subjects do. The selection has no gradient. The paper
    sums over channels; here their mean is taken, so that the weight does not depend on their
    number.

    Parameters
    ----------
    output, target : list of (Tensor, Tensor), shape (N, C)
        Means and standard deviations of each level.
    kept_fraction : float
        Fraction k of the channels that are compared, in (0, 1].

    Returns
    -------
    Tensor, shape (N,)
        Sum over levels.
    """
    total = torch.zeros(len(output[0][0]), device=output[0][0].device)
    for (mean, std), (target_mean, target_std) in zip(output, target):
        distance = (mean - target_mean).abs()
        count = max(1, int(kept_fraction * distance.shape[1]))
        chosen = distance.detach().argsort(dim=1)[:, :count]
        both = distance + (std - target_std).abs()
        total = total + both.gather(1, chosen).mean(1)
    return total
