"""Tests of fingerprints: subjects are identified, scanners are ignored, similarity is reported."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.evaluation.questions.subject import (
    fingerprint,
    identify,
    identity_changes,
    source_identity,
    traveling_identity,
)
from harmonizer.volume import Volume
from tests.harmonizer.evaluation import cohorts


def prints_of(plan) -> tuple[list, dict[str, np.ndarray]]:
    """Scans (without files) and fingerprints of a plan."""
    from harmonizer.cohort import Scan

    scans, fingerprints = [], {}
    for visit, (subject, site, session, age, _) in enumerate(plan):
        name = f"{subject}-{session}"
        data = cohorts.at_site(cohorts.brain(subject, age), site, visit)
        scans.append(Scan(name, str(subject), session, "T1w", site, "t", "i", "m"))
        fingerprints[name] = fingerprint(Volume(data, cohorts.AFFINE, cohorts.MASK))
    return scans, fingerprints


@pytest.fixture(scope="module")
def roaming():
    return prints_of(cohorts.traveling_plan(6))


def test_a_fingerprint_is_the_mean_of_blocks_inside_the_mask():
    data = np.arange(64.0).reshape(4, 4, 4)
    mask = np.ones((4, 4, 4), bool)
    mask[:2, :2, 1:] = False  # block (0, 0, 0) keeps 4 of 8 voxels, (0, 0, 1) none
    found = fingerprint(Volume(data, np.diag([4.0, 4, 4, 1]), mask))
    assert found.shape == (8,)
    assert found[0] == pytest.approx(data[:2, :2, 0].mean())
    assert np.isnan(found[1])
    assert found[7] == pytest.approx(data[2:, 2:, 2:].mean())


def test_subjects_are_found_across_scanners_whatever_the_contrast(roaming):
    scans, fingerprints = roaming
    found, margin, ratio = traveling_identity(fingerprints, scans)
    assert (found.name, found.n, found.effect) == ("identification", 6, 1.0)
    assert "chance 0.17" in found.method
    assert margin.effect > 0.7 and margin.low > 0.5
    assert ratio.name == "own_to_others" and ratio.high < 0.5
    assert found.low == pytest.approx(0.025 ** (1 / 6))  # exact: six of six


def test_labels_of_strangers_are_found_by_chance_only(roaming):
    scans, fingerprints = roaming
    rng = np.random.default_rng(0)
    strangers = {name: rng.normal(size=value.size).astype(np.float32)
                 for name, value in fingerprints.items()}
    found, margin, ratio = traveling_identity(strangers, scans)
    assert ratio.effect == pytest.approx(1.0, abs=0.15)
    assert found.effect < 0.45
    assert margin.effect == pytest.approx(0.0, abs=0.1)


def test_one_mean_image_identifies_no_subject_though_gains_differ(roaming):
    scans, fingerprints = roaming
    mean = np.mean([value for value in fingerprints.values()], axis=0)
    alike = {name: (1 + 0.1 * i) * mean + i for i, name in enumerate(fingerprints)}
    tests = traveling_identity(alike, scans)
    assert [test.known for test in tests] == [False] * 3
    assert "information about subjects is lost" in tests[0].note
    assert not source_identity(fingerprints, alike, scans)[0].known


def test_the_source_is_found_among_its_site_and_a_swap_is_seen(roaming):
    scans, fingerprints = roaming
    gained = {name: 3 * value + 40 for name, value in fingerprints.items()}
    assert source_identity(fingerprints, gained, scans)[0].effect == 1.0
    names = [scan.scan_id for scan in scans if scan.session == "c"]
    swapped = dict(gained)
    for one, two in zip(names, names[1:] + names[:1]):
        swapped[one] = gained[two]
    found = source_identity(fingerprints, swapped, scans)[0]
    assert found.effect == pytest.approx(2 / 3)  # right at A and B, wrong at C


def test_ties_count_as_the_chance_that_they_are():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 50))
    assert identify(table, table)[0].tolist() == [1.0] * 4
    twins = table.copy()
    twins[1] = twins[0]
    assert identify(twins, twins)[0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert identify(table[:, :10], table[:, :10]) is None


def test_two_subjects_are_too_few():
    scans, fingerprints = prints_of(cohorts.traveling_plan(2))
    tests = traveling_identity(fingerprints, scans)
    assert not tests[0].known and tests[0].note.startswith("3 subjects are needed")


def test_a_loss_of_identity_is_told_from_a_change_of_contrast(roaming):
    """A gain and an offset change nothing; half of another subject's image is a loss."""
    scans, fingerprints = roaming
    gained = {name: 3 * value + 40 for name, value in fingerprints.items()}
    same, distance = identity_changes(fingerprints, gained, scans)
    assert same.effect == 0.0 and same.low == pytest.approx(0.025 ** (1 / 6) - 1)
    assert same.detectable == pytest.approx(1 - 0.2 ** (1 / 6))
    assert distance.high < distance.margin == 0.05
    rng = np.random.default_rng(1)
    spoiled = {name: value + 2 * np.nanstd(value) * rng.normal(size=value.size).astype(np.float32)
               for name, value in fingerprints.items()}
    assert identity_changes(fingerprints, spoiled, scans)[1].low > 0.05
