"""Views of a scan, the conditioning channels of a patch, and the denoising loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ....deep.diffusion.process import add_noise, training_target
from ....deep.diffusion.schedules import Schedule
from ....deep.patches import patch_slices, random_corner
from .anatomy_prior import AnatomyPrior, coordinate_maps, resize
from .config import PatchDiffusionConfig

__all__ = ["ScanView", "make_view", "cut_patch", "draw_corner", "schedule_of", "denoising_loss"]

_coordinates = lru_cache(maxsize=1)(coordinate_maps)


class ScanView(NamedTuple):
    """A scan with its anatomical prior.

    Attributes
    ----------
    image : ndarray, shape (I, J, K)
        In [-1, 1].
    mask : ndarray, shape (I, J, K), bool
    prior : ndarray, shape (I, J, K)
        In [-1, 1].
    coarse_prior : ndarray, shape (i, j, k)
        The prior of the whole volume at the size of a patch.
    """

    image: np.ndarray
    mask: np.ndarray
    prior: np.ndarray
    coarse_prior: np.ndarray


def make_view(config: PatchDiffusionConfig, image: np.ndarray, mask: np.ndarray,
              patch: tuple[int, ...], log_gamma: float = 0.0) -> ScanView:
    """Compute the prior of a scan in [-1, 1]."""
    prior = AnatomyPrior(config.gradient_fraction, config.sigma)
    a = prior((np.float32(1) + image) / 2, mask, log_gamma)
    return ScanView(image, mask, a, resize(a, patch))


def cut_patch(config: PatchDiffusionConfig, view: ScanView, corner: Sequence[int],
              flip: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a patch and its conditioning.

    Parameters
    ----------
    flip : bool
        Mirror the first axis; the coordinates still say where left and right are.

    Returns
    -------
    image, mask : ndarray, shape (1, i, j, k), float32
    channels : ndarray, shape (C, i, j, k), float32
        Prior of the patch, coarse prior of the volume, and coordinates.
    """
    at = patch_slices(corner, view.coarse_prior.shape)
    channels = [view.prior[at][None], view.coarse_prior[None]]
    if config.coordinates:
        channels.append(_coordinates(view.image.shape)[(slice(None), *at)])
    arrays = [view.image[at][None], view.mask[at][None], np.concatenate(channels)]
    if flip:
        arrays = [a[:, ::-1] for a in arrays]
        if config.coordinates:
            arrays[2] = np.concatenate([arrays[2][:2], -arrays[2][2:3], arrays[2][3:]])
    image, mask, conditioning = (np.ascontiguousarray(a, np.float32) for a in arrays)
    return image, mask, conditioning


def draw_corner(rng: np.random.Generator, view: ScanView) -> tuple[int, ...]:
    """Draw the lowest voxel of a patch within the brain's extent."""
    extent = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(view.mask.any(axis=others))
        extent.append((int(hits[0]), int(hits[-1]) + 1))
    return random_corner(rng, extent, view.coarse_prior.shape, view.mask.shape)


def schedule_of(config: PatchDiffusionConfig) -> Schedule:
    """Return the noise schedule of a config."""
    return Schedule(config.timesteps, config.schedule)  # type: ignore[arg-type]


def denoising_loss(config: PatchDiffusionConfig, network: nn.Module, x: torch.Tensor,
                   mask: torch.Tensor, channels: torch.Tensor, tokens: torch.Tensor,
                   t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Compute the mean squared error of the prediction, over the brain or everywhere.

    Parameters
    ----------
    x, mask, eps : Tensor, shape (N, 1, i, j, k)
    channels : Tensor, shape (N, C, i, j, k)
    tokens : Tensor, shape (N, M, width)
    t : Tensor, shape (N,)
    """
    schedule = schedule_of(config)
    model_output = network(torch.cat([add_noise(schedule, x, t, eps), channels], dim=1), t, tokens)
    target = training_target(schedule, config.prediction, x, t, eps)  # type: ignore[arg-type]
    weight = mask if config.brain_only else torch.ones_like(mask)
    return ((model_output.float() - target) ** 2 * weight).sum() / weight.sum().clamp(min=1)
