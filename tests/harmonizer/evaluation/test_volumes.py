"""Site and subject in tissue ratios: a hand-worked example, statsmodels, SciPy, known truths."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.cohort import Scan
from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.volumes import (
    _mixed_model,
    balanced_variance_components,
    paired_t_tests,
    site_partial_eta_squared,
    variance_components,
    volume_tests,
)
from harmonizer.evaluation.statistics.design import Design, dummies, partial_eta_squared_test

HAND = np.array([[2.0, 4.0], [4.0, 8.0], [6.0, 9.0]])
"""Worked by hand: subject means 3, 6, 7.5, site means 4, 7, grand mean 5.5. Residuals 0.5, -0.5;
-0.5, 0.5; 0, 0: SS_error 1, MS_error 1/2. SS_subjects 2 (6.25 + 0.25 + 4) = 21, MS_subjects 10.5,
var_subject (10.5 - 0.5) / 2 = 5. var_fixed = 6 * 1.5^2 / 5 = 2.7. Total 8.2."""


def traveling(n_subjects: int, sites: str, seed: int = 0, shift: float = 1.0, subject: float = 1.0,
               noise: float = 0.2) -> tuple[np.ndarray, Design]:
    rng = np.random.default_rng(seed)
    who = [f"{i:03d}" for i in range(n_subjects) for _ in sites]
    where = list(sites) * n_subjects
    brain = rng.normal(0, subject, n_subjects)
    y = (np.repeat(brain, len(sites)) + shift * np.array([sites.index(s) for s in where])
         + rng.normal(0, noise, len(who)))
    return y, Design(tuple(who), tuple(where), np.full(len(who), 40.0), ("F",) * len(who))


def nested(n: int, shift: float, seed: int = 0) -> tuple[np.ndarray, Design]:
    """n subjects at A or B; y = -0.02 age + shift at B + noise, subjects at B 25 years older."""
    rng = np.random.default_rng(seed)
    sites = np.array(list("AB" * (n // 2)))
    ages = rng.uniform(20, 70, n) + 25 * (sites == "B")
    y = -0.02 * ages + shift * (sites == "B") + rng.normal(0, 0.1, n)
    sexes = tuple(rng.choice(["F", "M"], n))
    return y, Design(tuple(f"{i:03d}" for i in range(n)), tuple(sites), ages, sexes)


def test_the_hand_worked_example():
    components = balanced_variance_components(HAND)
    assert (components.site, components.subject, components.residual) == pytest.approx((2.7, 5.0, 0.5))
    assert components.marginal_r2 == pytest.approx(2.7 / 8.2)
    assert components.conditional_r2 == pytest.approx(7.7 / 8.2)


def test_the_closed_form_is_statsmodels_mixed_model():
    y, design = traveling(12, "ABC")
    ours = variance_components(y, design.sites, design.subjects)
    theirs = _mixed_model(y, np.array(design.sites), np.array(design.subjects))
    for part in ("site", "subject", "residual"):
        assert getattr(ours, part) == pytest.approx(getattr(theirs, part), rel=1e-3)


def test_on_the_boundary_too():
    """Subjects who differ less than chance: their variance is zero in both."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(8, 3))
    table -= table.mean(axis=1, keepdims=True)
    ours = balanced_variance_components(table)
    theirs = _mixed_model(table.ravel(), np.array(list("ABC") * 8), np.repeat(np.arange(8), 3))
    assert ours.subject == 0.0 and theirs.subject == pytest.approx(0.0, abs=1e-4)
    assert ours.residual == pytest.approx(theirs.residual, rel=1e-3)


def test_an_incomplete_table_recovers_the_truth():
    y, design = traveling(150, "ABCD", shift=0.5, subject=1.0, noise=0.3)
    keep = np.flatnonzero(np.random.default_rng(0).uniform(size=len(y)) < 0.7)
    part = design.select_rows(keep)
    components = variance_components(y[keep], part.sites, part.subjects)
    assert components.subject == pytest.approx(1.0, rel=0.25)
    assert components.residual == pytest.approx(0.09, rel=0.15)
    assert components.site == pytest.approx(0.25 * 1.25, rel=0.15)


def test_gain_and_offset_of_the_values_do_not_matter():
    y, design = traveling(6, "AB")
    one = variance_components(y, design.sites, design.subjects)
    two = variance_components(3 - 0.001 * y, design.sites, design.subjects)
    assert two.marginal_r2 == pytest.approx(one.marginal_r2, rel=1e-6)


def test_nested_subjects_are_refused_by_the_mixed_model():
    y, design = nested(20, 0.5)
    with pytest.raises(InputError, match="site and subject cannot be separated"):
        variance_components(y, design.sites, design.subjects)
    with pytest.raises(InputError, match="at least 2 subjects at 2 sites"):
        balanced_variance_components(HAND[:1])


