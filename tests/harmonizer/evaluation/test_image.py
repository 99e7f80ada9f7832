"""Image measures against scikit-image and closed forms."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.image import (
    gradient_agreement,
    mae,
    ms_ssim,
    psnr,
    rmse,
    ssim,
    ssim_structure,
)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A smooth random volume and a noisy copy, (24, 22, 20), about 0 to 100."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    first = gaussian_filter(rng.standard_normal((24, 22, 20)), 2)
    first = 50 + 300 * first
    return first, first + rng.normal(0, 8, first.shape)


@pytest.fixture(scope="module")
def ball() -> np.ndarray:
    """A centerd ball of radius 8 voxels in (24, 22, 20)."""
    center = (np.array([24, 22, 20]) - 1).reshape(3, 1, 1, 1) / 2
    return np.sum((np.indices((24, 22, 20)) - center) ** 2, axis=0) < 64


def test_psnr_on_a_full_mask_is_scikit_images(pair):
    from skimage.metrics import peak_signal_noise_ratio

    full = np.ones(pair[0].shape, bool)
    assert psnr(*pair, full, 90.0) == pytest.approx(
        peak_signal_noise_ratio(*pair, data_range=90.0), abs=1e-9)


def test_psnr_of_a_known_offset_and_of_equal_images(ball):
    zeros = np.zeros(ball.shape)
    assert psnr(zeros, zeros + 2.0, ball, 20.0) == pytest.approx(20.0, abs=1e-9)
    assert psnr(zeros, zeros, ball, 20.0) == np.inf


def test_differences_outside_the_mask_do_not_count(pair, ball):
    first, second = pair
    spoiled = np.where(ball, second, 1e6)
    assert rmse(first, spoiled, ball, 90.0) == rmse(first, second, ball, 90.0)
    assert ssim(first, spoiled, ball, 90.0) == ssim(first, second, ball, 90.0)


def test_rmse_and_mae_in_units_of_the_range(ball):
    zeros, other = np.zeros(ball.shape), np.zeros(ball.shape)
    inside = np.flatnonzero(ball)
    other.ravel()[inside[::2]] = 3.0
    share = len(inside[::2]) / len(inside)
    assert mae(zeros, other, ball, 10.0) == pytest.approx(0.3 * share, rel=1e-12)
    assert rmse(zeros, other, ball, 10.0) == pytest.approx(0.3 * np.sqrt(share), rel=1e-12)


def test_ssim_map_mean_is_scikit_images_where_no_window_leaves_the_image(pair):
    from skimage.metrics import structural_similarity

    full = np.zeros(pair[0].shape, bool)
    full[5:-5, 5:-5, 5:-5] = True
    first, second = (np.where(full, image, 0) for image in pair)
    expected = structural_similarity(first, second, data_range=90.0, gaussian_weights=True,
                                     sigma=1.5, use_sample_covariance=False)
    assert ssim(*pair, full, 90.0) == pytest.approx(expected, abs=1e-9)
    assert 0.2 < expected < 0.95  # the noise is seen, so the equality says something


def test_ssim_of_equal_images_is_one_and_falls_with_noise(pair, ball):
    first, second = pair
    worse = first + 3 * (second - first)
    assert ssim(first, first, ball, 90.0) == pytest.approx(1.0, abs=1e-12)
    assert ssim(first, second, ball, 90.0) > ssim(first, worse, ball, 90.0) + 0.05


def test_structure_ignores_gain_and_offset_but_not_anatomy(pair, ball):
    first, second = pair
    assert ssim_structure(first, 7 * first + 400, ball, 90.0, 630.0) == pytest.approx(1.0, abs=1e-6)
    assert ssim_structure(first, second, ball, 90.0) < 0.97
    assert ssim_structure(first, first[::-1], ball, 90.0) < 0.8


def test_structure_of_a_negative_has_the_closed_form():
    """cov = -sd^2 everywhere, also at the mask's edge, so s = (C3 - v) / (C3 + v)."""
    board = (np.indices((20, 20, 20)).sum(axis=0) % 2).astype(float)
    mask = np.zeros(board.shape, bool)
    mask[4:16, 4:16, 4:16] = True
    c3 = 0.03**2 / 2
    expected = (c3 - 0.25) / (c3 + 0.25)  # half the voxels 0, half 1: variance 1/4
    assert ssim_structure(board, 1 - board, mask, 1.0) == pytest.approx(expected, abs=1e-3)


