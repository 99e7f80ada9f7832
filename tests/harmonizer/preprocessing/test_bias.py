"""A known smooth field is found and divided out; the mean inside the mask stays."""
import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.preprocessing.bias import correct_bias, estimate_log_bias, head_mask
from harmonizer.volume import Volume

from .heads import brain_in_head


@pytest.fixture(scope="module")
def shaded():
    """(Volume of a shaded brain, its true log field)."""
    head, _ = brain_in_head(spacing=3, skull=False)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in head.shape], indexing="ij")
    log_field = (0.35 * i - 0.3 * j * k + 0.25 * k).astype(np.float32)
    return head.with_data(head.data * np.exp(log_field)), log_field


def test_known_field_is_found(shaded):
    volume, truth = shaded
    _, field = correct_bias(volume)
    found, wanted = np.log(field[volume.mask]), truth[volume.mask]
    residual = (found - wanted) - (found - wanted).mean()
    assert wanted.std() > 0.1
    assert residual.std() < 0.35 * wanted.std()
    assert np.corrcoef(found, wanted)[0, 1] > 0.93


def test_mean_inside_the_mask_is_kept_and_data_times_field_is_the_input(shaded):
    volume, _ = shaded
    corrected, field = correct_bias(volume, sloppy=True)
    assert corrected.in_mask().mean() == pytest.approx(volume.in_mask().mean(), rel=1e-4)
    np.testing.assert_allclose(corrected.data * field, volume.data, rtol=1e-5, atol=1e-3)
    assert corrected.affine is volume.affine or (corrected.affine == volume.affine).all()
    np.testing.assert_array_equal(corrected.mask, volume.mask)
    assert (field > 0).all() and np.isfinite(field).all()


def test_negative_voxels_do_no_harm(shaded):
    volume, truth = shaded
    data = volume.data.copy()
    where = np.argwhere(volume.mask)[::50]
    data[tuple(where.T)] = -60
    corrected, field = correct_bias(volume.with_data(data))
    assert np.isfinite(corrected.data).all()
    assert (corrected.data[tuple(where.T)] < 0).all()
    assert np.corrcoef(np.log(field[volume.mask]), truth[volume.mask])[0, 1] > 0.9


def test_log_field_does_not_depend_on_gain(shaded):
    volume, _ = shaded
    one = estimate_log_bias(volume, volume.mask, sloppy=True)
    two = estimate_log_bias(volume.with_data(volume.data * 40), volume.mask, sloppy=True)
    np.testing.assert_allclose(one, two, rtol=0, atol=0.02)


def test_finer_voxels_find_the_same_field(shaded):
    """Estimated on blocks, evaluated on voxels: halving the voxels must not move the field."""
    volume, _ = shaded
    fine = Volume(
        volume.data.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        volume.affine @ np.array([[.5, 0, 0, -.25], [0, .5, 0, -.25], [0, 0, .5, -.25], [0, 0, 0, 1]]),
        volume.mask.repeat(2, 0).repeat(2, 1).repeat(2, 2),
    )
    coarse = estimate_log_bias(volume, volume.mask)
    found = estimate_log_bias(fine, fine.mask)[::2, ::2, ::2]
    assert np.abs(found - coarse)[volume.mask].mean() < 0.02


def test_head_mask_is_the_head():
    head, _ = brain_in_head(spacing=4)
    mask = head_mask(head)
    assert (mask & head.mask).sum() / head.mask.sum() > 0.99
    assert 1.3 * head.mask.sum() < mask.sum() < 2.6 * head.mask.sum()


def test_empty_mask_is_refused(shaded):
    volume, _ = shaded
    with pytest.raises(InputError, match="mask with positive intensities, got 0"):
        correct_bias(volume, np.zeros(volume.shape, bool))
