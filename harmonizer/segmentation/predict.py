"""Segment the tissues of a brain with the network that is part of the package.

The masked brain is resampled to 1 mm along the image's own axes. The network segments the image and
its negative, each as it is and flipped left to right. The average of the four predictions is the
prior of `refine`, which moves the tissue borders to where the image has them. The result is then
resampled to the image's grid. No order of tissue intensities is assumed.

White matter lesions were labeled as white matter in training. They keep this label where the
network is certain of white matter; elsewhere, a lesion as dark as CSF becomes CSF.

A brain mask is required, because the second half of the training used masked brains. The brain mask
of a whole head is found by another network (`harmonizer.segmentation.brain`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nibabel.orientations import io_orientation

from ..errors import InputError
from ..preprocessing.transforms import resample
from ..volume import Volume
from .refine import (
    MIN_CONTRAST_TO_NOISE,
    NETWORK_PRIOR,
    REVISION,
    contrast_to_noise,
    refine,
    unmask,
)
from .structures import TISSUE_CLASSES

__all__ = ["TissueMaps", "segment", "low_confidence_warning", "NetworkSegmenter",
           "SEGMENTER_WEIGHTS", "predict_with_flip", "index_voxels", "world_bounds"]

SEGMENTER_WEIGHTS = Path(__file__).parent / "weights" / "segmenter.safetensors"
MARGIN_MM = 8.0  # of background around the brain


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """Segmentation of one image, on the image's grid.

    Attributes
    ----------
    tissues : mapping of str to (I, J, K) float32 ndarray
        Probabilities of CSF, GM and WM. They sum to one inside the mask and are zero outside.
    classes : (I, J, K) uint8 ndarray
        Index in `CLASSES` of the most probable class inside the mask, 0 outside.
    contrast_to_noise : float
        Contrast-to-noise ratio of the image under the network's tissues, 0 or more; see
        `harmonizer.segmentation.refine.contrast_to_noise`.
    """

    tissues: Mapping[str, np.ndarray]
    classes: np.ndarray
    contrast_to_noise: float


@dataclass(frozen=True)
class NetworkSegmenter:
    """Segment images with the packaged network, as a callable with a name for caches.

    Attributes
    ----------
    threads, quick
        See `segment`.
    ignores_linear_maps : bool
        True: a gain above zero and an offset do not change the result, up to rounding.
    """

    threads: int = 1
    quick: bool = False
    ignores_linear_maps: ClassVar[bool] = True

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """Compute the probabilities of CSF, GM and WM on the volume's grid; see `segment`."""
        return dict(segment(volume, threads=self.threads, quick=self.quick).tissues)

    @property
    def name(self) -> str:
        """Name for caches; it changes with the weights and with the revision of `refine`."""
        return f"network-{_weights_digest()[:12]}-{REVISION}{'-quick' if self.quick else ''}"


def segment(volume: Volume, *, network: Any = None, threads: int = 1, quick: bool = False,
            borders: bool = True) -> TissueMaps:
    """Segment the tissues of a brain in an image of any contrast.

    Parameters
    ----------
    volume : Volume
        Image with a brain mask. Voxels outside the mask are ignored.
    network : SegmenterNet, optional
        Network to use instead of the packaged one.
    threads : int
        Threads of torch. The most probable class depends on it in about 0.02 % of the voxels, by
        rounding.
    quick : bool
        Leave out the flipped images. Takes two thirds of the time and changes volumes little, but
        a flipped image no longer has exactly the flipped result.
    borders : bool
        Refine the tissue borders with the image's intensities (`refine`); otherwise return the
        network's probabilities.

    Returns
    -------
    TissueMaps

    Raises
    ------
    InputError
        If the mask is missing or empty, or if the image is constant inside it.
    """
    inside = volume.in_mask()
    if inside.size == 0:
        raise InputError("the brain mask is empty, expected voxels inside it. Give another mask.")
    if inside.min() == inside.max():
        raise InputError("the image is constant in the brain mask and cannot be segmented. "
                         "Exclude it.")
    box = _working_image(volume)
    probabilities, ratio = _predict_with_negative(network or load_network(), box, threads, quick)
    prior = unmask(_sum_classes(probabilities), box.require_mask())
    posterior = refine(box.data, box.require_mask(), prior) if borders else prior
    return _to_volume_grid(volume, box, probabilities, posterior, ratio)


