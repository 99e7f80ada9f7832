"""Baselines of parts of brains: by tissue where tissues are known, by histogram else."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.methods.learned.patch_baseline import match_histogram, match_tissues


def part(levels: tuple[float, float, float], counts: tuple[int, int, int], std: float = 4.0,
         seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n,) intensities of so many voxels of each tissue, and their (3, n) probabilities."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(3), counts)
    values = np.array(levels)[code] + std * rng.standard_normal(len(code))
    return values.astype(np.float32), np.eye(3, dtype=np.float32)[:, code]


def test_tissues_become_as_bright_as_the_others_whatever_their_order_and_number():
    """Folded contrast, and a subject with twice the fluid: a histogram can do neither."""
    x, own = part((120, 60, 90), (400, 900, 700))
    y, theirs = part((30, 100, 150), (200, 1000, 800), std=8, seed=1)
    after = match_tissues(x, own, y, theirs)
    assert after.dtype == np.float32
    for c, (level, std) in enumerate(zip((30, 100, 150), (4, 8, 8))):  # 4: held at 4 gains
        assert after[own[c] > 0].mean() == pytest.approx(level, abs=1)
        assert after[own[c] > 0].std() == pytest.approx(std, rel=0.1)
    by_histogram = match_histogram(x, y)
    assert abs(by_histogram[own[0] > 0].mean() - 30) > 50


def test_within_a_tissue_the_order_stays():
    x, own = part((30, 100, 150), (300, 300, 300))
    y, theirs = part((60, 90, 100), (300, 300, 300), seed=1)
    after = match_tissues(x, own, y, theirs)
    for tissue in own:
        there = tissue > 0
        np.testing.assert_array_equal(np.argsort(after[there]), np.argsort(x[there]))


def test_what_is_missing_gets_the_overall_gain_and_nothing_is_negative():
    x, own = part((30, 100, 150), (3, 300, 300))
    y, theirs = part((60, 200, 300), (300, 300, 300), seed=1)
    after = match_tissues(x, own, y, theirs)
    np.testing.assert_allclose(after[:3], x[:3] * y.mean() / x.mean(), rtol=1e-5)
    nobodys = match_tissues(x, own * 0, y, theirs)
    np.testing.assert_allclose(nobodys, x * y.mean() / x.mean(), rtol=1e-5)
    dark = match_tissues(*part((50, 100, 150), (300, 300, 300), 12),
                             *part((4, 100, 150), (300, 300, 300), 3, 1))
    assert dark.min() == 0


def test_a_histogram_is_taken_over():
    x, _ = part((30, 100, 150), (300, 300, 300))
    y, _ = part((60, 90, 100), (300, 300, 300), seed=1)
    after = match_histogram(x, y)
    p = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(np.quantile(after, p), np.quantile(y, p), atol=1.0)
    np.testing.assert_array_equal(np.argsort(after), np.argsort(x))
