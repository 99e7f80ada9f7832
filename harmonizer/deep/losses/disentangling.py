"""Losses of disentangling by adversaries (DISARM, after DRIT++ and MDMM).

Binary cross-entropies throughout, on logits, as in the authors' code: a scanner is c questions of
yes or no, so that "none of them" (a label of zeros) can be said. Means over images, so that a
weight means the same in a batch of any size (theirs: sums).
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["realness", "belongs", "untold", "kl_to_normal", "masked_l1", "apart",
           "accuracy_of_realness", "accuracy_of_label"]


def realness(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """Mean binary cross-entropy of a map of logits with "real" or "made"."""
    goal = torch.full_like(logits, float(real), dtype=torch.float32)
    return functional.binary_cross_entropy_with_logits(logits.float(), goal)


def belongs(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of (N, c) logits with (N, c) labels.

    A row of zeros means no scanner's own look: its goal is 1 / c for every scanner, the answer of
    one who cannot tell.
    """
    some = label.sum(1, keepdim=True) > 0
    goal = torch.where(some, label.float(), torch.full_like(label, 1 / label.shape[1]).float())
    return functional.binary_cross_entropy_with_logits(logits.float(), goal)


def untold(logits: torch.Tensor, label: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """What an encoder minimises against the (N, c) logits of a discriminator of its codes.

    The goal is 1 / c, not to be told; `inverse` is the authors' 1 - label, to be taken for any
    other scanner.
    """
    goal = 1 - label if inverse else torch.full_like(label, 1 / label.shape[1])
    return functional.binary_cross_entropy_with_logits(logits.float(), goal.float())


def kl_to_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL of N(mean, exp logvar) from N(0, 1): sum over the (N, d) dimensions, mean over images."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).sum(1).mean()


def masked_l1(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference within the mask; zero for an empty one."""
    return ((a.float() - b.float()).abs() * mask).sum() / mask.sum().clamp(min=1)


def apart(one: torch.Tensor, two: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean difference of two (N, C, ...) codes in the mask, over each channel's spread there.

    The spread is that of both, over places and images: codes that shrink come no nearer to each
    other. mask: (N, 1, ...), of the image's size. Zero for an empty mask.
    """
    pool = functional.adaptive_max_pool2d if one.ndim == 4 else functional.adaptive_max_pool3d
    inside = pool(mask.float(), one.shape[2:])[:, 0] > 0
    if not inside.any():
        return one.float().sum() * 0
    a, b = (code.float().movedim(1, -1)[inside] for code in (one, two))
    spread = torch.cat([a, b]).std(dim=0, correction=0)
    return ((a - b).abs().mean(dim=0) / (spread + 1e-4)).mean()


def accuracy_of_realness(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Share of right answers, 0..1, mean of both kinds; no gradient."""
    return ((real > 0).float().mean() + (made <= 0).float().mean()).detach() / 2


def accuracy_of_label(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Share of rows whose largest logit is that of their label, 0..1; rows of zeros are left out.

    No gradient; 0 if there is no labelled row.
    """
    some = label.sum(1) > 0
    right = (logits.argmax(1) == label.argmax(1)) & some
    return right.sum().float().detach() / some.sum().clamp(min=1)
