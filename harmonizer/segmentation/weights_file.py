"""Read and write network weights as half-precision safetensors."""

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
    """Write a network's weights in half precision, atomically.

    Parameters
    ----------
    path : Path
        The file.
    network : SegmenterNet
        The network.
    note : mapping of str to str, optional
        Additional metadata.
    """
    half = {k: v.detach().to(torch.float16).contiguous() for k, v in network.state_dict().items()}
    names = json.dumps(_names(network.classes))
    about = {"config": json.dumps(network.config), "classes": names, **(note or {})}
    with atomic_path(path) as temporary:
        save_file(half, temporary, metadata=about)


def read_weights(path: Path) -> SegmenterNet:
    """Read a network from a weights file.

    Parameters
    ----------
    path : Path
        File written by `write_weights`.

    Returns
    -------
    SegmenterNet
        In single precision and evaluation mode.

    Raises
    ------
    InputError
        If the file is missing or damaged, has other classes, or does not match its configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no __iter__)
        config = json.loads(about["config"])
        network = SegmenterNet(int(config["classes"]), tuple(int(w) for w in config["widths"]))
        names = _names(network.classes)
        if tuple(json.loads(about["classes"])) != names:
            raise InputError(f"{path}: expected the classes {names}, got {about['classes']}. "
                             "Reinstall the package.")
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as weights of the segmenter ({first}). Reinstall the package "
            "or train the network again: python -m harmonizer.segmentation --help"
        ) from error
    return network.eval()


def _names(classes: int) -> tuple[str, ...]:
    """Names of the classes of a network with this number of classes."""
    return BRAIN_CLASSES if classes == len(BRAIN_CLASSES) else CLASSES
