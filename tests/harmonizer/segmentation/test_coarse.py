"""The segmenter of sloppy runs: the template's tissues, moved by the image's brightness."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.segmentation.coarse import CoarseSegmenter
from harmonizer.template import load_template, tissue_priors

NAMES = ("CSF", "GM", "WM")


def right(levels: tuple[int, int, int], moved_by: int) -> tuple[float, float]:
    """Accuracy of the segmentation and of the template, for subjects with the template's tissues
    shifted by a number of voxels of 2 mm."""
    grid, priors = load_template(2), tissue_priors(2)
    transformed = np.stack([np.roll(priors[name], moved_by, axis=1) for name in NAMES])
    truth = np.where(grid.mask, transformed.argmax(axis=0), -1)
    noise = np.random.default_rng(0).normal(0, 4, grid.shape)
    data = np.choose(np.maximum(truth, 0), levels) + noise
    found = CoarseSegmenter()(grid.with_data(np.where(grid.mask, data, 0).astype(np.float32)))
    total = sum(found.values())
    np.testing.assert_allclose(total[grid.mask], 1, atol=1e-5)
    assert not total[~grid.mask].any()
    mine = np.stack([found[name] for name in NAMES]).argmax(axis=0)
    given = np.stack([priors[name] for name in NAMES]).argmax(axis=0)
    return tuple(float(np.mean(one[grid.mask] == truth[grid.mask])) for one in (mine, given))


@pytest.mark.parametrize("levels", [(20, 70, 110), (150, 100, 60)])
@pytest.mark.parametrize("moved_by", [2, 4])
def test_other_borders_than_the_templates_are_found_at_any_order_of_brightness(levels, moved_by):
    """Even where the template is wrong in four of ten voxels, as in old brains' ventricles."""
    found, template = right(levels, moved_by)
    assert found > 0.95 > template + 0.2


def test_template_is_kept_where_csf_has_the_intensity_of_gm():
    assert right((70, 70, 110), 0) == (1.0, 1.0)


def test_image_without_mask_is_refused():
    with pytest.raises(InputError, match="segmentation needs a brain mask"):
        CoarseSegmenter()(load_template(2).with_mask(None))


def test_answer_lies_on_the_images_own_grid():
    """The template itself at 1 mm: near its own tissues, and shares of one in all inside."""
    image = load_template(1)
    found = CoarseSegmenter()(image)
    total = sum(found.values())
    assert total.shape == image.shape and not total[~image.mask].any()
    assert np.mean(np.abs(total[image.mask] - 1) < 1e-4) > 0.999
    mine = np.stack([found[name] for name in NAMES]).argmax(axis=0)
    given = np.stack([tissue_priors(1)[name] for name in NAMES]).argmax(axis=0)
    assert np.mean((mine == given)[image.mask]) > 0.8
