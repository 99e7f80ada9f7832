"""Memory of one training step of patch diffusion, counted on tensors without data.

Every tensor that the forward and backward pass of a batch create is counted from its creation until
it is freed, on torch's device ``meta``: no GPU is needed, and a step takes seconds. Attention is
counted as the fused kernels of GPUs compute it, which keep no matrix of all pairs. Weights,
gradients, both moments of Adam, and the averaged and best weights of the loop are added. What a
GPU needs besides (workspaces of cuDNN, fragmentation) is not counted.

    python benchmarks/activation_memory.py --preset paper --batch 5
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harmonizer.methods.learned.patch_diffusion.backend import PatchDiffusion  # noqa: E402

COPIES_OF_WEIGHTS = 6  # weights, gradients, two moments of Adam, averaged and best weights
SITES = 10  # of the paper


class MemoryCounter(TorchDispatchMode):
    """Count the bytes of all living tensors that are created within the block.

    Attributes
    ----------
    living, peak : int
        Bytes now, and the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.living = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
                           ) -> Any:
        """Run an operation and count what it created."""
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.living += size
        self.peak = max(self.peak, self.living)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.living -= size


class FusedAttention(torch.autograd.Function):
    """Attention as a fused kernel computes it: only inputs, output and row sums are kept."""

    @staticmethod
    def forward(context: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the output's shape."""
        out = torch.empty_like(q)
        context.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return tensors of the inputs' shapes."""
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


def step_bytes(values: Mapping[str, Any]) -> int:
    """Return the largest memory of a training step with these settings, in single precision."""
    config = PatchDiffusion.config_from(values)
    model = PatchDiffusion.Model(config, tuple(f"site{n}" for n in range(SITES)))
    with torch.device("meta"):
        network = model.build_networks()["denoiser"].train()
        x = torch.empty(config.batch, 3 + 3 * config.coordinates, *config.patch)
        target = torch.empty(config.batch, 1, *config.patch)
        tokens = torch.empty(config.batch, config.tokens, config.token_width)
        t = torch.empty(config.batch, dtype=torch.int64)
    parameters = list(network.parameters())
    with mock.patch.object(functional, "scaled_dot_product_attention", FusedAttention.apply), \
            MemoryCounter() as counter:
        loss = (network(x, t, tokens) - target).square().mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    return counter.peak + (COPIES_OF_WEIGHTS - 1) * weights  # gradients are in the peak


def main() -> int:
    """Print the memory of a step in GB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--batch", type=int, default=5)
    given = parser.parse_args()
    for checkpointing in (False, True):
        size = step_bytes({"preset": given.preset, "batch": given.batch,
                           "checkpointing": checkpointing})
        print(f"{given.preset}, batch {given.batch}, checkpointing {checkpointing}: "
              f"{size / 1e9:.1f} GB in single precision")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