def test_an_edge_that_the_mask_makes_is_no_common_structure(ball):
    rng = np.random.default_rng(8)
    first, second = (100 + rng.normal(0, 10, ball.shape) for _ in range(2))
    assert ssim_structure(first, second, ball, 60.0) == pytest.approx(0.0, abs=0.1)


def test_gradient_agreement_closed_forms(pair, ball):
    first, _ = pair
    assert gradient_agreement(first, 3 * first + 5, ball) == pytest.approx(1.0, abs=1e-6)
    assert gradient_agreement(first, -first, ball) == pytest.approx(-1.0, abs=1e-6)
    i, j, _ = np.indices(ball.shape).astype(float)
    assert gradient_agreement(i, j, ball) == pytest.approx(0.0, abs=1e-6)
    assert gradient_agreement(i, i + j, ball) == pytest.approx(np.sqrt(0.5), abs=1e-6)


def test_gradients_are_per_millimetre(ball):
    """With 2 mm along the second axis, i + j climbs half as fast there: cos = 1/sqrt(1 + 1/4)."""
    i, j, _ = np.indices(ball.shape).astype(float)
    assert gradient_agreement(i, i + j, ball, (1.0, 2.0, 1.0)) == pytest.approx(
        1 / np.sqrt(1.25), abs=1e-6)


def test_gradient_agreement_is_nan_where_nothing_is_left(ball):
    assert np.isnan(gradient_agreement(np.ones(ball.shape), np.ones(ball.shape), ball))


@pytest.fixture(scope="module")
def large_pair() -> tuple[np.ndarray, np.ndarray]:
    """As `pair`, (48, 48, 48): room for three scales."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    first = 50 + 300 * gaussian_filter(rng.standard_normal((48, 48, 48)), 2)
    return first, first + rng.normal(0, 8, first.shape)


def test_ms_ssim_is_torchmetrics(large_pair):
    """torchmetrics 1.9.0, sigma 1.5, the three weights rescaled: 0.971478 for these two images.

    It leaves out a border of 5 voxels at every scale, which no mask here can; the borders of two
    such images look like the rest, hence the tolerance.
    """
    value, scales = ms_ssim(*large_pair, np.ones((48, 48, 48), bool), 90.0)
    assert scales == 3
    assert value == pytest.approx(0.971478, abs=2.5e-3)


def test_ms_ssim_with_room_for_one_scale_is_ssim():
    """scikit-image leaves out a border of 5 voxels; these images look the same there."""
    from scipy.ndimage import gaussian_filter
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(3)
    first = 50 + 300 * gaussian_filter(rng.standard_normal((21, 60, 60)), 2, mode="wrap")
    second = first + rng.normal(0, 8, first.shape)
    value, scales = ms_ssim(first, second, np.ones(first.shape, bool), 90.0)
    assert scales == 1
    assert value == pytest.approx(
        structural_similarity(first, second, data_range=90.0, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False), abs=0.015)


def test_ms_ssim_sees_nothing_outside_the_mask(pair, ball):
    first, second = pair
    assert ms_ssim(first, np.where(ball, second, 1e6), ball, 90.0) == ms_ssim(*pair, ball, 90.0)


def test_ms_ssim_forgives_noise_before_blur_and_sees_another_brain(large_pair):
    from scipy.ndimage import gaussian_filter

    first, noisy = large_pair
    mask = np.ones(first.shape, bool)
    assert ms_ssim(first, first, mask, 90.0)[0] == pytest.approx(1.0, abs=1e-12)
    assert ms_ssim(first, noisy, mask, 90.0)[0] > ssim(first, noisy, mask, 90.0) + 0.1
    assert ms_ssim(first, gaussian_filter(first, 4), mask, 90.0)[0] < 0.8
    assert ms_ssim(first, first[::-1], mask, 90.0)[0] < 0.3





def test_bad_input_is_explained(pair, ball):
    first, second = pair
    with pytest.raises(InputError, match="one 3D grid"):
        psnr(first, second[1:], ball, 1.0)
    with pytest.raises(InputError, match="voxels in it"):
        ssim(first, second, np.zeros_like(ball), 1.0)
    with pytest.raises(InputError, match="boolean mask"):
        mae(first, second, ball.astype(np.uint8))
    with pytest.raises(InputError, match="range above 0, got 0"):
        rmse(first, second, ball, 0.0)
