"""Tissue from Atropos and priors on a template-shaped phantom."""
from __future__ import annotations

import os

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.segmentation.atropos import AtroposSegmenter
from harmonizer.segmentation.segmentations import as_labels, tissue_ratios
from harmonizer.template import load_template, tissue_priors
from harmonizer.volume import Volume

SEGMENTER = AtroposSegmenter(resolution_mm=4)


@pytest.fixture(scope="module")
def brain() -> Volume:
    """The template's own tissues at 4 mm in T1 contrast, a little noise."""
    grid, priors = load_template(4), tissue_priors(4)
    data = 30 * priors["CSF"] + 70 * priors["GM"] + 110 * priors["WM"]
    noise = np.random.default_rng(0).normal(0, 3, grid.shape)
    return Volume(np.where(grid.mask, data + noise, 0), grid.affine, grid.mask)


@pytest.fixture(scope="module")
def maps(brain) -> dict[str, np.ndarray]:
    return SEGMENTER(brain)


def test_the_tissues_of_the_template_are_found(brain, maps):
    truth = as_labels(dict(tissue_priors(4)))
    found = as_labels(maps)
    assert np.mean(found[brain.mask] == truth[brain.mask]) > 0.9
    expected = tissue_ratios(dict(tissue_priors(4)))
    assert tissue_ratios(maps) == pytest.approx(expected, abs=0.04)


def test_shares_add_up_to_one_inside_the_mask_and_to_nothing_outside(brain, maps):
    total = sum(maps.values())
    assert total[brain.mask] == pytest.approx(1.0, abs=1e-4)
    assert not total[~brain.mask].any()


def test_no_order_of_brightness_is_assumed(brain, maps):
    dark = tissue_ratios(SEGMENTER(brain.with_data(np.where(brain.mask, 200 - brain.data, 0))))
    assert dark == pytest.approx(tissue_ratios(maps), abs=0.02)


def test_a_finer_grid_is_brought_to_the_working_grid(maps):
    grid, priors = load_template(2), tissue_priors(2)
    data = 30 * priors["CSF"] + 70 * priors["GM"] + 110 * priors["WM"]
    found = SEGMENTER(Volume(np.where(grid.mask, data, 0), grid.affine, grid.mask))
    assert found["GM"].shape == load_template(4).shape
    assert tissue_ratios(found) == pytest.approx(tissue_ratios(maps), abs=0.06)


def test_the_same_image_gives_the_same_bits(brain, maps):
    """Atropos visits voxels in random order; without a constant seed some come out another way."""
    again = SEGMENTER(brain)
    for name, one in maps.items():
        np.testing.assert_array_equal(again[name], one)


def test_nothing_is_left_in_the_temporary_folder(brain, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    SEGMENTER(brain)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_segmented_is_explained(brain):
    shifted = brain.affine.copy()
    shifted[0, 3] += 90
    with pytest.raises(InputError, match="in the space of the template"):
        SEGMENTER(Volume(brain.data, shifted, brain.mask))
    with pytest.raises(InputError, match="contrast inside the mask"):
        SEGMENTER(brain.with_data(brain.mask * 5.0))
    with pytest.raises(InputError, match="needs a brain mask"):
        SEGMENTER(Volume(np.ones((9, 9, 9)), brain.affine))


def test_answer_on_the_own_grid_lies_where_the_answer_on_the_template_lies(brain, maps):
    """A grid turned about and shifted by half a voxel sees the same tissue in the same place."""
    affine = brain.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (brain.affine @ [brain.shape[0] - 1, 0, 0, 1])[:3]
    mirrored = Volume(np.flip(brain.data, 0), affine, np.flip(brain.mask, 0))
    own = AtroposSegmenter(resolution_mm=4, own_grid=True)(mirrored)
    for name, array in own.items():
        np.testing.assert_allclose(np.flip(array, 0), maps[name], atol=0.02)
    assert not sum(own.values())[~mirrored.mask].any()
