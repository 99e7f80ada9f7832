"""Phantom scans as after preprocessing: on the template's grid, the scanner still in them."""
from __future__ import annotations

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.evaluation.metrics.image import gradient_agreement
from harmonizer.phantom import SCANNERS, make_subject, scanner_named
from harmonizer.phantom.aligned import aligned_image, write_aligned
from harmonizer.template import load_template


@pytest.fixture(scope="module")
def subject():
    return make_subject(7, 40.0, "F", 4.0)


def test_the_brain_lies_on_the_templates(subject):
    volume, template = aligned_image(subject, SCANNERS[0], resolution_mm=4), load_template(4)
    assert volume.same_grid(template)
    shared = 2 * (volume.mask & template.mask).sum() / (volume.mask.sum() + template.mask.sum())
    assert 0.88 < shared < 0.99  # the template's mask takes the fluid around the brain along
    assert (volume.data[~volume.mask] == 0).all() and (volume.in_mask() > 0).mean() > 0.99


def test_head_size_is_registered_away():
    small, large = make_subject(3, 40.0, "F", 4.0), make_subject(4, 40.0, "M", 4.0)
    sizes = [aligned_image(p, SCANNERS[0], resolution_mm=4).mask.sum() for p in (small, large)]
    assert abs(np.log(sizes[0] / sizes[1])) < 0.12  # shapes differ still
    assert abs(np.log(small.brain.sum() / large.brain.sum())) > 0.25


def test_gain_and_contrast_are_the_scanners(subject):
    one, two = (aligned_image(subject, scanner_named(n), resolution_mm=4) for n in
                ("aspen", "cedar"))
    assert np.median(two.in_mask()) / np.median(one.in_mask()) == pytest.approx(31000 / 420, rel=.3)
    variation = [v.in_mask().std() / v.in_mask().mean() for v in (one, two)]
    assert abs(np.log(variation[0] / variation[1])) > 0.05
    both = one.mask & two.mask
    assert gradient_agreement(one.data, two.data, both, (4, 4, 4)) > 0.9


def test_a_rescan_is_the_same_brain_with_other_noise(subject):
    first, again, other = (aligned_image(subject, SCANNERS[0], rescan=n, resolution_mm=4)
                           for n in (0, 0, 1))
    assert np.array_equal(first.data, again.data)
    inside = first.mask & other.mask
    change = (first.data - other.data)[inside].std() / first.in_mask().std()
    assert 0.005 < change < 0.2


def test_a_study_is_a_cohort(tmp_path):
    cohort = write_aligned(tmp_path, SCANNERS[:2], subjects=1, design="mixed",
                           traveling_subjects=1, runs=2, resolution_mm=8)
    assert len(cohort) == 1 * 2 * 2 + 2 * 2 and cohort.sites == {"aspen": 4, "birch": 4}
    again = Cohort.from_tsv(tmp_path / "cohort.tsv")
    assert [s.scan_id for s in again] == [s.scan_id for s in cohort]
    assert again.scans[0].read().same_grid(load_template(8)) and again.scans[0].age > 20
    roaming = [s for s in cohort if s.session]
    assert len(roaming) == 4 and {s.subject for s in roaming} == {roaming[0].subject}
