"""The brain in a whole head, by a small network of its own: an opinion that owes no template.

The network (1.19 M parameters) sees the head at 3 mm along the axes of the world, as it is and
mirrored; then once more what lies near the brain that it found, without the neck. It learned from
images synthesised from label maps with scalp, skull and neck, at any contrast. Its mask is coarse.
What it is for is to differ: the template's way (`preprocessing.brain`) fails where registration
does, this one where the image looks like nothing that was synthesised, and where the two disagree a
person should look. A user may also ask for its mask instead of the template's (`brain_by_network`).
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
from .predict import from_both_sides, numbered, world_box

__all__ = ["network_mask", "brain_by_network", "brain_weights_name", "BRAIN_WEIGHTS"]

BRAIN_WEIGHTS = Path(__file__).parent / "weights" / "brain.safetensors"
SPACING_MM = 3.0
MARGIN_MM = 12.0  # around what is brighter than the darkest voxels
NEAR_MM = 30.0  # around the brain, of the second look


def network_mask(volume: Volume, *, network: Any = None) -> np.ndarray:
    """The brain in a whole head at any contrast.

    Parameters
    ----------
    volume : its mask is not looked at
    network : a `SegmenterNet` of two classes to use instead of the one that comes with the package

    Returns
    -------
    (I, J, K) bool on the volume's grid, one piece without holes at 3 mm; all False where the
    network sees no brain. Computed by one thread, so the same bits whatever torch was told.

    Raises
    ------
    InputError
        If the image is constant.
    """
    seen = volume.data > volume.data.min()
    if not seen.any():
        raise InputError("the image is constant: there is no brain to be found. Exclude it.")
    box = _working_image(volume, seen)
    share = _seen_twice(network or load_brain_network(), box.data)
    return resample(Volume(share, box.affine), volume).data > 0.5


def brain_by_network(
    volume: Volume, rough: Volume, *, seed: int = 0, sloppy: bool = False
) -> BrainExtraction:
    """The network's mask, and the affine that registers what it holds to the template.

    Parameters
    ----------
    volume : the image as it came, which the network sees; brain-only input is taken as it is
    rough : the same after a rough bias correction, which is registered
    seed, sloppy : of the registration, see `extract_brain`

    Raises
    ------
    InputError
        If the network sees no brain.
    """
    if is_brain_only(rough):
        return extract_brain(rough, skull_strip="skip", seed=seed, sloppy=sloppy)
    mask = network_mask(volume)
    if not mask.any():
        raise InputError("the network sees no brain in the image. Use --skull-strip auto, give a "
                         "mask, or exclude the image.")
    alone = rough.with_data(np.where(mask, rough.data, rough.data.min()))
    matrix = first_affine(alone, seed=seed, sloppy=sloppy)
    return BrainExtraction(mask, check_quality(rough, mask, matrix), "network", False, matrix)


@lru_cache(maxsize=1)
def load_brain_network() -> Any:
    """The network that comes with the package, in single precision, ready for use."""
    from .weights_file import read_weights

    return read_weights(BRAIN_WEIGHTS)


@lru_cache(maxsize=1)
def brain_weights_name() -> str:
    """One word that changes with the weights, for caches."""
    from ..files import sha256_of

    return f"brain-{sha256_of(BRAIN_WEIGHTS)[:12]}"


def _working_image(volume: Volume, seen: np.ndarray) -> Volume:
    """The head at 3 mm along the world's axes; as dark as it gets where there is no image."""
    low, high = world_box(seen, volume.affine)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = low - MARGIN_MM
    shape = tuple(np.ceil((high - low + 2 * MARGIN_MM) / SPACING_MM + 1).astype(int))
    grid = Volume(np.zeros(shape, np.float32), affine)
    box = resample(volume.with_mask(np.ones(volume.shape, bool)), grid, antialias=True)
    return box.with_data(np.where(box.mask, box.data, float(volume.data.min())))


def _seen_twice(network: Any, data: np.ndarray) -> np.ndarray:
    """Shares (I, J, K) of the second look; zeros if the first found nothing."""
    first = _one_piece(_looked_at(network, data))
    out = np.zeros_like(first)
    where = np.argwhere(first > 0.5)
    if len(where):
        steps = int(np.ceil(NEAR_MM / SPACING_MM))
        low, high = np.maximum(where.min(axis=0) - steps, 0), where.max(axis=0) + steps + 1
        box = tuple(slice(a, b) for a, b in zip(low, high))
        out[box] = _looked_at(network, data[box])
    return _one_piece(out)


def _looked_at(network: Any, data: np.ndarray) -> np.ndarray:
    """Shares (I, J, K) of the brain by one look from both sides."""
    everywhere = numbered(np.ones(data.shape, bool))
    return from_both_sides(network, data, everywhere, 1)[1].reshape(data.shape)


def _one_piece(share: np.ndarray) -> np.ndarray:
    """Shares (I, J, K) of the largest piece that is brain, holes filled; nothing beside it."""
    labels, count = ndimage.label(share > 0.5)
    if count == 0:
        return np.zeros_like(share)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    piece = labels == sizes.argmax()
    filled = ndimage.binary_fill_holes(piece)
    near = ndimage.binary_dilation(piece) & (labels == 0) | piece
    return np.where(filled & ~piece, 1, np.where(near, share, 0)).astype(np.float32)
