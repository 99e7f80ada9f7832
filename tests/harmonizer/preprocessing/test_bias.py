"""A known smooth field is found and divided out; the mean inside the mask stays."""
import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.preprocessing.bias import correct_bias, estimate_log_bias, head_mask
from harmonizer.volume import Volume

from .heads import brain_in_head


@pytest.fixture(scope="module")
def plain():
    """A brain without shading."""
    return brain_in_head(spacing=6, skull=False)[0]


@pytest.fixture(scope="module")
def shaded(plain):
    """(Volume of a shaded brain, its true log field)."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in plain.shape], indexing="ij")
    log_field = (0.35 * i - 0.3 * j * k + 0.25 * k).astype(np.float32)
    return plain.with_data(plain.data * np.exp(log_field)), log_field


def test_known_field_is_found(plain, shaded):
    """N4 also flattens anatomy; what the field adds to its answer must be the field."""
    volume, truth = shaded
    inside = volume.mask
    extra = estimate_log_bias(volume, inside) - estimate_log_bias(plain, inside)
    wanted = truth[inside]
    residual = extra[inside] - wanted
    assert wanted.std() > 0.1
    assert residual.std() < 0.25 * wanted.std()
    assert np.corrcoef(extra[inside], wanted)[0, 1] > 0.97


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
    corrected, field = correct_bias(volume.with_data(data), rough=True)
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
    half = np.diag([0.5, 0.5, 0.5, 1])
    half[:3, 3] = -0.25
    fine = Volume(
        volume.data.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        volume.affine @ half,
        volume.mask.repeat(2, 0).repeat(2, 1).repeat(2, 2),
    )
    coarse = estimate_log_bias(volume, volume.mask, rough=True)
    found = estimate_log_bias(fine, fine.mask, rough=True)[::2, ::2, ::2]
    assert np.abs(found - coarse)[volume.mask].mean() < 0.02


def test_head_mask_is_the_head():
    head, _ = brain_in_head(spacing=4)
    mask = head_mask(head)
    assert (mask & head.mask).sum() / head.mask.sum() > 0.99
    assert 1.4 * head.mask.sum() < mask.sum() < 2.4 * head.mask.sum()


def test_empty_mask_is_refused(shaded):
    volume, _ = shaded
    with pytest.raises(InputError, match="mask with positive intensities, got 0"):
        correct_bias(volume, np.zeros(volume.shape, bool))
