"""Invertible hierarchy flow of IHF-Harmony: subtract artifacts, normalize, add them back.

An affine-net computes n tensors a_1..a_n of an image x. They are subtracted one after another, and
all remainders are kept,

    h_0 = x,   h_i = h_(i-1) - a_i,   z = [h_1, ..., h_n].

Artifact-aware normalization turns z into b = [b_1, ..., b_n], and the reverse pass adds:

    r_n = b_n + a_n
    exact   r_i = a_i + alpha_i b_i + (1 - alpha_i) r_(i+1)         r_i = h_(i-1) if b = h
    paper   r_i = alpha (a_i + b_i) + (1 - alpha) r_(i+1)

The image is r_1. The reverse pass of the paper is not the inverse of the forward pass. With b = h
it omits sum_k (1 - alpha)^k a_k over k = 1..n-1. This term is zero only at alpha = 1, where
a_2..a_n have neither effect nor gradient. The exact fusion is the inverse for every alpha.

Sums are float32 under any autocast, because bfloat16 has errors of 1e-2. Statistics are computed
over the brain of a whole volume. `moments` are sums, so slices of one volume are pooled by
addition, and a volume needs two passes.

References
----------
Zhu et al. 2026, "IHF-Harmony: Multi-Modality Magnetic Resonance Images Harmonization using
Invertible Hierarchy Flow Model", sections 2.2 to 2.4; Fan et al. 2023, "Hierarchy Flow",
arXiv:2308.06909.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .blocks import conv, pixel_shuffle, pixel_unshuffle, zero_module

__all__ = ["FUSIONS", "Stage", "AffineNet", "HierarchyFlow", "ArtifactAwareNorm", "FlowNetwork",
           "moments", "mean_and_std"]

FUSIONS = ("exact", "paper")
MAX_LOG_FACTOR = 2.0  # by which the normalization may scale a channel
STATISTICS_GAIN = 8.0  # of z_s at the normalization's input: scanners differ by hundredths in it
MIN_STD = 1e-3  # of a channel, in [-1, 1] units


@dataclass(frozen=True)
class Stage:
    """One block of the flow.

    Attributes
    ----------
    squeeze : int
        Factor of the pixel unshuffling before the block, 1 for none.
    splits : int
        Number n of the tensors a_i.
    hidden : int
        Channels within the affine-net.
    """

    squeeze: int
    splits: int
    hidden: int


def moments(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum weights, weighted values and weighted squares over positions.

    Parameters
    ----------
    features : Tensor, shape (N, C, H, W)
    mask : Tensor, shape (N, 1, h, w)
        Weights, averaged to the size of the features.

    Returns
    -------
    Tensor, shape (N, 1 + 2 C)
    """
    x = features.float().flatten(2)
    w = functional.adaptive_avg_pool2d(mask.float(), (features.shape[2], features.shape[3])
                                        ).flatten(2)
    return torch.cat([w.sum(2), (x * w).sum(2), (x * x * w).sum(2)], dim=1)


