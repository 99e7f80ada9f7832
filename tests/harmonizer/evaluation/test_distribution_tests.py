"""Tests of gray level distributions: against SciPy's own, and a known effect found and gone."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harmonizer.evaluation.metrics.distribution import LEVELS, quantile_function, site_means
from harmonizer.evaluation.statistics.distribution_tests import (
    anderson_darling,
    density,
    distance_between_sites,
)

SITES = ["A"] * 8 + ["B"] * 8
SUBJECTS = [str(i) for i in range(16)]


def curves(offset: float, seed: int = 0) -> np.ndarray:
    """16 subjects, brightness varying by 2 between them; site B is brighter by `offset`."""
    rng = np.random.default_rng(seed)
    return np.stack([quantile_function(rng.normal(100 + rng.normal(0, 2) + offset * (s == "B"), 10,
                                                  4000)) for s in SITES])


def test_the_statistic_is_scipys_on_the_sites_mean_gray_levels():
    table = curves(3.0)
    test = anderson_darling(table, SITES, resamples=199)
    with pytest.warns(UserWarning, match="p-value"):
        expected = stats.anderson_ksamp(list(site_means(table, SITES).values()))
    assert test.effect == pytest.approx(expected.statistic, abs=1e-12)
    assert test.n == 16


def test_p_is_not_capped_at_a_quarter():
    same = np.repeat(curves(0.0)[:1], 4, axis=0)
    test = anderson_darling(same, list("AABB"), resamples=199)
    assert test.p > 0.9
    different = anderson_darling(curves(30.0), SITES, resamples=199, seeds=(0, 1))
    assert different.p == pytest.approx(1 / 200, abs=1e-9)
    assert "2 x 199 permutations" in different.method


def test_one_site_has_nothing_to_compare():
    test = anderson_darling(curves(0.0)[:8], SITES[:8])
    assert not test.known and test.note.startswith("1 sites")


def test_a_known_distance_is_found_and_is_more_than_chance():
    test = distance_between_sites(curves(8.0), SITES, SUBJECTS, 50.0, permutations=300)
    assert test.effect == pytest.approx(8 / 50, abs=0.05)
    assert test.p < 0.01
    assert test.low < test.effect < test.high


def test_no_distance_is_chance_though_not_zero():
    test = distance_between_sites(curves(0.0), SITES, SUBJECTS, 50.0, permutations=300)
    assert 0 < test.effect < 0.04
    assert test.p > 0.05


def test_too_few_subjects_get_no_p():
    test = distance_between_sites(curves(1.0)[:9], SITES[:9], SUBJECTS[:9], 50.0)
    assert not test.known and test.note == "fewer than 2 subjects at B"
    assert distance_between_sites(curves(1.0)[:8], SITES[:8], SUBJECTS[:8], 50.0).note == (
        "one site only")


def test_the_density_of_a_normal_distribution():
    grid = np.linspace(-8, 8, 321)
    found = density(stats.norm.ppf(LEVELS), grid, 0.3)
    expected = stats.norm.pdf(grid, scale=np.sqrt(1 + 0.3**2))
    assert found == pytest.approx(expected, abs=0.003)
    assert found.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-3)
