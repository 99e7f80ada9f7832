"""Guessing the site: features by hand, no leakage, a known effect found and a removed one gone."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.evaluation.questions.scanner import (
    _f1_of_rows,
    classify_sites,
    macro_f1,
    reason_not_classifiable,
    site_tests,
    texture_features,
)
from harmonizer.volume import Volume

SITES = list("ABC") * 8
SUBJECTS = [f"{i:02d}" for i in range(24)]


def features(shift: float, seed: int = 0) -> np.ndarray:
    """24 subjects, 5 features; the site shifts two of them."""
    rng = np.random.default_rng(seed)
    offset = np.array([{"A": -1, "B": 0, "C": 1}[s] for s in SITES])
    return rng.normal(size=(24, 5)) + shift * offset[:, None] * np.array([1, -1, 0, 0, 0])


def test_macro_f1_leaves_out_labels_that_do_not_occur():
    assert macro_f1(list("AABB"), list("AAAB"), "ABCD") == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert macro_f1(list("AB"), list("BA"), "AB") == 0.0
    assert macro_f1(list("AB"), list("AB"), "ABCD") == 1.0


def test_f1_of_bootstrap_draws_is_scikit_learns():
    rng = np.random.default_rng(0)
    true, predicted = rng.choice(list("ABCD"), 40), rng.choice(list("ABC"), 40)
    score = _f1_of_rows(true, predicted)
    for _ in range(20):
        rows = rng.integers(40, size=12)
        assert score(rows, rows) == pytest.approx(
            macro_f1(true[rows], predicted[rows], "ABCD"), abs=1e-12)


def test_texture_of_a_chessboard_and_of_a_flat_tissue():
    """Gray 0.25 and 0.75 in turn: neighbors along axes differ by 8 of 16 bins, diagonals by 0."""
    board = np.indices((10, 10, 4)).sum(axis=0) % 2
    board[:] = board[:, :, :1]
    labels = np.full(board.shape, 2)
    found = texture_features(Volume(0.25 + 0.5 * board, np.eye(4)), labels, (0.0, 1.0))
    assert found["gm_mean"] == pytest.approx(0.5)
    assert found["gm_sd"] == pytest.approx(0.25)
    assert found["gm_entropy"] == pytest.approx(1.0)
    assert found["gm_kurtosis"] == pytest.approx(1.0)
    assert found["gm_contrast"] == pytest.approx((64 + 0) / 2)
    assert found["gm_dissimilarity"] == pytest.approx(4.0)
    assert found["gm_correlation"] == pytest.approx(0.0, abs=0.02)
    assert found["gm_homogeneity"] == pytest.approx((1 + 1 / 65) / 2)
    assert set(found) == {k for k in found if k.startswith("gm_")} and len(found) == 12


def test_texture_sees_only_its_tissue_and_the_mask():
    rng = np.random.default_rng(1)
    data = rng.uniform(0, 1, (12, 12, 6))
    labels = np.full(data.shape, 1)
    labels[6:] = 3
    mask = np.ones(data.shape, bool)
    mask[:, :2] = False
    spoiled = np.where(mask & (labels == 3), data, 77.0)
    one = texture_features(Volume(data, np.eye(4), mask), labels, (0, 1))
    two = texture_features(Volume(spoiled, np.eye(4), mask), labels, (0, 1))
    assert {k: v for k, v in one.items() if k.startswith("wm")} == pytest.approx(
        {k: v for k, v in two.items() if k.startswith("wm")})
    assert one["csf_mean"] != two["csf_mean"]
    tiny = np.where(np.arange(data.size).reshape(data.shape) < 40, 2, 0)
    assert texture_features(Volume(data, np.eye(4)), tiny, (0, 1)) == {}
    with pytest.raises(InputError, match="high above low"):
        texture_features(Volume(data, np.eye(4)), labels, (1, 1))


def test_nobody_is_guessed_by_a_classifier_that_knows_him():
    """Features that name the subject: grouped folds cannot use them, chance is all they reach."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(24), 4)
    sites = np.array(SITES)[who]
    personal = rng.normal(size=(24, 30))[who] + rng.normal(0, 0.01, (96, 30))
    guess = classify_sites(personal, sites.tolist(), [SUBJECTS[i] for i in who])
    assert guess.f1 < 0.6  # with ungrouped folds: 1.0


def test_a_site_effect_is_found_and_a_removed_one_is_gone():
    tests = site_tests(features(3.0), {"good": features(0.0), "none": features(3.0)}, SITES,
                       SUBJECTS, "A", permutations=60)
    found = {(t.name, t.stage, t.backend): t for t in tests}
    raw = found["site_f1_retrained", "before", ""]
    assert raw.effect > 0.85 and raw.p == pytest.approx(1 / 61)
    chance = found["site_chance", "before", ""]
    assert chance.effect == pytest.approx(0.33, abs=0.07) and chance.high < 0.62 < raw.effect
    good = found["site_f1_retrained", "after", "good"]
    assert good.effect < 0.55 and good.p > 0.05
    assert found["site_f1_retrained", "after", "none"].effect == pytest.approx(raw.effect)
    assert found["site_f1_trained_on_raw", "after", "none"].effect == pytest.approx(raw.effect)


def test_trained_on_raw_is_fooled_where_a_retrained_classifier_is_not():
    """Every site's features moved onto the target's, but each with a mark of its own."""
    raw = features(4.0)
    offset = np.array([{"A": 0, "B": -1, "C": -2}[s] for s in SITES])[:, None]
    moved = raw + 4.0 * offset * np.array([1, -1, 0, 0, 0])
    marked = moved + np.array([{"A": 0, "B": 2, "C": -2}[s] for s in SITES])[:, None] * np.array(
        [0, 0, 1, 1, 1])
    found = {t.name: t for t in site_tests(raw, {"x": marked}, SITES, SUBJECTS, "A", permutations=30)
             if t.backend == "x"}
    assert found["target_fidelity"].effect > 0.6
    assert found["site_f1_trained_on_raw"].effect < 0.4
    assert found["site_f1_retrained"].effect > 0.8


def test_too_few_subjects_are_said_and_nothing_is_computed():
    assert reason_not_classifiable(["A"] * 5, SUBJECTS[:5]) == "there is one site only"
    reason = reason_not_classifiable(SITES[:7], SUBJECTS[:7])
    assert reason.endswith("too few at B (2), C (2)")
    assert reason_not_classifiable(list("ABABAB"), ["1", "1", "1", "1", "1", "1"]).endswith("at A (1), B (1)")
    tests = site_tests(features(1.0)[:7], {"x": features(1.0)[:7]}, SITES[:7], SUBJECTS[:7], "A")
    assert [t.known for t in tests] == [False] * 4
    with pytest.raises(InputError, match="sites cannot be classified: a classifier needs"):
        classify_sites(features(1.0)[:7], SITES[:7], SUBJECTS[:7])


def test_traveling_subjects_and_gaps():
    """Eight subjects at three sites each; one row with a gap is left out, not the subject."""
    who = [str(i // 3) for i in range(24)]
    table = features(3.0)
    table[0, 0] = np.nan
    tests = site_tests(table, {}, SITES, who, "A", permutations=30)
    assert tests[0].n == 8 and "23 scans" in tests[0].method
    assert tests[0].effect > 0.8


def test_a_target_that_is_no_site_has_no_fidelity():
    tests = site_tests(features(2.0), {"x": features(0.0)}, SITES, SUBJECTS, "free", permutations=10)
    fidelity = next(t for t in tests if t.name == "target_fidelity")
    assert not fidelity.known and "'free' is not a site" in fidelity.note
