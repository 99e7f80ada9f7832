"""Evaluation of harmonization methods: site effect, subject identity, biology and anatomy.

All methods are evaluated on the same scans, beside the unharmonized images and ComBat on the same
features. A question that the data cannot answer gives a row with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cohort import Cohort
from ..errors import InputError, UsageError
from ..segmentation.segmentations import Segment
from .annotations import annotate, confounding_tests
from .group_tests import (
    anatomy_tests,
    biology_tests,
    combat_missing,
    component_rows,
    identity_tests,
    longitudinal_tests,
    pair_tests,
    ratio_rows,
    scanner_tests,
    subject_agreement_tests,
    texture_metrics,
)
from .inputs import EvaluationInput, prepare_input, require_template_grid, split_subjects_by_site
from .measurements import COMBAT, PoolMap, measure_images
from .metrics.distribution import QuantileTable
from .metrics.scan_features import Progress, process_pool
from .questions.anatomy_limits import AnatomyCheck, Tolerance
from .statistics.resampling import Statistics
from .table import Metrics

__all__ = ["COMBAT", "EvaluationResult", "evaluate"]

TRAVELING = ("auto", "no")
PERMUTATIONS = 200


@dataclass(frozen=True)
class EvaluationResult:
    """Tables and checks of an evaluation.

    Attributes
    ----------
    metrics : Metrics
        Numbers of each scan and pair.
    statistics : Statistics
        Tests with intervals.
    quantiles : QuantileTable
        Quantile functions before, and after the first method.
    anatomy_checks : mapping of str to mapping of str to AnatomyCheck
        By method and scan identifier.
    tolerances : mapping of str to Tolerance
        Limits of the anatomy guard by modality.
    """

    metrics: Metrics
    statistics: Statistics
    quantiles: QuantileTable
    anatomy_checks: Mapping[str, Mapping[str, AnatomyCheck]]
    tolerances: Mapping[str, Tolerance]

    @classmethod
    def join(cls, results: Iterable[EvaluationResult]) -> EvaluationResult:
        """Join the results of several modalities; scan identifiers must differ.

        Parameters
        ----------
        results : iterable of EvaluationResult
            One per modality.

        Returns
        -------
        EvaluationResult
            All rows, in the order given.
        """
        results = list(results)
        checks: dict[str, dict[str, AnatomyCheck]] = {}
        for result in results:
            for method, found in result.anatomy_checks.items():
                checks.setdefault(method, {}).update(found)
        return cls(
            sum((result.metrics for result in results), Metrics()),
            sum((result.statistics for result in results), Statistics()),
            QuantileTable(tuple(row for result in results for row in result.quantiles.rows)),
            checks,
            {modality: limits for result in results
             for modality, limits in result.tolerances.items()})


def evaluate(
    before: Cohort,
    variants: Mapping[str, Cohort],
    target: str,
    *,
    covariates: Sequence[str] = ("age", "sex"),
    checked: Sequence[str] = (),
    reference_site: str | None = None,
    traveling: str = "auto",
    segment: Segment | None = None,
    priors: Mapping[str, np.ndarray] | None = None,
    target_quantiles: Mapping[str, np.ndarray] | None = None,
    fitted_on: Mapping[str, Sequence[str]] | None = None,
    combat: bool = True,
    permutations: int = PERMUTATIONS,
    workers: int = 1,
    progress: Progress | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Compute every measure that the data allow, before and after, for all methods.

    Parameters
    ----------
    before : Cohort
        Preprocessed scans on one grid.
    variants : mapping of str to Cohort
        Method to the same scans (by ``scan_id``) with harmonized images. Methods are compared on
        the scans that every method has.
    target : str
        Site harmonized to, or another name such as "scanner-free".
    covariates : sequence of str
        Covariates whose effects must be preserved: age, sex or columns of the cohort.
    checked : sequence of str
        Further columns that are compared with the site, such as those by which the subjects of a
        fit were selected.
    reference_site : str, optional
        Reference of paired tests and slopes; default: the target, else the largest site.
    traveling : {"auto", "no"}
        Whether a label at several sites is one subject ("auto") or several ("no").
    segment : callable, optional
        Volume to labels or probabilities. Without it there are no tissue ratios.
    priors : mapping of str to ndarray, shape (I, J, K), optional
        Probabilities, 0 to 1, of "GM", "WM" and "CSF" on the grid of the images. Without them,
        numbers are of the whole brain only.
    target_quantiles : mapping of str to ndarray, shape (200,), optional
        Modality to quantile function of a target that is not a site, such as reference images.
        Without it, distances are to the mean of the harmonized images.
    fitted_on : mapping of str to sequence of str, optional
        Method to the subjects of its fit. Rows warn if these subjects are evaluated.
    combat : bool
        Whether to add ComBat on the same features, fitted on other subjects.
    permutations : int
        Permutations for each chance level, at least 1.
    workers : int
        Processes that measure scans; each holds one pair of volumes.
    progress : callable, optional
        Called with (label, jobs done, jobs in total).
    cache : Path, optional
        Folder for the numbers of each scan and pair.
    seed : int
        Seed of all folds, permutations and bootstrap samples.

    Returns
    -------
    EvaluationResult
        A statistic that cannot be estimated is a row with the reason as its note.

    Raises
    ------
    InputError
        If an image cannot be read, images are not on one grid or, with `priors`, not on the grid
        of the template, or a covariate is unknown.
    UsageError
        If `traveling` or `reference_site` is not one of the choices.
    """
    if traveling not in TRAVELING:
        raise UsageError(f"traveling is one of {', '.join(TRAVELING)}, not {traveling!r}.")
    if not len(before):
        raise InputError("expected at least one scan to evaluate, got none. Run preprocess first.")
    before.require_one_grid()
    if priors is not None:
        require_template_grid(before, priors)
    cohort = before if traveling == "auto" else split_subjects_by_site(before)
    results = []
    with process_pool(workers, progress) as pool:
        for modality in dict.fromkeys(scan.modality for scan in cohort):
            inputs = prepare_input(
                cohort.of_modality(modality), variants, target, reference_site, covariates,
                checked, traveling=traveling == "auto", seed=seed, permutations=permutations,
                segment=segment, cache=cache)
            inputs = measure_images(inputs, pool, priors, target_quantiles, combat)
            results.append(_evaluate_modality(inputs, dict(fitted_on or {}), pool))
    return EvaluationResult.join(results)


