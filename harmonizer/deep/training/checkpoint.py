"""Checkpoints: safetensors with a JSON header, nothing that runs when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UnavailableError
from ...files import atomic_path

__all__ = ["write_checkpoint", "read_checkpoint", "below", "optimiser_tensors", "fill_optimiser"]


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
                     ) -> None:
    """Write tensors by name and facts of JSON types, atomically."""
    from safetensors.torch import save_file

    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata={"facts": json.dumps(dict(facts))})


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts); a file that is damaged is an `UnavailableError` that names it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {key: file.get_tensor(key) for key in file.keys()}, facts
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UnavailableError(f"{path}: is not a checkpoint of ours ({error}). Remove it to "
                               "start anew.") from error


def below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What is named `prefix...`, without the prefix."""
    return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimiser's slots by ``number.slot``."""
    return {f"{i}.{slot}": torch.as_tensor(value)
            for i, slots in optimiser.state_dict()["state"].items()
            for slot, value in slots.items()}


def fill_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimiser_tensors`; settings stay those of the optimiser."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, slot = name.split(".", 1)
        state.setdefault(int(number), {})[slot] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
