"""Who plays: a `Player` trains some networks on a loss; a `Game` holds networks, players and data.

    class MyGame(Game):
        def __init__(self, ...):
            self.networks = {"denoiser": UNet(...), "encoder": SemanticEncoder(...)}
        def players(self):
            return (Player("denoiser", ("denoiser", "encoder"), self.loss, learning_rate=1e-4),)
        def batch(self, step, rank): ...
        def loss(self, batch): return {"mse": ..., "contrast": 0.5 * ...}

Gradients of a player's loss reach that player's networks alone (`torch.autograd.grad` over its
parameters), however many other networks the loss runs through: a generator's adversarial term
leaves nothing behind in the discriminator, and nobody toggles `requires_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Batch", "Game", "Player"]

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Player:
    """Who is trained, on what loss, how fast.

    Attributes
    ----------
    name : of the columns in history.tsv
    networks : names of the game's networks that this player changes
    loss : batch -> terms by name, already weighted; their sum is minimised
    learning_rate, betas, weight_decay : of Adam (AdamW where weight_decay > 0)
    clip : largest norm of the gradient
    every, offset : plays at steps where step % every == offset
    rate_factor : factor of the learning rate by step; None is 1 throughout
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

    def plays_at(self, step: int) -> bool:
        """Whether it is this player's turn."""
        return step % self.every == self.offset


class Game:
    """Networks, players, data and the number that says how good the networks are.

    Attributes
    ----------
    networks : by name; the loop moves them to the device and averages their weights
    identity : JSON types that must be equal for a checkpoint to fit (config, seed, data)
    """

    networks: dict[str, nn.Module]
    identity: dict[str, Any]

    def players(self) -> tuple[Player, ...]:
        """In the order in which they play within a step."""
        raise NotImplementedError

    def batch(self, step: int, rank: int) -> Batch:
        """The data of one step of one process: a pure function of the two and the seed.

        Tensors of a dict are moved to the device by the loop. Torch's global generator is seeded
        by (seed, step, rank) before every step, so losses may draw from it.
        """
        raise NotImplementedError

    def score(self) -> Mapping[str, float]:
        """Numbers of held-out people, ``error`` among them (lower is better), averaged weights.

        Called in evaluation mode without gradients, on the first process alone.
        """
        return {}
