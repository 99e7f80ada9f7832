"""Adversarial losses of disentangling networks (DISARM, after DRIT++ and MDMM).

All classification losses are binary cross-entropies on logits, as in the authors' code. A label has
one binary entry per scanner; zeros stand for none of them. Losses are means over images, so a
weight does not depend on the batch size; the authors' code uses sums.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from .masked import masked_l1

__all__ = ["adversarial_loss", "label_loss", "label_confusion_loss", "kl_to_normal", "code_l1",
           "masked_l1", "realness_accuracy", "label_accuracy"]


def adversarial_loss(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """Compute the mean binary cross-entropy of realness logits with "real" or "generated"."""
    target = torch.full_like(logits, float(real), dtype=torch.float32)
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def label_loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute the mean binary cross-entropy of scanner logits with labels.

    Parameters
    ----------
    logits, label : Tensor, shape (N, c)
        A label of zeros means no scanner; its target is 1 / c for every scanner.
    """
    labeled = label.sum(1, keepdim=True) > 0
    target = torch.where(labeled, label.float(),
                         torch.full_like(label, 1 / label.shape[1]).float())
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def label_confusion_loss(logits: torch.Tensor, label: torch.Tensor, *, inverse: bool = False
                         ) -> torch.Tensor:
    """Compute the loss of an encoder against a discriminator of its codes.

    Parameters
    ----------
    logits, label : Tensor, shape (N, c)
    inverse : bool
        Use the authors' target 1 - label (any other scanner) instead of 1 / c (undecided).
    """
    target = 1 - label if inverse else torch.full_like(label, 1 / label.shape[1])
    return functional.binary_cross_entropy_with_logits(logits.float(), target.float())


def kl_to_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Compute the KL divergence of N(mean, exp logvar) from N(0, 1).

    Summed over the (N, d) dimensions, averaged over images.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).sum(1).mean()


def code_l1(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the mean absolute difference of two codes relative to their standard deviation.

    The standard deviation of each channel is that of both codes over positions and images, so that
    shrinking codes do not reduce the loss.

    Parameters
    ----------
    a, b : Tensor, shape (N, C, ...)
        Codes.
    mask : Tensor, shape (N, 1, ...)
        Brain, of the image's size. An empty one gives zero.
    """
    pool = functional.adaptive_max_pool2d if a.ndim == 4 else functional.adaptive_max_pool3d
    inside = pool(mask.float(), a.shape[2:])[:, 0] > 0
    if not inside.any():
        return a.float().sum() * 0
    first, second = (code.float().movedim(1, -1)[inside] for code in (a, b))
    std = torch.cat([first, second]).std(dim=0, correction=0)
    return ((first - second).abs().mean(dim=0) / (std + 1e-4)).mean()


def realness_accuracy(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Return the accuracy of a discriminator from its logits, 0..1, mean over both classes."""
    return ((real > 0).float().mean() + (generated <= 0).float().mean()).detach() / 2


def label_accuracy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the fraction of labeled rows whose largest logit is that of their label, 0..1.

    Labels of zeros are ignored; without any labeled row the result is 0.
    """
    labeled = label.sum(1) > 0
    right = (logits.argmax(1) == label.argmax(1)) & labeled
    return right.sum().float().detach() / labeled.sum().clamp(min=1)
