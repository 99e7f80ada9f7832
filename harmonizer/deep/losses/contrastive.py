"""The supervised contrastive loss of CACD (Scholz 2025, eq. 1) and its two sets of pairs.

Views are numbered subject by subject: view j of subject i is row i V + j of a (B V, d) matrix.
    anatomy:  positives = same subject, other view;  negatives = other subject, same view
    contrast: positives = same view, other subject;  negatives = same subject, other view
The sum over positives stands inside the logarithm, as printed. What is in neither set (another
subject under another view) is left out.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["pairs", "contrastive"]

TAU = 0.07  # the paper leaves it open; the authors' code


def pairs(subjects: int, views: int, device: torch.device | str = "cpu"
          ) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (B V, B V) bool matrices: same subject and other view; other subject and same view."""
    subject = torch.arange(subjects, device=device).repeat_interleave(views)
    view = torch.arange(views, device=device).repeat(subjects)
    same_subject = subject[:, None] == subject[None]
    same_view = view[:, None] == view[None]
    return same_subject & ~same_view, same_view & ~same_subject


def contrastive(z: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor,
                tau: float = TAU) -> torch.Tensor:
    """Mean over views of -log(sum of positives / sum of positives and negatives), exp(cos / tau).

    Parameters
    ----------
    z : (M, d); only its direction counts
    positives, negatives : (M, M) bool; rows without a positive are left out
    """
    z = functional.normalize(z.float(), dim=1)
    similarity = z @ z.T / tau
    none = torch.finfo(similarity.dtype).min
    both = similarity.masked_fill(~(positives | negatives), none).logsumexp(1)
    good = similarity.masked_fill(~positives, none).logsumexp(1)
    rows = positives.any(1)
    return (both - good)[rows].mean() if rows.any() else z.sum() * 0
