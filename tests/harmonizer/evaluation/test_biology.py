"""Age and sex before and after: statsmodels' numbers, leakage, effects that stay and that go."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.evaluation.questions.biology import (
    age_by_scanner,
    age_tests,
    effect_size,
    effect_tests,
    predict_age,
)
from harmonizer.evaluation.statistics.design import Design


def make_design(n: int = 60, seed: int = 0) -> Design:
    rng = np.random.default_rng(seed)
    return Design(tuple(f"{i:03d}" for i in range(n)), tuple("AB" * (n // 2)),
                  rng.uniform(20, 80, n), tuple(rng.choice(["F", "M"], n)),
                  {"dx": tuple(rng.choice(["hc", "pd", "msa"], n)),
                   "iq": tuple(f"{v:.1f}" for v in rng.normal(100, 15, n))})


def brains(design: Design, site: float = 0.0, seed: int = 1) -> np.ndarray:
    """Three features: falling with age, larger in men, noise; site B shifted by `site`."""
    rng = np.random.default_rng(seed)
    n = len(design)
    noise = rng.normal(0, 0.1, (n, 3))
    noise[:, 0] += -0.02 * design.ages
    noise[:, 1] += 0.2 * (np.array(design.sexes) == "M")
    return noise + site * (np.array(design.sites) == "B")[:, None]


def test_age_is_predicted_across_sites_and_a_site_effect_breaks_it():
    design = make_design()
    clean = brains(design)
    raw = brains(design, site=0.6)
    before = age_tests(raw, raw, design, "A")
    after = age_tests(raw, clean, design, "A")
    assert before[0].effect < 0.3
    assert after[0].effect > 0.85
    assert after[0].low < after[0].effect < after[0].high
    assert after[1].unit == "years" and 3 < after[1].effect < 7
    assert after[0].n == 30


def test_one_mean_image_predicts_nobodys_age():
    design = make_design()
    flat = np.repeat(brains(design).mean(axis=0, keepdims=True), 60, axis=0)
    assert age_tests(brains(design), flat, design, "A")[0].effect <= 0.0


def test_a_traveller_is_never_predicted_by_a_fit_that_knows_him():
    """Features that only name the subject, and his age by heart: nothing can be predicted."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(20), 2)
    design = Design(tuple(str(i) for i in who), tuple("AB" * 20), rng.uniform(20, 80, 20)[who],
                    ("F",) * 40)
    named = np.eye(20)[who]
    predicted = predict_age(named, named, design, "A")
    assert np.isfinite(predicted[1::2]).all() and np.isnan(predicted[::2]).all()
    assert age_tests(named, named, design, "A")[0].effect < 0.1


def test_too_few_ages_are_said():
    design = make_design(12)
    tests = age_tests(brains(design), brains(design), design, "A")
    assert not tests[0].known
    assert tests[0].note == ("6 subjects with an age at the target 'A' and 6 elsewhere; 8 and 5 are "
                             "needed")


def test_one_age_for_all_gives_no_number():
    design = make_design()
    same = Design(design.subjects, design.sites, np.full(60, 40.0), design.sexes)
    for test in (*age_tests(brains(design), brains(design), same, "A"),
                 *age_by_scanner(brains(design)[:, 0], same, "A")):
        assert not test.known and test.p is None and "age" in test.note


