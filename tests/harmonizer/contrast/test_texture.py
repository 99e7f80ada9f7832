"""Noise, blur and band energies against phantoms whose noise and PSF are known."""
from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from scipy import ndimage

from harmonizer.contrast.texture import (
    ScanTexture,
    band_responses,
    measure_texture,
    pool_textures,
    split_bands,
)
from harmonizer.volume import Volume
from tests.harmonizer.contrast.texture_phantom import affine_of, range_of, scan


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 1.6), (1.0, 1.0, 4.0)])
@pytest.mark.parametrize("noise", [0.02, 0.06])
def test_noise_is_that_of_the_phantom_on_thick_slices_too(noise, spacing):
    shape = (60, 64, 52 if spacing[2] < 2 else 24)
    volume, probabilities = scan(noise, (2, 2, max(2, spacing[2])), spacing, shape)
    found = measure_texture(volume, probabilities).noise * range_of(volume)
    np.testing.assert_allclose(found[1:], noise, rtol=0.1)


def test_numbers_do_not_change_with_gain():
    volume, probabilities = scan(0.03)
    one = measure_texture(volume, probabilities).arrays()
    two = measure_texture(volume.with_data(421.0 * volume.data), probabilities).arrays()
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_blur_grows_with_the_psf_along_its_own_axis(noise):
    blur = [measure_texture(*scan(noise, fwhm)).fwhm_mm
            for fwhm in ((1.5, 1.5, 1.5), (1.5, 4.0, 1.5))]
    assert blur[1][1] > blur[0][1] + 1.5
    np.testing.assert_allclose(blur[1][[0, 2]], blur[0][[0, 2]], atol=0.6)
    assert 1.5 < blur[0].mean() < 3.5, "edges of 1.5 mm; folds enlarge the number"


def test_axes_are_those_of_the_world_on_permuted_flipped_and_turned_grids():
    volume, probabilities = scan(0.02, (1.5, 4.0, 1.5))
    plain = measure_texture(volume, probabilities)
    affine = affine_of((1.0, 1.0, 1.0), flip=True)[:, [1, 0, 2, 3]]  # first axis along world y
    moved = Volume(volume.data.transpose(1, 0, 2), affine, volume.mask.transpose(1, 0, 2))
    permuted = measure_texture(moved, probabilities.transpose(0, 2, 1, 3))
    np.testing.assert_allclose(permuted.fwhm_mm, plain.fwhm_mm, rtol=0.02)
    np.testing.assert_allclose(permuted.noise, plain.noise, rtol=0.02)
    oblique = Volume(volume.data, affine_of((1, 1, 1), 45.0), volume.mask)
    turned = measure_texture(oblique, probabilities)
    variance = plain.fwhm_mm ** 2
    np.testing.assert_allclose(turned.fwhm_mm ** 2, [variance[:2].mean()] * 2 + [variance[2]],
                               rtol=0.01)


def test_blur_finer_than_the_voxels_is_the_voxel():
    volume, probabilities = scan(0.0, (0.3, 0.3, 0.3), (2.0, 2.0, 2.0), (30, 32, 28))
    crisp = volume.data + 3 * (volume.data - ndimage.gaussian_filter(volume.data, 1.0))
    found = measure_texture(volume.with_data(crisp), probabilities).fwhm_mm
    np.testing.assert_allclose(found, 2.0, atol=1e-6)


def test_bands_add_up_to_the_image_and_know_what_a_grid_resolves():
    volume, _ = scan(0.03)
    bands, rest = split_bands(volume.data, volume.mask, volume.spacing)
    np.testing.assert_allclose(sum(bands) + rest, volume.data, atol=1e-5)
    assert (bands[0][~volume.mask] == 0).all()
    fine, coarse = band_responses(np.full(3, 1.0)), band_responses(np.full(3, 3.0))
    assert fine[0] > 0.4 and coarse[0] < 0.02


def test_a_constant_image_and_a_tiny_mask_have_no_numbers_and_do_not_fail():
    volume, probabilities = scan(0.0)
    flat = measure_texture(volume.with_data(np.full(volume.shape, 7, np.float32)), probabilities)
    assert not flat.noise.any() and flat.numbers() == {}
    mask = np.zeros(volume.shape, bool)
    mask[30:33, 30:33, 30:33] = True
    tiny = measure_texture(Volume(volume.data * mask, volume.affine, mask), probabilities)
    assert not tiny.noise.any()
    assert all(np.isfinite(array).all() for array in tiny.arrays().values())


def test_a_card_keeps_the_numbers_and_refuses_others():
    texture = measure_texture(*scan(0.03))
    arrays = texture.arrays()
    again = ScanTexture.from_arrays(arrays)
    assert again is not None
    np.testing.assert_array_equal(again.bands, texture.bands)
    assert ScanTexture.from_arrays({}) is None
    for name, value in (("texture_version", np.array([9.0])), ("texture_noise", np.zeros(2)),
                        ("texture_bands", -texture.bands), ("texture_mean", np.full(3, np.nan))):
        with pytest.raises(ValueError, match="texture"):
            ScanTexture.from_arrays({**arrays, name: value})


def test_a_site_is_the_geometric_mean_of_what_its_scans_show():
    one = measure_texture(*scan(0.03))
    other = dataclasses.replace(one, noise=one.noise * [0, 4, 4])
    pooled = pool_textures([one, other])
    np.testing.assert_allclose(pooled.noise, one.noise * [1, 2, 2])
    np.testing.assert_allclose(pooled.quantiles, one.quantiles)


@pytest.mark.slow
def test_a_scan_of_1_mm_takes_two_seconds():
    volume, probabilities = scan(0.03, shape=(150, 180, 150))
    measure_texture(*scan(0.03))
    started = time.process_time()
    measure_texture(volume, probabilities)
    assert time.process_time() - started < 6, "about 2 s of one core at full speed"
