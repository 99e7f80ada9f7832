"""Verdicts from rows made by hand: each answer can be reached, and for the right reason."""
from __future__ import annotations

from dataclasses import replace

import pytest

from harmonizer.evaluation.statistics.resampling import Statistics, Test, not_possible
from harmonizer.evaluation.verdicts import QUESTIONS, compute_verdicts, site_answers


def row(name: str, backend: str, effect: float, low: float, high: float, p: float | None = None,
        **more) -> Test:
    return Test(name, 20, effect, low, high, p, p, backend=backend,
                **{"stage": "after" if backend else "before", **more})


def verdict(question: str, *rows: Test):
    return dict(zip(QUESTIONS, compute_verdicts(Statistics(rows), "x")))[question]


def excess(backend: str, effect: float, half: float, name: str = "site_f1_excess", **more) -> Test:
    margin = {"site_f1_excess": 0.1, "distribution_excess": 0.25}[name]
    return row(name, backend, effect, effect - half, effect + half, margin=margin, detectable=half,
               **more)


BEFORE = excess("", 0.6, 0.1)
RESCALED = excess("", 0.4, 0.1, stage="rescaled")


@pytest.mark.parametrize("effect,half,answer,words", [
    (0.0, 0.09, "yes", "Removed"),
    (0.0, 0.3, "partly", "Reduced"),  # below its value before, but not inside the margin
    (0.3, 0.1, "partly", "Reduced"),
    (0.6, 0.1, "no", "Still there"),
    (0.2, 0.5, "unknown", "Not detectable with n = 20"),
])
def test_the_site_effect_needs_an_interval_inside_the_margin(effect, half, answer, words):
    found = verdict("scanner", BEFORE, RESCALED, excess("x", effect, half))
    assert (found.answer, found.words) == (answer, words)
    assert "margin 0.1 (before 0.6, linear rescaling alone 0.4)" in found.sentence
    assert ("no better than linear rescaling alone" in found.sentence) == (effect >= 0.4)
    assert ("smallest detectable effect is a macro F1 above chance of" in found.sentence) == (
        answer in ("partly", "unknown"))


def test_every_measure_must_be_inside_its_margin_and_one_beyond_decides():
    gone = excess("x", 0.0, 0.05)
    distance = [excess("", 3.0, 0.5, "distribution_excess"),
                excess("x", 0.05, 0.1, "distribution_excess")]
    assert verdict("scanner", BEFORE, gone, *distance).words == "Removed"
    wide = replace(distance[1], low=-5.0, high=5.0)
    found = verdict("scanner", BEFORE, gone, distance[0], wide)
    assert found.answer == "unknown" and found.basis is wide
    assert verdict("scanner", BEFORE, gone, distance[0], excess(
        "x", 3.0, 0.2, "distribution_excess")).words == "Still there"
    assert site_answers(Statistics((BEFORE, gone, distance[0], wide)), "x") == {
        "classification": "removed", "intensities": "undetectable"}


def test_no_site_effect_at_first_is_no_success():
    found = verdict("scanner", excess("", 0.0, 0.05), excess("x", 0.0, 0.05))
    assert (found.answer, found.words) == ("unknown", "No site effect, before or after")


def variance(backend: str, feature: str, effect: float, half: float = 0.02) -> Test:
    return row("site_variance", backend, effect, max(effect - half, 0), effect + half,
               reference=feature, margin=0.05)


def test_features_are_named_and_one_in_twenty_may_miss_the_margin():
    names = [f"f{i}" for i in range(20)]
    before = [variance("", name, 0.5) for name in names]
    inside = row("features_within_margin", "x", 1.0, None, None, margin=0.95, detectable=0.1)
    after = [variance("x", name, 0.0) for name in names[1:]]
    found = verdict("scanner", *before, inside, *after, variance("x", "noise_wm", 0.3))
    assert found.words == "Removed" and "more of noise_wm 30 %" in found.sentence
    half_left = [variance("x", name, 0.3) for name in names]
    assert verdict("scanner", *before, inside, *half_left).words == "Reduced"
    assert verdict("scanner", *before, inside, *[variance("x", n, 0.5) for n in names]
                   ).words == "Still there"
    wide = [variance("x", name, 0.0, 0.6) for name in names]
    assert verdict("scanner", *before, inside, *wide).words == "Not detectable with n = 20"


def test_no_measure_of_the_site_effect_gives_the_reason():
    found = verdict("scanner", not_possible("site_f1_retrained", "too few subjects"))
    assert (found.answer, found.sentence) == ("unknown", "It cannot be told: too few subjects.")
    assert found.words == "Cannot be told"


def identity(change: float, half: float, distance: float, error: float, wide: float = 0.01):
    return (row("identification", "", 1.0, 0.9, 1.0), row("identification", "x", 1.0, 0.9, 1.0),
            row("identification_change", "x", change, change - half, change + half, margin=0.05,
                detectable=0.2),
            row("own_to_others_change", "x", distance, distance - wide, distance + wide,
                margin=0.05),
            row("pair_error_change", "x", error, error - wide, error + wide, margin=0.05))


