"""The invertible hierarchy flow of IHF-Harmony: subtract what is artefact, normalise, add it back.

Zhu et al. 2026, "IHF-Harmony", sections 2.2 to 2.4, on Fan et al. 2023, "Hierarchy Flow"
(arXiv:2308.06909). An affine-net makes n tensors a_1..a_n of an image x, which are subtracted one
after another, and all that remained on the way is kept,

    h_0 = x,   h_i = h_(i-1) - a_i,   z = [h_1, ..., h_n]

z is normalised to b = [b_1, ..., b_n] (artefact-aware normalisation), and the way back adds:

    r_n = b_n + a_n
    exact   r_i = a_i + alpha_i b_i + (1 - alpha_i) r_(i+1)         ours: r_i = h_(i-1) where b = h
    paper   r_i = alpha (a_i + b_i) + (1 - alpha) r_(i+1)           as printed

The image is r_1. As printed the way back is not the inverse of the way forth: with b = h it leaves
out sum_k (1 - alpha)^k a_k over k = 1..n-1 (`residual` of the tests), which is nothing only at
alpha = 1, where a_2..a_n are without effect and without gradient. Moving one term repairs it for
every alpha and keeps every split at work.

The flow is an expansion with a remembered a, not a bijection of x and z: a second pass is another
pass. Sums are float32 under any autocast, since bfloat16 would lose 1e-2.

Statistics are taken over the brain of a whole volume. `moments` of slices are sums, so slices of
one volume are pooled by adding, and a volume needs two passes: one to collect, one to change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .blocks import conv, fold, unfold, zeroed

__all__ = ["FUSIONS", "Stage", "AffineNet", "HierarchyFlow", "ArtefactAwareNorm", "FlowNetwork",
           "moments", "mean_and_spread"]

FUSIONS = ("exact", "paper")
LARGEST = 2.0  # log factor by which AAN may stretch or shrink a channel
GAIN = 8.0  # of z_s at AAN's entrance (and its code): scanners differ by hundredths in it
LEAST_SPREAD = 1e-3  # of a channel, in [-1, 1] units; below it there is nothing to divide by


@dataclass(frozen=True)
class Stage:
    """One block of the flow.

    Attributes
    ----------
    squeeze : factor of the squeeze before it, 1 for none
    splits : n, the number of a_i
    hidden : channels within the affine-net
    """

    squeeze: int
    splits: int
    hidden: int


def moments(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N, 1 + 2 C) sums of weight, weighted value and weighted square over the places of each.

    features: (N, C, H, W); mask: (N, 1, h, w), averaged to the size of the features, so that a
    place on the brain's rim weighs as much as it holds of it.
    """
    x = features.float().flatten(2)
    w = functional.adaptive_avg_pool2d(mask.float(), features.shape[2:]).flatten(2)
    return torch.cat([w.sum(2), (x * w).sum(2), (x * x * w).sum(2)], dim=1)


