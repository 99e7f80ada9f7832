"""The texture step: noise to the target's level and no further, structure stays."""
from __future__ import annotations

import json

import numpy as np
import pytest

from harmonizer.contrast.intensity_map import PointwiseMap
from harmonizer.contrast.texture import measure_texture
from harmonizer.contrast.texture_transfer import (
    NOISE_TOLERANCE,
    TexturedMap,
    TextureGains,
    blur_coefficients,
    match_texture,
)
from harmonizer.contrast.tissue_map import TissueProbabilities
from harmonizer.volume import Volume
from tests.harmonizer.contrast.texture_phantom import affine_of, range_of, scan

BLUR = np.array([[-2.0, -2.0, 0.5]] * 2)
SLOPE = PointwiseMap(np.array([0.0, 1.0]), np.array([0.0, 1.0]))


def gains_between(source, target, blur=BLUR):
    return TextureGains.between(measure_texture(*source), measure_texture(*target),
                                blur)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0)])
def test_noise_falls_to_the_level_of_the_target_and_not_below(spacing):
    shape = (56, 60, 52 if spacing[2] < 2 else 26)
    fwhm = (2, 2, max(2, spacing[2]))
    source, target = scan(0.06, fwhm, spacing, shape), scan(0.02, fwhm, spacing, shape, seed=1)
    after = match_texture(*source, gains_between(source, target))
    noise = measure_texture(source[0].with_data(after), source[1]).noise * range_of(target[0])
    wanted = 0.02 * np.exp(NOISE_TOLERANCE)
    assert (noise[1:] > 0.95 * 0.02).all(), noise
    assert (noise[1:] < 1.3 * wanted).all(), noise
    truth = scan(0.0, fwhm, spacing, shape)[0]
    errors = [np.sqrt(np.mean((image - truth.data)[truth.mask] ** 2))
              for image in (source[0].data, after)]
    assert errors[1] < 0.65 * errors[0]


def test_no_noise_is_added_and_alike_scans_stay_as_they_are():
    quiet, noisy, again = scan(0.02), scan(0.06, seed=1), scan(0.02, seed=2)
    assert match_texture(*quiet, gains_between(quiet, noisy)) is quiet[0].data
    gains = gains_between(quiet, again)
    assert gains.is_identity
    assert match_texture(*quiet, gains) is quiet[0].data


def test_thin_bright_line_survives_while_noise_falls():
    source, target = scan(0.05), scan(0.015, seed=1)
    data = source[0].data.copy()
    line = np.zeros(data.shape, bool)
    line[28, 30, 10:42] = True
    data[line] += 0.5
    drawn = source[0].with_data(data)
    gains = gains_between(source, target)
    with_line = match_texture(drawn, source[1], gains)
    assert np.mean((with_line - source[0].data)[line]) > 0.4
    far = source[0].mask & ~line & (source[1][2] > 0.95)
    assert np.std((with_line - scan(0.0)[0].data)[far]) < 0.55 * 0.05


def test_blur_moves_towards_the_target_both_ways_and_noise_does_not_rise():
    sharp, blurred = scan(0.02, (1.5,) * 3), scan(0.02, (3.0,) * 3, seed=1)
    for source, target, sign in ((sharp, blurred, 1), (blurred, sharp, -1)):
        gains = gains_between(source, target)
        after = match_texture(*source, gains)
        before, now = (measure_texture(source[0].with_data(image), source[1])
                       for image in (source[0].data, after))
        wanted = measure_texture(*target).fwhm_mm.mean()
        assert sign * (now.fwhm_mm.mean() - before.fwhm_mm.mean()) > 0.02
        assert sign * (wanted - now.fwhm_mm.mean()) > 0, "part of the way"
        assert (now.noise[1:] < 1.1 * before.noise[1:]).all()


@pytest.mark.parametrize("affine", [affine_of((1, 1, 1)), affine_of((1, 1, 1), 25.0, flip=True)])
def test_map_touches_the_mask_alone_keeps_signs_and_gives_the_same_bits(affine):
    volume, probabilities = scan(0.06, affine=affine)
    data = volume.data.copy()
    data[~volume.mask] = -5
    data[20, 30, 25] = -0.3
    volume = volume.with_data(data)
    gains = gains_between((volume, probabilities), scan(0.02, seed=1))
    change = TexturedMap(SLOPE, gains, TissueProbabilities.of(probabilities, volume))
    after = change.apply(volume)
    np.testing.assert_array_equal(after.data[~volume.mask], -5)
    assert (after.data[volume.mask & (volume.data > 0)] > 0).all()
    assert np.isfinite(after.data).all()
    np.testing.assert_array_equal(change.apply(volume).data, after.data)
    assert json.dumps(change.describe()) and "Texture" in change.describe()


def test_another_grid_of_the_same_scan_gives_the_same_image():
    volume, probabilities = scan(0.05)
    gains = gains_between((volume, probabilities), scan(0.02, seed=1))
    change = TexturedMap(SLOPE, gains, TissueProbabilities.of(probabilities, volume))
    turned = volume.affine.copy()
    turned[:3, 0] *= -1
    turned[:3, 3] += volume.affine[:3, 0] * (volume.shape[0] - 1)
    flipped = Volume(volume.data[::-1].copy(), turned, volume.mask[::-1].copy())
    np.testing.assert_allclose(change.apply(flipped).data[::-1], change.apply(volume).data,
                               atol=2e-5)


def test_constant_image_and_tiny_mask_come_back():
    volume, probabilities = scan(0.05)
    gains = gains_between((volume, probabilities), scan(0.02, seed=1))
    flat = volume.with_data(np.full(volume.shape, 3, np.float32))
    assert match_texture(flat, probabilities, gains) is flat.data
    mask = np.zeros(volume.shape, bool)
    mask[30:32, 30:32, 30] = True
    tiny = volume.with_mask(mask)
    np.testing.assert_array_equal(match_texture(tiny, probabilities, gains), volume.data)


def test_shipped_coefficients_are_finite_numbers_for_both_ways():
    found = blur_coefficients()
    assert found.shape == (2, 3) and np.isfinite(found).all() and found.any()
