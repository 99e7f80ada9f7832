"""Weights file of the network: safetensors with JSON facts in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import UnavailableError
from ....files import atomic_path
from ...target import check_arrays

if TYPE_CHECKING:
    from .network import ResidualUNet

__all__ = ["WEIGHTS", "Weights", "read_weights", "write_weights"]

WEIGHTS = Path(__file__).parent / "weights" / "unet.safetensors"
FORMAT = "harmonizer residual unet 1"
MAX_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of a `ResidualUNet`, and facts about them.

    Attributes
    ----------
    tensors : by name
    facts : ``Network`` (arguments of `ResidualUNet`), ``Modalities`` (modality -> weight of the
        residual, validated), ``CardStd`` (standard deviation of a card's numbers between scans of
        one scanner), and provenance
    """

    tensors: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def network(self) -> ResidualUNet:
        """Create the network in evaluation mode."""
        import torch

        from .network import ResidualUNet

        network = ResidualUNet(**self.facts["Network"])
        state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in self.tensors.items()}
        network.load_state_dict(state)
        layout: Any = {"memory_format": torch.channels_last_3d}  # torch's types do not know it
        return network.eval().to(**layout)


def read_weights(path: Path) -> Weights:
    """Read a weights file; `UnavailableError` names a file that is invalid."""
    from safetensors import safe_open

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_weights(tensors, facts)
    except Exception as error:  # safetensors and json raise kinds of their own
        raise UnavailableError(f"{path}: cannot be read as weights of unet ({error}). Give a file "
                               "that `python -m harmonizer.methods.learned.unet` wrote.") from error
    return Weights(tensors, facts)


def check_weights(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError if these are not weights of this network."""
    from .channels import CHANNELS, CONDITIONS
    from .scan_card import CARD_NAMES

    if facts.get("Format") != FORMAT:
        raise ValueError(f"format is {facts.get('Format')!r:.80}, not {FORMAT!r}")
    network = facts["Network"]
    if (network["channels"], network["conditions"]) != (len(CHANNELS), len(CONDITIONS)):
        raise ValueError(f"network of {network['channels']} channels and {network['conditions']} "
                         f"conditions, expected {len(CHANNELS)} and {len(CONDITIONS)}")
    if len(facts["CardStd"]) != len(CARD_NAMES):
        raise ValueError(f"{len(facts['CardStd'])} numbers of a card, expected {len(CARD_NAMES)}")
    check_arrays(tensors)


def write_weights(path: Path, network: ResidualUNet, facts: Mapping[str, Any]) -> Path:
    """Write weights (float32) and their facts, atomically."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().float().cpu().contiguous().clone()
               for k, v in network.state_dict().items()}
    whole = {"Format": FORMAT, "Network": network.config, **facts}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(whole)})
    return path