def test_partial_eta_is_statsmodels_type_two():
    import pandas as pd
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    y, design = nested(40, 0.3)
    table = pd.DataFrame({"y": y, "site": design.sites, "age": design.ages, "sex": design.sexes})
    anova = anova_lm(smf.ols("y ~ C(site) + age + C(sex)", table).fit(), typ=2)
    ss = anova["sum_sq"]
    share, p, used = site_partial_eta_squared(y, design)
    assert share == pytest.approx(ss["C(site)"] / (ss["C(site)"] + ss["Residual"]), abs=1e-10)
    assert p == pytest.approx(anova["PR(>F)"]["C(site)"], rel=1e-8)
    assert used == ["age", "sex"]


def test_age_that_differs_between_sites_is_not_taken_for_the_site():
    y, design = nested(60, 0.0)
    with_age = site_partial_eta_squared(y, design)[0]
    blind = site_partial_eta_squared(y, Design(design.subjects, design.sites, np.full(60, np.nan),
                                 design.sexes))[0]
    assert with_age < 0.08 < blind


def test_paired_t_is_scipys_with_benjamini_hochberg():
    from scipy.stats import ttest_rel

    y, design = traveling(8, "ABC", shift=0.3)
    tests = paired_t_tests({"GM": y}, design, "A")
    table = y.reshape(8, 3)
    expected = [ttest_rel(table[:, i], table[:, 0]).pvalue for i in (1, 2)]
    assert [t.p for t in tests] == pytest.approx(expected, rel=1e-9)
    assert tests[1].effect == pytest.approx((table[:, 2] - table[:, 0]).mean())
    assert [t.p_corrected for t in tests] == pytest.approx(
        [max(expected[0], 0) if expected[0] > expected[1] else 2 * expected[0],
         min(2 * expected[1], expected[0])], rel=1e-9)
    few = paired_t_tests({"GM": y[:6]}, design.select_rows(range(6)), "A")
    assert few[0].note.startswith("2 subjects")


def test_a_site_effect_is_found_and_its_removal_seen_and_the_subject_stays():
    y, design = traveling(10, "ABCD", shift=1.0)
    raw = {t.name: t for t in volume_tests({"GM": y}, design, "A") if t.name != "paired_t"}
    clean, _ = traveling(10, "ABCD", shift=0.0)
    done = {t.name: t for t in volume_tests({"GM": clean}, design, "A") if t.name != "paired_t"}
    assert raw["marginal_r2"].effect > 0.4
    assert raw["marginal_r2"].low < raw["marginal_r2"].effect < raw["marginal_r2"].high
    assert done["marginal_r2"].effect < 0.05 and done["conditional_r2"].effect > 0.9
    assert set(raw) == {"marginal_r2", "conditional_r2"}  # and no eta: not needed here


def test_one_mean_image_leaves_no_person():
    _, design = traveling(6, "ABC")
    flat = volume_tests({"GM": np.full(18, 0.4) + 1e-17}, design, "A")
    assert not any(t.known for t in flat)
    noise, _ = traveling(6, "ABC", shift=0.0, subject=0.0)
    done = {t.name: t for t in volume_tests({"GM": noise}, design, "A")}
    assert done["conditional_r2"].effect < 0.5


def test_the_design_says_which_model_it_is():
    y, design = nested(20, 0.5)
    tests = {t.name: t for t in volume_tests({"GM": y}, design, "A")}
    assert tests["site_partial_eta_squared"].effect > 0.5
    assert "subjects differ between sites too" in tests["site_partial_eta_squared"].note
    assert not tests["marginal_r2"].known
    assert tests["marginal_r2"].note.startswith("0 subjects were scanned at two or more sites")
    assert "paired_t" not in tests


def test_designs_are_recognized_and_columns_typed():
    scans = [Scan(f"s{i}", who, None, "T1w", site, "t", "i", "m", age, sex, {"iq": iq, "dx": dx})
             for i, (who, site, age, sex, iq, dx) in enumerate([
                 ("1", "A", 20.0, "F", "100", "pd"), ("1", "B", 21.0, "F", "101", "pd"),
                 ("2", "A", None, "male", "n/a", "")])]
    design = Design.of(scans)
    assert design.kind == "mixed"
    assert design.select_rows([0, 1]).kind == "traveling" and design.select_rows([1, 2]).kind == "nested"
    assert design.known("age").tolist() == [True, True, False]
    assert design.column("sex").tolist() == ["F", "F", "M"]
    assert design.column("iq")[:2].tolist() == [100.0, 101.0] and np.isnan(design.column("iq")[2])
    assert design.known("dx").tolist() == [True, True, False]
    assert design.adjusting(("age", "sex"))[1] == ["sex"]
    with pytest.raises(InputError, match="'iqq' is no column of the cohort. Did you mean 'iq'"):
        design.column("iqq")
    assert dummies(["b", "a", "c"], first="c").tolist() == [[0, 1], [1, 0], [0, 0]]


def test_nothing_left_to_test_on():
    assert np.isnan(partial_eta_squared_test(np.arange(3.0), dummies(list("abc")))).all()
    assert np.isnan(partial_eta_squared_test(np.full(9, 0.1), dummies(list("aaabbbccc")))).all()
