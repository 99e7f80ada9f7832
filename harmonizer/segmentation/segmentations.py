"""What every segmenter gives, and what is asked of it: ratios, labels, overlap, kept answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np

from ..errors import InputError
from ..files import atomic_path
from ..tissues import TISSUES
from ..volume import Volume

__all__ = ["Segmentation", "Segment", "Summary", "CachedSegmenter", "name_of", "tissue_ratios",
           "as_labels", "summary", "summary_of", "dice"]


class Summary(NamedTuple):
    """What is kept of a segmentation while others are made: labels (I, J, K) uint8, and ratios."""

    labels: np.ndarray
    ratios: dict[str, float]


Segmentation = Union[np.ndarray, Mapping[str, np.ndarray], Summary]
"""Labels (1 CSF, 2 GM, 3 WM, 0 outside), or tissue name -> probabilities 0 to 1; any one grid."""
Segment = Callable[[Volume], Segmentation]


def tissue_ratios(segmentation: Segmentation) -> dict[str, float]:
    """Volume of each tissue over that of all three, 0 to 1, adding up to one; unit 1.

    InputError where there is no tissue at all.
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
        raise InputError("expected a segmentation with tissue in it, got none. Check the mask.")
    return {name: size / total for name, size in sizes.items()}


def as_labels(segmentation: Segmentation) -> np.ndarray:
    """uint8 labels: 1 CSF, 2 GM, 3 WM, the likeliest; 0 where all probabilities are zero."""
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
    """Labels and ratios of a segmentation, in a twelfth of the memory of probabilities."""
    return Summary(as_labels(segmentation), tissue_ratios(segmentation))


def summary_of(volume: Volume, segment: Segment | None) -> Summary | None:
    """Of what ``segment`` gives; None where there is no tissue to be had: of a constant image."""
    if segment is None or not np.ptp(volume.in_mask()) > 0:
        return None
    return summary(segment(volume))


def name_of(segment: Segment) -> str:
    """What its kept answers are known by: another segmenter, or other weights, is another name."""
    return str(getattr(segment, "name", repr(segment)))


def dice(one: np.ndarray, two: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean arrays, 0 to 1; 0 where both are empty."""
    size = np.count_nonzero(one) + np.count_nonzero(two)
    return 2 * np.count_nonzero(one & two) / size if size else 0.0


@dataclass(frozen=True)
class CachedSegmenter:
    """A segmenter that keeps its answers in a folder, by content of image and mask.

    Probabilities are kept as 8-bit shares: a ratio over 200,000 voxels does not notice. The folder
    may be deleted at any time.
    """

    segment: Segment
    folder: Path

    def __call__(self, volume: Volume) -> Segmentation:
        """The kept answer, or a new one that is kept."""
        path = Path(self.folder) / f"{self._key(volume)}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return {name: kept[name].astype(np.float32) / 255 for name in TISSUES}
        found = self.segment(volume)
        if isinstance(found, np.ndarray):
            found = {name: (found == code).astype(np.float32)
                     for code, name in enumerate(TISSUES, start=1)}
        rounded = {name: np.round(np.clip(found[name], 0, 1) * 255).astype(np.uint8)
                   for name in TISSUES}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **rounded)
        return {name: array.astype(np.float32) / 255 for name, array in rounded.items()}

    @property
    def name(self) -> str:
        """That of the segmenter."""
        return name_of(self.segment)

    def _key(self, volume: Volume) -> str:
        digest = hashlib.sha256(self.name.encode())
        for array in (volume.data, volume.affine, volume.mask):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]