def mean_and_std(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute (N, C) means and standard deviations from `moments`.

    Without any weight the mean is 0 and the standard deviation `MIN_STD`.
    """
    weight = sums[:, :1].clamp(min=1e-6)
    mean, square = (sums[:, 1:] / weight).chunk(2, dim=1)
    return mean, (square - mean ** 2).clamp(min=MIN_STD ** 2).sqrt()


class PositionNorm(nn.Module):
    """LayerNorm over the channels of each position.

    The paper's instance norm takes statistics of a slice, so that the change of a slice depends on
    how much air it shows, and neighboring slices flicker.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize features of shape (N, C, H, W)."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class AffineNet(nn.Module):
    """Three convolutions that compute a_1..a_n, (N, C, H, W) -> (N, n C, H, W).

    Hierarchy Flow ends in ReLU, so that subtraction only darkens; here the last layer is linear.

    Parameters
    ----------
    channels, splits, hidden : int
        C, n, and the channels between.
    instance : bool
        Instance norm as in the paper; otherwise `PositionNorm`.
    zero_init : bool
        Whether a = 0 before training.
    """

    def __init__(self, channels: int, splits: int, hidden: int, instance: bool = False,
                 zero_init: bool = False) -> None:
        super().__init__()
        last = conv(2, hidden, splits * channels)
        self.layers = nn.Sequential(
            conv(2, channels, hidden), _norm(hidden, instance), nn.SiLU(),
            conv(2, hidden, hidden), _norm(hidden, instance), nn.SiLU(),
            zero_module(last) if zero_init else last,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute all a_i of images of shape (N, C, H, W)."""
        return self.layers(x)


def _norm(channels: int, instance: bool) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True) if instance else PositionNorm(channels)


class HierarchyFlow(nn.Module):
    """One block of the flow: `forward` subtracts, `reverse` adds (see the module).

    Parameters
    ----------
    channels, splits, hidden : int
        C, n, and the channels of the affine-net.
    fusion : {"exact", "paper"}
        Formula of the reverse pass.
    instance : bool
        As in `AffineNet`.
    """

    def __init__(self, channels: int, splits: int, hidden: int, fusion: str = "exact",
                 instance: bool = False) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion: expected one of {FUSIONS}, got {fusion!r}.")
        self.splits, self.fusion = splits, fusion
        # with the paper's fusion only a = 0 leaves an untrained network the identity
        self.affine = AffineNet(channels, splits, hidden, instance, zero_init=fusion == "paper")
        self.logits = nn.Parameter(torch.zeros(max(splits - 1, 1)))

    @property
    def alpha(self) -> torch.Tensor:
        """Fusion weights in (0, 1), shape (n - 1,); 0.5 before training, one value in the paper."""
        logits = self.logits[:self.splits - 1]
        return torch.sigmoid(logits.mean().expand_as(logits) if self.fusion == "paper" else logits)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z and a, both (N, n C, H, W) float32, of images of shape (N, C, H, W)."""
        x = x.float()
        a = self.affine(x).float()
        split = a.unflatten(1, (self.splits, -1))
        return (x[:, None] - split.cumsum(1)).flatten(1, 2), a

    def reverse(self, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Fuse normalized b and the a of the forward pass, (N, n C, H, W) -> (N, C, H, W)."""
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


class ArtifactAwareNorm(nn.Module):
    """Artifact-aware normalization (AAN): b = (z - mean z) / std z * std' + mean' (eq. 2).

    std' = std z exp(d) and mean' = mean z + std z m. d and m are computed from the target's
    artifact statistics z_s and from the source's mean and std of z. They are zero before training,
    so that AAN is the identity.

    Parameters
    ----------
    channels : int
        Channels of z.
    statistics : int
        Size of z_s without the code.
    width : int
        Size of the two projections.
    anchored : bool
        Subtract d and m of the source's own z_s. AAN is then the identity for the source's own
        statistics after any training; in the paper it is not.
    codes : int
        Size of the modality code that is appended to z_s; 0 in the paper.
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
        self.heads = zero_module(nn.Linear(2 * width, 2 * channels))

    def forward(self, z: torch.Tensor, z_statistics: tuple[torch.Tensor, torch.Tensor],
                target_s: torch.Tensor, source_s: torch.Tensor) -> torch.Tensor:
        """Normalize features.

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
        z_statistics : (Tensor, Tensor), shape (N, C)
            Mean and standard deviation of z over the volume.
        target_s, source_s : Tensor, shape (N, statistics + codes)
            z_s of target and source.
        """
        mean, std = z_statistics
        with torch.autocast(z.device.type, enabled=False):  # small differences of similar numbers
            parameters = self._parameters_for(z_statistics, target_s)
            if self.anchored:
                parameters = parameters - self._parameters_for(z_statistics, source_s)
        log_factor, shift = parameters.float().chunk(2, dim=1)
        factor = torch.exp(MAX_LOG_FACTOR * torch.tanh(log_factor / MAX_LOG_FACTOR))
        change = (z - _to_map(mean)) * _to_map(factor - 1) + _to_map(shift * std)
        return z + change

    def _parameters_for(self, z_statistics: tuple[torch.Tensor, torch.Tensor], z_s: torch.Tensor
                        ) -> torch.Tensor:
        """Return d and m, shape (N, 2 C)."""
        content = self.content(torch.cat([z_statistics[0], z_statistics[1].log()], dim=1))
        statistics, code = z_s[:, :self.statistics], z_s[:, self.statistics:]
        target = self.target(STATISTICS_GAIN * torch.cat([self.norm(statistics), code], dim=1))
        return self.heads(self.both(torch.cat([target, content], dim=1)))


def _to_map(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, :, None, None]


class FlowNetwork(nn.Module):
    """Stages of pixel unshuffling and `HierarchyFlow`, with an `ArtifactAwareNorm` for each.

    The statistics of a stage are those of the forward pass over the whole volume. The caller, who
    sees all slices, pools them and passes them to `decode`.

    Parameters
    ----------
    in_channels : int
        Channels of the image (slices of a slab).
    stages : tuple of Stage
        First to last.
    statistics, width, anchored, codes
        As in `ArtifactAwareNorm`.
    fusion, instance
        As in `HierarchyFlow`.
    """

    def __init__(self, in_channels: int, stages: tuple[Stage, ...], statistics: int,
                 width: int = 64, fusion: str = "exact", instance: bool = False,
                 anchored: bool = True, codes: int = 0) -> None:
        super().__init__()
        self.squeezes = tuple(s.squeeze for s in stages)
        self.flows: Any = nn.ModuleList()  # of HierarchyFlow
        self.norms = nn.ModuleList()
        channels = in_channels
        for stage in stages:
            channels *= stage.squeeze ** 2
            self.flows.append(HierarchyFlow(channels, stage.splits, stage.hidden, fusion, instance))
            channels *= stage.splits
            self.norms.append(ArtifactAwareNorm(channels, statistics, width, anchored, codes))

    def encode(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return z and a of every stage for images of shape (N, in_channels, H, W)."""
        encoded = []
        for squeeze, flow in zip(self.squeezes, self.flows):
            z, a = flow(pixel_unshuffle(x, squeeze))
            encoded.append((z, a))
            x = z
        return encoded

    def statistics(self, encoded: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor
                   ) -> list[torch.Tensor]:
        """Return the `moments` of every stage's z within a (N, 1, H, W) mask."""
        return [moments(z, mask) for z, _ in encoded]

    def decode(self, encoded: list[tuple[torch.Tensor, torch.Tensor]], sums: list[torch.Tensor],
               target_s: torch.Tensor, source_s: torch.Tensor) -> torch.Tensor:
        """Decode images with the target's artifacts.

        Parameters
        ----------
        encoded : list of (Tensor, Tensor)
            Result of `encode`.
        sums : list of Tensor, shape (N, 1 + 2 C)
            Pooled moments of the volume of each slice, for every stage.
        target_s, source_s : Tensor, shape (N, statistics + codes)
            z_s of target and source.

        Returns
        -------
        Tensor, shape (N, in_channels, H, W)
        """
        below: torch.Tensor | None = None
        for (z, a), stage_sums, squeeze, flow, norm in reversed(list(zip(
                encoded, sums, self.squeezes, self.flows, self.norms))):
            b = norm(z if below is None else below, mean_and_std(stage_sums), target_s, source_s)
            below = pixel_shuffle(flow.reverse(b, a), squeeze)
        assert below is not None
        return below
