"""The tissues of a brain, by the network that comes with the package.

The brain is brought to 1 mm along the image's own axes (linear, anti-aliased), without what lies
outside its mask. The network sees it and its negative, each as it is and mirrored, and the mean of
the four answers says roughly where each tissue lies. The image's own brightness then decides the
borders (`refine`), and all is carried back to the image's grid. Nothing is asked of the contrast:
no tissue is assumed to be brighter than another. White matter lesions were taught as white matter
and stay that where the network is sure of it; else one that is as dark as fluid becomes fluid.

A mask is needed: brains in masks are what the last half of the training showed. The mask of a whole
head is another network's (`brain`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation

from ..errors import InputError
from ..preprocessing.transforms import resample
from ..volume import Volume
from .refine import LEAST_SUPPORT, OF_NETWORK, REVISION, contrast_between, refine, spread_out
from .structures import TISSUES

__all__ = ["TissueMaps", "segment", "doubt", "NetworkSegmenter", "WEIGHTS", "from_both_sides",
           "numbered", "world_box"]

WEIGHTS = Path(__file__).parent / "weights" / "segmenter.safetensors"
MARGIN_MM = 8.0  # of air around the brain


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """What lies where, on the grid of the image that was asked about.

    Attributes
    ----------
    tissues : 'CSF', 'GM', 'WM' -> (I, J, K) float32, 0..1; they sum to one in the mask, and are
        zero elsewhere
    classes : (I, J, K) uint8 indices in `CLASSES`: the likeliest class in the mask, 0 elsewhere
    support : how well the image bears the network out, see `contrast_between`; `doubt` judges it
    """

    tissues: Mapping[str, np.ndarray]
    classes: np.ndarray
    support: float


@dataclass(frozen=True)
class NetworkSegmenter:
    """``segmenter(volume)`` -> probabilities of CSF, GM and WM on the volume's own grid.

    ``threads``, ``quick``: see `segment`.
    """

    threads: int = 1
    quick: bool = False

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """See `segment`."""
        return dict(segment(volume, threads=self.threads, quick=self.quick).tissues)

    @property
    def name(self) -> str:
        """One word for what it does, for caches: changes with the weights and with `refine`."""
        return f"network-{_weights_digest()[:12]}-{REVISION}{'-quick' if self.quick else ''}"


def segment(volume: Volume, *, network: Any = None, threads: int = 1, quick: bool = False,
            borders: bool = True) -> TissueMaps:
    """Tissues of a brain at any contrast.

    Parameters
    ----------
    volume : with a brain mask; what lies outside of it is not looked at
    network : a `SegmenterNet` to use instead of the one that comes with the package
    threads : of torch; the likeliest tissue differs by it in about .02 % of voxels (rounding)
    quick : do without the mirror images: two thirds of the time and nearly the same volumes, but
        a mirrored image no longer has the mirrored answer
    borders : move them to where the image has them (`refine`); without, the network's own shares

    Raises
    ------
    InputError
        If there is no mask, or it is empty, or the image is constant in it.
    """
    inside = volume.in_mask()
    if inside.size == 0:
        raise InputError("the brain mask is empty: there is nothing to segment. Give a mask.")
    if inside.min() == inside.max():
        raise InputError("the image is constant in the brain mask. Exclude it.")
    box = _working_image(volume)
    shares, support = _at_any_contrast(network or load_network(), box, threads, quick)
    rough = spread_out(_by_tissue(shares), box.mask)
    fine = refine(box.data, box.mask, rough) if borders else rough
    return _carried_back(volume, box, shares, fine, support)


def doubt(support: float) -> str | None:
    """A sentence where the tissues of an image with this support are not to be relied on."""
    if support >= LEAST_SUPPORT:
        return None
    return (f"the tissues are in doubt: the image bears them out by {support:.2f}, less than "
            f"{LEAST_SUPPORT}. Look at them before you use them, or what is made with them.")


@lru_cache(maxsize=1)
def load_network() -> Any:
    """The `SegmenterNet` that comes with the package, in single precision, ready for use.

    Channels lie last in memory: a pass takes a fifth less time so.
    """
    import torch

    from .weights_file import read_weights

    return read_weights(WEIGHTS).to(memory_format=torch.channels_last_3d)


@lru_cache(maxsize=1)
def _weights_digest() -> str:
    from ..files import sha256_of

    return sha256_of(WEIGHTS)


def _working_image(volume: Volume) -> Volume:
    """The brain at 1 mm along the image's axes, with a margin; darkest of all outside the mask.

    The grid's middle is that of the brain's box, so that a mirrored image gives a mirrored box.
    """
    affine = np.eye(4)
    affine[:3, :3] = _directions(volume.affine)
    low, high = world_box(volume.mask, affine.T @ volume.affine)
    shape = np.ceil(high - low + 2 * MARGIN_MM + 1 - 1e-6).astype(int)
    affine[:3, 3] = affine[:3, :3] @ (low + high - shape + 1) / 2  # 1 mm images keep their voxels
    box = resample(volume, Volume(np.zeros(tuple(shape), np.float32), affine), antialias=True)
    return box.with_data(np.where(box.mask, box.data, float(volume.in_mask().min())))


def _directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3) unit vectors in columns: the image's axes, in the order and sense nearest to RAS."""
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    axes = left @ right
    order = io_orientation(affine)
    directions = np.empty((3, 3))
    for axis, (world, sense) in zip(axes.T, order):
        directions[:, int(world)] = axis * sense
    return directions


