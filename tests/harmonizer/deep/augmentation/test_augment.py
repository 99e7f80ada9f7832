"""Views keep anatomy, are values, and are what they are called."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harmonizer.deep.augmentation.contrast import (
    GIN,
    GIN_CACD,
    BiasField,
    Blur,
    ContrastSettings,
    Gamma,
    Gin,
    Rician,
    draw_view,
)
from harmonizer.deep.augmentation.spatial import Elastic, Warp, WarpSettings, draw_warp

ALL = ContrastSettings(blur=0.8, noise=0.05)


def brain(dims: int, count: int = 2, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * dims, indexing="ij"))
    inside = (grid ** 2).sum(0) < 0.7
    image = np.where(inside, rng.uniform(-1, 1, (count, 1, *inside.shape)), -1)
    mask = np.broadcast_to(inside, image.shape)
    return torch.tensor(image, dtype=torch.float32), torch.tensor(mask.copy()).float()


@pytest.mark.parametrize("dims", [2, 3])
def test_views_are_values_and_leave_the_background(dims):
    image, mask = brain(dims)
    for seed in range(4):
        view = draw_view(np.random.default_rng(seed), ALL, dims)
        seen = view.apply(image, mask)
        assert seen.shape == image.shape and torch.isfinite(seen).all()
        assert (seen[mask == 0] == -1).all()
        assert seen.min() >= -1 and seen.max() <= 1
        assert torch.equal(view.apply(image, mask), seen)
        assert len({type(c) for c in view.changes}) == 5
    one = draw_view(np.random.default_rng(1), ALL, dims).apply(image, mask)
    assert not torch.equal(one, seen)


@pytest.mark.parametrize("change", [
    Gin(3, 0.7), Gin(3, 1.0, GIN_CACD), Gamma(0.4), BiasField(2, 0.5), Blur((0.7, 0.7))])
def test_a_view_is_one_scanner_for_all(change):
    """Two subjects that are the same image get the same view, whatever else is in the batch."""
    image, mask = brain(2)
    image[1] = image[0]
    seen = change.apply(image, mask)
    torch.testing.assert_close(seen[0], seen[1])


def test_pointwise_gin_keeps_equal_places_equal():
    """Kernels of 1: a curve of intensity; what was equal stays equal."""
    image, mask = brain(2, 1)
    levels = torch.where(mask > 0, (image * 4).round() / 4, image)
    point = GIN.__class__(layers=4, kernels=(1,))
    for seed in range(5):
        seen = Gin(seed, 1.0, point).apply(levels, mask)
        for level in levels[mask > 0].unique():
            values = seen[(levels == level) & (mask > 0)]
            assert float(values.max() - values.min()) < 1e-5


def test_release_gin_has_one_knee_at_zero():
    """Two convolutions without bias are positively homogeneous."""
    gin = Gin(5, 1.0, GIN_CACD.__class__(layers=2, kernels=(1,), shift=False))
    x = torch.linspace(-1, 1, 201).reshape(1, 1, 3, 67)
    y = gin._network(x)
    torch.testing.assert_close(gin._network(0.5 * x), 0.5 * y, rtol=1e-4, atol=1e-6)
    slopes = y.flatten().diff()
    assert len({round(float(s), 4) for s in slopes}) <= 2


def test_alpha_zero_is_no_change_but_of_range():
    image, mask = brain(2)
    seen = Gin(1, 0.0).apply(image, mask)[mask > 0]
    assert float(torch.corrcoef(torch.stack([seen, image[mask > 0]]))[0, 1]) > 0.999


def test_gamma_goes_both_ways_and_back():
    image, mask = brain(2)
    assert (Gamma(0.5).apply(image, mask) <= image + 1e-6).all()
    assert (Gamma(-0.5).apply(image, mask) >= image - 1e-6).all()
    torch.testing.assert_close(Gamma(-0.5).apply(Gamma(0.5).apply(image, mask), mask), image,
                               rtol=1e-4, atol=1e-4)
    drawn = [draw_view(np.random.default_rng(s), ContrastSettings(gin=None, bias=0)).changes[0]
             for s in range(300)]
    logs = np.array([change.log_gamma for change in drawn])
    assert np.mean(logs) == pytest.approx(0, abs=0.1)
    assert np.std(logs) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("shape, nodes", [((192, 224), (5, 6)), ((40, 48, 40), (2, 2, 2))])
def test_bias_field_is_smooth_and_positive(shape, nodes):
    """5 x 6 nodes for 192 x 224."""
    field = BiasField(4, 0.5).field(shape)[0, 0]
    assert field.shape == shape and (field > 0).all()
    for axis, (n, k) in enumerate(zip(shape, nodes)):
        assert math.ceil(0.025 * n) in (k, k - 1)
        curve = field.log().diff(n=2, dim=axis).abs()
        assert (curve > 1e-4).any(dim=tuple(a for a in range(len(shape)) if a != axis)).sum() \
            <= max(0, k - 2) * 2


def test_blur_keeps_a_constant_brain_and_narrows_noise():
    image, mask = brain(3, 1)
    flat = torch.where(mask > 0, torch.full_like(image, 0.3), image)
    torch.testing.assert_close(Blur((1.0, 1.0, 1.0)).apply(flat, mask), flat)
    assert Blur((1.0,) * 3).apply(image, mask)[mask > 0].std() < 0.5 * image[mask > 0].std()


def test_rician_noise_lifts_the_dark_by_its_known_mean():
    zeros, mask = torch.full((1, 1, 64, 64), -1.0), torch.ones(1, 1, 64, 64)
    seen = (Rician(1, 0.05).apply(zeros, mask) + 1) / 2
    assert float(seen.mean()) == pytest.approx(0.05 * math.sqrt(math.pi / 2), rel=0.03)


@pytest.mark.parametrize("dims", [2, 3])
def test_identity_warp_flip_and_shift(dims):
    image, _ = brain(dims)
    rows = tuple(tuple(float(i == j) for j in range(dims + 1)) for i in range(dims))
    torch.testing.assert_close(Warp(False, rows, 0, 0.0, 5).apply(image), image,
                               rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Warp(True, rows, 0, 0.0, 5).apply(image), image.flip(2),
                               rtol=1e-4, atol=1e-4)
    step = 2 / 15  # one voxel of 16, along the first axis
    moved = Warp(False, (rows[0][:-1] + (step,), *rows[1:]), 0, 0.0, 5).apply(image)
    torch.testing.assert_close(moved[:, :, :-1], image[:, :, 1:], rtol=1e-3, atol=1e-3)
    assert (moved[:, :, -1] == -1).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_drawn_warps_are_values_and_elastic_borders_stay(dims):
    image, _ = brain(dims)
    warp = draw_warp(np.random.default_rng(2), WarpSettings(), dims)
    assert torch.equal(warp.apply(image), warp.apply(image))
    field = Warp(False, (), 3, 0.1, 5)._field((9,) * dims)
    assert field.abs().max() > 0.02
    for axis in range(dims):
        assert not field.select(axis, 0).any() and not field.select(axis, -1).any()


def test_elastic_is_a_smooth_warp_that_hardly_moves_the_border():
    """As TorchIO's: cubic B-splines, of which a sixth of the third control point is at the border.
    """
    warp, shape = Elastic(3, 4.0), (30, 26, 28)
    field = warp.field(shape)
    assert field.shape == (*shape, 3)
    assert 0.5 < float(field.abs().max()) <= 4.0
    assert float(field[0].abs().max()) <= 4 / 6 and float(field[-1].abs().max()) <= 4 / 6
    assert float(field.diff(n=2, dim=0).abs().max()) < 1.0
    image, mask = brain(3, 1)
    warped = warp.apply(image)
    assert not torch.allclose(warped, image)
    torch.testing.assert_close(warped, Elastic(3, 4.0).apply(image))
    torch.testing.assert_close(Elastic(3, 0.0).apply(image), image, atol=1e-5, rtol=1e-5)
    assert set(warp.apply(mask, fill=0.0, nearest=True).unique().tolist()) <= {0.0, 1.0}


def test_elastic_moves_what_it_samples():
    """The value at a voxel is that of the voxel plus its displacement."""
    ramp = torch.arange(40.0).reshape(1, 1, 40, 1, 1).expand(1, 1, 40, 20, 20).contiguous()
    warp = Elastic(5, 2.0)
    moved = warp.apply(ramp)[0, 0]
    wanted = torch.arange(40.0)[:, None, None] + warp.field((40, 20, 20))[..., 0]
    inner = np.s_[3:-3, 3:-3, 3:-3]  # nothing is sampled beyond the border
    torch.testing.assert_close(moved[inner], wanted[inner], atol=1e-3, rtol=1e-3)
