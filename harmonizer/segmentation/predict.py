"""Brain and tissues of an image, by the network that comes with the package.

The image is brought to 1 mm along the axes of the world (linear, anti-aliased), seen by the network
as it is and mirrored, and the mean of both answers is carried back to the image's own grid. Nothing
is asked of the contrast: no tissue is assumed to be brighter than another.

A white matter lesion is white matter here: it was taught so. Where a mask is given, it decides what
is brain; without one, the network does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..preprocessing.transforms import resample
from ..volume import Volume
from .structures import TISSUES

__all__ = ["TissueMaps", "segment", "NetworkSegmenter", "WEIGHTS"]

WEIGHTS = Path(__file__).parent / "weights" / "segmenter.safetensors"
MARGIN_MM = 12.0  # of head around a given mask that the network sees
SLAB = 16  # 2 mm slices whose classes are computed at once: bounds memory


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """What lies where, on the grid of the image that was asked about.

    Attributes
    ----------
    tissues : 'CSF', 'GM', 'WM' -> (I, J, K) float32, 0..1; they sum to one inside `brain`, and are
        zero outside
    classes : (I, J, K) uint8 indices in `CLASSES`: the likeliest class
    brain : (I, J, K) bool: everything inside the skull, sulcal CSF included (or the given mask)
    """

    tissues: Mapping[str, np.ndarray]
    classes: np.ndarray
    brain: np.ndarray

    @property
    def parenchyma(self) -> np.ndarray:
        """(I, J, K) bool: brain without the CSF around it; ventricles belong to it."""
        return self.brain & (self.classes > 1)


@dataclass(frozen=True)
class NetworkSegmenter:
    """``segmenter(volume)`` -> probabilities of CSF, GM and WM on the volume's own grid."""

    threads: int = 1

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """See `segment`."""
        return dict(segment(volume, threads=self.threads).tissues)

    @property
    def name(self) -> str:
        """One word for what it does, for caches: changes with the weights."""
        return f"network-{_weights_digest()[:12]}"


def segment(volume: Volume, *, network: Any = None, threads: int = 1) -> TissueMaps:
    """Brain and tissues of an image of any contrast, whole head or brain only.

    Parameters
    ----------
    volume : its mask, where it has one, says what is brain
    network : a `SegmenterNet` to use instead of the one that comes with the package
    threads : of torch; the answer does not depend on it beyond rounding (1e-5 of a probability)

    Raises
    ------
    InputError
        If the image is constant, or nothing in it looks like a brain.
    """
    if volume.mask is not None and not volume.mask.any():
        raise InputError("the brain mask is empty: there is nothing to segment. Give a mask.")
    box = _working_image(volume)
    network = network or load_network()
    shares = _mirrored_mean(network, box.data, threads)
    brain = _brain_at(volume, box, shares)
    if not brain.any():
        raise InputError("nothing in the image looks like a brain. Look at it, and exclude it.")
    return _carried_back(volume, box, shares, brain)


@lru_cache(maxsize=1)
def load_network() -> Any:
    """The `SegmenterNet` that comes with the package, in single precision, ready for use."""
    from .weights_file import read_weights

    return read_weights(WEIGHTS)


@lru_cache(maxsize=1)
def _weights_digest() -> str:
    from ..files import sha256_of

    return sha256_of(WEIGHTS)


def _working_image(volume: Volume) -> Volume:
    """The image at 1 mm along the world's axes: what is not background, or what is near the mask.

    The box is symmetric about nothing; the mirrored pass sees it mirrored.
    """
    if volume.mask is not None:
        seen, margin = volume.mask, MARGIN_MM
    else:
        seen, margin = volume.data > _background(volume.data), 2.0
    if not seen.any():
        raise InputError("the image is constant: there is nothing to segment. Exclude it.")
    corners = _world_box(seen, volume.affine)
    low, high = np.floor(corners[0] - margin), np.ceil(corners[1] + margin)
    affine = np.eye(4)
    affine[:3, 3] = low
    shape = tuple((high - low + 1).astype(int))
    grid = Volume(np.zeros(shape, np.float32), affine)
    return resample(volume.with_mask(None), grid, antialias=True)


def _background(data: np.ndarray) -> float:
    """A level below which there is air: 4 % of the way to the bright voxels."""
    low, high = np.percentile(data[::3, ::3, ::3], (1, 99))
    return float(low + 0.04 * (high - low))


def _world_box(seen: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinates (3,) mm of the voxels that are True."""
    sides = [np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
             for axis in range(3)]
    ends = np.array(np.meshgrid(*[(s[0], s[-1]) for s in sides], indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ ends + affine[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def _mirrored_mean(network: Any, data: np.ndarray, threads: int) -> np.ndarray:
    """(classes, I, J, K) float32 probabilities: mean over the image and its mirror image."""
    import torch

    from .synthesis import normalise

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        image = normalise(torch.tensor(data))
        shares = _shares(network, image)
        shares += _shares(network, image.flip(0)).flip(1)
        return (shares / 2).numpy()
    finally:
        torch.set_num_threads(before)


def _shares(network: Any, image: Any) -> Any:
    """(classes, I, J, K) float32 tensor: one pass, padded to what the network needs."""
    import torch
    from torch.nn import functional

    from .network import unfold

    multiple = network.multiple
    padding = [(-n) % multiple for n in image.shape]
    padded = functional.pad(image, [x for n in reversed(padding) for x in (0, n)])
    out = torch.empty((network.classes, *padded.shape))
    with torch.inference_mode():
        features = network.features(padded[None, None])
        for start in range(0, features.shape[2], SLAB):
            logits = network.head(features[:, :, start : start + SLAB])
            part = torch.softmax(logits.unflatten(1, (network.classes, 8)), dim=1)
            out[:, 2 * start : 2 * (start + SLAB)] = unfold(part)[0]
    i, j, k = image.shape
    return out[:, :i, :j, :k]


def _brain_at(volume: Volume, box: Volume, shares: np.ndarray) -> np.ndarray:
    """(I, J, K) bool on the image's grid: the given mask, or one piece without holes."""
    if volume.mask is not None:
        return volume.mask
    inside = resample(box.with_data(1 - shares[0]), volume).data > 0.5
    pieces, count = ndimage.label(inside)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        inside = pieces == sizes.argmax()
    return ndimage.binary_fill_holes(inside)


def _carried_back(
    volume: Volume, box: Volume, shares: np.ndarray, brain: np.ndarray
) -> TissueMaps:
    """Tissues and classes on the image's grid."""
    maps = {name: resample(box.with_data(shares[list(which)].sum(axis=0)), volume).data
            for name, which in TISSUES.items()}
    total = sum(maps.values())
    known = brain & (total > 1e-3)
    tissues = {name: np.divide(one, total, out=np.zeros_like(one), where=known)
               for name, one in maps.items()}
    likeliest = box.with_data((shares[1:].argmax(axis=0) + 1).astype(np.float32))
    classes = resample(likeliest, volume, order=0).data
    return TissueMaps(tissues, np.where(known, classes, 0).astype(np.uint8), brain)
