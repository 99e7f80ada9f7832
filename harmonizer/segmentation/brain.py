"""Find the brain in a whole head with a network that is independent of the template.

The network (1.19 M parameters) segments the head at 3 mm along the world axes, with and without a
left-right flip. It then segments once more the region around the brain that it found, without the
neck. It was trained on images synthesized from label maps with scalp, skull and neck, at any
contrast. Its mask is coarse.

The mask is used to check the template's mask (`harmonizer.preprocessing.brain`). Template-based
extraction fails where registration fails; the network fails where the image differs from all
synthesized images. Where the two disagree, the mask should be inspected. The user may also choose
the network's mask instead (`brain_by_network`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..preprocessing.brain import (
    BrainExtraction,
    check_quality,
    extract_brain,
    first_affine,
    is_brain_only,
)
from ..preprocessing.transforms import resample
from ..volume import Volume
from .predict import index_voxels, predict_with_flip, world_bounds

__all__ = ["network_mask", "brain_by_network", "brain_weights_name", "BRAIN_WEIGHTS"]

BRAIN_WEIGHTS = Path(__file__).parent / "weights" / "brain.safetensors"
SPACING_MM = 3.0
MARGIN_MM = 12.0  # around the voxels above the image's minimum
CROP_MARGIN_MM = 30.0  # around the brain of the first pass, for the second pass


def network_mask(volume: Volume, *, network: Any = None) -> np.ndarray:
    """Find the brain in a whole head of any contrast.

    Prediction uses one thread, so the result does not depend on the threads that torch was given.

    Parameters
    ----------
    volume : Volume
        The image; a mask is ignored.
    network : SegmenterNet, optional
        Network of two classes to use instead of the packaged one.

    Returns
    -------
    (I, J, K) bool ndarray
        Brain mask on the volume's grid: one component without holes at 3 mm. All False if
        the network finds no brain.

    Raises
    ------
    InputError
        If the image is constant.
    """
    foreground = volume.data > volume.data.min()
    if not foreground.any():
        raise InputError("the image is constant, expected a head. Exclude it.")
    box = _working_image(volume, foreground)
    probability = _predict_twice(network or load_brain_network(), box.data)
    return resample(Volume(probability, box.affine), volume).data > 0.5


def brain_by_network(
    volume: Volume, rough: Volume, *, seed: int = 0, sloppy: bool = False
) -> BrainExtraction:
    """Extract the brain with the network and register it to the template.

    Parameters
    ----------
    volume : Volume
        The image as acquired, for the network.
    rough : Volume
        The image after a rough bias correction, for the registration. Brain-only input is detected
        here, and its foreground is used as the mask.
    seed : int
        Seed of the registration's sampling.
    sloppy : bool
        Low quality, for tests; see `extract_brain`.

    Returns
    -------
    BrainExtraction

    Raises
    ------
    InputError
        If the network finds no brain.
    """
    if is_brain_only(rough):
        return extract_brain(rough, skull_strip="skip", seed=seed, sloppy=sloppy)
    mask = network_mask(volume)
    if not mask.any():
        raise InputError("the network found no brain in the image. Use --skull-strip auto, give "
                         "a mask, or exclude the image.")
    brain = rough.with_data(np.where(mask, rough.data, rough.data.min()))
    matrix = first_affine(brain, seed=seed, sloppy=sloppy)
    return BrainExtraction(mask, check_quality(rough, mask, matrix), "network", False, matrix)


@lru_cache(maxsize=1)
def load_brain_network() -> Any:
    """Load the packaged network in single precision and evaluation mode."""
    from .weights_file import read_weights

    return read_weights(BRAIN_WEIGHTS)


@lru_cache(maxsize=1)
def brain_weights_name() -> str:
    """Return a name that changes with the weights, for caches."""
    from ..files import sha256_of

    return f"brain-{sha256_of(BRAIN_WEIGHTS)[:12]}"


def _working_image(volume: Volume, foreground: np.ndarray) -> Volume:
    """Resample the head to 3 mm along the world axes; the image's minimum outside its grid."""
    low, high = world_bounds(foreground, volume.affine)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = low - MARGIN_MM
    shape = tuple(np.ceil((high - low + 2 * MARGIN_MM) / SPACING_MM + 1).astype(int))
    grid = Volume(np.zeros(shape, np.float32), affine)
    box = resample(volume.with_mask(np.ones(volume.shape, bool)), grid, antialias=True)
    return box.with_data(np.where(box.require_mask(), box.data, float(volume.data.min())))


def _predict_twice(network: Any, data: np.ndarray) -> np.ndarray:
    """Probabilities (I, J, K) from the second pass; zeros if the first pass finds no brain."""
    first = _largest_component(_predict(network, data))
    out = np.zeros_like(first)
    where = np.argwhere(first > 0.5)
    if len(where):
        steps = int(np.ceil(CROP_MARGIN_MM / SPACING_MM))
        low, high = np.maximum(where.min(axis=0) - steps, 0), where.max(axis=0) + steps + 1
        box = tuple(slice(a, b) for a, b in zip(low, high))
        out[box] = _predict(network, data[box])
    return _largest_component(out)


def _predict(network: Any, data: np.ndarray) -> np.ndarray:
    """Probabilities (I, J, K) of brain from one pass with flip averaging."""
    everywhere = index_voxels(np.ones(data.shape, bool))
    return predict_with_flip(network, data, everywhere, 1)[1].reshape(data.shape)


def _largest_component(probability: np.ndarray) -> np.ndarray:
    """Probabilities (I, J, K) of the largest component, holes filled; zero elsewhere."""
    labels, count = ndimage.label(probability > 0.5)
    if count == 0:
        return np.zeros_like(probability)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    piece = labels == sizes.argmax()
    filled = ndimage.binary_fill_holes(piece)
    near = ndimage.binary_dilation(piece) & (labels == 0) | piece
    return np.where(filled & ~piece, 1, np.where(near, probability, 0)).astype(np.float32)
