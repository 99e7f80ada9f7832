"""Patches fused into one denoiser, and guidance that does not know how many steps there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harmonizer.deep.diffusion.fusion import PatchFusion, with_known_background
from harmonizer.deep.diffusion.guidance import REFERENCE_STEPS, cfg_plus, guidance_scales
from harmonizer.deep.diffusion.process import predict_x0_eps
from harmonizer.deep.diffusion.samplers import Denoised, ddim, denoiser_of
from harmonizer.deep.diffusion.schedules import Schedule
from harmonizer.deep.patches import PatchGrid

SHAPE, PATCH, STRIDE = (14, 11, 10), (6, 6, 4), (4, 5, 3)
SCHEDULE = Schedule(1000)


@pytest.fixture(scope="module")
def fusion() -> PatchFusion:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    mask = ((grid + 0.3) ** 2).sum(axis=0) < 0.5  # in a corner: some patches have no brain
    return PatchFusion(PatchGrid(SHAPE, PATCH, STRIDE), mask)


def network(patch, t, number):
    """Not linear, other in every patch, looks beyond the voxel."""
    return torch.tanh(torch.nn.functional.avg_pool3d(patch, 3, 1, 1) * (1 + number)) + 0.01 * t


def test_every_brain_voxel_is_covered_and_patches_without_brain_are_left_out(fusion):
    assert 0 < len(fusion.corners) < len(fusion.grid.corners)
    one = fusion.predictor(lambda patch, t, number: torch.ones_like(patch))
    weight = one(torch.zeros(1, 1, *SHAPE), torch.zeros(1))[0, 0].numpy()
    np.testing.assert_allclose(weight[fusion.mask], 1, atol=1e-6)


def test_order_of_patches_does_not_change_a_bit(fusion):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, *SHAPE), np.float32))
    t = torch.tensor([7])
    wanted = fusion.predictor(network)(x, t)
    count = len(fusion.corners)
    for order in (range(count)[::-1], np.random.default_rng(1).permutation(count).tolist()):
        assert torch.equal(fusion.predictor(network, order)(x, t), wanted)


@pytest.mark.parametrize("kind", ["constant", "ramp"])
def test_no_seams(fusion, kind):
    ramp = torch.linspace(-1, 1, SHAPE[0])[:, None, None].expand(SHAPE)
    x = (ramp if kind == "ramp" else torch.full(SHAPE, 0.37))[None, None].contiguous()
    denoise = denoiser_of(fusion.predictor(lambda patch, t, number: 0.5 * patch), SCHEDULE, "x0")
    inside = torch.from_numpy(fusion.mask)[None, None]
    y = ddim(denoise, SCHEDULE, x, SCHEDULE.grid(5, "even", 0.5))
    whole = ddim(denoiser_of(lambda x, t: 0.5 * x, SCHEDULE, "x0"), SCHEDULE, x,
                 SCHEDULE.grid(5, "even", 0.5))
    assert float((y - whole)[inside].abs().max()) < 1e-6
    assert float(whole[inside].abs().max()) > 1e-3


def test_known_background_comes_out_as_it_is_known(fusion):
    inside = torch.from_numpy(fusion.mask)[None, None]
    denoise = with_known_background(
        denoiser_of(fusion.predictor(network), SCHEDULE, "v"), inside, SCHEDULE
    )
    x = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = ddim(denoise, SCHEDULE, x, SCHEDULE.grid(4, "even", 0.6))
    assert torch.equal(y[~inside], torch.full_like(y[~inside], -1))
    x0, eps = denoise(x, 300)
    bar = SCHEDULE.abar(300, x)
    np.testing.assert_allclose(bar.sqrt() * x0 + (1 - bar).sqrt() * eps, x, atol=1e-5)


# Guidance -------------------------------------------------------------------------------------

X = torch.linspace(-1, 1, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3)


def gaussian(mean: float):
    """The exact denoiser of images that are N(mean, 0.3^2)."""

    def predict(x, t):
        bar = SCHEDULE.abar(t, x)
        return (1 - bar).sqrt() * (x - bar.sqrt() * mean) / (0.09 * bar + 1 - bar)

    return denoiser_of(predict, SCHEDULE, "eps")


WITHOUT, WITH = gaussian(0.0), gaussian(0.4)


def cfg(scale: float, plus: bool = False):
    """Classifier-free guidance, or CFG++, with the same scale at every step."""
    def denoise(x, t):
        e_u, e_c = WITHOUT(x, t).eps, WITH(x, t).eps
        e = e_u + scale * (e_c - e_u)
        return Denoised(predict_x0_eps(SCHEDULE, "eps", e, x, t)[0], e_u if plus else e)
    return denoise


def sample(guidance: float, steps: int, spacing: str = "even", strength: float = 0.5):
    grid = SCHEDULE.grid(steps, spacing, strength)
    scales = guidance_scales(SCHEDULE, grid, guidance)
    return ddim(cfg_plus(WITH, WITHOUT, scales, SCHEDULE), SCHEDULE, X, grid)


def test_guidance_0_is_unconditional_ddim():
    grid = SCHEDULE.grid(10, "even", 0.5)
    assert torch.equal(sample(0.0, 10), ddim(WITHOUT, SCHEDULE, X, grid))


def test_guidance_1_is_not_cfg_1():
    grid = SCHEDULE.grid(25, "even", 0.5)
    conditional = ddim(cfg(1.0), SCHEDULE, X, grid)
    torch.testing.assert_close(conditional, ddim(WITH, SCHEDULE, X, grid), atol=1e-9, rtol=0)
    assert float((sample(1.0, 25) - conditional).abs().min()) > 0.05


def test_at_the_papers_steps_it_is_the_papers_lambda():
    grid = SCHEDULE.grid(REFERENCE_STEPS, "even")
    paper = ddim(cfg(0.2, plus=True), SCHEDULE, X, grid)
    ours = sample(0.2, REFERENCE_STEPS, strength=1.0)
    moved = float((paper - ddim(WITHOUT, SCHEDULE, X, grid)).abs().mean())
    assert moved > 0.2
    torch.testing.assert_close(ours, paper, atol=1e-9, rtol=0)
    for spacing in ("even", "leading"):
        scales = guidance_scales(SCHEDULE, SCHEDULE.grid(REFERENCE_STEPS, spacing), 0.6)
        assert list(scales.values()) == pytest.approx([0.6] * REFERENCE_STEPS, abs=1e-6)


def test_it_means_the_same_at_10_and_at_50_steps_and_on_another_grid():
    def push(steps, spacing="even"):
        return float((sample(0.1, steps, spacing) - sample(0.0, steps, spacing)).mean())

    def papers(steps):
        grid = SCHEDULE.grid(steps, "even", 0.5)
        denoise = cfg(0.1, plus=True)
        return float((ddim(denoise, SCHEDULE, X, grid) - ddim(WITHOUT, SCHEDULE, X, grid)).mean())

    assert push(50) > 0.05
    assert push(10) == pytest.approx(push(50), rel=0.15)
    assert push(10, "quadratic") == pytest.approx(push(50), rel=0.15)
    assert papers(50) > 3 * papers(10)  # what this is for
