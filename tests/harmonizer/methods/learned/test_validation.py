"""Validation: the weight and error of residuals, and separate subjects."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.methods.learned import fit
from harmonizer.methods.learned.ihf.backend import Ihf
from harmonizer.methods.learned.validation import ValidationCase, make_cases, score
from harmonizer.methods.statistical.histogram_matching import HistogramMatching
from harmonizer.volume import Volume
from tests.contract.brains import brain_of, scan_of


def case_of(baseline: list[float], truth: list[float]) -> ValidationCase:
    """Truths span 0 to 100; the first and last voxel are right already."""
    at = [np.array([0.0, *values, 100.0], np.float32).reshape(-1, 1, 1) for values in
          (baseline, truth)]
    mask = np.ones(at[0].shape, bool)
    return ValidationCase(*(Volume(a, np.eye(4), mask) for a in at), {}, "A", "T1w", ())


def change_of(values: list[float]) -> np.ndarray:
    return np.array([0.0, *values, 0.0], np.float32).reshape(-1, 1, 1)


def test_twice_as_much_as_is_missing_is_used_by_half():
    metrics = score([case_of([40, 50], [50, 40])], [change_of([20, -20])])
    assert metrics["residual_weight"] == pytest.approx(0.5)
    assert metrics["error"] < 1e-6
    width = np.quantile([0, 50, 40, 100], 0.995) - np.quantile([0, 50, 40, 100], 0.005)
    assert metrics["baseline_error"] == pytest.approx(np.sqrt(200 / 4) / width)


@pytest.mark.parametrize("change", [[-10, 10], [0, 0], [10, 10]])
def test_a_change_that_leads_away_or_nowhere_is_not_used(change):
    metrics = score([case_of([40, 50], [50, 40])], [change_of(change)])
    assert metrics["residual_weight"] == 0 and metrics["error"] == metrics["baseline_error"] > 0


def test_never_more_than_all_of_it():
    metrics = score([case_of([40, 50], [50, 40])], [change_of([5, -5])])
    assert metrics["residual_weight"] == 1 and metrics["error"] == pytest.approx(
        metrics["baseline_error"] / 2
    )


def test_the_weight_is_of_all_cases_together_each_by_its_own_error():
    cases = [case_of([48, 50], [50, 48]), case_of([10, 90], [90, 10])]
    metrics = score(cases, [change_of([2, -2]), change_of([-80, 80])])
    assert metrics["residual_weight"] == pytest.approx(0, abs=1e-6)
    metrics = score(cases, [change_of([2, -2]), change_of([0, 0])])
    assert metrics["residual_weight"] == pytest.approx(1)
    assert metrics["error"] < metrics["baseline_error"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("held")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 4 else "B") for p in range(7)))


def test_a_case_is_a_person_whom_its_references_are_not(cohort):
    trained, validated = (0, 1, 2, 4, 5), (3, 6)
    cases = make_cases(cohort, trained, validated, HistogramMatching(), 3, 0, seed=1)
    assert [case.site for case in cases] == ["A", "B", "A"]
    assert [len(case.references) for case in cases] == [3, 2, 3]
    for case, index in zip(cases, (3, 6, 3)):
        truth = cohort.scans[index].read()
        ratio = case.truth.in_mask() / truth.in_mask()
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        for reference, _ in case.references:
            assert not np.array_equal(reference.data, truth.data)
        assert 0.01 < np.std(case.error()) < 0.5
    assert np.abs(cases[0].error() - cases[2].error()).max() > 0.01, "one view for two cases"


def test_the_gain_of_a_scan_is_no_error(cohort, tmp_path):
    """A subject scanned three times as bright is no case of another contrast."""
    from dataclasses import replace

    from harmonizer.volume import write_volume

    scan = cohort.scans[3]
    write_volume(tmp_path / "bright.nii.gz", brain_of(3).with_data(3 * brain_of(3).data))
    bright = replace(scan, image=tmp_path / "bright.nii.gz")
    others = [c for c in cohort if c.subject != scan.subject]
    first, second = (make_cases(Cohort((*others, s)), (0, 1, 2, 4, 5), (3,), HistogramMatching(),
                                1, 0, seed=1)[0] for s in (scan, bright))
    np.testing.assert_allclose(second.error(), first.error(), atol=1e-4)


def test_the_middle_slices_stay_where_they_were(cohort):
    case = make_cases(cohort, (0, 1, 2), (3,), None, 1, 4, seed=1)[0]
    whole = cohort.scans[3].read()
    assert case.truth.shape == (*whole.shape[:2], 4) == case.baseline.shape
    step = np.linalg.inv(whole.affine) @ case.truth.affine
    low = int(round(step[2, 3]))
    np.testing.assert_allclose(step, np.eye(4) + low * np.eye(4)[:, [2]] * (np.arange(4) == 3),
                               atol=1e-9)
    np.testing.assert_array_equal(case.truth.mask, whole.mask[:, :, low:low + 4])


def test_where_nobody_else_was_scanned_there_is_no_case(cohort):
    assert make_cases(cohort, (4, 5), (0, 3), HistogramMatching(), 4, 0, seed=0) == []


def test_a_weight_that_was_chosen_before_is_not_chosen_again():
    metrics = score([case_of([40, 50], [50, 40])], [change_of([20, -20])], weight=1.0)
    assert metrics["residual_weight"] == 1.0
    assert metrics["error"] == pytest.approx(metrics["baseline_error"])


def quick(cohort: Cohort, **options) -> Ihf:
    return Ihf(Ihf.config_from({"preset": "tiny", "steps": 1, **options})).fit(cohort, seed=1)


def test_weights_and_error_are_of_different_subjects(cohort, monkeypatch):
    made = []
    usual = fit.make_cases

    def recorded(cohort, trained, validated, *args):
        made.append((trained, validated))
        return usual(cohort, trained, validated, *args)

    monkeypatch.setattr(fit, "make_cases", recorded)
    fitted = quick(cohort, validation_fraction=0.5)
    (trained, chosen), (again, measured) = made
    assert trained == again and len(chosen) == len(measured) == 2
    groups = [{cohort.scans[i].subject for i in some} for some in (trained, chosen, measured)]
    assert len(set.union(*groups)) == sum(map(len, groups)) == len(cohort.subjects)
    facts = fitted.training_
    assert (facts.validation_scans, facts.test_scans) == (2, 2) and facts.error > 0
    assert "2 scans of subjects used neither for training nor for validation" in " ".join(
        fitted.training_facts())


def test_one_validation_subject_chooses_and_no_error_is_stated(cohort):
    one_site = Cohort(cohort.scans[:4])
    fitted = quick(one_site, validation_fraction=0.25)
    assert (fitted.training_.validation_scans, fitted.training_.test_scans) == (1, 0)
    assert fitted.training_.error is None
    assert "the error is unknown" in " ".join(fitted.training_facts())


def test_nothing_validated_means_nothing_added_and_is_said(cohort, caplog):
    with caplog.at_level(logging.WARNING, logger="harmonizer"):
        fitted = quick(cohort, validation_fraction=0.0)
    assert fitted.residual_weight_ == 0.0
    assert "no subject is kept for validation" in caplog.text
    assert "the residual weight is 0" in " ".join(fitted.training_facts())
    scan, target = brain_of(50), fitted.target("B")
    np.testing.assert_array_equal(fitted.harmonize(scan, target).data,
                                  fitted.baseline_only(scan, target).data)


def test_as_published_the_residual_is_added_in_full(cohort, caplog):
    with caplog.at_level(logging.WARNING, logger="harmonizer"):
        fitted = quick(cohort, validation_fraction=0.5, weight_residual=False, validate_every=0)
    assert fitted.residual_weight_ == 1.0 and not caplog.text
    assert (fitted.training_.validation_scans, fitted.training_.test_scans) == (0, 4)
    assert "added in full, as published" in " ".join(fitted.training_facts())
