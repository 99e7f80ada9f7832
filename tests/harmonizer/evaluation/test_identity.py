"""Fingerprints: people told apart, scanners ignored, and nobody left where all look alike."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.evaluation.questions.subject import (
    fingerprint,
    identify,
    source_identity,
    travelling_identity,
)
from harmonizer.volume import Volume
from tests.harmonizer.evaluation import cohorts


def prints_of(plan) -> tuple[list, dict[str, np.ndarray]]:
    """Scans (without files) and fingerprints of a plan."""
    from harmonizer.cohort import Scan

    scans, prints = [], {}
    for visit, (person, site, session, age, _) in enumerate(plan):
        name = f"{person}-{session}"
        data = cohorts.at_site(cohorts.brain(person, age), site, visit)
        scans.append(Scan(name, str(person), session, "T1w", site, "t", "i", "m"))
        prints[name] = fingerprint(Volume(data, cohorts.AFFINE, cohorts.MASK))
    return scans, prints


@pytest.fixture(scope="module")
def roaming():
    return prints_of(cohorts.travelling_plan(6))


def test_a_fingerprint_is_the_mean_of_blocks_inside_the_mask():
    data = np.arange(64.0).reshape(4, 4, 4)
    mask = np.ones((4, 4, 4), bool)
    mask[:2, :2, 1:] = False  # block (0, 0, 0) keeps 4 of 8 voxels, (0, 0, 1) none
    found = fingerprint(Volume(data, np.diag([4.0, 4, 4, 1]), mask))
    assert found.shape == (8,)
    assert found[0] == pytest.approx(data[:2, :2, 0].mean())
    assert np.isnan(found[1])
    assert found[7] == pytest.approx(data[2:, 2:, 2:].mean())


def test_people_are_found_across_scanners_whatever_the_contrast(roaming):
    scans, prints = roaming
    found, margin = travelling_identity(prints, scans)
    assert (found.name, found.n, found.effect) == ("identification", 6, 1.0)
    assert "chance 0.17" in found.method
    assert margin.effect > 0.7 and margin.low > 0.5


def test_labels_of_strangers_are_found_by_chance_only(roaming):
    scans, prints = roaming
    rng = np.random.default_rng(0)
    strangers = {name: rng.normal(size=value.size).astype(np.float32)
                 for name, value in prints.items()}
    found, margin = travelling_identity(strangers, scans)
    assert found.effect < 0.45
    assert margin.effect == pytest.approx(0.0, abs=0.1)


def test_one_mean_image_tells_nobody_apart_though_gains_differ(roaming):
    scans, prints = roaming
    mean = np.mean([value for value in prints.values()], axis=0)
    alike = {name: (1 + 0.1 * i) * mean + i for i, name in enumerate(prints)}
    tests = travelling_identity(alike, scans)
    assert [test.known for test in tests] == [False, False]
    assert "whatever it told of people is gone" in tests[0].note
    assert not source_identity(prints, alike, scans)[0].known


def test_the_source_is_found_among_its_site_and_a_swap_is_seen(roaming):
    scans, prints = roaming
    gained = {name: 3 * value + 40 for name, value in prints.items()}
    assert source_identity(prints, gained, scans)[0].effect == 1.0
    names = [scan.scan_id for scan in scans if scan.session == "c"]
    swapped = dict(gained)
    for one, two in zip(names, names[1:] + names[:1]):
        swapped[one] = gained[two]
    found = source_identity(prints, swapped, scans)[0]
    assert found.effect == pytest.approx(2 / 3)  # right at A and B, wrong at C


def test_ties_count_as_the_chance_that_they_are():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 50))
    assert identify(table, table)[0].tolist() == [1.0] * 4
    twins = table.copy()
    twins[1] = twins[0]
    assert identify(twins, twins)[0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert identify(table[:, :10], table[:, :10]) is None


def test_two_people_are_too_few():
    scans, prints = prints_of(cohorts.travelling_plan(2))
    tests = travelling_identity(prints, scans)
    assert not tests[0].known and tests[0].note.startswith("3 people are needed")