def world_box(seen: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinates (3,) mm of the voxels that are True."""
    sides = [np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
             for axis in range(3)]
    ends = np.array(np.meshgrid(*[(s[0], s[-1]) for s in sides], indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ ends + affine[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def _at_any_contrast(network: Any, box: Volume, threads: int, quick: bool
                     ) -> tuple[np.ndarray, float]:
    """(classes, n) shares in the mask, and the image's support for them.

    The network is asked about the image and about its negative. It errs differently in the two,
    and their mean is nearer to the truth than either. Where the image does not bear the mean out,
    the network knows one of the two alone: then that of the image, if it is borne out, else
    whichever is borne out best.
    """
    values = box.in_mask()
    low, high = values.min(), values.max()
    negative = np.where(box.mask, high + low - box.data, low)
    asked, number = _shares if quick else from_both_sides, numbered(box.mask)
    of_image, of_negative = (asked(network, data, number, threads)
                             for data in (box.data, negative))
    answers = ((of_image + of_negative) / 2, of_image, of_negative)
    supports = [contrast_between(values, _by_tissue(found)) for found in answers]
    best = int(np.argmax(np.minimum(supports, OF_NETWORK.contrast[1])))  # the first of equals
    return answers[best], supports[best]


def numbered(inside: np.ndarray) -> np.ndarray:
    """(I, J, K) int32: where each voxel of the mask comes among its voxels; -1 outside."""
    number = np.full(inside.shape, -1, np.int32)
    number[inside] = np.arange(np.count_nonzero(inside), dtype=np.int32)
    return number


def from_both_sides(network: Any, data: np.ndarray, number: np.ndarray, threads: int
                    ) -> np.ndarray:
    """(classes, n) mean shares in the mask of the image and of its mirror image, mirrored back.

    ``number``: see `numbered`.
    """
    return (_shares(network, data, number, threads)
            + _shares(network, data[::-1], number[::-1], threads)) / 2


def _by_tissue(shares: np.ndarray) -> np.ndarray:
    """(3, ...) of all classes of each tissue; `shares` (classes, ...)."""
    return np.stack([shares[list(which)].sum(axis=0) for which in TISSUES.values()])


def _shares(network: Any, data: np.ndarray, number: np.ndarray, threads: int) -> np.ndarray:
    """(classes, n) float32 probabilities in the mask (`numbered`): one pass, padded to what the
    network needs.

    Classes are computed in the blocks that hold a voxel of the mask, and in no others.
    """
    import torch
    from torch.nn import functional

    from ..deep.networks.blocks import pixel_unshuffle
    from ..deep.processor import torch_threads
    from .network import BLOCK
    from .synthesis import normalise

    padding = [x for n in reversed(data.shape) for x in (0, (-n) % network.multiple)]
    found = np.empty((network.classes, int(number.max()) + 1), np.float32)
    with torch_threads(threads), torch.inference_mode():
        image = functional.pad(normalise(torch.tensor(data.copy())), padding)
        places = torch.from_numpy(number.copy())
        of_block = pixel_unshuffle(functional.pad(places, padding, value=-1)[None, None], BLOCK)[0]
        seen = (of_block >= 0).any(dim=0)
        columns = network.features(image[None, None])[0].movedim(0, -1)[seen].T
        logits = network.head(columns[None, :, :, None, None])
        share = torch.softmax(logits.reshape(network.classes, len(of_block), -1), dim=0)
        of_column = of_block[:, seen]
        there = of_column >= 0
        found[:, of_column[there].numpy()] = share[:, there].numpy()
    return found


def _carried_back(volume: Volume, box: Volume, shares: np.ndarray, fine: np.ndarray,
                  support: float) -> TissueMaps:
    """Everything on the image's grid; ``fine`` (3, I, J, K): shares of tissues on the box's."""
    maps = {name: _on_grid_of(volume, box, one) for name, one in zip(TISSUES, fine)}
    total = sum(maps.values())
    known = volume.mask & (total > 1e-3)
    tissues = {name: np.divide(one, total, out=np.zeros_like(one), where=known)
               for name, one in maps.items()}
    inside = _classes(shares, _by_tissue(shares), fine[:, box.mask])
    likeliest = spread_out(inside[None], box.mask)[0]
    classes = _on_grid_of(volume, box, likeliest, order=0).astype(np.uint8)
    at_rim = 1  # sulcal fluid, where the nearest voxel of the working image is not in its mask
    return TissueMaps(tissues, np.where(known, np.maximum(classes, at_rim), 0), support)


def _on_grid_of(volume: Volume, box: Volume, data: np.ndarray, order: int = 1) -> np.ndarray:
    """An array on the working image's grid, carried to the volume's; no mask is taken along."""
    return resample(Volume(data, box.affine), volume, order=order).data


def _classes(shares: np.ndarray, rough: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """(n,) likeliest class: of the likeliest tissue, the class that the network prefers."""
    scores = np.zeros(shares.shape, np.float32)
    for which, before, after in zip(TISSUES.values(), rough, fine):
        for c in which:
            scores[c] = (shares[c] + 1e-6) / (before + 1e-6 * len(which)) * after
    return scores[1:].argmax(axis=0) + 1
