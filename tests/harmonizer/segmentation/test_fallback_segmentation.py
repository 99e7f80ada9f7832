"""Tests of the transfer of a segmentation between two images of a subject."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from harmonizer.phantom import SCANNERS
from harmonizer.phantom.aligned import aligned_image
from harmonizer.phantom.anatomy import make_person
from harmonizer.preprocessing.transforms import resample
from harmonizer.segmentation.fallback_segmentation import transfer_segmentation
from harmonizer.volume import Volume
from tests.contract.brains import three_levels


@pytest.fixture(scope="module")
def source() -> Volume:
    return aligned_image(make_person(3, 40, "F", 4.0), SCANNERS[0], "T1w", resolution_mm=4)


def transformed(volume: Volume, slice_mm: float) -> tuple[Volume, np.ndarray]:
    """(the brain elsewhere, contrast inverted, in thick slices; the transform)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad([6, -4, 9])).as_matrix()
    matrix[:3, 3] = (7, -5, 11)
    there = matrix @ volume.affine
    thin = Volume(np.where(volume.mask, volume.in_mask().max() * 1.1 - volume.data, 0), there,
                  volume.mask)
    affine = there @ np.diag([1, 1, slice_mm / 4, 1])
    shape = (*volume.shape[:2], int(volume.shape[2] * 4 / slice_mm))
    return resample(thin, Volume(np.zeros(shape, np.float32), affine), antialias=True), matrix


def test_probabilities_follow_the_registration(source) -> None:
    tissues = three_levels(source)
    image, matrix = transformed(source, 8.0)
    found = transfer_segmentation(image, source, tissues, np.eye(4))
    assert found.is_reliable and found.mask_dice > 0.9
    total = sum(found.tissues.values())
    np.testing.assert_allclose(total[image.mask], 1, atol=1e-5)
    assert not total[~image.mask].any()
    for name in ("GM", "WM"):
        truth = resample(source.with_mask(None).with_data(tissues[name]), image, matrix,
                         antialias=True).data
        off = np.abs(found.tissues[name] - truth)[image.mask]
        assert off.mean() < 0.05, name


def test_half_a_head_is_not_reliable(source) -> None:
    """Half of the head is not in the image: what is left says nothing about the rest."""
    half = source.mask.copy()
    half[: int(np.argwhere(half)[:, 0].mean())] = False
    image = Volume(np.where(half, source.data, 0), source.affine, half)
    assert not transfer_segmentation(image, source, three_levels(source), np.eye(4)).is_reliable
