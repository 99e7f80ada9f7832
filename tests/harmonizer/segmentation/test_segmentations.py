"""Tests of tissue ratios, labels and the cache of segmentations."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.segmentation.predict import NetworkSegmenter
from harmonizer.segmentation.segmentations import (
    CachedSegmenter,
    as_labels,
    name_of,
    summary,
    tissue_ratios,
)
from harmonizer.volume import Volume


def test_ratios_and_labels_by_hand():
    labels = np.array([[[0, 1, 2, 2, 3]]])
    assert tissue_ratios(labels) == {"CSF": 0.25, "GM": 0.5, "WM": 0.25}
    soft = {"CSF": np.array([[[0.0, 0.5]]]), "GM": np.array([[[0.0, 0.2]]]),
            "WM": np.array([[[0.0, 0.3]]])}
    assert tissue_ratios(soft) == pytest.approx({"CSF": 0.5, "GM": 0.2, "WM": 0.3})
    assert as_labels(soft).tolist() == [[[0, 1]]]
    kept = summary(soft)
    assert tissue_ratios(kept) == tissue_ratios(soft) and as_labels(kept).tolist() == [[[0, 1]]]
    with pytest.raises(InputError, match="tissue in it"):
        tissue_ratios(np.zeros((2, 2, 2), int))


def test_the_cache_answers_by_content(tmp_path: Path):
    asked = []

    def segment(volume: Volume) -> np.ndarray:
        asked.append(1)
        return np.where(volume.data > 5, 3, 2) * volume.mask

    cached = CachedSegmenter(segment, tmp_path)
    one = Volume(np.arange(27.0).reshape(3, 3, 3), np.eye(4), np.ones((3, 3, 3), bool))
    first, again = cached(one), cached(one)
    assert len(asked) == 1
    assert tissue_ratios(first) == tissue_ratios(again) == tissue_ratios(segment(one))
    cached(one.with_data(one.data + 1))
    assert len(asked) == 3  # one of them by the line before the last


def test_kept_numbers_know_the_segmenter_behind_a_cache(tmp_path: Path):
    names = {name_of(CachedSegmenter(segmenter, tmp_path))
             for segmenter in (NetworkSegmenter(), NetworkSegmenter(quick=True))}
    assert names == {NetworkSegmenter().name, NetworkSegmenter(quick=True).name}
