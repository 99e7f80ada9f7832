"""Training checkpoints: safetensors with a JSON header; reading one executes no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...errors import UnavailableError
from ...files import atomic_path

__all__ = ["write_checkpoint", "read_checkpoint", "with_prefix", "optimizer_tensors",
           "load_optimizer_tensors"]


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
                     ) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights and optimizer states.
    facts : mapping
        JSON types.
    """
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata={"facts": json.dumps(dict(facts))})


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and facts of a checkpoint.

    Raises
    ------
    UnavailableError
        If the file is damaged or is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UnavailableError(f"{path}: expected a training checkpoint, got an unreadable file "
                               f"({error}). Remove it to start the training again.") from error


def with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select the tensors whose names start with a prefix, and strip it."""
    return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the state of an optimizer as tensors named ``index.slot``."""
    return {f"{i}.{slot}": torch.as_tensor(value)
            for i, slots in optimizer.state_dict()["state"].items()
            for slot, value in slots.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
                           ) -> None:
    """Restore the state of an optimizer from `optimizer_tensors`; its settings are kept."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, slot = name.split(".", 1)
        state.setdefault(int(number), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
