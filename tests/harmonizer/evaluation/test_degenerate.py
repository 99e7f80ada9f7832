"""Designs that cannot answer: the evaluation states the reason and gives no number."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.evaluation.run import EvaluationResult, evaluate
from harmonizer.evaluation.verdicts import compute_verdicts
from harmonizer.reports.evidence import evidence_of
from tests.harmonizer.evaluation import cohorts

NO_EFFECT = "all subjects have the same value"


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Cohort:
    """Eight subjects at A and B, and the first three at C too."""
    plan = cohorts.nested_plan(8) + [
        (i, "C", "2", age, "F") for i, age in enumerate((20.0, 21.0, 40.0))]
    return cohorts.write(tmp_path_factory.mktemp("few") / "before", plan)


def evaluate_change(cohort: Cohort, folder, change=None, **more) -> EvaluationResult:
    """The evaluation on a method that undoes the contrast, or on ``change``; every row checked."""
    undo = change or (lambda data, scan: cohorts.at_site_a(data, scan.site[0]))
    result = evaluate(cohort, {"x": cohorts.variant(cohort, folder / "x", undo)}, "A",
                     segment=cohorts.segment, permutations=4, **more)
    for row in result.statistics:
        assert row.known or row.note, row
        assert row.p is None or 0 <= row.p <= 1, row
        if row.known and row.low is not None and not math.isnan(row.low):
            assert math.isfinite(row.low) and row.low <= row.high and row.n >= 3 or (
                row.name in ("site_chance", "icc31", "icc21")), row
    evidence = evidence_of(result.statistics, "T1w", ["x"], result.anatomy_checks)
    assert all(card.sentence.endswith(".") for card in evidence.cards)
    assert all(t.rows or t.reason for tables in evidence.tables.values() for t in tables)
    return result


def verdicts_by_question(result: EvaluationResult) -> dict[str, tuple[str, str]]:
    return {a.question: (a.answer, a.sentence) for a in compute_verdicts(result.statistics, "x")}


def notes(result: EvaluationResult, name: str) -> str:
    return "; ".join(row.note for row in result.statistics.select(name=name) if not row.known)


def test_one_subject_per_site(scans, tmp_path):
    chosen = Cohort(tuple(scans.of_site(site).scans[-1] for site in "ABC"))
    assert len(chosen.subjects) == 3
    found = evaluate_change(chosen, tmp_path)
    assert verdicts_by_question(found)["scanner"][0] == "unknown"
    assert "3 subjects per site" in verdicts_by_question(found)["scanner"][1]
    assert "fewer than 2 subjects at A, B, C" in notes(found, "distribution_distance")
    assert "3 subjects have a value; 8 are needed" in notes(found, "effect_size")
    assert "two sites with two training subjects each" in notes(found, "combat")
    assert not [row for row in found.statistics if row.p is not None and row.question == "scanner"
                and row.name != "anderson_darling"]


def test_one_subject_everywhere(scans, tmp_path):
    found = evaluate_change(scans.of_subjects(["00"]), tmp_path)
    assert set(found.metrics.select(measure="psnr").values())  # pairs are measured,
    pair = found.statistics.select(name="traveling_pair", backend="x", reference="psnr").rows[0]
    assert pair.n == 1 and math.isnan(pair.low)  # but one subject has no interval
    assert "a paired test needs 3" in notes(found, "traveling_wilcoxon")
    assert "1 subjects" in notes(found, "marginal_r2") and "are needed" in notes(found, "icc31")
    assert verdicts_by_question(found)["subject"][0] == "unknown"


def test_unbalanced_sites(scans, tmp_path):
    lone = scans.where(lambda s: s.site == "A" or s.subject == "01" and s.site == "B")
    found = evaluate_change(lone, tmp_path)
    assert "too few at B (1)" in notes(found, "site_f1_retrained")
    assert verdicts_by_question(found)["scanner"][0] == "unknown"


def test_missing_and_constant_covariates(scans, tmp_path):
    nested = scans.where(lambda s: s.site in "AB")
    unknown = Cohort(tuple(replace(s, age=None, sex="F" if i % 3 else None)
                           for i, s in enumerate(nested)))
    found = evaluate_change(unknown, tmp_path)
    assert "0 subjects with an age at the target 'A'" in notes(found, "age_r2")
    assert "0 subjects have a value; 8 are needed" in notes(found, "effect_size")
    assert verdicts_by_question(found)["biology"][0] == "unknown"
    assert any("not known whether age differs" in row.note for row in found.statistics if row.known)
    same = Cohort(tuple(replace(s, age=40.0, sex="F") for s in nested))
    found = evaluate_change(same, tmp_path / "same")
    assert NO_EFFECT in notes(found, "effect_size")
    assert verdicts_by_question(found)["biology"][0] == "unknown"


def test_a_covariate_that_is_the_site(scans, tmp_path):
    nested = Cohort(tuple(replace(s, covariates={"coil": s.site}) for s in scans
                          if s.site in "AB"))
    found = evaluate_change(nested, tmp_path, covariates=["coil"])
    assert "coil cannot be told from site" in notes(found, "effect_size")
    assert not [r for r in found.statistics if r.known and "| coil" in r.reference]


def test_images_without_contrast(scans, tmp_path):
    few = scans.where(lambda s: s.site in "AB")
    found = evaluate_change(few, tmp_path, lambda data, scan: np.where(cohorts.MASK, 5.0, 0.0))
    verdicts = {question: verdict for question, (verdict, _) in verdicts_by_question(found).items()}
    assert verdicts["anatomy"] == "no" and verdicts["subject"] == "no"
    assert verdicts["biology"] == "no" and verdicts["scanner"] != "no"
    assert all(not verdict.ok for verdict in found.anatomy_checks["x"].values())


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_image_without_contrast_among_few(scans, tmp_path):
    """Some resampled cohorts have no other subject: they have no mean and cause no warning."""
    chosen = Cohort(tuple(scans.of_site(site).scans[-1] for site in "ABC"))
    flat = chosen.scans[0].scan_id
    found = evaluate_change(chosen, tmp_path, lambda data, scan: np.where(
        cohorts.MASK, 5.0, 0.0) if scan.scan_id == flat else cohorts.at_site_a(data, scan.site[0]))
    assert not found.anatomy_checks["x"][flat].ok
    held = found.statistics.select(name="anatomy_measure", reference="edge_displacement").rows[0]
    assert held.known and "1 scans without this number" in held.note


def test_one_site_alone(scans, tmp_path):
    found = evaluate_change(scans.of_site("A"), tmp_path)
    assert notes(found, "site_f1_retrained").count("there is one site only") == 3
    assert "one site only" in notes(found, "distribution_distance")
    assert verdicts_by_question(found)["anatomy"][0] in ("yes", "partly")