def test_interactions_are_statsmodels():
    import pandas as pd
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    design = make_design()
    volume = brains(design)[:, 0] * np.where(np.array(design.sites) == "B", 2.0, 1.0)
    tests = {t.name: t for t in age_by_scanner(volume, design, "A")}
    table = pd.DataFrame({"age": design.ages, "site": design.sites,
                          "v": (volume - volume.mean()) / volume.std(ddof=1)})
    full = smf.ols("age ~ v * C(site)", table).fit()
    part = smf.ols("age ~ v + C(site)", table).fit()
    one = tests["age_interaction"]
    assert (one.effect, one.p) == pytest.approx(
        (full.params["v:C(site)[T.B]"], full.pvalues["v:C(site)[T.B]"]), rel=1e-6)
    assert (one.site, one.reference) == ("B", "A")
    assert tests["age_rmse"].effect == pytest.approx(np.sqrt(full.mse_resid))
    assert tests["age_interaction_any"].p == pytest.approx(anova_lm(part, full)["Pr(>F)"][1])
    assert tests["age_interaction_any"].effect == pytest.approx(full.rsquared - part.rsquared)
    assert one.p < 1e-3
    same = {t.name: t for t in age_by_scanner(brains(design)[:, 0], design, "A")}
    assert same["age_interaction"].p > 0.05


def test_repeated_scans_do_not_make_more_subjects():
    design = make_design(24)
    volume = brains(design)[:, 0]
    twice = design.select_rows(np.repeat(np.arange(24), 2))
    once = {t.name: t for t in age_by_scanner(volume, design, "A")}
    again = {t.name: t for t in age_by_scanner(np.repeat(volume, 2), twice, "A")}
    assert again["age_interaction"].n == 24
    width = [t["age_interaction"].high - t["age_interaction"].low for t in (once, again)]
    assert width[1] > 0.75 * width[0]  # taken for subjects they would shrink it to 0.7
    assert again["age_interaction_any"].p is None
    assert "clustered by subject" in again["age_interaction"].method


def test_cohens_d_is_the_adjusted_difference_over_the_residual_sd():
    import statsmodels.api as sm

    design = make_design()
    y = brains(design, site=0.3)[:, 1]
    sex = (np.array(design.sexes) == "M").astype(float)
    fit = sm.OLS(y, np.column_stack([np.ones(60), sex, np.array(design.sites) == "B",
                                     design.ages])).fit()
    kind, d, p = effect_size(y, design, "sex")
    assert kind == "cohens_d"
    assert d == pytest.approx(fit.params[1] / np.sqrt(fit.mse_resid), rel=1e-9)
    assert p == pytest.approx(fit.pvalues[1], rel=1e-6)
    assert d == pytest.approx(2.0, abs=0.6)  # 0.2 / 0.1


def test_kinds_of_covariates():
    design = make_design()
    y = brains(design)[:, 0]
    assert effect_size(y, design, "age")[:2] == (
        "standardized_beta", pytest.approx(-0.96, abs=0.03))
    assert effect_size(y, design, "iq")[0] == "standardized_beta"
    kind, share, p = effect_size(y, design, "dx")
    assert kind == "partial_eta_squared" and 0 <= share < 0.2 and p > 0.01


def test_effects_survive_or_are_lost():
    design = make_design()
    kept = effect_tests({"x": brains(design)[:, 1]}, design, ["sex"])[0]
    assert kept.reference == "x | sex: M - F"
    assert kept.low > 1.0 and kept.p < 1e-6
    lost = effect_tests({"x": np.full(60, 0.3)}, design, ["sex"])[0]
    assert not lost.known and "the same in every scan" in lost.note


def test_what_cannot_be_said_is_explained():
    design = make_design()
    confounded = Design(design.subjects, design.sites, design.ages,
                        tuple("F" if s == "A" else "M" for s in design.sites))
    assert "cannot be told from site" in effect_tests(
        {"x": brains(design)[:, 1]}, confounded, ["sex"])[0].note
    one = Design(design.subjects, design.sites, design.ages, ("F",) * 60)
    assert effect_tests({"x": brains(design)[:, 0]}, one, ["sex"])[0].note == (
        "all subjects have the same value")
    few = design.select_rows(range(5))
    assert effect_tests({"x": brains(few)[:, 0]}, few, ["age"])[0].note.startswith("5 subjects")
    assert age_by_scanner(brains(few)[:, 0], few, "A")[0].note == (
        "fewer than 3 subjects with an age at B")