def low_confidence_warning(contrast_to_noise: float) -> str | None:
    """Describe why a segmentation has low confidence.

    Parameters
    ----------
    contrast_to_noise : float
        The segmentation's contrast-to-noise ratio, see `TissueMaps`.

    Returns
    -------
    str or None
        A warning, or None if the ratio is at least `MIN_CONTRAST_TO_NOISE`.
    """
    if contrast_to_noise >= MIN_CONTRAST_TO_NOISE:
        return None
    return (f"low confidence in the tissue segmentation: its contrast-to-noise ratio is "
            f"{contrast_to_noise:.2f}, less than {MIN_CONTRAST_TO_NOISE}. Check the tissue maps "
            "before you use them or anything derived from them.")


@lru_cache(maxsize=1)
def load_network() -> Any:
    """Load the packaged `SegmenterNet` in single precision and evaluation mode.

    The memory format is channels-last, which makes a pass about 20 % faster.

    Returns
    -------
    SegmenterNet
    """
    from ..deep.networks.blocks import to_channels_last
    from .weights_file import read_weights

    return to_channels_last(read_weights(SEGMENTER_WEIGHTS))


@lru_cache(maxsize=1)
def _weights_digest() -> str:
    from ..files import sha256_of

    return sha256_of(SEGMENTER_WEIGHTS)


def _working_image(volume: Volume) -> Volume:
    """Resample the brain to 1 mm along the image's axes, with its minimum outside the mask.

    The grid is centered on the brain's bounding box, so that a flipped image has a flipped grid.
    """
    affine = np.eye(4)
    affine[:3, :3] = _directions(volume.affine)
    low, high = world_bounds(volume.require_mask(), affine.T @ volume.affine)
    shape = np.ceil(high - low + 2 * MARGIN_MM + 1 - 1e-6).astype(int)
    affine[:3, 3] = affine[:3, :3] @ (low + high - shape + 1) / 2  # 1 mm images keep their voxels
    box = resample(volume, Volume(np.zeros(tuple(shape), np.float32), affine), antialias=True)
    return box.with_data(np.where(box.require_mask(), box.data, float(volume.in_mask().min())))


def _directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3) unit vectors in columns: the image's axes, in the order and sign nearest to RAS."""
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    axes = left @ right
    order = io_orientation(affine)
    directions = np.empty((3, 3))
    for axis, (world, sign) in zip(axes.T, order):
        directions[:, int(world)] = axis * sign
    return directions


