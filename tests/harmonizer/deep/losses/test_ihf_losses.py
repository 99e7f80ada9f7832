"""What each loss of IHF-Harmony sees, and what it is blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from harmonizer.deep.losses.artifact import artifact_loss
from harmonizer.deep.losses.masked import gradient_l1, l1
from harmonizer.deep.losses.spatial_correlation import (
    correlations,
    draw_points,
    equalize,
    spatial_correlation_loss,
)
from harmonizer.deep.networks.feature_pyramid import FeaturePyramid
from harmonizer.deep.networks.hierarchy_flow import mean_and_std, moments

SIZE = (48, 40)
CURVES = [lambda x: x ** 3, lambda x: torch.exp(2 * x), lambda x: 5 * x - 40,
          lambda x: torch.tanh(2 * x)]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        yield


@pytest.fixture(scope="module")
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth random slabs in [-1, 1] in a round brain."""
    rng = np.random.default_rng(5)
    x = ndimage.gaussian_filter(rng.standard_normal((2, 3, *SIZE)), (0, 0, 2, 2))
    x = torch.as_tensor(np.clip(x / np.abs(x).max(), -1, 1), dtype=torch.float32)
    grid = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing="ij"))
    mask = torch.as_tensor(grid < 0.9).float()[None, None].expand(2, 3, *SIZE)
    return torch.where(mask > 0, x, -1.0), mask


def anatomy(one: torch.Tensor, two: torch.Tensor, mask: torch.Tensor) -> float:
    pyramid = FeaturePyramid(3, (8, 12, 16))
    places = draw_points(mask[:, :1], 16, 4, 24)
    a, b = (pyramid(equalize(x, mask)) for x in (one, two))
    return float(spatial_correlation_loss(a[1:], b[1:], places, SIZE))


@pytest.mark.parametrize("curve", CURVES)
def test_anatomy_is_blind_to_monotone_contrast_and_sees_a_shift_of_one_voxel(scene, curve):
    x, mask = scene
    moved = anatomy(x, torch.where(mask > 0, x.roll(1, 2), -1.0), mask)
    assert moved > 0.003
    assert anatomy(x, curve(x), mask) < 0.02 * moved


def test_anatomy_sees_a_contrast_that_is_not_monotone(scene):
    x, mask = scene
    assert anatomy(x, x.abs(), mask) > 0.01


def test_equalize_is_even_and_its_gradient_rises(scene):
    x, mask = scene
    x = x.clone().requires_grad_(True)
    even = equalize(x, mask)
    hist = torch.histc(even.detach()[mask > 0], 10, -1, 1) / (mask > 0).sum()
    torch.testing.assert_close(hist, torch.full((10,), 0.1), atol=0.01, rtol=0)
    (gradient,) = torch.autograd.grad(even[mask > 0].sum(), x)
    assert (gradient[mask > 0] >= 0).all() and (gradient[mask > 0] > 0).float().mean() > 0.95
    assert (gradient[mask == 0] == 0).all()


def test_equalize_without_a_brain_is_background():
    assert (equalize(torch.rand(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)) == -1).all()


def test_points_lie_in_the_mask_and_in_their_patch(scene):
    mask = scene[1][:, :1]
    places = draw_points(mask, 10, 5, 50)
    assert places.shape == (2, 5, 50, 2)
    for n in range(2):
        rows, columns = places[n].reshape(-1, 2).T
        assert (mask[n, 0, rows, columns] > 0).all()
    assert (places.amax(2) - places.amin(2)).max() <= 10


def test_correlations_are_cosines_free_of_gain_and_see_an_offset():
    features = torch.rand(1, 6, 12, 10)
    places = draw_points(torch.ones(1, 1, 24, 20), 12, 2, 8)
    g = correlations(features, places, (24, 20))
    torch.testing.assert_close(g.diagonal(dim1=2, dim2=3), torch.ones(1, 2, 8))
    torch.testing.assert_close(correlations(7 * features, places, (24, 20)), g)
    i, j = places[0, 0, 1] // 2, places[0, 0, 5] // 2
    by_hand = torch.cosine_similarity(features[0, :, i[0], i[1]], features[0, :, j[0], j[1]], 0)
    torch.testing.assert_close(g[0, 0, 1, 5], by_hand)
    assert (correlations(features + 3, places, (24, 20)) - g).abs().max() > 0.05


def statistics(features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [mean_and_std(moments(f, torch.ones(len(f), 1, *f.shape[2:]))) for f in features]


def test_artifact_is_blind_to_places_and_sees_brightness_and_std(scene):
    features = FeaturePyramid(3, (8, 12, 16))(scene[0])
    shuffled = [f.flatten(2)[:, :, torch.randperm(f[0, 0].numel())].reshape(f.shape)
                for f in features]
    ours = statistics(features)
    torch.testing.assert_close(artifact_loss(ours, statistics(shuffled)), torch.zeros(2), atol=1e-4,
                               rtol=0)
    assert (artifact_loss(ours, statistics([f + 0.1 for f in features])) > 0.25).all()
    wide = [(f - f.mean((2, 3), True)) * 1.5 + f.mean((2, 3), True) for f in features]
    assert (artifact_loss(ours, statistics(wide)) > 0.1).all()


def test_artifact_leaves_out_the_channels_that_differ_most():
    zero, one = torch.zeros(1, 10), torch.ones(1, 10)
    far = zero.clone()
    far[0, 3] = 50.0
    assert float(artifact_loss([(zero, one)], [(far, one)], 0.9)) == 0
    assert float(artifact_loss([(zero, one)], [(far, one)], 1.0)) == pytest.approx(5.0)
    near = torch.linspace(0, 0.9, 10)[None]  # the largest is left out: mean of 0 .. 0.8
    assert float(artifact_loss([(zero, one)], [(near, 1.2 * one)], 0.9)) == pytest.approx(
        0.6, rel=1e-5
    )


def test_differences_within_the_brain(scene):
    x, mask = scene
    spoiled = torch.where(mask > 0, x + 0.3, 77.0)
    torch.testing.assert_close(l1(spoiled, x, mask), torch.full((2,), 0.3))
    torch.testing.assert_close(gradient_l1(spoiled, x, mask), torch.zeros(2), atol=1e-6, rtol=0)
    ramp = torch.arange(SIZE[1]).float().expand(2, 3, *SIZE)
    torch.testing.assert_close(gradient_l1(x + ramp, x, torch.ones_like(x)), torch.full((2,), 0.5))


def test_the_pyramid_is_the_same_everywhere_and_knows_brightness():
    pyramid = FeaturePyramid(3, (8, 12, 16, 16))
    assert not pyramid.state_dict() and not list(pyramid.parameters())
    again = FeaturePyramid(3, (8, 12, 16, 16))
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    levels = pyramid(x)
    assert [tuple(f.shape) for f in levels] == [(1, 8, 16, 24), (1, 12, 8, 12), (1, 16, 4, 6),
                                                (1, 16, 2, 3)]
    for a, b in zip(levels, again(x)):
        assert torch.equal(a, b) and a.std() > 0.05
    torch.testing.assert_close(levels[0][:, 0] - levels[0][:, 1], x.mean(1))
    assert float(pyramid.filters1[0, 0, 0, 0]) == pytest.approx(0.0202954, rel=1e-5)
