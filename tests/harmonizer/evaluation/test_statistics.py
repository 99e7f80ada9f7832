"""Intervals, tests and corrections against SciPy, statsmodels and counted by hand."""
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harmonizer.errors import InputError
from harmonizer.evaluation.statistics.resampling import (
    Statistics,
    Test,
    bootstrap_interval,
    chance_level,
    correct_p_values,
    corrected,
    not_possible,
    paired_wilcoxon,
    shuffle_labels,
)

P_VALUES = [0.01, 0.04, 0.03, 0.005]


def mean_of(values):
    return lambda rows, who: float(np.mean(values[rows]))


@pytest.mark.parametrize("how,name", [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_are_statsmodels(how, name):
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for p in (P_VALUES, rng.uniform(size=20) ** 2, [0.6, 0.9]):
        expected = multipletests(p, method=name)[1]
        assert correct_p_values(p, how) == pytest.approx(expected, abs=1e-12)


def test_holm_by_hand_and_missing_values_stay_missing():
    assert correct_p_values([0.01, None, 0.04, math.nan, 0.03]) == [
        pytest.approx(0.03), None, pytest.approx(0.06), None, pytest.approx(0.06)]
    assert correct_p_values([]) == []


def test_a_family_names_its_correction():
    done = corrected([Test("a", 5, 1.0, p=0.01), not_possible("b", "no subjects"),
                      Test("c", 5, 1.0, p=0.04)], "bh")
    assert [test.p_corrected for test in done] == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert done[0].method.endswith("Benjamini-Hochberg over 2 tests")


def test_one_scan_per_subject_is_scipys_bootstrap():
    values = np.random.default_rng(1).exponential(size=40)
    ours = bootstrap_interval(mean_of(values), list(range(40)), draws=4000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile",
                               random_state=0).confidence_interval
    assert ours == pytest.approx(tuple(expected), abs=0.03)


def test_subjects_are_resampled_and_not_scans():
    """Ten scans of each of six subjects say no more than one scan of each."""
    values = np.random.default_rng(2).normal(size=6)
    once = bootstrap_interval(mean_of(values), list(range(6)))
    tenfold = bootstrap_interval(mean_of(np.repeat(values, 10)), np.repeat(np.arange(6), 10))
    assert tenfold == pytest.approx(once, abs=1e-12)
    as_scans = bootstrap_interval(mean_of(np.repeat(values, 10)), list(range(60)))
    assert np.diff(as_scans) < 0.5 * np.diff(once)


def test_same_seed_same_interval_and_two_subjects_have_none():
    values = np.arange(5.0)
    first, again, other = (bootstrap_interval(mean_of(values), list("abcde"), draws=300, seed=s)
                           for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(math.isnan(v) for v in bootstrap_interval(mean_of(values), list("aabba")))


def test_wilcoxon_is_scipys_on_common_subjects():
    rng = np.random.default_rng(3)
    first = {str(i): v for i, v in enumerate(rng.normal(size=12))}
    second = {who: v + 0.8 + rng.normal(0, 0.2) for who, v in first.items()} | {"extra": 9.0}
    test = paired_wilcoxon(first, second, "x")
    change = np.array([second[who] - first[who] for who in first])
    assert test.n == 12
    assert test.p == pytest.approx(stats.wilcoxon(change).pvalue, abs=1e-12)
    assert test.effect == pytest.approx(np.median(change))
    assert test.low < test.effect < test.high


def test_few_subjects_are_said_to_be_few():
    four = {who: 1.0 for who in "abcd"}
    test = paired_wilcoxon(four, {who: 2.0 + i for i, who in enumerate("abcd")}, "x")
    assert test.p == pytest.approx(0.125)
    assert test.note == "with 4 subjects p cannot fall below 0.12"
    none = paired_wilcoxon({"a": 1.0, "b": math.nan}, {"a": 2.0, "b": 1.0}, "x")
    assert not none.known
    assert none.note == "1 subjects have both numbers; a paired test needs 3"
    assert paired_wilcoxon(four, four, "x").p == 1.0


def test_shuffling_keeps_subjects_together_and_traveling_subjects_to_their_own_sites():
    subjects = ["n1", "n1", "n2", "n3", "n3", "t", "t", "t"]
    labels = ["A", "A", "B", "C", "C", "A", "B", "C"]
    seen = set()
    for seed in range(60):
        new = shuffle_labels(labels, subjects, np.random.default_rng(seed))
        assert new[0] == new[1] and new[3] == new[4]
        assert sorted(new[[0, 2, 3]]) == ["A", "B", "C"]
        assert sorted(new[5:]) == ["A", "B", "C"]
        seen.add(tuple(new[[0, 2, 3, 5, 6, 7]]))
    assert len(seen) > 20  # of 36


def test_chance_of_a_score_that_labels_decide():
    labels = np.array(list("AB" * 10))

    def score(given):
        return float(np.mean(given == labels))

    found = chance_level(score, labels, [str(i) for i in range(20)], 1.0, permutations=500)
    assert found.mean == pytest.approx(0.5, abs=0.03)
    assert found.low < 0.35 and found.high > 0.65
    assert found.p == pytest.approx(1 / 501, abs=1e-9)
    nothing = chance_level(score, labels, [str(i) for i in range(20)], 0.5, permutations=500)
    assert 0.4 < nothing.p < 0.8
    with pytest.raises(InputError, match="at least one permutation"):
        chance_level(score, labels, labels, 1.0, permutations=0)


def test_the_table_survives_its_file(tmp_path):
    table = Statistics((
        Test("icc31", 6, 0.7148405, 0.34, 0.94, None, None, "F interval", tissue="GM",
             question="subject", computed_on="traveling subjects"),
        not_possible("age_r2", "age is unknown for 3 of 4 subjects", question="biology"),
    ), {"traveling subjects": ("01", "02")})
    path = table.to_tsv(tmp_path / "group_statistics.tsv")
    back = Statistics.from_tsv(path)
    assert back == table
    assert not back.rows[1].known
    text = path.with_suffix(".json").read_text()
    assert "Shrout and Fleiss 1979" in text and "Quan" not in text
    path.write_text("name\tn\nx\t3\n")
    with pytest.raises(InputError, match="effect"):
        Statistics.from_tsv(path)


def test_tables_are_selected_and_joined():
    table = Statistics((Test("a", stage="before"), Test("a", stage="after")), {"x": ("1",)})
    more = table + Statistics((Test("b"),), {"y": ("2",)})
    assert [row.stage for row in more.select(name="a")] == ["before", "after"]
    assert more.distinct("stage") == ("before", "after")
    assert set(more.subject_lists) == {"x", "y"}
