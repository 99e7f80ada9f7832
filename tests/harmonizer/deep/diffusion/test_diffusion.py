"""Schedules, predictions and samplers against closed forms written here, and against diffusers.

The denoiser of the closed forms knows the truth: for x_0 ~ N(0, c^2), E[eps | x_t] is linear in
x_t, so every sampler step is a number that can be worked out by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harmonizer.deep.diffusion.process import add_noise, predict_x0_eps, training_target
from harmonizer.deep.diffusion.samplers import (
    Denoised,
    ddim,
    ddim_inversion,
    ddim_step,
    denoiser_of,
)
from harmonizer.deep.diffusion.schedules import T_CLEAN, Schedule

STD = 0.5  # c
LINEAR = Schedule(1000)


def gaussian_eps(schedule: Schedule, mean: float = 0.0):
    """E[eps | x_t] for x_0 ~ N(mean, STD^2)."""
    def predict(x, t):
        bar = schedule.abar(t, x)
        return (1 - bar).sqrt() * (x - bar.sqrt() * mean) / (bar * STD ** 2 + 1 - bar)
    return predict


def cfg(conditional, unconditional, scale: float, plus: bool):
    """Plain classifier-free guidance, or CFG++ with the same scale at every step."""
    def denoise(x, t):
        e_u, e_c = unconditional(x, t).eps, conditional(x, t).eps
        e = e_u + scale * (e_c - e_u)
        return Denoised(predict_x0_eps(LINEAR, "eps", e, x, t)[0], e_u if plus else e)
    return denoise


def image(seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return STD * torch.randn(3, 1, 8, 8, dtype=torch.float64)


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(20 * torch.log10(2 / (a - b).square().mean().sqrt()))


def test_linear_schedule_has_the_published_ends():
    """abar at timesteps 950, 980 and 999 of the linear betas of Ho et al. 2020."""
    for t, value in ((950, 1.06e-4), (980, 5.9e-5), (999, 4.0e-5)):
        assert float(LINEAR.abar(t)) == pytest.approx(value, rel=0.02)
    assert float(LINEAR.abar(T_CLEAN)) == 1
    by_hand = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(LINEAR.abar(torch.arange(1000)), by_hand, rtol=1e-5)


def test_cosine_schedule_is_nichol_and_dhariwals():
    t = np.arange(1, 501)
    left = np.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(
        0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(Schedule(1000, "cosine").abar(torch.arange(500)), left, rtol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "even", "quadratic"])
@pytest.mark.parametrize("steps, count", [(1000, 20), (50, 3), (50, 50)])
def test_grids_rise_from_clean(spacing, steps, count):
    grid = Schedule(steps).grid(count, spacing)
    assert grid[0] == T_CLEAN and len(grid) == count + 1
    assert all(a < b for a, b in zip(grid, grid[1:])) and grid[-1] <= steps - 1
    if spacing != "leading":
        assert grid[-1] == steps - 1
    assert Schedule(steps).grid(min(count, 10), "even", 0.5)[-1] <= steps / 2


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_predict_x0_eps_inverts_training_target(prediction):
    x0, eps = image(1), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    t = torch.tensor([10, 400, 990])
    x = add_noise(LINEAR, x0, t, eps)
    model_output = training_target(LINEAR, prediction, x0, t, eps)
    found = predict_x0_eps(LINEAR, prediction, model_output, x, t)
    torch.testing.assert_close(found[0], x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], eps, rtol=1e-6, atol=1e-6)
    clipped, noise = predict_x0_eps(LINEAR, prediction, model_output, x, t, clip=0.1)
    assert clipped.abs().max() == pytest.approx(0.1)
    bar = LINEAR.abar(t, x)
    torch.testing.assert_close(bar.sqrt() * clipped + (1 - bar).sqrt() * noise, x)


def test_ddim_step_moves_the_known_noise():
    x0, eps = image(3), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    there = ddim_step(LINEAR, Denoised(x0, eps), 300)
    torch.testing.assert_close(there, add_noise(LINEAR, x0, torch.full((3,), 300), eps))
    torch.testing.assert_close(ddim_step(LINEAR, Denoised(x0, eps), T_CLEAN), x0)


@pytest.mark.parametrize("steps, spacing, corrections, least, most", [
    (50, "even", 0, 30, 34),       # 31.8 dB
    (20, "even", 0, 23, 27),       # 24.8
    (10, "quadratic", 2, 39, 43),
    (20, "quadratic", 2, 54, 58),
])
def test_round_trip_with_the_true_denoiser(steps, spacing, corrections, least, most):
    denoise = denoiser_of(gaussian_eps(LINEAR), LINEAR)
    grid = LINEAR.grid(steps, spacing)
    latent = ddim_inversion(denoise, LINEAR, image(), grid, corrections)
    assert float(latent.std()) == pytest.approx(1, abs=0.2)
    assert least < decibels(ddim(denoise, LINEAR, latent, grid), image()) < most


def test_clipping_makes_inversion_inexact():
    grid = LINEAR.grid(20, "quadratic")
    bright = 1.5 * torch.ones(1, 1, 4, 4, dtype=torch.float64)
    results = []
    for clip in (None, 1.0):
        denoise = denoiser_of(gaussian_eps(LINEAR), LINEAR, clip=clip)
        latent = ddim_inversion(denoise, LINEAR, bright, grid, 2)
        results.append(float((ddim(denoise, LINEAR, latent, grid) - bright).abs().max()))
    assert results[0] < 0.01 and 0.4 < results[1] < 0.6


def test_guidance_at_its_ends():
    """Chung et al. 2024: CFG++ with 0 is unconditional DDIM; with 1 it is not CFG with 1."""
    without, with_c = (denoiser_of(gaussian_eps(LINEAR, m), LINEAR) for m in (0.0, 0.4))
    grid, x = LINEAR.grid(10), image(4)

    def run(scale, plus):
        return ddim(cfg(with_c, without, scale, plus), LINEAR, x, grid)

    for plus in (True, False):
        torch.testing.assert_close(run(0.0, plus), ddim(without, LINEAR, x, grid))
    torch.testing.assert_close(run(1.0, False), ddim(with_c, LINEAR, x, grid))
    assert (run(1.0, True) - run(1.0, False)).abs().max() > 0.05


def test_cfg_plus_plus_step_by_hand():
    without, with_c = (denoiser_of(gaussian_eps(LINEAR, m), LINEAR) for m in (0.0, 0.4))
    x, t, to, scale = image(5), 600, 560, 0.6
    e_u, e_c = without(x, t).eps, with_c(x, t).eps
    bar, bar_to = float(LINEAR.abar(t)), float(LINEAR.abar(to))
    x0 = (x - math.sqrt(1 - bar) * (e_u + scale * (e_c - e_u))) / math.sqrt(bar)
    by_hand = math.sqrt(bar_to) * x0 + math.sqrt(1 - bar_to) * e_u
    denoise = cfg(with_c, without, scale, True)(x, t)
    torch.testing.assert_close(ddim_step(LINEAR, denoise, to), by_hand)


@pytest.mark.parametrize("prediction, theirs", [("eps", "epsilon"), ("x0", "sample"),
                                                ("v", "v_prediction")])
def test_steps_equal_diffusers(prediction, theirs):
    diffusers = pytest.importorskip("diffusers")
    settings = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02,
                    beta_schedule="linear", prediction_type=theirs, clip_sample=False)
    sampler = diffusers.DDIMScheduler(**settings, set_alpha_to_one=True)
    sampler.set_timesteps(20)
    x, model_output = image(6).float(), torch.randn(3, 1, 8, 8)
    for t in (950, 500, 50):
        found = predict_x0_eps(LINEAR, prediction, model_output, x, t)
        ours = ddim_step(LINEAR, Denoised(*found), t - 50)
        torch.testing.assert_close(ours, sampler.step(model_output, t, x).prev_sample,
                                   rtol=1e-4, atol=1e-4)


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="schedule: expected one of"):
        Schedule(1000, "square")
    with pytest.raises(ValueError, match="spacing: expected one of"):
        LINEAR.grid(10, "log")
    with pytest.raises(ValueError, match=r"strength: expected a number in \(0, 1\]"):
        LINEAR.grid(10, "even", 0.0)
    with pytest.raises(ValueError, match="sampling_steps: expected 1 to 10"):
        Schedule(10).grid(11)
