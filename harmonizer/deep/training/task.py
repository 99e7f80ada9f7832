"""Interface between a method and the training loop.

A `TrainingTask` holds networks and data, and lists `OptimizerGroup`s: which networks are trained
on which loss. A diffusion model has one group, a GAN several.

    class MyTask(TrainingTask):
        def __init__(self, ...):
            self.networks = {"denoiser": UNet(...), "encoder": SemanticEncoder(...)}
        def optimizer_groups(self):
            return (OptimizerGroup("all", ("denoiser", "encoder"), self.loss, learning_rate=1e-4),)
        def batch(self, step, rank): ...
        def loss(self, batch): return {"mse": ..., "contrast": 0.5 * ...}

The gradient of a group's loss is computed for the parameters of that group alone
(`torch.autograd.grad`), whichever other networks the loss passes through. An adversarial loss
therefore needs no toggling of `requires_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

__all__ = ["Batch", "OptimizerGroup", "TrainingTask"]

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class OptimizerGroup:
    """Networks that share a loss and an Adam optimizer.

    Attributes
    ----------
    name : str
        Prefix of the columns in history.tsv.
    networks : tuple of str
        Names of the networks of the task that are trained.
    loss : callable
        Batch -> weighted loss terms by name; their sum is minimized.
    learning_rate, betas, weight_decay
        Settings of Adam (AdamW if weight_decay > 0).
    clip : float
        Maximum norm of the gradient.
    every, offset : int
        The group is updated at steps where step % every == offset.
    rate_factor : callable, optional
        Step -> factor of the learning rate. Default: 1 throughout.
    """

    name: str
    networks: tuple[str, ...]
    loss: Callable[[Batch], Mapping[str, torch.Tensor]]
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    every: int = 1
    offset: int = 0
    rate_factor: Callable[[int], float] | None = None

    def is_active_at(self, step: int) -> bool:
        """Return whether the group is updated at a step."""
        return step % self.every == self.offset

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Create the optimizer of the group for its parameters."""
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        return kind(parameters, lr=self.learning_rate, betas=self.betas,
                    weight_decay=self.weight_decay)


class TrainingTask:
    """Networks, losses and data of one training.

    Attributes
    ----------
    networks : dict of str to Module
        The loop moves them to the device and averages their weights.
    identity : dict
        JSON types that must be equal for a checkpoint to be resumed (config, seed, data).
    supports_workers : bool
        Whether `batch` may be called in other processes: it uses neither networks on a GPU nor
        torch's global generator, changes nothing, and its values are tensors and plain values.
    """

    networks: dict[str, Any]
    identity: dict[str, Any]
    supports_workers: ClassVar[bool] = False

    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """Return the groups in the order in which they are updated within a step."""
        raise NotImplementedError

    def batch(self, step: int, rank: int) -> Batch:
        """Return the data of one step of one process: a pure function of both and of the seed.

        The loop moves tensors to the device. It seeds torch's global generator by
        (seed, step, rank) before every step, so losses may draw from it.
        """
        raise NotImplementedError

    def validate(self) -> Mapping[str, float]:
        """Return metrics on validation subjects; ``error`` (lower is better) selects the weights.

        Called with averaged weights, in evaluation mode, without gradients, in the first process.
        An empty mapping means that nothing was validated.
        """
        return {}
