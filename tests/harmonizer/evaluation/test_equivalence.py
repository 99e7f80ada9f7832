"""Equivalence: intervals that cover, margins that decide, and answers on simulated sites."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harmonizer.evaluation.questions.biology import effect_losses
from harmonizer.evaluation.questions.site_features import principal_components, site_feature_tests
from harmonizer.evaluation.statistics.design import Design
from harmonizer.evaluation.statistics.distribution_tests import excess_distance
from harmonizer.evaluation.statistics.equivalence import (
    exact_fraction_interval,
    interval_of_draws,
    interval_of_mean,
    noncentrality,
    subjects_needed,
    variance_fraction,
)
from harmonizer.evaluation.statistics.resampling import Statistics
from harmonizer.evaluation.table import RESCALED, stage_of
from harmonizer.evaluation.verdicts import compute_verdicts


def test_exact_interval_of_a_fraction():
    assert exact_fraction_interval(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert exact_fraction_interval(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert exact_fraction_interval(2, 10) == pytest.approx((0.0252, 0.5561), abs=1e-4)
    assert exact_fraction_interval(0, 0) == (0.0, 1.0)


def test_draws_give_the_standard_error_and_not_the_place():
    draws = np.random.default_rng(0).normal(3.0, 0.1, 4000)
    assert interval_of_draws(0.0, draws) == pytest.approx((-0.196, 0.196), abs=0.01)
    assert interval_of_draws(0.0, draws, 0.5) == pytest.approx((-0.98, 0.98), abs=0.01)
    assert math.isnan(interval_of_draws(0.0, [math.nan] * 5)[0])
    assert subjects_needed(50, 0.1, 0.1) == 193 and subjects_needed(50, 0.01, 0.1) == 50
    low, high, error = interval_of_mean([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((-0.4841, 4.4841), abs=1e-3)
    assert math.isnan(interval_of_mean([1.0, 2.0])[0])


def test_the_interval_of_a_variance_fraction_covers_the_truth():
    rng = np.random.default_rng(1)
    site = np.repeat([0, 1, 2], 20)
    shift = np.array([-1.0, 0.0, 1.0])[site] * 0.6
    truth, covered = shift.var() / (shift.var() + 1), []
    from scipy.stats import f_oneway

    for _ in range(300):
        y = shift + rng.normal(size=60)
        f = f_oneway(*(y[site == s] for s in range(3))).statistic
        found = variance_fraction(f, (2, 57), 60, 1.0, 1.0)
        covered.append(found.low <= truth <= found.high)
        assert found.low <= found.effect <= found.high
    assert 0.92 < np.mean(covered) < 0.98


def test_a_very_large_f_has_a_finite_interval():
    for f in (1e4, 1e6, 1e9):
        best, low, high = noncentrality(f, (2, 57))
        assert 0 < low < best < high < math.inf


def simulated(n: int, left: float, seed: int = 0) -> tuple[Statistics, Design]:
    """Rows of a study: the site shifts features by 2 std before, by 1 rescaled, `left` after."""
    rng = np.random.default_rng(seed)
    sites = tuple("AB" * (n // 2))
    ages = rng.uniform(20, 80, n)
    design = Design(tuple(map(str, range(n))), sites, ages, tuple(rng.choice(["F", "M"], n)))
    clean = rng.normal(size=(n, 20)) + 0.04 * ages[:, None]
    levels = np.linspace(0, 1, 200) + 0.1 * rng.normal(size=(n, 1))
    at_b = (np.array(sites) == "B")[:, None]
    rows = []
    for name, shift in (("", 2.0), (RESCALED, 1.0), ("x", left)):
        table = clean + shift * at_b
        tests = (*site_feature_tests({f"f{i}": c for i, c in enumerate(table.T)}, design),
                 excess_distance(levels + 0.1 * shift * at_b, sites, design.subjects,
                                 permutations=60))
        rows += [replace(test, **stage_of(name)) for test in tests]
    return Statistics(tuple(rows)), design


@pytest.mark.parametrize("n,left,words", [
    (400, 0.0, "Removed"), (400, 0.5, "Reduced"), (400, 2.0, "Still there"),
    (24, 0.0, "Reduced"), (24, 2.0, "Still there")])
def test_simulated_sites_get_the_answer_that_is_right(n, left, words):
    statistics, _ = simulated(n, left)
    assert compute_verdicts(statistics, "x")[0].words == words


def test_a_small_study_does_not_show_that_a_small_effect_is_gone():
    statistics, _ = simulated(24, 0.0)
    weak = Statistics(tuple(replace(row, effect=0.1, low=0.0, high=0.3)
                            if row.stage == "before" and row.known else row for row in statistics))
    found = compute_verdicts(weak, "x")[0]
    assert found.words.startswith("Not detectable with n = 24")
    assert "smallest detectable effect" in found.sentence


def test_site_effects_of_a_feature_are_found_one_by_one():
    rng = np.random.default_rng(3)
    n = 120
    sites = np.array(list("ABC") * 40)
    ages = rng.uniform(20, 80, n)
    design = Design(tuple(map(str, range(n))), tuple(sites), ages, ("F",) * n)
    noise = rng.normal(size=(n, 4))
    features = {"additive": noise[:, 0] + 2 * (sites == "B"),
                "scaled": noise[:, 1] * np.where(sites == "C", 4, 1),
                "age": 0.2 * ages + noise[:, 2], "constant": np.ones(n)}
    rows = {(row.name, row.reference): row for row in site_feature_tests(features, design)}
    assert rows["site_variance", "additive"].low > 0.2
    assert rows["site_variance", "additive"].p_corrected < 1e-6
    assert rows["site_variance", "age"].high < 0.1
    assert rows["site_scale", "scaled"].effect > 3 and rows["site_scale", "scaled"].p < 1e-6
    assert rows["site_scale", "additive"].p > 0.01
    assert rows["covariates_variance", "age"].effect > 0.9
    assert rows["covariates_variance", "additive"].effect < 0.1
    assert not rows["site_variance", "constant"].known
    assert rows["component_age_correlation", "PC1"].known
    pairs = {(row.site, row.reference): row for row in site_feature_tests(features, design)
             if row.name == "site_mahalanobis"}
    assert pairs["A", "B"].low > 1 and pairs["A", "C"].effect < 0.7
    assert pairs["A", "B"].low < 2.1 < pairs["A", "B"].high


def test_the_site_of_traveling_subjects_is_compared_within_subjects():
    """A site effect that is small between subjects is seen within them."""
    rng = np.random.default_rng(4)
    subject = np.repeat(np.arange(12), 3)
    sites = np.array(list("ABC") * 12)
    y = 5 * rng.normal(size=12)[subject] + 0.1 * rng.normal(size=36) + 0.5 * (sites == "B")
    design = Design(tuple(map(str, subject)), tuple(sites), np.full(36, math.nan), ("",) * 36)
    row = site_feature_tests({"y": y}, design)[0]
    truth = 0.5**2 * 2 / 9
    assert row.p < 1e-6 and row.effect == pytest.approx(truth / (truth + 25), rel=0.8)
    assert row.high < 0.05


def test_principal_components_are_those_of_standardized_features():
    rng = np.random.default_rng(5)
    common = rng.normal(size=50)
    table = np.stack([common, 1000 * common, rng.normal(size=50), np.ones(50)], axis=1)
    scores, fractions = principal_components(table)
    assert scores.shape[0] == 50 and fractions[0] == pytest.approx(2 / 3, abs=0.05)
    assert abs(np.corrcoef(scores[:, 0], common)[0, 1]) > 0.97
    assert fractions.sum() == pytest.approx(1.0)


def test_a_biological_effect_is_kept_halved_or_not_established():
    rng = np.random.default_rng(6)
    n = 100
    ages = rng.uniform(20, 80, n)
    design = Design(tuple(map(str, range(n))), tuple("AB" * 50), ages, ("F",) * n)
    y = -0.05 * ages + 0.5 * rng.normal(size=n)
    half = y + 0.04 * ages
    losses = {name: effect_losses({"before": {"GM": y}}, {"GM": after}, design, ["age"])[0]
              for name, after in (("kept", y + 0.01 * rng.normal(size=n)), ("half", half))}
    assert losses["kept"].high < 0.1 and losses["kept"].method.startswith("1 - after / before")
    assert losses["half"].low > 0.1
    missing = effect_losses({"before": {"GM": y}}, {"GM": np.full(n, math.nan)}, design, ["age"])
    assert missing[0].effect == 1.0 and "0 subjects have the feature" in missing[0].method
    noise = {"before": {"GM": rng.normal(size=n)}}
    assert effect_losses(noise, {"GM": y}, design, ["age"]) == ()
    base = {**noise, "rescaled": {"GM": y}}
    assert "after / rescaled" in effect_losses(base, {"GM": half}, design, ["age"])[0].method


def test_a_site_that_is_confounded_with_a_covariate_has_no_number():
    n = 20
    sites = tuple("AB" * (n // 2))
    design = Design(tuple(map(str, range(n))), sites, np.full(n, math.nan),
                    tuple("M" if site == "A" else "F" for site in sites))
    rows = site_feature_tests({"f": np.random.default_rng(0).normal(size=n)}, design)
    assert [row.note for row in rows] == ["the site cannot be told from age and sex"]


def test_images_that_are_all_alike_have_no_site_effect_and_no_number():
    n = 20
    design = Design(tuple(map(str, range(n))), tuple("AB" * (n // 2)), np.full(n, math.nan),
                    ("F",) * n)
    rows = site_feature_tests({"f": np.ones(n), "g": np.full(n, 2.0)}, design)
    assert not any(row.known for row in rows)
    assert all("information about subjects is lost" in row.note for row in rows
               if row.name in ("site_variance", "features_within_margin"))
