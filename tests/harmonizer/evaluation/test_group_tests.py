"""Statistics that cannot be estimated are reported as rows; faults propagate."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError, NotEstimableError
from harmonizer.evaluation import group_tests
from harmonizer.evaluation.inputs import EvaluationInput, Features
from harmonizer.evaluation.statistics.design import Design
from harmonizer.evaluation.statistics.resampling import Test


@pytest.fixture
def inputs() -> EvaluationInput:
    """Six scans without images, at two sites."""
    before = Cohort(tuple(Scan(f"s{i}", str(i), None, "T1w", "AB"[i % 2], "t", "i", "m", 30.0 + i)
                          for i in range(6)))
    features = Features(np.arange(12.0).reshape(6, 2) ** 2, {}, {})
    return EvaluationInput(before, {}, "A", "A", ("age",), (), Design.of(before.scans), False, 0, 2,
                           features={"": features})


def fail_with(error: Exception):
    def compute(*args, **kwargs):
        raise error
    return compute


def test_a_statistic_that_cannot_be_estimated_is_a_row(inputs, monkeypatch):
    monkeypatch.setattr(group_tests, "age_tests", fail_with(NotEstimableError("one site only")))
    row = next(iter(group_tests.biology_tests(inputs)))
    assert (row.name, row.question, row.stage) == ("age_r2", "biology", "before")
    assert not row.known and row.note == "not possible with these data: one site only"


@pytest.mark.parametrize("error", [ValueError("wrong shape"), InputError("no such file"),
                                   np.linalg.LinAlgError("singular"), ZeroDivisionError()])
def test_a_fault_in_a_statistic_propagates(inputs, monkeypatch, error):
    monkeypatch.setattr(group_tests, "age_tests", fail_with(error))
    with pytest.raises(type(error)):
        list(group_tests.biology_tests(inputs))


def test_the_rows_of_computed_statistics_are_returned():
    row = group_tests.not_possible("a", "b")
    assert group_tests.tests_or_reason("x", "scanner", lambda: row) == [row]
    assert group_tests.tests_or_reason("x", "scanner", lambda: (row, row)) == [row, row]


def test_another_covariate_classifies_no_site_again(inputs, monkeypatch, tmp_path):
    """A row without a p value reads from the cache as it was written."""
    calls = []

    def classify(*args, **kwargs):
        calls.append(args)
        return (Test("site_f1_retrained", 6, 0.5, 0.4, 0.6, note="ä"),)

    monkeypatch.setattr(group_tests, "site_tests", classify)
    inputs = replace(inputs, cache=tmp_path)
    first = group_tests._site_tests(inputs, {})
    again = group_tests._site_tests(replace(inputs, covariates=("sex",)), {})
    assert first == again == list(classify()) and len(calls) == 2
    changed = Features(inputs.features[""].texture + 1, {}, {})
    group_tests._site_tests(replace(inputs, features={"": changed}), {})
    assert len(calls) == 3
