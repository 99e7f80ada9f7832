"""Supervised contrastive loss of CACD, and its two sets of pairs.

Views are numbered subject by subject: view j of subject i is row i V + j of a (B V, d) matrix.

    anatomy:  positives = same subject, other view;  negatives = other subject, same view
    contrast: positives = same view, other subject;  negatives = same subject, other view

Pairs in neither set (another subject under another view) are ignored. One view of scans of two
scanners has two contrasts: with scanners given, two subjects are compared only within a scanner, as
in the authors' code. Positives across scanners would teach a contrast code to ignore the scanner,
and anatomy negatives across scanners an anatomy code to know it.

References
----------
Scholz et al. 2025, "Contrastive Anatomy-Contrast Disentanglement", eq. 1.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["view_pairs", "contrastive_loss"]

TEMPERATURE = 0.07  # of the authors' code; the paper does not state it


def view_pairs(subjects: int, views: int, device: torch.device | str = "cpu",
               scanners: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs of one subject under two views, and of one view of two subjects.

    Parameters
    ----------
    scanners : Tensor, shape (subjects,), int64, optional
        Scanner of each subject's scan; two subjects of different scanners are no pair.

    Returns
    -------
    same_subject, same_view : Tensor, shape (B V, B V), bool
    """
    subject = torch.arange(subjects, device=device).repeat_interleave(views)
    view = torch.arange(views, device=device).repeat(subjects)
    same_subject = subject[:, None] == subject[None]
    same_view = view[:, None] == view[None]
    if scanners is not None:
        scanner = scanners.to(device).repeat_interleave(views)
        return same_subject & ~same_view, (same_view & ~same_subject
                                           & (scanner[:, None] == scanner[None]))
    return same_subject & ~same_view, same_view & ~same_subject


def contrastive_loss(z: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor,
                     temperature: float = TEMPERATURE) -> torch.Tensor:
    """Compute the mean of -log(sum of positives / sum of positives and negatives).

    A pair counts exp(cosine similarity / temperature). The sum over positives is inside the
    logarithm, as printed.

    Parameters
    ----------
    z : Tensor, shape (M, d)
        Vectors; only their directions matter.
    positives, negatives : Tensor, shape (M, M), bool
        Rows without a positive are ignored.
    """
    z = functional.normalize(z.float(), dim=1)
    similarity = z @ z.T / temperature
    lowest = torch.finfo(similarity.dtype).min
    all_pairs = similarity.masked_fill(~(positives | negatives), lowest).logsumexp(1)
    positive = similarity.masked_fill(~positives, lowest).logsumexp(1)
    rows = positives.any(1)
    return (all_pairs - positive)[rows].mean() if rows.any() else z.sum() * 0
