"""Quantile functions, distances between sites, eta squared: against scipy and closed forms."""
from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.distribution import (
    LEVELS,
    QuantileRow,
    QuantileTable,
    distances_to,
    eta_squared,
    intensity_range,
    match_moments,
    quantile_function,
    site_distances,
    site_means,
    wasserstein,
)


def test_wasserstein_agrees_with_scipy_on_samples():
    rng = np.random.default_rng(0)
    first, second = rng.gamma(4, 10, 20000), rng.normal(60, 15, 20000)
    ours = wasserstein(quantile_function(first), quantile_function(second))
    assert ours == pytest.approx(stats.wasserstein_distance(first, second), rel=0.01)


def test_wasserstein_closed_forms():
    """A shift by d costs d; N(0, s) against N(0, 2 s) costs s E|z| = s sqrt(2 / pi)."""
    normal = stats.norm.ppf(LEVELS)
    assert wasserstein(normal, normal + 3.5) == pytest.approx(3.5, abs=1e-12)
    assert wasserstein(10 * normal, 20 * normal) == pytest.approx(10 * np.sqrt(2 / np.pi), rel=0.01)


def test_range_is_99_percent_of_a_uniform():
    assert intensity_range(200.0 * LEVELS) == pytest.approx(198.0, rel=1e-9)


def test_moment_matching_undoes_gain_and_offset():
    target = stats.norm.ppf(LEVELS, 100, 12)
    scans = np.stack([4 * target + 30, 0.2 * target - 1, np.full(200, 7.0)])
    matched = match_moments(scans, target)
    assert np.allclose(matched[:2], target, atol=1e-9)
    assert np.allclose(matched[2], target.mean())  # a constant scan has no spread to match


def test_site_distances_are_symmetric_and_sorted():
    base = stats.norm.ppf(LEVELS)
    quantiles = np.stack([base + 4, base, base + 2, base + 6])
    labels, matrix = site_distances(quantiles, ["b", "a", "a", "b"])
    assert labels == ["a", "b"]
    assert matrix == pytest.approx(np.array([[0, 4], [4, 0]]), abs=1e-12)
    assert site_means(quantiles, ["b", "a", "a", "b"])["a"] == pytest.approx(base + 1)
    assert distances_to(base, quantiles) == pytest.approx([4, 0, 2, 6])


def test_eta_squared_is_that_of_the_anova_identity():
    """F = eta2 / (1 - eta2) * (n - k) / (k - 1)."""
    rng = np.random.default_rng(5)
    groups = [rng.normal(mean, 2, size) for mean, size in ((0, 12), (1, 9), (3, 15))]
    values, labels = np.concatenate(groups), np.repeat(["x", "y", "z"], [12, 9, 15])
    eta = eta_squared(values, labels)
    f = eta / (1 - eta) * (36 - 3) / (3 - 1)
    assert f == pytest.approx(stats.f_oneway(*groups).statistic, rel=1e-9)


def test_eta_squared_ends_and_undefined_cases():
    assert eta_squared([1, 1, 2, 2], ["a", "a", "b", "b"]) == pytest.approx(1.0)
    assert eta_squared([1, 2, 1, 2], ["a", "a", "b", "b"]) == pytest.approx(0.0)
    assert eta_squared([1, 1, 2, 2, np.nan], ["a", "a", "b", "b", "b"]) == pytest.approx(1.0)
    for values, labels in (([1, 2, 3], ["a"] * 3), ([1, 2], ["a", "b"]), ([5, 5, 5], "aab"),
                           ([500.0, 500.0, 500.001], "aab"), ([], [])):
        assert np.isnan(eta_squared(values, list(labels)))


def test_empty_and_nan_intensities_are_refused():
    with pytest.raises(InputError, match="got 0 values"):
        quantile_function(np.array([]))
    with pytest.raises(InputError, match="1 of them not finite"):
        quantile_function(np.array([1.0, np.nan]))


def test_quantile_table_survives_the_disk(tmp_path):
    rows = tuple(QuantileRow(f"sub-{n}_T1w", str(n), "site\tA", "T1w", "before", tissue,
                             np.sort(np.random.default_rng(n).normal(500, 100, 200)))
                 for n in range(2) for tissue in ("brain", "GM"))
    path = QuantileTable(rows).to_tsv(tmp_path / "metrics_quantiles.tsv")
    back = QuantileTable.from_tsv(path)
    assert np.allclose(back.matrix(), QuantileTable(rows).matrix(), rtol=1e-6)
    assert back.column("site") == ["site A"] * 4  # a tab would have broken the table
    assert back.by_tissue()["GM"].shape == (2, 200)
    dictionary = json.loads((tmp_path / "metrics_quantiles.json").read_text())
    assert list(dictionary) == path.read_text().splitlines()[0].split("\t")


def test_quantile_table_with_a_hole_is_refused(tmp_path):
    row = QuantileRow("s", "1", "A", "T1w", "before", "brain", np.arange(200.0))
    path = QuantileTable((row,)).to_tsv(tmp_path / "q.tsv")
    path.write_text(path.read_text().replace("\t17\t", "\tn/a\t"))
    with pytest.raises(InputError, match="every quantile column of scan s"):
        QuantileTable.from_tsv(path)
