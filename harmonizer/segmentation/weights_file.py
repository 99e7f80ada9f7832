"""A network's weights on disk: half precision safetensors that name their network's widths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from ..files import atomic_path
from .network import SegmenterNet
from .structures import BRAIN_CLASSES, CLASSES

__all__ = ["read_weights", "write_weights"]


def write_weights(path: Path, network: SegmenterNet, note: Mapping[str, str] | None = None) -> None:
    """Write a network in half precision, atomically; `note` goes into the file's metadata."""
    half = {k: v.detach().to(torch.float16).contiguous() for k, v in network.state_dict().items()}
    names = json.dumps(_names(network.classes))
    about = {"config": json.dumps(network.config), "classes": names, **(note or {})}
    with atomic_path(path) as temporary:
        save_file(half, temporary, metadata=about)


def read_weights(path: Path) -> SegmenterNet:
    """The network of a weights file, in single precision, in evaluation mode.

    Raises
    ------
    InputError
        If the file is missing, damaged, has other classes, or does not fit the network it names.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}
        config = json.loads(about["config"])
        network = SegmenterNet(int(config["classes"]), tuple(int(w) for w in config["widths"]))
        names = _names(network.classes)
        if tuple(json.loads(about["classes"])) != names:
            raise InputError(f"{path}: knows other classes than {names}.")
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as weights of the segmenter ({first}). Reinstall the package, "
            "or train anew: python -m harmonizer.segmentation --help"
        ) from error
    return network.eval()


def _names(classes: int) -> tuple[str, ...]:
    """What a network with so many classes tells apart."""
    return BRAIN_CLASSES if classes == len(BRAIN_CLASSES) else CLASSES
