"""Annotation of tests: training subjects, evaluated subjects and confounding with the site."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from .inputs import EvaluationInput
from .measurements import COMBAT, COMBAT_GAM, COMBAT_LONGITUDINAL
from .statistics.confounding import ConfoundingCheck, check_confounding
from .statistics.resampling import Test

__all__ = ["annotate", "confounding_tests"]


def annotate(tests: Iterable[Test], inputs: EvaluationInput,
             subject_lists: Mapping[str, tuple[str, ...]]) -> Iterator[Test]:
    """Add modality, target, lists of subjects and warnings to tests.

    Parameters
    ----------
    tests : iterable of Test
        Rows of all questions.
    inputs : EvaluationInput
        What was evaluated.
    subject_lists : mapping of str to tuple of str
        Subjects by the name that ``fitted_on`` and ``computed_on`` refer to: "evaluated" and
        "fit of METHOD".

    Yields
    ------
    Test
        In the same order. The note warns if subjects of the fit were evaluated, or if a covariate
        is confounded with the site.
    """
    confounded = "; ".join(_short_warning(check) for check in _checks(inputs) if check.warning)
    for test in tests:
        notes = [test.note]
        overlap = (set(subject_lists.get(f"fit of {test.backend}", ()))
                   & set(subject_lists["evaluated"]))
        if overlap and test.known:
            notes.append(f"{len(overlap)} of {len(subject_lists['evaluated'])} subjects were in "
                         "the method's own fit: optimistic")
        if (test.known and test.question in ("scanner", "biology")
                and test.name != "site_confounding"):
            notes.append(confounded)
        yield replace(test, modality=inputs.modality, computed_on="evaluated",
                      target=inputs.target if test.backend else "",
                      fitted_on=_fitted_on(test, subject_lists),
                      note="; ".join(filter(None, notes)))


def _fitted_on(test: Test, subject_lists: Mapping[str, tuple[str, ...]]) -> str:
    name = f"fit of {test.backend}"
    combat = test.backend in (COMBAT, COMBAT_GAM, COMBAT_LONGITUDINAL)
    cross_fitted = combat or test.name.startswith(("site_f1", "target_fid", "age_r2"))
    return "; ".join([name] * (name in subject_lists) + ["other subjects (folds)"] * cross_fitted)


def _checks(inputs: EvaluationInput) -> tuple[ConfoundingCheck, ...]:
    """Check age, sex and the named variables against the site."""
    design = inputs.design
    return check_confounding(
        design.subjects, design.sites,
        [None if math.isnan(age) else float(age) for age in design.ages], design.sexes,
        inputs.seed, {name: design.column(name).tolist() for name in inputs.checked})


def confounding_tests(inputs: EvaluationInput) -> list[Test]:
    """Return a row for each named variable, and for age or sex if confounded with the site.

    Parameters
    ----------
    inputs : EvaluationInput
        What was evaluated.

    Returns
    -------
    list of Test
        Named ``site_confounding``; the effect is eta squared or Cramer's V.
    """
    return [Test("site_confounding", check.n_subjects - check.missing, check.effect,
                 p=min(check.tests.values(), default=None), reference=check.variable,
                 question="biology", stage="before",
                 method=f"{check.effect_name}; smallest p of {', '.join(check.tests) or 'no test'};"
                 " one value per subject and site", note=check.warning)
            for check in _checks(inputs) if check.is_site or check.variable in inputs.checked]


def _short_warning(check: ConfoundingCheck) -> str:
    if check.is_site:
        return f"{check.variable} cannot be told from site"
    if check.tests:
        return (f"{check.variable} may differ between sites "
                f"({check.effect_name} {check.effect:.2f})")
    return f"it is not known whether {check.variable} differs between sites"