def _evaluate_modality(inputs: EvaluationInput, fitted_on: Mapping[str, Sequence[str]],
                       pool: PoolMap) -> EvaluationResult:
    """Answer all questions of one modality from the measured numbers."""
    pairs, pair_rows = pair_tests(inputs, pool)
    tolerance, checks, anatomy_metrics, anatomy_rows = anatomy_tests(inputs)
    tests = [*scanner_tests(inputs), *pair_rows, *subject_agreement_tests(inputs),
             *identity_tests(inputs), *biology_tests(inputs), *longitudinal_tests(inputs),
             *anatomy_rows, *confounding_tests(inputs), *combat_missing(inputs)]
    subject_lists = {"evaluated": tuple(sorted(set(inputs.design.subjects))),
                     **{f"fit of {name}": tuple(who) for name, who in fitted_on.items()}}
    metrics = sum((found.metrics for found in inputs.paired_metrics.values()), Metrics())
    extra = Metrics((*ratio_rows(inputs), *component_rows(inputs), *texture_metrics(inputs),
                     *anatomy_metrics))
    return EvaluationResult(
        metrics + pairs + extra,
        Statistics(tuple(annotate(tests, inputs, subject_lists)), subject_lists),
        inputs.first_metrics.quantiles, checks, {inputs.modality: tolerance})