@pytest.mark.parametrize("rows,words", [
    (identity(0.0, 0.4, 0.0, -0.3), "Preserved"),  # of few subjects, distances decide
    (identity(0.0, 0.01, 0.0, 0.0), "Preserved"),
    (identity(-0.5, 0.2, 0.0, 0.0), "Lost"),
    (identity(0.0, 0.4, 0.3, 0.0), "Lost"),
    (identity(0.0, 0.4, 0.0, 0.3), "Reduced"),
    (identity(0.0, 0.4, 0.0, 0.0, 0.5), "Not detectable with n = 20"),
    (identity(-0.1, 0.4, 0.0, 0.0), "Not detectable with n = 20"),
])
def test_a_subject_may_lose_no_more_than_the_margin(rows, words):
    found = verdict("subject", *rows)
    assert found.words == words
    assert "with n = 20 a loss of 20 % would have been seen" in found.sentence
    assert "against linear rescaling alone, margin 5 %" in found.sentence


def test_similarity_does_not_count_if_all_images_are_alike():
    gone = not_possible("identification", "information about subjects is lost", backend="x")
    found = verdict("subject", gone, *identity(0.0, 0.01, 0.0, 0.0)[2:])
    assert (found.answer, found.words) == ("no", "Lost")
    assert found.sentence == "The harmonized images of different subjects cannot be distinguished."


def test_without_traveling_subjects_the_source_is_looked_for():
    ratio = row("source_own_to_others", "x", 0.1, 0.05, 0.15)
    all_found = row("source_identification", "x", 1.0, 0.86, 1.0)
    assert verdict("subject", all_found).words == "Not detectable with n = 20"
    assert verdict("subject", all_found, ratio).words == "Preserved"
    found = verdict("subject", row("source_identification", "x", 1.0, 0.96, 1.0))
    assert found.words == "Preserved"
    assert "identification across sites cannot be measured" in found.sentence
    assert verdict("subject", row("source_identification", "x", 0.3, 0.1, 0.45)).answer == "no"
    assert verdict("subject", row("source_identification", "x", 0.8, 0.7, 0.9)).answer == "partly"


def test_nobody_travels():
    why = not_possible("traveling_pair", "no subject was scanned at two sites")
    assert verdict("subject", why).sentence == (
        "It cannot be told: no subject was scanned at two sites.")


def loss(effect: float, half: float, reference: str = "GM ratio | age", name="effect_loss") -> Test:
    return row(name, "x", effect, effect - half, effect + half, margin=0.1, detectable=half,
               reference=reference, question="biology")


def test_effects_lose_at_most_a_tenth():
    age = loss(0.0, 0.05, "age", "age_r2_loss")
    assert verdict("biology", loss(0.0, 0.05), age).words == "Preserved"
    found = verdict("biology", loss(0.4, 0.1), age)
    assert found.words == "Reduced"
    assert "Lost more: age on GM ratio, change -40 % (95 % interval -50 to -30 %)" in found.sentence
    assert verdict("biology", loss(1.0, 0.3), age).words == "Lost"
    found = verdict("biology", loss(0.0, 0.3))
    assert found.words == "Not detectable with n = 20"
    assert "smallest detectable loss 30 %" in found.sentence


def test_an_effect_that_is_not_there_before_cannot_be_lost():
    why = not_possible("age_r2_loss", "age cannot be predicted before harmonization", backend="x",
                       question="biology")
    found = verdict("biology", why)
    assert found.words == "Cannot be told" and "before harmonization" in found.sentence
    gone = not_possible("effect_size", "information about subjects is lost", question="biology",
                        backend="x")
    assert verdict("biology", gone, loss(0.0, 0.05)).answer == "no"


def test_very_low_r2_is_a_bound():
    rows = [row("age_r2", "", -1e5, -2e5, -9e4), row("age_r2", "x", 0.8, 0.7, 0.9)]
    sentence = verdict("biology", *rows, loss(0.0, 0.05)).sentence
    assert sentence.endswith(
        "R2 of age predicted at other sites: 0.8; before -10 or worse, linear rescaling alone n/a.")


@pytest.mark.parametrize("fraction,p,words", [
    (0.0, 1.0, "Unchanged"), (0.04, 0.6, "Unchanged"), (0.1, 0.3, "Not detectable with n = 20"),
    (0.3, 0.01, "Changed in some images"), (0.6, 0.001, "Changed")])
def test_anatomy_by_the_fraction_of_flagged_scans(fraction, p, words):
    found = verdict("anatomy", row("anatomy_flagged", "x", fraction, 0.0, 0.7, p, margin=0.05,
                                   detectable=0.25))
    assert found.words == words
    assert found.sentence.startswith(f"{100 * fraction:.0f} % of the images (exact 95 % interval "
                                     "0 to 70 %)")
    assert "of faithful images, 5 % do" in found.sentence and "of 25 % of changed" in found.sentence


def test_without_any_row_everything_is_unknown():
    found = compute_verdicts(Statistics(), "x")
    assert [one.answer for one in found] == ["unknown"] * 4
    assert {one.words for one in found} == {"Cannot be told"}


def test_a_covariate_that_is_confounded_with_the_site_allows_no_yes():
    alone = Test("site_confounding", 10, 1.0, reference="diagnosis", question="biology",
                 note="Diagnosis cannot be told from site: all subjects of a site ...")
    found = verdict("biology", loss(0.0, 0.05), alone)
    assert (found.answer, found.words) == ("unknown", "Cannot be told")
    assert found.sentence.startswith("Diagnosis cannot be told from site here, so these data cannot"
                                     " show whether the effect of diagnosis is preserved. Of 1")
    assert verdict("biology", loss(1.0, 0.1), alone).answer == "no"
    differs = replace(alone, note="Diagnosis differs between sites")
    assert verdict("biology", loss(0.0, 0.05), differs).answer == "yes"
