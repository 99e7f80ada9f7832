"""Tables and figures of the site effect on features, from a simulated study."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmonizer.evaluation.questions.site_features import principal_components, site_feature_tests
from harmonizer.evaluation.statistics.design import Design
from harmonizer.evaluation.statistics.resampling import Statistics
from harmonizer.evaluation.table import RESCALED, Metric, Metrics, stage_of
from harmonizer.reports.diagnostics import diagnostic_figures, diagnostic_tables
from harmonizer.reports.results import ModalityResults

N_SCANS = 30


@pytest.fixture(scope="module")
def study() -> tuple[ModalityResults, Metrics, dict[str, float]]:
    """Two sites that differ before, less rescaled, and not at all after."""
    rng = np.random.default_rng(0)
    sites = tuple("AB" * (N_SCANS // 2))
    ages = rng.uniform(20, 80, N_SCANS)
    design = Design(tuple(map(str, range(N_SCANS))), sites, ages, ("F",) * N_SCANS)
    clean = rng.normal(size=(N_SCANS, 4)) + 0.03 * ages[:, None]
    rows, metrics = [], []
    for name, shift in (("", 4.0), (RESCALED, 1.5), ("x", 0.0)):
        table = clean + shift * (np.array(sites) == "B")[:, None]
        features = dict(zip(("noise_wm", "gm_mean", "blur_x", "GM ratio"), table.T))
        rows += [replace(test, modality="T1w", **stage_of(name))
                 for test in site_feature_tests(features, design)]
        for scan, values in enumerate(principal_components(table)[0]):
            metrics += [Metric(f"principal_component_{i + 1}", float(values[i]), scan=str(scan),
                               modality="T1w", site=sites[scan], **stage_of(name))
                        for i in range(2)]
    return (ModalityResults(Statistics(tuple(rows)), ("x",), {}, "T1w"), Metrics(tuple(metrics)),
            {str(i): float(age) for i, age in enumerate(ages)})


def test_every_number_stands_before_rescaled_and_after(study):
    features, components, distances = diagnostic_tables(study[0])
    assert [row[1].text for row in features.rows[:3]] == ["before", "only rescaled", "x"]
    noise = [row[2].order for row in features.rows if row[0].text == "noise_wm"]
    assert noise[0] > noise[1] > noise[2] < 0.1
    assert [row[0].text for row in components.rows][::2] == ["before", "only rescaled", "x"]
    before, rescaled, after = (row[-1].order for row in distances.rows)
    assert before > rescaled > after


def test_a_figure_for_each_diagnostic(study):
    figures = diagnostic_figures(*study)
    assert [figure.title for figure in figures] == [
        "Site effect on each feature", "Explained variance",
        "Principal components of all features", "Mahalanobis distances between sites"]
    assert all(frame.startswith(b"\x89PNG") for figure in figures for frame in figure.frames)


def test_without_numbers_there_is_no_figure_and_the_reason_is_given():
    design = Design(("1", "2"), ("A", "A"), np.array([20.0, 30.0]), ("F", "M"))
    rows = site_feature_tests({"noise_wm": [1.0, 2.0]}, design)
    results = ModalityResults(Statistics(tuple(
        replace(row, **stage_of("x")) for row in rows)), ("x",), {}, "T1w")
    assert diagnostic_figures(results, Metrics(), {}) == ()
    assert diagnostic_tables(results)[0].rows == ()
