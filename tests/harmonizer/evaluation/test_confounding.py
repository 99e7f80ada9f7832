"""Is the site also the age or the sex: tests against scipy, words against what they must say."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harmonizer.evaluation.statistics.confounding import (
    age_by_site,
    category_by_site,
    check_confounding,
    number_by_site,
    sex_by_site,
)


def test_age_tests_are_scipys():
    young, old = [21.0, 25, 30, 22, 28], [60.0, 71, 66, 58]
    check = age_by_site(young + old, ["A"] * 5 + ["B"] * 4)
    assert check.tests["ANOVA"] == pytest.approx(stats.f_oneway(young, old).pvalue)
    assert check.tests["Kruskal-Wallis"] == pytest.approx(stats.kruskal(young, old).pvalue)
    assert check.effect > 0.9
    assert check.by_site["A"] == "25 y (21-30), n=5"
    assert check.warning.startswith("Age differs between sites")
    assert "A 25 y, B 64 y" in check.warning


def test_equal_ages_give_no_warning():
    ages = [20.0, 30, 40, 50, 60, 21, 31, 41, 51, 59]
    check = age_by_site(ages, ["A"] * 5 + ["B"] * 5)
    assert check.warning == ""
    assert check.tests["ANOVA"] > 0.5


def test_a_large_difference_that_no_test_can_show_is_named_carefully():
    check = age_by_site([30.0, 60, 70, 80, 75], list("AABBB"))
    assert min(check.tests.values()) > 0.05
    assert check.warning.startswith("Age may differ between sites")


def test_of_many_sites_only_the_ends_are_named():
    sites = np.repeat([f"S{n}" for n in range(8)], 3)
    check = age_by_site([20.0 + 5 * (n // 3) + n % 3 for n in range(24)], sites)
    assert "(from S0 21 y to S7 56 y)" in check.warning
    assert "S3" not in check.warning


def test_unknown_ages_are_said():
    check = age_by_site([None, float("nan"), 30.0, 40.0], ["A", "A", "B", "B"])
    assert check.missing == 2
    assert check.by_site["A"] == "unknown"
    assert check.warning.startswith("It is unknown whether age differs between sites: the value is "
                                    "missing for 2 of 4 subjects, counted once per site")
    assert check.warning.endswith("Fill the column 'age' of participants.tsv to check it.")
    nobody = sex_by_site([None] * 4, ["A", "A", "B", "B"])
    assert nobody.warning.endswith("no subject has a value. Add a column 'sex' to "
                                   "participants.tsv to check it.")


def test_one_site_needs_no_warning():
    assert age_by_site([20.0, 30.0], ["A", "A"]).warning == ""
    assert sex_by_site(["M", "F"], ["A", "A"]).warning == ""


def test_sex_tests_on_two_sites_are_scipys():
    sexes = ["F"] * 9 + ["M"] + ["male"] * 8 + ["female"] * 2
    check = sex_by_site(sexes, ["A"] * 10 + ["B"] * 10)
    table = [[9, 1], [2, 8]]
    assert check.tests["Fisher's exact"] == pytest.approx(stats.fisher_exact(table)[1])
    chi2, p = stats.chi2_contingency(table, correction=False)[:2]
    assert check.tests["chi-squared"] == pytest.approx(p)
    assert check.effect == pytest.approx(np.sqrt(chi2 / 20))
    assert "A: 9 F, 1 M; B: 2 F, 8 M" in check.warning


def test_permutation_p_is_the_exact_one_of_a_small_table():
    """Sites of 2, 2 and 2, the women all at one site or one at each: probabilities counted by hand.

    Two women among six subjects: both at one site in 3 of 15 ways, which is the largest statistic.
    """
    check = sex_by_site(["F", "F", "M", "M", "M", "M"], list("AABBCC"), seed=1)
    assert check.tests["permutation"] == pytest.approx(3 / 15, abs=0.015)
    again = sex_by_site(["F", "F", "M", "M", "M", "M"], list("AABBCC"), seed=1)
    assert check.tests == again.tests


def test_a_subject_counts_once_per_site():
    age, sex = check_confounding(["1", "1", "1", "2"], ["A", "A", "B", "B"],
                                 [30.0, 30.0, 30.0, 50.0], ["M", "M", "M", "F"])
    assert age.n_subjects == sex.n_subjects == 3
    assert age.by_site == {"A": "30 y (30-30), n=1", "B": "40 y (30-50), n=2"}
    assert sex.by_site == {"A": "0 F, 1 M", "B": "1 F, 1 M"}


def test_a_diagnosis_that_is_the_site_cannot_be_told_from_it():
    check = category_by_site("diagnosis", ["HC"] * 5 + ["MS"] * 5, ["aspen"] * 5 + ["birch"] * 5)
    assert check.is_site and check.effect == pytest.approx(1.0)
    assert check.warning.startswith(
        "Diagnosis cannot be told from site: all subjects of a site have the same value "
        "(aspen: 5 HC; birch: 5 MS).")
    for values in (["HC", "MS"] * 5, ["HC"] * 5 + ["MS"] * 4 + ["HC"], ["HC"] * 10):
        assert not category_by_site("diagnosis", values, ["A"] * 5 + ["B"] * 5).is_site
    alone = category_by_site("diagnosis", ["HC", "MS"], ["A", "B"])
    assert not alone.is_site and alone.warning  # one subject a site says nothing
    assert age_by_site([30.0] * 3 + [60.0] * 3, list("AAABBB")).is_site
    assert sex_by_site(["F"] * 3 + ["M"] * 3, list("AAABBB")).warning.startswith(
        "Sex cannot be told from site")


def test_categories_of_three_levels_are_scipys():
    values = ["HC"] * 6 + ["MS"] * 2 + ["NMO"] * 2 + ["HC"] * 2 + ["MS"] * 6 + ["NMO"] * 2
    check = category_by_site("dx", values, ["A"] * 10 + ["B"] * 10)
    chi2, p = stats.chi2_contingency([[6, 2, 2], [2, 6, 2]], correction=False)[:2]
    assert check.tests["chi-squared"] == pytest.approx(p)
    assert check.effect == pytest.approx(np.sqrt(chi2 / 20))
    assert check.by_site["A"] == "6 HC, 2 MS, 2 NMO"


def test_named_columns_are_numbers_or_categories():
    iq = [90.0, 95, 100, 92, 130, 135, 140, 128]
    checks = check_confounding(list("12345678"), list("AAAABBBB"), [None] * 8, [None] * 8, 0, {
        "iq": [str(value) for value in iq], "dx": ["0", "1", "0", "n/a", "1", "0", "1", "0"],
        "age": [1] * 8})
    assert [check.variable for check in checks] == ["age", "sex", "iq", "dx"]
    assert checks[2].tests["ANOVA"] == pytest.approx(stats.f_oneway(iq[:4], iq[4:]).pvalue)
    assert checks[2].warning.startswith("Iq differs between sites")
    assert checks[3].effect_name == "Cramer's V" and checks[3].missing == 1
    assert checks[3].warning == ""
    unknown = number_by_site("iq", [None, None, 3.0], ["A", "A", "B"])
    assert unknown.warning.startswith("It is unknown whether iq differs between sites")