def world_bounds(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bounding box of a mask in world space.

    Parameters
    ----------
    mask : (I, J, K) bool ndarray
        At least one voxel is True.
    affine : (4, 4) ndarray
        Voxel indices to world, mm.

    Returns
    -------
    low, high : (3,) ndarray
        Lowest and highest world coordinates of the True voxels, mm.
    """
    sides = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
             for axis in range(3)]
    ends = np.array(np.meshgrid(*[(s[0], s[-1]) for s in sides], indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ ends + affine[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def _predict_with_negative(network: Any, box: Volume, threads: int, quick: bool
                           ) -> tuple[np.ndarray, float]:
    """(classes, n) probabilities in the mask, and the image's contrast-to-noise ratio under them.

    The network's errors differ between an image and its negative, so the average is more accurate
    than either. If the contrast-to-noise ratio under the average is low, one of the two predictions
    failed. The prediction with the highest ratio is then used.
    """
    values = box.in_mask()
    low, high = values.min(), values.max()
    negative = np.where(box.require_mask(), high + low - box.data, low)
    predict, indices = _predict if quick else predict_with_flip, index_voxels(box.require_mask())
    of_image, of_negative = (predict(network, data, indices, threads)
                             for data in (box.data, negative))
    candidates = ((of_image + of_negative) / 2, of_image, of_negative)
    ratios = [contrast_to_noise(values, _sum_classes(one)) for one in candidates]
    enough = NETWORK_PRIOR.contrast_to_noise_range[1]
    best = int(np.argmax(np.minimum(ratios, enough)))  # the first where several are equal
    return candidates[best], ratios[best]


def index_voxels(mask: np.ndarray) -> np.ndarray:
    """Assign consecutive numbers to the voxels of a mask, in C order.

    Parameters
    ----------
    mask : (I, J, K) bool ndarray
        The mask.

    Returns
    -------
    (I, J, K) int32 ndarray
        0, 1, ... inside the mask, -1 outside.
    """
    indices = np.full(mask.shape, -1, np.int32)
    indices[mask] = np.arange(np.count_nonzero(mask), dtype=np.int32)
    return indices


def predict_with_flip(network: Any, data: np.ndarray, indices: np.ndarray, threads: int
                      ) -> np.ndarray:
    """Average the predictions for an image and its left-right flip.

    Parameters
    ----------
    network : SegmenterNet
        The network.
    data : (I, J, K) ndarray
        The image at the network's voxel size, in any unit.
    indices : (I, J, K) int32 ndarray
        Voxels to predict, see `index_voxels`.
    threads : int
        Threads of torch.

    Returns
    -------
    (classes, n) float32 ndarray
        Probabilities, 0 to 1.
    """
    return (_predict(network, data, indices, threads)
            + _predict(network, data[::-1], indices[::-1], threads)) / 2


def _sum_classes(probabilities: np.ndarray) -> np.ndarray:
    """(3, ...) tissue probabilities from (classes, ...) class probabilities."""
    return np.stack([probabilities[list(classes)].sum(axis=0)
                     for classes in TISSUE_CLASSES.values()])


def _predict(network: Any, data: np.ndarray, indices: np.ndarray, threads: int) -> np.ndarray:
    """(classes, n) float32 probabilities of the numbered voxels, in one pass.

    The image is padded to the multiple that the network needs. Logits are computed only for the
    blocks that hold a numbered voxel.
    """
    import torch
    from torch.nn import functional

    from ..deep.networks.blocks import pixel_unshuffle
    from ..deep.processor import torch_threads
    from .network import BLOCK_VOXELS
    from .synthesis import normalize

    padding = [x for n in reversed(data.shape) for x in (0, (-n) % network.multiple)]
    found = np.empty((network.classes, int(indices.max()) + 1), np.float32)
    with torch_threads(threads), torch.inference_mode():
        image = functional.pad(normalize(torch.tensor(data.copy())), padding)
        padded = functional.pad(torch.from_numpy(indices.copy()), padding, value=-1)
        of_block = pixel_unshuffle(padded[None, None], BLOCK_VOXELS)[0]
        needed = (of_block >= 0).any(dim=0)
        columns = network.features(image[None, None])[0].movedim(0, -1)[needed].T
        logits = network.head(columns[None, :, :, None, None])
        probabilities = torch.softmax(logits.reshape(network.classes, len(of_block), -1), dim=0)
        of_column = of_block[:, needed]
        inside = of_column >= 0
        found[:, of_column[inside].numpy()] = probabilities[:, inside].numpy()
    return found


def _to_volume_grid(volume: Volume, box: Volume, probabilities: np.ndarray, posterior: np.ndarray,
                    ratio: float) -> TissueMaps:
    """Resample the (3, I, J, K) posterior and the most probable class to the volume's grid."""
    maps = {name: _resample(volume, box, one) for name, one in zip(TISSUE_CLASSES, posterior)}
    total = sum(maps.values())
    covered = volume.require_mask() & (total > 1e-3)
    tissues = {name: np.divide(one, total, out=np.zeros_like(one), where=covered)
               for name, one in maps.items()}
    inside = _most_probable_class(probabilities, _sum_classes(probabilities),
                                  posterior[:, box.mask])
    class_map = unmask(inside[None], box.require_mask())[0]
    classes = _resample(volume, box, class_map, order=0).astype(np.uint8)
    sulcal_csf = 1  # where the nearest voxel of the working image lies outside its mask
    return TissueMaps(tissues, np.where(covered, np.maximum(classes, sulcal_csf), 0), ratio)


def _resample(volume: Volume, box: Volume, data: np.ndarray, order: int = 1) -> np.ndarray:
    """Resample an array from the working image's grid to the volume's grid."""
    return resample(Volume(data, box.affine), volume, order=order).data


def _most_probable_class(probabilities: np.ndarray, prior: np.ndarray, posterior: np.ndarray
                         ) -> np.ndarray:
    """(n,) class with the highest probability after scaling classes to the tissue posterior."""
    scores = np.zeros(probabilities.shape, np.float32)
    for classes, before, after in zip(TISSUE_CLASSES.values(), prior, posterior):
        for c in classes:
            scores[c] = ((probabilities[c] + 1e-6) / (before + 1e-6 * len(classes)) * after)
    return scores[1:].argmax(axis=0) + 1
