"""Subject pages judge a harmonized image by the limits of the anatomy guard."""
from __future__ import annotations

import pytest

from harmonizer.evaluation.questions.anatomy_limits import Tolerance, check_anatomy
from harmonizer.evaluation.statistics.resampling import Statistics, Test
from pipelines.stages.evaluation import Variant, answer_lines
from pipelines.stages.reports import LIMITS_UNKNOWN, anatomy_checks

TOLERANCE = Tolerance({"ssim_structure": 0.97, "edge_displacement": 0.4}, "5 pairs of rescans", 5,
                      1 / 6)


@pytest.mark.parametrize("structure,edges", [(0.98, 0.1), (0.95, 0.1), (0.98, 0.5), (0.5, 2.0)])
def test_a_page_flags_what_the_guard_flags(structure, edges):
    """0.95 is below the learned limit, although it is above 0.9."""
    check = check_anatomy({"ssim_structure": structure, "edge_displacement": edges}, TOLERANCE)
    shown = anatomy_checks(check.as_dict(), {"SSIMStructure": structure, "GradientAgreement": 0.1})
    assert [one.name for one in shown] == ["structure (SSIM)", "displacement of edges, mm"]
    assert any(one.flagged for one in shown) == (not check.ok)
    assert [one.limits for one in shown] == ["at least 0.97", "at most 0.4"]
    assert sum(one.flagged for one in shown) == len(check.reasons)


def test_before_the_evaluation_no_limit_is_made_up():
    shown = anatomy_checks({}, {"SSIMStructure": 0.2, "GradientAgreement": 0.3})
    assert [(one.value, one.limits, one.flagged) for one in shown] == [
        (0.2, LIMITS_UNKNOWN, False), (0.3, LIMITS_UNKNOWN, False)]


def test_a_measure_that_is_not_defined_is_flagged():
    check = check_anatomy({"ssim_structure": float("nan"), "edge_displacement": 0.1}, TOLERANCE)
    shown = anatomy_checks(check.as_dict(), {})
    assert [one.flagged for one in shown] == [True, False]


def test_the_last_lines_of_a_run_state_the_answers():
    row = Test("site_f1_excess", 24, 0.2, -0.3, 0.7, margin=0.1, detectable=0.4, backend="x",
               stage="after", modality="T1w")
    variant = Variant("x", "harmonized", "x", "A", "", ())
    assert answer_lines({"T1w": [variant]}, Statistics((row,))) == (
        "T1w, x: Is the site effect removed? Not detectable with n = 24; Is the subject still "
        "identifiable? Cannot be told; Are biological effects preserved? Cannot be told; Is "
        "anatomy unchanged? Cannot be told.",)
