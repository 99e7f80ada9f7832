"""The evaluation of cohorts whose truth is known: every question, for every method."""
from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError, UsageError
from harmonizer.evaluation.run import COMBAT, evaluate
from harmonizer.evaluation.statistics.resampling import Statistics, Test
from harmonizer.evaluation.verdicts import compute_verdicts
from harmonizer.volume import Volume, write_mask, write_volume
from tests.harmonizer.evaluation import cohorts


def one(statistics: Statistics, name: str, backend: str = "", **more: str) -> Test:
    """The only row of that name for that method; linearly rescaled images have their own stage."""
    rows = [row for row in statistics.select(name=name, backend=backend, **more)
            if more.get("stage") == "rescaled" or row.stage != "rescaled"]
    assert len(rows) == 1, (name, backend, more, len(rows))
    return rows[0]


PROGRESS: list[tuple[str, int, int]] = []  # what the evaluation said of its progress


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    before = cohorts.write(folder / "before", cohorts.nested_plan(24))
    return before, cohorts.all_variants(before, folder), folder


@pytest.fixture(scope="module")
def result(nested):
    before, variants, folder = nested
    return evaluate(before, variants, "A", covariates=["age", "sex", "dx"],
                   segment=cohorts.segment, permutations=20, cache=folder / "cache",
                   fitted_on={"good": ["00", "01"]})


