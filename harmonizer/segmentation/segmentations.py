"""Common types and functions for all segmenters: tissue ratios, labels, Dice and a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..files import atomic_path
from ..tissues import TISSUES
from ..volume import Volume

__all__ = ["Segmentation", "Segment", "Summary", "CachedSegmenter", "name_of", "tissue_ratios",
           "as_labels", "summary", "summary_of", "dice"]


class Summary(NamedTuple):
    """Compact form of a segmentation, kept in memory instead of the probabilities.

    Attributes
    ----------
    labels : (I, J, K) uint8 ndarray
        Values of `TISSUE_LABELS`, 0 outside.
    ratios : dict of str to float
        Volume of each tissue over that of all three.
    """

    labels: np.ndarray
    ratios: dict[str, float]


Segmentation = np.ndarray | Mapping[str, np.ndarray] | Summary
"""Labels (see `TISSUE_LABELS`), or a mapping of tissue name to probabilities, or a `Summary`."""
Segment = Callable[[Volume], Segmentation]


def tissue_ratios(segmentation: Segmentation) -> dict[str, float]:
    """Compute the volume of each tissue over that of all three.

    Parameters
    ----------
    segmentation : ndarray, mapping or Summary
        See `Segmentation`.

    Returns
    -------
    dict of str to float
        0 to 1, summing to one.

    Raises
    ------
    InputError
        If the segmentation holds no tissue.
    """
    if isinstance(segmentation, Summary):
        return segmentation.ratios
    if isinstance(segmentation, np.ndarray):
        sizes = {name: float(np.count_nonzero(segmentation == code))
                 for code, name in enumerate(TISSUES, start=1)}
    else:
        sizes = {name: float(np.sum(segmentation[name], dtype=np.float64)) for name in TISSUES}
    total = sum(sizes.values())
    if not total > 0:
        raise InputError("expected a segmentation with tissue in it, got an empty one. Check the "
                         "mask.")
    return {name: size / total for name, size in sizes.items()}


def as_labels(segmentation: Segmentation) -> np.ndarray:
    """Convert a segmentation to a label image.

    Parameters
    ----------
    segmentation : ndarray, mapping or Summary
        See `Segmentation`.

    Returns
    -------
    (I, J, K) uint8 ndarray
        Label of the most probable tissue, see `TISSUE_LABELS`; 0 where all probabilities are zero.
    """
    if isinstance(segmentation, Summary):
        return segmentation.labels
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(np.uint8)
    labels = np.zeros(segmentation["CSF"].shape, np.uint8)
    most = np.zeros(labels.shape, np.float32)
    for code, name in enumerate(TISSUES, start=1):
        labels[segmentation[name] > most] = code
        np.maximum(most, segmentation[name], out=most)
    return labels


def summary(segmentation: Segmentation) -> Summary:
    """Summarize a segmentation by labels and ratios, a twelfth of the memory of probabilities."""
    return Summary(as_labels(segmentation), tissue_ratios(segmentation))


def summary_of(volume: Volume, segment: Segment | None) -> Summary | None:
    """Segment an image and summarize the result.

    Parameters
    ----------
    volume : Volume
        Image with a brain mask.
    segment : callable, optional
        The segmenter.

    Returns
    -------
    Summary or None
        None without a segmenter, or for an image that is constant in the mask.
    """
    if segment is None or not np.ptp(volume.in_mask()) > 0:
        return None
    return summary(segment(volume))


def name_of(segment: Segment) -> str:
    """Return the name of a segmenter, which identifies its results in caches."""
    return str(getattr(segment, "name", repr(segment)))


def dice(one: np.ndarray, two: np.ndarray) -> float:
    """Compute the Dice coefficient of two masks.

    Parameters
    ----------
    one, two : bool ndarray
        Masks of equal shape.

    Returns
    -------
    float
        2 |A and B| / (|A| + |B|), 0 to 1; 0 if both are empty.
    """
    size = np.count_nonzero(one) + np.count_nonzero(two)
    return 2 * np.count_nonzero(one & two) / size if size else 0.0


@dataclass(frozen=True)
class CachedSegmenter:
    """Cache the results of a segmenter in a folder, keyed by image, mask and segmenter name.

    Probabilities are stored with 8 bits, which does not change tissue ratios noticeably. The folder
    may be deleted at any time.

    Attributes
    ----------
    segment : callable
        The segmenter.
    folder : Path
        Folder of the cache.
    """

    segment: Segment
    folder: Path

    def __call__(self, volume: Volume) -> Segmentation:
        """Return the cached segmentation of a volume, or segment it and store the result."""
        path = Path(self.folder) / f"{self._key(volume)}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name].astype(np.float32) / 255 for name in TISSUES}
        found = self.segment(volume)
        if isinstance(found, Summary):
            found = found.labels
        if isinstance(found, np.ndarray):
            found = {name: (found == code).astype(np.float32)
                     for code, name in enumerate(TISSUES, start=1)}
        rounded: dict[str, Any] = {
            name: np.round(np.clip(found[name], 0, 1) * 255).astype(np.uint8) for name in TISSUES}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **rounded)
        return {name: array.astype(np.float32) / 255 for name, array in rounded.items()}

    @property
    def name(self) -> str:
        """Name of the segmenter behind the cache."""
        return name_of(self.segment)

    @property
    def ignores_linear_maps(self) -> bool:
        """Whether a gain and an offset of the image do not change the result."""
        return bool(getattr(self.segment, "ignores_linear_maps", False))

    def _key(self, volume: Volume) -> str:
        digest = hashlib.sha256(self.name.encode())
        for array in (volume.data, volume.affine, volume.mask):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]
