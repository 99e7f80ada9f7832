"""Repeated scans with known atrophy: what a harmonization must keep, and what it may not change."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.cohort import Scan
from harmonizer.evaluation.questions.longitudinal import (
    annual_changes,
    change_losses,
    change_tests,
    order_tests,
)

ATROPHY = -0.004  # of the gray matter ratio per year


def scan(subject: int, site: str, age: float) -> Scan:
    return Scan(f"sub-{subject:02d}_ses-{site}{age:.0f}_T1w", f"{subject:02d}", None, "T1w", site,
                "t", "i", "m", age)


@pytest.fixture(scope="module")
def repeated() -> tuple[list[Scan], np.ndarray, np.ndarray]:
    """24 subjects, two visits three years apart; a third of them change the scanner.

    Site B measures 0.03 more gray matter. Returns scans, true and measured ratios.
    """
    rng = np.random.default_rng(0)
    scans, truth = [], []
    for who in range(24):
        level, rate = 0.5 + 0.03 * rng.normal(), ATROPHY * rng.uniform(0.6, 1.4)
        first = "AB"[who % 2]
        second = "BA"[who % 2] if who < 8 else first
        for site, years in ((first, 0.0), (second, 3.0)):
            scans.append(scan(who, site, 50 + who + years))
            truth.append(level + rate * years + 0.0003 * rng.normal())
    sites = np.array([one.site for one in scans])
    return scans, np.array(truth), np.array(truth) + 0.03 * (sites == "B")


def test_the_annual_change_is_the_atrophy_and_the_scanner_hides_it_across_sites(repeated):
    scans, truth, measured = repeated
    rows = {row.reference: row for row in change_tests({"GM": measured}, scans)}
    assert rows["GM | same site"].n == 16 and rows["GM | across sites"].n == 8
    assert rows["GM | same site"].low < ATROPHY < rows["GM | same site"].high
    assert rows["GM | same site"].high < 0
    assert np.ptp([rows["GM | across sites"].low, rows["GM | across sites"].high]) > 0.01
    after = {row.reference: row for row in change_tests({"GM": truth}, scans)}
    assert after["GM | across sites"].low < ATROPHY < after["GM | across sites"].high < 0


def test_two_scans_within_half_a_year_are_no_change():
    scans = [scan(1, "A", 50.0), scan(1, "A", 50.3), scan(2, "A", 50.0), scan(2, "A", 51.0)]
    assert annual_changes([0.5, 0.4, 0.5, 0.4], scans, across=False) == {
        "02": pytest.approx(-0.1)}
    assert annual_changes([0.5, 0.4, 0.5, 0.4], scans, across=True) == {}


def test_a_change_that_is_kept_halved_or_erased(repeated):
    scans, truth, measured = repeated
    first = {one.subject: truth[i] for i, one in reversed(list(enumerate(scans)))}
    start = np.array([first[one.subject] for one in scans])
    bases = {"before": {"GM": measured}}
    kept, half, gone = (change_losses(bases, {"GM": start + part * (truth - start)}, scans)[0]
                        for part in (1.0, 0.5, 0.0))
    assert kept.high < 0.1 and kept.n == 16
    assert half.low > 0.1 and half.effect == pytest.approx(0.5, abs=0.05)
    assert gone.effect == pytest.approx(1.0) and gone.low > 0.9
    assert kept.method.startswith("1 - after / before")
    noise = {"before": {"GM": np.random.default_rng(1).normal(size=len(scans))}}
    assert change_losses(noise, {"GM": truth}, scans) == ()


def traveling(noise: float, seed: int = 2) -> tuple[list[Scan], np.ndarray]:
    rng = np.random.default_rng(seed)
    levels = 0.5 + 0.03 * rng.normal(size=12)
    scans = [scan(who, site, 50.0) for who in range(12) for site in "AB"]
    values = [levels[int(one.subject)] + 0.05 * (one.site == "B") + noise * rng.normal()
              for one in scans]
    return scans, np.array(values)


def test_a_site_effect_keeps_the_order_and_a_shuffle_does_not():
    scans, values = traveling(0.002)
    before = {row.name: row for row in order_tests({"GM": values}, scans)}
    assert set(before) == {"subject_order"} and before["subject_order"].low > 0.8
    after = values - 0.05 * np.array([one.site == "B" for one in scans])
    rows = {row.name: row for row in order_tests({"GM": after}, scans, {"GM": values})}
    assert rows["subject_order_change"].low > -0.05
    assert rows["subject_order_within_site"].effect == pytest.approx(1.0)
    mixed = np.random.default_rng(3).permutation(after)
    rows = {row.name: row for row in order_tests({"GM": mixed}, scans, {"GM": values})}
    assert rows["subject_order_change"].high < -0.05
    assert rows["subject_order_within_site"].effect < 0.7


def test_features_that_are_the_same_in_all_subjects_have_no_order():
    scans, values = traveling(0.002)
    row = order_tests({"GM": np.full(len(scans), 0.5)}, scans, {"GM": values})[0]
    assert not row.known and "information about subjects is lost" in row.note
