"""The whole evaluation of phantom subjects whose truth is known."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.evaluation.run import evaluate
from harmonizer.evaluation.statistics.resampling import Test
from harmonizer.evaluation.table import RESCALED
from harmonizer.evaluation.verdicts import compute_verdicts
from harmonizer.template import tissue_priors
from tests.harmonizer.evaluation import phantoms

ILL = ("03", "12")  # with a lesion in their scans, which the painter erases
PAINTED = ("05", "14")  # without, until the painter comes
TWICE = ("01", "04", "07", "10", "13")  # scanned two times: what a scanner does on its own


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    study = phantoms.study(tmp_path_factory.mktemp("truth"), 8, ill=ILL, twice=TWICE)
    mean = np.mean(list(study.truth.values()), axis=0)

    def paint(data, scan):
        if scan.subject in PAINTED:
            return phantoms.with_lesion(data, data != 0)
        erase = phantoms.lesion(data.shape) & (scan.subject in ILL)
        return np.where(erase, np.percentile(data[data != 0], 80), data)

    changes = {"truth": lambda data, scan: data, "nothing": lambda data, scan: scan.read().data,
               "mean": lambda data, scan: np.where(scan.read().mask, mean, 0), "painter": paint}
    variants = {name: study.variant(name, change) for name, change in changes.items()}
    return evaluate(study.before, variants, phantoms.TARGET, segment=phantoms.segment,
                   priors=tissue_priors(phantoms.RESOLUTION_MM), permutations=30, combat=False)


def one(result, name: str, backend: str = "", **more: str) -> Test:
    rows = [row for row in result.statistics.select(name=name, backend=backend, **more).rows
            if row.stage != RESCALED]
    assert len(rows) == 1, (name, backend, len(rows))
    return rows[0]


def verdicts(result, method: str) -> dict[str, str]:
    return {a.question: a.answer for a in compute_verdicts(result.statistics, method)}


def test_a_site_effect_that_is_there_is_found(result):
    assert one(result, "site_f1_retrained").effect > 0.9
    assert one(result, "site_f1_retrained").p < 0.05
    assert one(result, "distribution_distance", tissue="brain").p < 0.05
    assert verdicts(result, "nothing")["scanner"] == "no"


def test_one_that_is_gone_is_reported_as_gone(result):
    assert verdicts(result, "truth")["scanner"] == "partly"  # reduced: 16 subjects cannot show more
    after, chance = (one(result, name, "truth") for name in ("site_f1_retrained", "site_chance"))
    assert after.p > 0.05 and after.effect <= chance.high
    distance = [one(result, "distribution_distance", method, tissue="brain").effect
                for method in ("", "truth")]
    assert distance[1] < 0.05 * distance[0]


def test_the_effect_of_age_survives_where_it_is_let(result):
    assert verdicts(result, "truth")["biology"] in ("yes", "partly")  # 16 subjects are not many
    assert one(result, "age_r2", "truth").effect > 0.3 > one(result, "age_r2", "nothing").effect
    slopes = {method: one(result, "standardized_beta", method, reference="GM ratio | age")
              for method in ("", "truth", "mean")}
    assert slopes[""].effect < -0.3 and slopes["truth"].effect < -0.3
    assert slopes["mean"].low < 0 < slopes["mean"].high


def test_a_perfect_harmonization_moves_no_anatomy(result):
    assert result.tolerances["T1w"].origin.startswith("5 pairs of rescans")
    assert one(result, "anatomy_flagged", "truth").effect <= 0.3
    assert one(result, "anatomy_flagged", "nothing").effect == 0.0
    assert verdicts(result, "truth")["subject"] == "yes"


def test_everybody_made_the_mean_is_caught_though_the_site_is_gone(result):
    assert verdicts(result, "mean") == {"scanner": "partly", "subject": "no", "biology": "no",
                                        "anatomy": "no"}
    assert one(result, "site_f1_retrained", "mean").p > 0.05
    assert one(result, "anatomy_flagged", "mean").effect == 1.0


@pytest.mark.parametrize("who", [ILL, PAINTED], ids=["erased", "painted in"])
def test_lesions_erased_or_painted_in_are_caught(result, who):
    painted, faithful = result.anatomy_checks["painter"], result.anatomy_checks["truth"]
    limit = result.tolerances["T1w"].limits["largest_change"]
    for name, verdict in painted.items():
        change = verdict.values["largest_change"]
        if name[4:6] in who:
            assert change > 2 * limit and any("local change" in r for r in verdict.reasons)
        elif name[4:6] not in ILL + PAINTED:
            assert change == pytest.approx(faithful[name].values["largest_change"])
