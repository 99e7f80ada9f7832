"""The artefact loss of IHF-Harmony: means and spreads of features, where they can be compared.

Eq. 4: for each level the k N channels whose means differ least are compared, by mean and by spread
(standard deviation); the others differ because the two people do. Which they are is decided
without a gradient. Where the paper sums over channels we take the mean, so that its weight does not
depend on how many there are. Statistics know no places: shuffled features give the same loss.
"""

from __future__ import annotations

import torch

__all__ = ["artefact"]

KEPT = 0.9

Statistics = list[tuple[torch.Tensor, torch.Tensor]]


def artefact(ours: Statistics, theirs: Statistics, kept: float = KEPT) -> torch.Tensor:
    """(N,) sum over levels of the mean difference of the channels that are `kept`.

    ours, theirs: (N, C) means and (N, C) spreads of each level.
    """
    total = torch.zeros(len(ours[0][0]), device=ours[0][0].device)
    for (mean, spread), (goal_mean, goal_spread) in zip(ours, theirs):
        apart = (mean - goal_mean).abs()
        count = max(1, int(kept * apart.shape[1]))
        chosen = apart.detach().argsort(dim=1)[:, :count]
        both = apart + (spread - goal_spread).abs()
        total = total + both.gather(1, chosen).mean(1)
    return total