def mean_and_spread(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C) means and standard deviations of `moments`; 0 and the least where there is no brain.
    """
    weight = sums[:, :1].clamp(min=1e-6)
    mean, square = (sums[:, 1:] / weight).chunk(2, dim=1)
    return mean, (square - mean ** 2).clamp(min=LEAST_SPREAD ** 2).sqrt()


class PlaceNorm(nn.Module):
    """Normalises the channels of each place by themselves: no place knows of another.

    The paper's instance norm takes statistics of a slice, so that a slice's change depends on how
    much air it shows, and neighbouring slices flicker.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W)."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class AffineNet(nn.Module):
    """x -> a: three convolutions, (N, C, H, W) -> (N, n C, H, W), of any sign.

    HierarchyFlow ends in ReLU, so that subtraction only darkens; here the last layer is free.
    `instance`: instance norm as theirs, else `PlaceNorm`. `quiet`: a = 0 before training.
    """

    def __init__(self, channels: int, splits: int, hidden: int, instance: bool = False,
                 quiet: bool = False) -> None:
        super().__init__()
        last = conv(2, hidden, splits * channels)
        self.layers = nn.Sequential(
            conv(2, channels, hidden), _norm(hidden, instance), nn.SiLU(),
            conv(2, hidden, hidden), _norm(hidden, instance), nn.SiLU(),
            zeroed(last) if quiet else last,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W)."""
        return self.layers(x)


def _norm(channels: int, instance: bool) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True) if instance else PlaceNorm(channels)


class HierarchyFlow(nn.Module):
    """One block: `forward` subtracts, `reverse` adds; see the module's docstring.

    Parameters
    ----------
    channels : C of x
    splits : n
    hidden : of the affine-net
    fusion : ``exact`` or ``paper``
    instance : as of `AffineNet`
    """

    def __init__(self, channels: int, splits: int, hidden: int, fusion: str = "exact",
                 instance: bool = False) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {fusion!r}.")
        self.splits, self.fusion = splits, fusion
        # where the way back is not the inverse, only a = 0 leaves an untrained network the identity
        self.affine = AffineNet(channels, splits, hidden, instance, quiet=fusion == "paper")
        self.logits = nn.Parameter(torch.zeros(max(splits - 1, 1)))

    @property
    def alpha(self) -> torch.Tensor:
        """(n - 1,) fusion weights in (0, 1), 0.5 before training; the paper has one for all."""
        logits = self.logits[:self.splits - 1]
        return torch.sigmoid(logits.mean().expand_as(logits) if self.fusion == "paper" else logits)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (N, C, H, W) -> z and a, both (N, n C, H, W) float32."""
        x = x.float()
        a = self.affine(x).float()
        split = a.unflatten(1, (self.splits, -1))
        return (x[:, None] - split.cumsum(1)).flatten(1, 2), a

    def reverse(self, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """b: normalised z, a: of the way forth -> (N, C, H, W)."""
        bs = b.float().unflatten(1, (self.splits, -1)).unbind(1)
        as_ = a.unflatten(1, (self.splits, -1)).unbind(1)
        alpha = self.alpha.float()
        r = bs[-1] + as_[-1]
        for i in reversed(range(self.splits - 1)):
            if self.fusion == "exact":
                r = as_[i] + alpha[i] * bs[i] + (1 - alpha[i]) * r
            else:
                r = alpha[i] * (as_[i] + bs[i]) + (1 - alpha[i]) * r
        return r


class ArtefactAwareNorm(nn.Module):
    """b = (z - mean z) / sd z * sd' + mean', eq. 2, with sd' = sd z exp(d) and mean' = mean z + m.

    d and m are heads over two projections, of the target's artefact statistics z_s and of the
    source's own content (mean and spread of its z). The heads start at zero: AAN is then the
    identity. With `anchored` what the heads say of the source's own z_s is subtracted, so that it
    is the identity for the source's own statistics after any training (the paper: not).

    Parameters
    ----------
    channels : of z
    statistics : size of z_s, the code apart
    width : of the projections
    codes : size of a code that is appended to z_s (which modality it is; the paper: none)
    """

    def __init__(self, channels: int, statistics: int, width: int, anchored: bool = True,
                 codes: int = 0) -> None:
        super().__init__()
        self.anchored, self.statistics = anchored, statistics
        self.norm = nn.LayerNorm(statistics)
        self.target = nn.Sequential(nn.Linear(statistics + codes, 2 * width), nn.SiLU(),
                                    nn.Linear(2 * width, width))
        self.content = nn.Sequential(nn.LayerNorm(2 * channels), nn.Linear(2 * channels, width))
        self.both = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU())
        self.heads = zeroed(nn.Linear(2 * width, 2 * channels))

    def forward(self, z: torch.Tensor, own: tuple[torch.Tensor, torch.Tensor], z_s: torch.Tensor,
                own_s: torch.Tensor) -> torch.Tensor:
        """z: (N, C, H, W); own: its (N, C) mean and spread; z_s, own_s: (N, statistics + codes).
        """
        mean, spread = own
        with torch.autocast(z.device.type, enabled=False):  # differences of like numbers
            said = self._said(own, z_s)
            if self.anchored:
                said = said - self._said(own, own_s)
        log_factor, shift = said.float().chunk(2, dim=1)
        factor = torch.exp(LARGEST * torch.tanh(log_factor / LARGEST))
        change = (z - _wide(mean)) * _wide(factor - 1) + _wide(shift * spread)
        return z + change

    def _said(self, own: tuple[torch.Tensor, torch.Tensor], z_s: torch.Tensor) -> torch.Tensor:
        content = self.content(torch.cat([own[0], own[1].log()], dim=1))
        found, code = z_s[:, :self.statistics], z_s[:, self.statistics:]
        target = self.target(GAIN * torch.cat([self.norm(found), code], dim=1))
        return self.heads(self.both(torch.cat([target, content], dim=1)))


def _wide(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, :, None, None]


class FlowNetwork(nn.Module):
    """Stages of squeeze and `HierarchyFlow`, an `ArtefactAwareNorm` for each on the way back.

    Statistics of a stage are those of the way forth, of a volume as a whole: they are given to
    `decode` by whoever saw all its slices.

    Parameters
    ----------
    before : channels of the image (a slab of 2.5D)
    stages : first to last
    statistics, width, codes : of `ArtefactAwareNorm`
    """

    def __init__(self, before: int, stages: tuple[Stage, ...], statistics: int, width: int = 64,
                 fusion: str = "exact", instance: bool = False, anchored: bool = True,
                 codes: int = 0) -> None:
        super().__init__()
        self.squeezes = tuple(s.squeeze for s in stages)
        self.flows, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = before
        for stage in stages:
            channels *= stage.squeeze ** 2
            self.flows.append(HierarchyFlow(channels, stage.splits, stage.hidden, fusion, instance))
            channels *= stage.splits
            self.norms.append(ArtefactAwareNorm(channels, statistics, width, anchored,
                                                codes))

    def encode(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(N, before, H, W) -> z and a of every stage."""
        found = []
        for squeeze, flow in zip(self.squeezes, self.flows):
            z, a = flow(fold(x, squeeze))
            found.append((z, a))
            x = z
        return found

    def statistics(self, encoded: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor
                   ) -> list[torch.Tensor]:
        """`moments` of every stage's z; mask: (N, 1, H, W)."""
        return [moments(z, mask) for z, _ in encoded]

    def decode(self, encoded: list[tuple[torch.Tensor, torch.Tensor]], sums: list[torch.Tensor],
               z_s: torch.Tensor, own_s: torch.Tensor) -> torch.Tensor:
        """The image with the target's artefacts; sums: (N, ...) moments of each slice's volume."""
        below: torch.Tensor | None = None
        for (z, a), own, squeeze, flow, norm in reversed(list(zip(
                encoded, sums, self.squeezes, self.flows, self.norms))):
            b = norm(z if below is None else below, mean_and_spread(own), z_s, own_s)
            below = unfold(flow.reverse(b, a), squeeze)
        assert below is not None
        return below
