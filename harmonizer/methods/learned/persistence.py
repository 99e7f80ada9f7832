"""Conversion of a fitted learned method to arrays by name, and back, with checks.

A model folder may come from anywhere, so the geometry, the weights' names and shapes, and the
styles are checked before memory is allocated for networks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from ...bounding_box import BoundingBox
from ..base import StatisticsBackend
from .baseline import baseline_style
from .model import LearnedModel

__all__ = ["model_arrays", "styles_from", "geometry_from", "residual_weight_from",
           "modalities_from", "restore_baseline", "restore_networks", "check_weights"]

NETWORK, STYLE, BASELINE, MODALITY = "net/", "style/", "baseline/", "modality/"
RESIDUAL_WEIGHT, GEOMETRY = "residual_weight", "box"
MAX_SIDE = 2048  # voxels along an axis, in a file
MAX_VOXELS = 1 << 28  # five times a head at 0.4 mm


def model_arrays(model: LearnedModel, styles: Mapping[str, Mapping[str, np.ndarray]],
                 baseline: StatisticsBackend | None, residual_weight: float, box: BoundingBox,
                 grid_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Collect the learned state as arrays by name."""
    arrays = {f"{NETWORK}{name}.{k}": v.cpu().numpy() for name, network in model.networks.items()
              for k, v in network.state_dict().items()}
    arrays |= {f"{STYLE}{site}/{k}": v for site, style in styles.items() for k, v in style.items()}
    if baseline:
        arrays |= {BASELINE + k: v for k, v in baseline._shared_state().items()}
    arrays |= {MODALITY + name: np.array([n]) for n, name in enumerate(model.modalities)}
    geometry = np.array([box.start, box.shape, grid_shape], np.int64)
    return {**arrays, RESIDUAL_WEIGHT: np.array([residual_weight]), GEOMETRY: geometry}


def _with_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def geometry_from(arrays: Mapping[str, np.ndarray], multiple: tuple[int, int, int]
                  ) -> tuple[BoundingBox, tuple[int, ...]]:
    """Return the box and the shape of the fit's grid; ValueError if no volume could have them."""
    rows = arrays[GEOMETRY]
    if rows.shape != (3, 3) or rows.dtype.kind != "i":
        raise ValueError("the box is not three rows of three integers")
    start, shape, grid = rows.tolist()
    if not all(1 <= n <= MAX_SIDE and 1 <= g <= MAX_SIDE and abs(a) <= MAX_SIDE
               for a, n, g in zip(start, shape, grid)) or max(
                   math.prod(shape), math.prod(grid)) > MAX_VOXELS:
        raise ValueError(f"the box starts at {start}, with sides {shape}, on a grid of {grid}")
    if any(side % step for side, step in zip(shape, multiple)):
        raise ValueError(f"the box of {tuple(shape)} voxels is not a multiple of {multiple}")
    return BoundingBox(tuple(start), tuple(shape)), tuple(grid)


def modalities_from(arrays: Mapping[str, np.ndarray], modality: str | None) -> tuple[str, ...]:
    """Return the modalities of the training; ValueError if `modality` is not among them."""
    modalities = tuple(sorted(_with_prefix(arrays, MODALITY)))
    if modality not in modalities:
        raise ValueError(f"its networks were not trained on {modality}")
    return modalities


def residual_weight_from(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the weight of the residual; ValueError if it is not in [0, 1]."""
    array = arrays[RESIDUAL_WEIGHT]
    if array.shape != (1,) or not 0 <= array[0] <= 1:
        raise ValueError("residual_weight is not one number from 0 to 1")
    return float(array[0])


def styles_from(arrays: Mapping[str, np.ndarray], sites: Mapping[str, Any]
                ) -> dict[str, dict[str, np.ndarray]]:
    """Return the styles of all sites; KeyError if one is of another site."""
    styles: dict[str, dict[str, np.ndarray]] = {site: {} for site in sites}
    for key, array in _with_prefix(arrays, STYLE).items():
        site, name = key.rsplit("/", 1)
        styles[site][name] = array
    return styles


def restore_baseline(baseline: StatisticsBackend, arrays: Mapping[str, np.ndarray],
                     styles: Mapping[str, Mapping[str, np.ndarray]], modality: str | None,
                     sites: dict[str, int]) -> None:
    """Put the stored state into a baseline."""
    baseline.modality_, baseline.sites_ = modality, sites
    baseline._set_shared_state(_with_prefix(arrays, BASELINE))
    baseline.styles_ = {site: baseline_style(style) for site, style in styles.items()}


def restore_networks(model: LearnedModel, arrays: Mapping[str, np.ndarray]) -> None:
    """Build the networks of a model and load their weights; ValueError if they do not fit."""
    weights = _with_prefix(arrays, NETWORK)
    check_weights(model, weights)
    model.load_weights(weights)


def check_weights(model: LearnedModel, weights: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if names and shapes of weights are not those of the networks.

    The networks are first built without memory, because a config may claim a terabyte.
    """
    with torch.device("meta"), torch.random.fork_rng([]), _parameter_limit(len(weights)):
        networks = model.build_networks()
    expected = {f"{name}.{k}": tuple(v.shape) for name, network in networks.items()
                for k, v in network.state_dict().items()}
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"array {name:.80} is {'missing' if name in expected else 'extra'}")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ValueError(f"array {name} has shape {weights[name].shape}, expected {shape}")


@contextlib.contextmanager
def _parameter_limit(count: int) -> Iterator[None]:
    """Raise ValueError if more parameters are built than a file holds."""
    built = 0

    def registered(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > count:
            raise ValueError(f"the config builds more arrays than the {count} in the file")

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()