@pytest.fixture(scope="module")
def roaming(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roaming")
    before = cohorts.write(folder / "before", cohorts.traveling_plan(5))
    variants = cohorts.all_variants(before, folder)
    return before, {name: variants[name] for name in ("good", "mean")}


@pytest.fixture(scope="module")
def traveled(roaming):
    return evaluate(*roaming, "A", segment=cohorts.segment, permutations=20,
                   progress=lambda *call: PROGRESS.append(call))


def test_it_says_how_far_it_is(traveled, roaming):
    """Every phase counts from 0 to its end, the scans are counted, and pairs have their turn."""
    phases = {label: [call[1:] for call in PROGRESS if call[0] == label]
              for label, _, _ in PROGRESS}
    for steps in phases.values():  # a phase may come twice: each time from 0 to its end
        starts = [n for n, (done, _) in enumerate(steps) if done == 0]
        for first, last in zip(starts, [*starts[1:], len(steps)]):
            total = steps[first][1]
            assert steps[first:last] == [(done, total) for done in range(total + 1)]
    assert phases["T1w tissues, anatomy"][-1] == (len(roaming[0]),) * 2
    assert {"T1w limits from rescans", "T1w pairs before"} <= set(phases)


def test_the_scanner_is_found_and_its_removal_seen(result):
    table = result.statistics
    assert one(table, "distribution_distance", tissue="brain").p < 0.05
    assert one(table, "distribution_distance", "good", tissue="brain").effect < 0.02
    assert one(table, "site_f1_retrained").effect > 0.9
    assert one(table, "site_f1_retrained", "none").effect > 0.9
    good = one(table, "site_f1_retrained", "good")
    chance = one(table, "site_chance", "good")
    assert good.p > 0.05 and good.effect <= chance.high
    assert one(table, "target_fidelity", "none").effect < 0.2
    assert one(table, "target_fidelity", "good").effect > 0.3
    assert one(table, "site_partial_eta_squared", tissue="GM").effect > 0.5
    assert one(table, "site_partial_eta_squared", "good", tissue="GM").effect < 0.3


def test_linear_rescaling_alone_stands_beside_before_and_after(result):
    table = result.statistics
    for name in ("site_f1_excess", "distribution_excess", "age_r2", "features_within_margin"):
        rows = [one(table, name, stage=stage, tissue="brain") for stage in ("before", "rescaled")]
        assert all(row.known for row in (*rows, one(table, name, "good", tissue="brain"))), name
    raw, rescaled = (one(table, "distribution_excess", stage=stage, tissue="brain")
                     for stage in ("before", "rescaled"))
    assert raw.low > raw.margin and rescaled.effect < raw.effect / 2
    assert one(table, "distribution_excess", "none", tissue="brain").effect == raw.effect


def test_the_answers_on_the_site_follow_intervals_and_margins(result):
    answers = {name: compute_verdicts(result.statistics, name)[0] for name in ("good", "none")}
    assert answers["none"].words == "Still there"
    assert answers["good"].words == "Reduced"  # 24 subjects are too few for "removed"
    assert "smallest detectable effect" in answers["good"].sentence
    assert "linear rescaling alone" in answers["good"].sentence


def test_age_survives_what_is_right_and_not_what_is_wrong(result):
    table = result.statistics
    assert one(table, "age_r2", "good").effect > 0.6
    assert one(table, "age_r2", "none").effect < one(table, "age_r2", "good").effect - 0.2
    assert one(table, "age_r2").effect == pytest.approx(one(table, "age_r2", "none").effect)
    assert one(table, "standardized_beta", "good", reference="CSF ratio | age").low > 0.6


def test_one_mean_image_fools_the_classifier_and_nobody_else(result):
    table = result.statistics
    guess = one(table, "site_f1_retrained", "mean")
    assert guess.effect < 0.6 and guess.p > 0.05
    assert one(table, "age_r2", "mean").effect <= 0.0
    lost = table.select(backend="mean", reference="CSF ratio | age").rows[0]
    assert not lost.known and "information about subjects is lost" in lost.note
    assert one(table, "anatomy_flagged", "mean").effect == 1.0
    verdict = result.anatomy_checks["mean"]["sub-00_ses-1_T1w"]
    assert not verdict.ok and len(verdict.reasons) >= 3


def test_subjects_are_told_apart_where_the_method_lets_them(result, traveled):
    assert one(result.statistics, "source_identification", "good").effect == 1.0
    assert one(result.statistics, "source_identification", "none").effect == 1.0
    assert "is lost" in one(result.statistics, "source_identification", "mean").note
    assert one(traveled.statistics, "identification").effect > 0.9
    assert one(traveled.statistics, "identification", "good").effect > 0.9
    assert not one(traveled.statistics, "identification", "mean").known
    verdicts = {name: compute_verdicts(traveled.statistics, name) for name in ("good", "mean")}
    # Five subjects show no loss, and could not have shown a loss of 5 %.
    assert verdicts["good"][1].words == "Not detectable with n = 5"
    assert [verdicts["mean"][i].words for i in (1, 3)] == ["Lost", "Changed"]


def test_contrast_alone_is_seldom_flagged(result):
    assert one(result.statistics, "anatomy_flagged", "none").effect == 0.0
    assert one(result.statistics, "anatomy_flagged", "good").effect <= 0.25
    assert result.tolerances["T1w"].origin.startswith("20 simulated rescans")


def test_an_erased_lesion_is_flagged_in_that_scan_alone(nested, tmp_path):
    before, variants, _ = nested
    spot = np.sum((np.indices(cohorts.SHAPE) - np.reshape((13, 18, 13), (3, 1, 1, 1))) ** 2,
                  axis=0) <= 5
    few = before.of_subjects(["00", "01", "02", "03"])
    erased = cohorts.variant(few, tmp_path, lambda data, scan: np.where(
        spot & (scan.subject == "02"), data[spot].max() * 1.3, data))
    result = evaluate(few, {"eraser": erased}, "A", combat=False, permutations=2)
    found = result.anatomy_checks["eraser"]
    assert {name: verdict.ok for name, verdict in found.items()} == {
        f"sub-{i:02d}_ses-1_T1w": i != 2 for i in range(4)}


def test_combat_stands_beside_the_methods(result):
    table = result.statistics
    assert one(table, "site_partial_eta_squared", COMBAT, tissue="GM").effect < (
        one(table, "site_partial_eta_squared", tissue="GM").effect - 0.2)
    assert one(table, "site_f1_retrained", COMBAT).fitted_on == "other subjects (folds)"
    assert not table.select(name="anatomy_flagged", backend=COMBAT).rows


def test_what_was_fitted_on_whom_is_said(result):
    row = one(result.statistics, "distribution_distance", "good", tissue="brain")
    assert row.fitted_on == "fit of good" and row.computed_on == "evaluated"
    assert "2 of 24 subjects were in the method's own fit: optimistic" in row.note
    assert result.statistics.subject_lists["fit of good"] == ("00", "01")
    assert len(result.statistics.subject_lists["evaluated"]) == 24
    assert "optimistic" not in one(result.statistics, "age_r2", "none").note


def test_without_traveling_subjects_the_paired_measures_say_so(result):
    table = result.statistics
    assert "no subject was scanned at two sites" in one(table, "traveling_pair").note
    assert not table.select(name="icc31").rows
    assert not one(table, "marginal_r2", "good", tissue="GM").known


def test_every_number_is_in_the_dictionary(result, traveled, tmp_path):
    from harmonizer.evaluation.dictionary import TEST_DESCRIPTIONS
    from harmonizer.evaluation.table import MEASURES

    for found in (result, traveled):
        assert set(found.statistics.distinct("name")) <= set(TEST_DESCRIPTIONS)
        assert set(found.metrics.distinct("measure")) <= set(MEASURES)
        assert {row.question for row in found.statistics} == {"scanner", "subject", "biology",
                                                              "anatomy"}
        for row in found.statistics:
            assert row.known or row.note, row
    path = result.statistics.to_tsv(tmp_path / "group_statistics.tsv")
    assert Statistics.from_tsv(path).subject_lists == result.statistics.subject_lists


def test_a_diagnosis_that_is_the_site_is_said_beside_every_number(nested, result):
    """Named as a covariate, or as the column by which the fit's subjects were chosen."""
    before, variants, folder = nested
    confounded = Cohort(tuple(replace(s, covariates={"group": "HC" if s.site == "A" else "MS"})
                        for s in before))
    for names in ({"covariates": ["age", "group"]}, {"checked": ["group"]}):
        table = evaluate(confounded, variants, "A", segment=cohorts.segment, permutations=2,
                        combat=False, cache=folder / "cache", **names).statistics
        found = one(table, "site_confounding", reference="group")
        assert found.effect == pytest.approx(1.0) and found.n == 24
        assert found.note.startswith("Group cannot be told from site")
        assert "group cannot be told from site" in one(table, "site_f1_retrained", "good").note
        sentence = compute_verdicts(table, "good")[2].sentence
        assert sentence.startswith("Group cannot be told from site here")
    assert one(result.statistics, "site_confounding", reference="dx").note == ""


def test_images_must_lie_on_one_grid_and_with_priors_on_the_templates(nested, tmp_path):
    before, _, _ = nested
    first, second = before.scans[:2]
    volume = first.read()
    shifted = volume.affine.copy()
    shifted[:3, 3] += 7
    image = write_volume(tmp_path / "x.nii.gz", Volume(volume.data, shifted))
    mask = write_mask(tmp_path / "m.nii.gz", volume.mask, shifted)
    mixed = Cohort((replace(first, image=image, mask=mask), second))
    with pytest.raises(InputError, match=r"expected images on one grid, got .*tolerance 0.001 mm"):
        evaluate(mixed, {}, "A")
    data = np.ones((99, 117, 95), np.float32)
    image = write_volume(tmp_path / "t.nii.gz", Volume(data, np.diag([2.0, 2, 2, 1])))
    priors = {name: data / 3 for name in ("GM", "WM", "CSF")}
    with pytest.raises(InputError, match="on the grid of the MNI152NLin2009aSym template"):
        evaluate(Cohort((replace(first, image=image),)), {}, "A", priors=priors)


def test_another_covariate_opens_no_image(nested, result, monkeypatch):
    before, variants, folder = nested
    opened = []
    monkeypatch.setattr("harmonizer.cohort.read_volume", opened.append)
    started = time.monotonic()
    again = evaluate(before, variants, "A", covariates=["dx"], segment=cohorts.segment,
                    permutations=2, cache=folder / "cache")
    assert not opened and time.monotonic() - started < 60
    for name in ("site_f1_retrained", "age_r2", "anatomy_flagged"):
        first, second = (one(r.statistics, name, "good") for r in (result, again))
        assert (first.effect, first.low, first.high) == (second.effect, second.low, second.high)


def test_an_image_that_changed_is_measured_again(nested, tmp_path):
    before, variants, _ = nested
    few = before.of_subjects(["00", "01"])
    copy = cohorts.variant(few, tmp_path / "copy", lambda data, scan: data)
    wanted = {"combat": False, "permutations": 1, "cache": tmp_path / "cache"}
    first = evaluate(few, {"copy": copy}, "A", **wanted).anatomy_checks["copy"]
    cohorts.variant(few, tmp_path / "copy", lambda data, scan: np.flip(data, 0) + scan.age * 0.01)
    second = evaluate(few, {"copy": copy}, "A", **wanted).anatomy_checks["copy"]
    for name in first:
        assert first[name].values["ssim_structure"] == pytest.approx(1.0)
        assert second[name].values["ssim_structure"] < 0.5


def test_traveling_subjects_unlock_pairs_agreement_and_the_mixed_model(traveled):
    table = traveled.statistics
    raw = one(table, "traveling_pair", reference="psnr", stage="before")
    rescaled = one(table, "traveling_pair", reference="psnr", stage="rescaled")
    good = one(table, "traveling_pair", "good", reference="psnr")
    assert raw.n == good.n == 5 and good.effect > raw.effect + 3
    assert raw.effect < rescaled.effect < good.effect
    change = one(table, "traveling_wilcoxon", "good", reference="psnr | unharmonized")
    assert change.effect > 3 and change.p == pytest.approx(0.0625) and "cannot fall" in change.note
    assert one(table, "marginal_r2", tissue="GM").effect > 0.3
    assert one(table, "marginal_r2", "good", tissue="GM").effect < 0.2
    assert one(table, "conditional_r2", "good", tissue="CSF").effect > 0.9
    assert one(table, "icc31", "good", reference="CSF ratio").effect > 0.9
    assert table.select(name="paired_t", backend="good").rows[0].reference == "A"
    assert not table.select(name="site_partial_eta_squared").rows


def test_the_limits_are_the_cohorts_own_rescans(traveled):
    assert traveled.tolerances["T1w"].origin == "5 pairs of rescans of one subject on one scanner"
    assert one(traveled.statistics, "anatomy_flagged", "mean").effect == 1.0
    assert one(traveled.statistics, "anatomy_flagged", "good").effect <= 0.5


def test_the_same_label_may_be_two_subjects(roaming):
    before, _ = roaming
    found = evaluate(before, {}, "A", traveling="no", permutations=5).statistics
    assert "no subject was scanned at two sites" in one(found, "traveling_pair").note
    assert not found.select(name="identification").rows
    assert len(found.subject_lists["evaluated"]) == 15


def test_one_scan_one_site_and_unknown_ages_are_no_crash(nested, tmp_path):
    before, variants, _ = nested
    alone = Cohort((replace(before.scans[0], age=None, sex=None),))
    found = evaluate(alone, {"none": variants["none"]}, "A", permutations=5)
    known = {row.name for row in found.statistics if row.known}
    assert known <= {"anatomy_flagged", "anatomy_limit", "anatomy_measure"}
    assert all(row.note for row in found.statistics if not row.known)
    site = evaluate(before.of_site("A"), {"none": variants["none"]}, "A", permutations=5)
    assert one(site.statistics, "site_f1_retrained").note == "there is one site only"


def test_what_is_asked_wrongly_is_refused_before_images_are_opened(nested):
    before, variants, _ = nested
    with pytest.raises(InputError, match="covariate 'agee' is no column"):
        evaluate(before, variants, "A", covariates=["agee"])
    with pytest.raises(UsageError, match="reference site 'D'"):
        evaluate(before, variants, "A", reference_site="D")
    with pytest.raises(UsageError, match="traveling is one of auto, no"):
        evaluate(before, variants, "A", traveling="yes")
    with pytest.raises(InputError, match="at least one scan"):
        evaluate(Cohort(()), {}, "A")
    other = {"x": variants["good"].of_subjects(["00"]), "y": variants["good"].of_subjects(["01"])}
    with pytest.raises(InputError, match="no T1w scan has an image of every method"):
        evaluate(before, other, "A")


def test_other_processes_give_the_same_numbers(nested):
    before, variants, _ = nested
    few = before.of_subjects(["00", "01", "02", "03"])
    here, there = (evaluate(few, {"good": variants["good"]}, "A", combat=False, permutations=2,
                           workers=workers) for workers in (1, 2))
    assert here.metrics == there.metrics
    assert here.statistics == there.statistics or [
        (a, b) for a, b in zip(here.statistics, there.statistics) if a != b] == []
