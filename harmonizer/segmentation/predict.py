"""Brain and tissues of an image, by the network that comes with the package.

The image is brought to 1 mm along the axes of the world (linear, anti-aliased). Without a mask a
first pass finds the brain; then what lies around the brain is seen as it is and mirrored, and the
mean of both answers is carried back to the image's own grid. Nothing is asked of the
contrast: no tissue is assumed to be brighter than another. A white matter lesion is white matter
here: it was taught so.
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
    tissues : 'CSF', 'GM', 'WM' -> (I, J, K) float32, 0..1; they sum to one where the network sees
        tissue inside the image's mask (without a mask: inside `brain`), and are zero elsewhere
    classes : (I, J, K) uint8 indices in `CLASSES`: the likeliest class there, 0 elsewhere
    brain : (I, J, K) bool: the network's own brain mask, everything inside the skull, sulcal CSF
        included, whatever mask was given
    """

    tissues: Mapping[str, np.ndarray]
    classes: np.ndarray
    brain: np.ndarray

    @property
    def parenchyma(self) -> np.ndarray:
        """(I, J, K) bool: what is neither sulcal CSF nor outside; ventricles belong to it."""
        return self.classes > 1


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
    volume : its mask, where it has one, says where tissue can be
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
    if volume.mask is None:
        box = _around_brain(box, _shares(network, box.data, threads)[0])
    shares = _shares(network, box.data, threads)
    shares += _shares(network, box.data[::-1], threads)[:, ::-1]
    shares /= 2
    brain = _brain(volume, box, shares)
    if volume.mask is None and not brain.any():
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

    """
    if volume.mask is not None:
        seen, margin = volume.mask, MARGIN_MM
    else:
        seen, margin = volume.data > _background(volume.data), 2.0
    if not seen.any():
        raise InputError("the image is constant: there is nothing to segment. Exclude it.")
    corners = _world_box(seen, volume.affine)
    low, high = corners[0] - margin, corners[1] + margin  # 1 mm images are not interpolated
    affine = np.eye(4)
    affine[:3, 3] = low
    shape = tuple(np.ceil(high - low + 1).astype(int))
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


def _shares(network: Any, data: np.ndarray, threads: int) -> np.ndarray:
    """(classes, I, J, K) float32 probabilities: one pass, padded to what the network needs."""
    import torch
    from torch.nn import functional

    from .network import unfold
    from .synthesis import normalise

    before, multiple = torch.get_num_threads(), network.multiple
    padding = [x for n in reversed(data.shape) for x in (0, (-n) % multiple)]
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            image = functional.pad(normalise(torch.tensor(data.copy())), padding)
            features = network.features(image[None, None])
            out = torch.empty((network.classes, *image.shape))
            for start in range(0, features.shape[2], SLAB):
                logits = network.head(features[:, :, start : start + SLAB])
                part = torch.softmax(logits.unflatten(1, (network.classes, 8)), dim=1)
                out[:, 2 * start : 2 * (start + SLAB)] = unfold(part)[0]
    finally:
        torch.set_num_threads(before)
    i, j, k = data.shape
    return out[:, :i, :j, :k].numpy()


def _around_brain(box: Volume, outside: np.ndarray) -> Volume:
    """The box cut down to the largest piece that is not outside, and a margin of head."""
    brain = _largest(outside < 0.5)
    if not brain.any():
        raise InputError("nothing in the image looks like a brain. Look at it, and exclude it.")
    where, margin = np.argwhere(brain), int(MARGIN_MM)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = np.minimum(where.max(axis=0) + margin + 1, box.shape)
    affine = box.affine.copy()
    affine[:3, 3] += low
    return Volume(box.data[tuple(slice(a, b) for a, b in zip(low, high))], affine)


def _largest(region: np.ndarray) -> np.ndarray:
    pieces, count = ndimage.label(region)
    if count <= 1:
        return region
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax()


def _brain(volume: Volume, box: Volume, shares: np.ndarray) -> np.ndarray:
    """(I, J, K) bool on the image's grid: one piece without holes."""
    inside = resample(box.with_data(1 - shares[0]), volume).data > 0.5
    return ndimage.binary_fill_holes(_largest(inside))


def _carried_back(
    volume: Volume, box: Volume, shares: np.ndarray, brain: np.ndarray
) -> TissueMaps:
    """Tissues and classes on the image's grid."""
    maps = {name: resample(box.with_data(shares[list(which)].sum(axis=0)), volume).data
            for name, which in TISSUES.items()}
    total = sum(maps.values())
    known = (brain if volume.mask is None else volume.mask) & (total > 1e-3)
    tissues = {name: np.divide(one, total, out=np.zeros_like(one), where=known)
               for name, one in maps.items()}
    likeliest = box.with_data((shares[1:].argmax(axis=0) + 1).astype(np.float32))
    classes = resample(likeliest, volume, order=0).data
    return TissueMaps(tissues, np.where(known, classes, 0).astype(np.uint8), brain)
