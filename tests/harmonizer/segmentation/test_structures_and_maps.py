"""Label maps are read as they lie, and refused when they are another protocol's."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.segmentation.label_maps import LabelMap, load_label_maps
from harmonizer.segmentation.structures import (
    CLASSES,
    FIRST_OUTSIDE,
    STRUCTURES,
    TISSUE_CLASSES,
    class_table,
    index_labels,
)
from tests.harmonizer.segmentation.heads import ball_labels


def test_each_label_belongs_to_one_structure() -> None:
    labels = [label for s in STRUCTURES for label in s.labels]
    assert len(labels) == len(set(labels))


def test_each_class_but_outside_is_one_tissue() -> None:
    found = sorted(c for which in TISSUE_CLASSES.values() for c in which)
    assert found == list(range(1, len(CLASSES)))


def test_what_lies_outside_the_brain_is_taught_as_outside_and_nothing_else_is() -> None:
    outside = {i for i, s in enumerate(STRUCTURES) if s.target == 0}
    assert outside == {0, *range(FIRST_OUTSIDE, len(STRUCTURES))}


def test_left_and_right_are_one_structure() -> None:
    assert index_labels(np.array([[[2, 41]]]))[0, 0].tolist() == [1, 1]
    assert class_table()[index_labels(np.array([[[3, 42]]]))].tolist() == [[[3, 3]]]


@pytest.mark.parametrize("label, word", [(999, "999"), (-1, "negative")])
def test_a_strange_label_is_refused(label: int, word: str) -> None:
    with pytest.raises(InputError, match=word):
        index_labels(np.array([[[0, label]]]))


def test_maps_come_in_ras_whatever_their_axes(tmp_path) -> None:
    labels = ball_labels()
    labels[:, :, :10][labels[:, :, :10] > 0] = 507  # mark what is below
    nib.save(nib.Nifti1Image(labels[::-1, :, ::-1].astype(np.int16),
                             np.diag([-1.0, 1, -1, 1])), tmp_path / "a.nii.gz")
    (loaded,) = load_label_maps(tmp_path)
    filled = np.argwhere(index_labels(labels))
    box = tuple(slice(a, b + 1) for a, b in zip(filled.min(0), filled.max(0)))
    np.testing.assert_array_equal(loaded.indices, index_labels(labels)[box])


def test_maps_at_another_voxel_size_are_refused(tmp_path) -> None:
    image = nib.Nifti1Image(ball_labels().astype(np.int16), np.diag([2.0, 2, 2, 1]))
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match="at 1 mm"):
        load_label_maps(tmp_path)


def test_a_folder_without_maps_says_what_to_give(tmp_path) -> None:
    with pytest.raises(InputError, match="SynthSeg"):
        load_label_maps(tmp_path)


def test_the_brain_is_tissue_with_the_fluid_near_it_and_the_folds_between() -> None:
    labels = ball_labels(size=72)
    radius = np.linalg.norm(np.indices(labels.shape) - 35.5, axis=0)
    labels[(radius >= 18) & (radius < 30)] = 24  # fluid 12 mm thick
    labels[35:37][(radius < 30)[35:37]] = 514  # the falx, 2 mm thick
    labels[2:8, 2:8, 2:8] = 24  # what some maps call fluid beside the head
    brain = LabelMap("ball", index_labels(labels), "0" * 64).brain
    assert brain.dtype == bool and brain.shape == labels.shape
    assert brain[radius < 21.5].all() and not brain[radius > 22.5].any()
