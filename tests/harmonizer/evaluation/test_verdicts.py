"""Verdicts from rows made by hand: each answer can be reached, and for the right reason."""
from __future__ import annotations

from dataclasses import replace

import pytest

from harmonizer.evaluation.statistics.resampling import Statistics, Test, not_possible
from harmonizer.evaluation.verdicts import QUESTIONS, compute_verdicts


def row(name: str, backend: str, effect: float, low: float, high: float, p: float | None = None,
        **more) -> Test:
    return Test(name, 20, effect, low, high, p, p, backend=backend,
                stage="after" if backend else "before", **more)


def verdict(question: str, *rows: Test):
    found = dict(zip(QUESTIONS, compute_verdicts(Statistics(rows), "x")))[question]
    assert found.question == question
    return found.answer, found.sentence


BEFORE = row("site_f1_retrained", "", 0.9, 0.8, 1.0, 0.005)


@pytest.mark.parametrize("after,expected", [
    (row("site_f1_retrained", "x", 0.4, 0.3, 0.5, 0.4), "yes"),
    (row("site_f1_retrained", "x", 0.7, 0.6, 0.8, 0.01), "partly"),
    (row("site_f1_retrained", "x", 0.9, 0.8, 1.0, 0.005), "no"),
])
def test_the_scanner_by_the_classifier(after, expected):
    chance = row("site_chance", "x", 0.35, 0.2, 0.5)
    found, sentence = verdict("scanner", BEFORE, after, chance)
    assert found == expected
    assert "before 0.9" in sentence and "chance gives 0.2 to 0.5" in sentence


def test_intensity_distributions_decide_if_the_classifier_found_no_site_effect_before():
    rows = [row("site_f1_retrained", name, 0.9, 0.8, 1.0, 0.1) for name in ("", "x")]
    rows += [row("distribution_distance", "", 0.3, 0.2, 0.4, 0.01),
             row("distribution_distance", "x", 0.02, 0.01, 0.03, 0.5)]
    found, sentence = verdict("scanner", *rows)
    assert found == "yes" and sentence.startswith("The intensity distributions of the sites "
                                                      "have a distance of 0.02")


def test_no_scanner_effect_at_first_is_no_success():
    found, sentence = verdict("scanner", row("site_f1_retrained", "", 0.4, 0.3, 0.5, 0.5),
                              row("site_f1_retrained", "x", 0.4, 0.3, 0.5, 0.5))
    assert found == "unknown" and sentence.startswith("No site effect was detected before")


def test_intensity_distributions_decide_if_sites_cannot_be_classified():
    why = not_possible("site_f1_retrained", "too few subjects")
    distance = [row("distribution_distance", name, *values, unit="R")
                for name, values in (("", (0.2, 0.1, 0.3, 0.01)), ("x", (0.05, 0.02, 0.08, 0.02)))]
    assert verdict("scanner", why, *distance)[0] == "partly"
    assert verdict("scanner", why) == ("unknown", "It cannot be told: too few subjects.")


def change(measure: str, effect: float, p: float = 0.01, other: str = "unharmonized") -> Test:
    return row("traveling_wilcoxon", "x", effect, effect - 1, effect + 1, p,
               reference=f"{measure} | {other}")


def test_no_worse_than_a_linear_rescaling_and_never_than_doing_nothing():
    better = change("psnr", 30.0), change("ssim", 20.0)
    assert verdict("subject", *better, change("psnr", -0.5, 0.6, "rescaled"))[0] == "yes"
    found, sentence = verdict("subject", *better, change("psnr", -3.0, 0.01, "rescaled"))
    assert found == "partly"
    assert "PSNR against rescaled images by -3 (95 % interval -4 to -2)" in sentence
    assert verdict("subject", change("psnr", -3.0), change("ssim", 2.0))[0] == "no"


def test_similarity_does_not_count_if_all_images_are_alike():
    nearer = change("psnr", 5.0, 0.01), change("ssim", 0.2, 0.01)
    gone = not_possible("identification", "information about subjects is lost", backend="x")
    assert verdict("subject", gone, *nearer) == (
        "no", "The harmonized images of different subjects cannot be distinguished.")
    before = row("identification", "", 1.0, 0.9, 1.0)
    for effect, expected in ((1.0, "yes"), (0.95, "partly"), (0.5, "no")):
        assert verdict("subject", before, row("identification", "x", effect, 0, 1),
                       *nearer)[0] == expected
    away = change("psnr", -5.0, 0.01), change("ssim", -0.2, 0.01)
    assert verdict("subject", before, row("identification", "x", 1.0, 1, 1), *away)[0] == "no"


