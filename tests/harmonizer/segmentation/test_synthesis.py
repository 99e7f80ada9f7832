"""Synthesized images: replayable, of any contrast, and true to their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harmonizer.segmentation import structures as st
from harmonizer.segmentation.synthesis import normalize, synthesize
from tests.harmonizer.segmentation.heads import SMALL, ball_map

PLAIN = replace(SMALL, atrophy=0.0, stripped=0.0, defaced=0.0, cut=0.0, lesions=0.0)


def test_an_image_is_a_function_of_seed_and_index_alone() -> None:
    maps = [ball_map()]
    first, _ = synthesize(maps, 3, 7, SMALL)
    synthesize(maps, 3, 8, SMALL)
    again, _ = synthesize(maps, 3, 7, SMALL)
    assert torch.equal(first, again)
    assert not torch.equal(first, synthesize(maps, 3, 8, SMALL)[0])
    assert not torch.equal(first, synthesize(maps, 4, 7, SMALL)[0])


@pytest.mark.parametrize("index", range(12))
def test_images_are_finite_and_scaled_and_targets_are_classes(index: int) -> None:
    image, target = synthesize([ball_map()], 0, index, SMALL)
    assert tuple(image.shape) == tuple(target.shape) == SMALL.crop
    assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    assert target.dtype == torch.uint8 and int(target.max()) < len(st.CLASSES)


def test_contrasts_differ_in_sign() -> None:
    """Gray matter is brighter than white matter in some images, darker in others."""
    signs = []
    for index in range(24):
        image, target = synthesize([ball_map()], 1, index, PLAIN)
        signs.append(float(image[target == 3].mean() - image[target == 4].mean()) > 0)
    assert 4 <= sum(signs) <= 20


def test_what_is_missing_from_the_image_is_outside() -> None:
    stripped = replace(PLAIN, stripped=1.0)
    found = 0
    for index in range(6):
        image, target = synthesize([ball_map()], 2, index, stripped)
        outside = image == 0
        found += int(outside.float().mean() > 0.3)
        assert (target[outside] == 0).float().mean() > 0.9
    assert found >= 4


def test_lesions_are_taught_as_white_matter() -> None:
    none = replace(PLAIN, familiar=1.0)
    some = replace(none, lesions=1.0)
    for index in range(3):
        plain = synthesize([ball_map()], 5, index, none)[1]
        with_lesions = synthesize([ball_map()], 5, index, some)[1]
        assert (plain == 4).sum() > 1000
        share = float((with_lesions == 4).sum() / (plain == 4).sum())
        assert 0.8 < share < 1.2


def test_normalize_ignores_how_much_background_there_is() -> None:
    image = torch.zeros(20, 20, 20)
    image[5:15, 5:15, 5:15] = torch.rand(10, 10, 10, generator=torch.Generator().manual_seed(0)) + 1
    wide = torch.nn.functional.pad(image, (30, 30, 30, 30, 30, 30))
    inside = normalize(wide)[30:-30, 30:-30, 30:-30]
    assert torch.equal(inside, normalize(image))
    assert float(inside.max()) == 1.0


def test_normalize_leaves_a_constant_image_black() -> None:
    assert float(normalize(torch.full((4, 4, 4), 7.0)).abs().sum()) == 0


def test_pose_changes_but_volume_stays_plausible() -> None:
    reference = float((class_volume() == 4).sum())
    for index in range(6):
        target = synthesize([ball_map()], 6, index, PLAIN)[1]
        assert 0.4 * reference < float((target == 4).sum()) < 2.2 * reference


def class_volume() -> np.ndarray:
    return st.class_table()[ball_map().indices]
