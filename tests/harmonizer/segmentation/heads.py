"""A small synthetic head of nested balls with the labels of the training maps."""

from __future__ import annotations

import numpy as np

from harmonizer.segmentation.label_maps import LabelMap
from harmonizer.segmentation.structures import index_labels
from harmonizer.segmentation.synthesis import SynthesisSettings

SMALL = SynthesisSettings(crop=(48, 48, 48), shift_mm=3.0, warp_mm=((16.0, 1.0),))


def ball_labels(size: int = 56) -> np.ndarray:
    """(size, size, size) int32: skin, bone, CSF, cortex, white matter, ventricle, outside to in."""
    axes = [np.arange(size) - (size - 1) / 2] * 3
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    labels = np.zeros((size,) * 3, dtype=np.int32)
    for limit, label in ((26, 511), (23, 515), (20, 24), (18, 3), (14, 2), (5, 4)):
        labels[radius < limit] = label
    labels[(radius < 14) & (np.arange(size)[:, None, None] > size / 2 + 8)] = 10
    return labels


def ball_map() -> LabelMap:
    """The ball as `load_label_maps` would return it."""
    return LabelMap("ball", index_labels(ball_labels()), "0" * 64)