def test_without_traveling_subjects_the_source_is_looked_for():
    found, sentence = verdict("subject", row("source_identification", "x", 1.0, 1.0, 1.0))
    assert found == "yes" and "identification across sites cannot be measured" in sentence
    assert verdict("subject", row("source_identification", "x", 0.3, 0.1, 0.5))[0] == "no"


def test_nobody_travels():
    why = not_possible("traveling_pair", "no subject was scanned at two sites")
    assert verdict("subject", why)[1] == "It cannot be told: no subject was scanned at two sites."


def test_age_kept_or_lost():
    before = row("age_r2", "", 0.5, 0.4, 0.6, question="biology")
    for effect, expected in ((0.6, "yes"), (0.45, "partly"), (0.3, "no"), (-0.5, "no")):
        after = row("age_r2", "x", effect, effect - 0.1, effect + 0.1, question="biology")
        assert verdict("biology", before, after)[0] == expected
    nothing = [row("age_r2", name, -0.2, -0.4, 0.0, question="biology") for name in ("", "x")]
    assert verdict("biology", *nothing)[0] == "unknown"
    effects = [row("standardized_beta", name, value, value - 0.3, value + 0.3,
                   reference="GM ratio | age") for name, value in (("", -0.7), ("x", -0.2))]
    assert verdict("biology", *nothing, *effects)[0] == "no"  # decided by the effect of age
    absurd = row("age_r2", "", -1e5, -2e5, -9e4, question="biology")
    better = row("age_r2", "x", 0.8, 0.7, 0.9, question="biology")
    assert verdict("biology", absurd, better) == (
        "yes", "The prediction of age at other sites has an R2 of 0.8 (95 % interval 0.7 to 0.9), "
        "before -10 or worse.")
    gone = not_possible("effect_size", "information about subjects is lost", question="biology",
                        backend="x")
    assert verdict("biology", before, gone)[0] == "no"


def test_effects_where_age_cannot_be_predicted():
    rows = [row("cohens_d", "", 0.8, 0.4, 1.2, reference="GM | sex: M - F"),
            row("standardized_beta", "", -0.5, -0.8, -0.2, reference="GM | age"),
            row("cohens_d", "x", 0.6, 0.2, 1.0, reference="GM | sex: M - F")]
    kept = row("standardized_beta", "x", -0.4, -0.7, -0.1, reference="GM | age")
    turned = row("standardized_beta", "x", 0.4, 0.1, 0.7, reference="GM | age")
    assert verdict("biology", *rows, kept)[0] == "yes"
    found, sentence = verdict("biology", *rows, turned)
    assert found == "partly" and sentence.startswith("1 of 2 effects")
    gone = not_possible("effect_size", "0 subjects have a value", backend="x",
                        reference="GM | age")
    assert verdict("biology", *rows, gone)[0] == "partly"
    lost = not_possible("effect_size", "0 subjects have a value", backend="x", reference="GM | sex")
    assert verdict("biology", *rows[:2], gone, lost)[0] == "no"


@pytest.mark.parametrize("fraction,expected", [(0.0, "yes"), (0.1, "partly"), (1.0, "no")])
def test_anatomy_by_the_fraction_of_flagged_scans(fraction, expected):
    found, sentence = verdict("anatomy", row("anatomy_flagged", "x", fraction, fraction, fraction))
    assert found == expected and sentence.startswith(f"{100 * fraction:.0f} % of the scans")


def test_no_more_flags_than_faithful_images_get_are_no_harm():
    for fraction, p, expected in ((0.05, 0.4, "yes"), (0.3, 0.01, "partly"), (0.6, 0.4, "no")):
        found, sentence = verdict("anatomy", row("anatomy_flagged", "x", fraction, 0, fraction, p=p))
        assert found == expected
        assert ("no more than expected of faithful images" in sentence) == (expected == "yes")


def test_without_any_row_everything_is_unknown():
    assert [found.answer for found in compute_verdicts(Statistics(), "x")] == ["unknown"] * 4


def test_a_covariate_that_is_confounded_with_the_site_allows_no_yes():
    before = row("age_r2", "", 0.5, 0.4, 0.6, question="biology")
    after = row("age_r2", "x", 0.6, 0.5, 0.7, question="biology")
    alone = Test("site_confounding", 10, 1.0, reference="diagnosis", question="biology",
                 note="Diagnosis cannot be told from site: all subjects of a site ...")
    found, sentence = verdict("biology", before, after, alone)
    assert found == "unknown"
    assert sentence.startswith("Diagnosis cannot be told from site here, so these data cannot show "
                               "whether the effect of diagnosis is preserved. The prediction of "
                               "age")
    assert verdict("biology", before, replace(after, effect=0.3), alone)[0] == "no"
    differs = replace(alone, note="Diagnosis differs between sites")
    assert verdict("biology", before, after, differs)[0] == "yes"
