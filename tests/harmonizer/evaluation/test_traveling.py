"""Traveling subjects: selection, and measures against a textbook table and closed forms."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError
from harmonizer.evaluation.questions.traveling import (
    agreement_tests,
    compare_images,
    compare_methods,
    complete_table,
    icc,
    pair_metrics,
    rescans,
    site_pairs,
    subject_means,
    within_subject_cov,
)
from harmonizer.evaluation.statistics.design import Design
from harmonizer.evaluation.table import Metric, Metrics
from harmonizer.volume import Volume, write_mask, write_volume

# Shrout and Fleiss 1979, table 2: six targets, four judges.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8],
                          [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
SHAPE = (14, 14, 14)


def scan(who, session, site, modality="T1w", image="x", mask="m"):
    return Scan(f"sub-{who}_ses-{session}_{modality}", who, session, modality, site, "test",
                image, mask)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return Cohort((scan("1", "a", "A"), scan("1", "b1", "B"), scan("1", "b2", "B"),
                   scan("1", "c", "C"), scan("2", "a1", "A"), scan("2", "a2", "A"),
                   scan("3", "b", "B"), scan("4", "a", "A"), scan("4", "b", "B", "T2w")))


def test_who_travels(cohort):
    assert cohort.traveling().subjects == ("1",)  # 4 was elsewhere with another modality only
    assert not rescans(cohort)  # the time between the sessions b1 and b2 is not known


def test_longitudinal_scans_across_a_change_of_scanner_do_not_travel():
    """Fourteen years apart, then a year whose scans at two sites show one brain."""
    aged = [replace(scan("1", ses, site), age=age) for ses, site, age in (
        ("2006", "A", 60.0), ("2020a", "A", 74.0), ("2020b", "B", 74.4), ("2021", "C", 75.1))]
    old = Cohort((aged[0], aged[2]))
    assert not old.traveling() and len(old.scanned_years_apart()) == 2 and not site_pairs(old)
    mixed = Cohort(tuple(aged))
    assert [s.session for s in mixed.traveling()] == ["2020a", "2020b"]
    assert {p.first.session for p in site_pairs(mixed)} == {"2020a", "2020b"}
    assert Design.of(mixed).kind == "traveling" and Design.of(old).kind == "nested"
    assert Design.of(mixed).traveling_rows.tolist() == [False, True, True, False]
    assert Cohort(tuple(replace(s, age=None) for s in old)).traveling().subjects == ("1",)
    dated = [replace(s, age=60.0, covariates={"acq_time": date})
             for s, date in zip(old, ("2019-03-01T10:00:00", "2021-03-01"))]
    assert not Cohort(tuple(dated)).traveling()  # the dates know better than a repeated age


def test_what_counts_as_a_rescan():
    def one(name, session, time=""):
        return Scan(f"sub-01_{name}_T1w", "01", session, "T1w", "A", "test", "x", "m",
                    covariates={"acq_time": time} if time else {})

    def pairs(*scans):
        return [(p.first.scan_id[7:-4], p.second.scan_id[7:-4]) for p in rescans(Cohort(scans))]

    assert pairs(one("ses-a_run-1", "a"), one("ses-a_run-2", "a")) == [("ses-a_run-1",
                                                                       "ses-a_run-2")]
    for other in ("ses-a_rec-norm", "ses-a_ce-gad", "ses-a_acq-x_run-2"):
        assert pairs(one("ses-a", "a"), one(other, "a")) == []
    assert pairs(one("ses-a", "a"), one("ses-b", "b")) == []
    near, far = "2020-03-20T09:00:00", "2034-03-20T09:00:00"
    assert pairs(one("ses-a", "a", "2020-03-01T10:00:00"), one("ses-b", "b", near)) == [
        ("ses-a", "ses-b")]
    assert pairs(one("ses-a", "a", "2020-03-01T10:00:00"), one("ses-b", "b", far)) == []
    assert pairs(one("ses-a_rec-x", "a", near), one("ses-b", "b", near)) == []


def test_every_ordered_pair_of_sites_once(cohort):
    found = [(p.subject, p.first.site, p.second.site) for p in site_pairs(cohort)]
    assert found == [("1", *two) for two in ("AB", "AC", "BA", "BC", "CA", "CB")]
    assert {p.first.session for p in site_pairs(cohort)} == {"a", "b1", "c"}


def test_icc_of_the_textbook_table():
    """Shrout and Fleiss 1979, table 4: ICC(3,1) = .71, ICC(2,1) = .29; intervals of R's psych."""
    three, two = icc(SHROUT_FLEISS), icc(SHROUT_FLEISS, "2,1")
    assert three.value == pytest.approx(0.714841, abs=1e-6)
    assert (three.low, three.high) == pytest.approx((0.342465, 0.945855), abs=1e-4)
    assert three.f == pytest.approx(11.02724, abs=1e-4)
    assert three.p == pytest.approx(0.000135, abs=1e-5)
    assert two.value == pytest.approx(0.289764, abs=1e-6)
    assert (two.low, two.high) == pytest.approx((0.018787, 0.761080), abs=2e-3)


def test_offsets_of_sites_lower_agreement_and_not_consistency():
    table = np.array([[1.0, 11.0], [2.0, 12.0], [3.0, 13.5]])
    assert icc(table).value > 0.95
    assert icc(table, "2,1").value < 0.1
    assert icc(table - [[0.0, 10.0]], "2,1").value > 0.9
    perfect = icc(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert (perfect.value, perfect.low, perfect.high) == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="complete table"):
        icc(np.array([[1.0, np.nan], [1.0, 2.0]]))


def test_cov_by_hand():
    """9, 10, 11: sd 1, mean 10 -> 10 %; 18, 20, 22: 10 % too; a constant subject: 0."""
    assert within_subject_cov([[9, 10, 11], [18, 20, 22]]) == pytest.approx(10.0)
    assert within_subject_cov([[9, 10, 11], [5, 5, 5]]) == pytest.approx(10 / math.sqrt(2))
    assert math.isnan(within_subject_cov([[-1, 1], [1, 2]]))


def test_the_largest_table_without_gaps():
    values = dict(zip([("1", "A"), ("1", "B"), ("2", "A"), ("2", "B"), ("3", "A"), ("3", "B"),
                       ("3", "C"), ("4", "A"), ("1", "C")], range(9)))
    who, where = zip(*values)
    table, rows, sites = complete_table(list(values.values()), who, where)
    assert rows == ["1", "2", "3"] and sites == ["A", "B"]
    assert table.tolist() == [[0, 1], [2, 3], [4, 5]]
    twice, _, _ = complete_table([0, 1, 2, 3, 10], list("11221"), list("ABABA"))
    assert twice.tolist() == [[5, 1], [2, 3]]
    assert complete_table([1, 2], ["1", "2"], ["A", "B"])[0].size == 0


def test_agreement_of_features_and_its_absence():
    who = [str(i) for i in range(6) for _ in range(4)]
    where = list("ABCD") * 6
    tests = {t.name: t for t in agreement_tests({"gm": SHROUT_FLEISS.ravel()}, who, where)}
    assert tests["icc31"].effect == pytest.approx(0.714841, abs=1e-6)
    assert tests["icc31"].n == 6
    assert tests["within_subject_cov"].low < tests["within_subject_cov"].effect
    few = agreement_tests({"gm": [1.0, 2.0, 3.0]}, ["1", "1", "2"], ["A", "B", "A"])
    assert {t.known for t in few} == {False}
    assert few[0].note == "0 subjects have gm at the same two or more sites; 3 are needed"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Cohort, Cohort]:
    """Four subjects at A and B, B with an offset of 20 of a range of 100; after: no offset."""
    folder = tmp_path_factory.mktemp("traveling subjects")
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    write_mask(folder / "m.nii.gz", mask, np.eye(4))
    before, after = [], []
    for number in range(4):
        brain = np.random.default_rng(number).uniform(0, 100, SHAPE)
        for site, offset in (("A", 0.0), ("B", 20.0)):
            noise = np.random.default_rng(99 + number).normal(0, 1, SHAPE) * (site == "B")
            one = scan(str(number), site, site, mask=folder / "m.nii.gz")
            for kind, shift, cohort in (("raw", offset, before), ("done", 0.0, after)):
                path = write_volume(folder / f"{number}{site}{kind}.nii.gz",
                                    Volume(brain + shift + noise, np.eye(4)))
                cohort.append(replace(one, image=path))
    return Cohort(tuple(before)), Cohort(tuple(after))


def test_pairs_before_and_after(written):
    before, after = written
    raw = pair_metrics(before, None, "A", {"T1w": 100.0})
    done = pair_metrics(before, after, "A", {"T1w": 100.0}, backend="x")
    assert len(raw) == len(done) == 4 * 2 * 5
    assert np.mean(raw.select(measure="rmse").values()) == pytest.approx(0.2, abs=0.01)
    assert np.mean(done.select(measure="rmse").values()) == pytest.approx(0.01, abs=0.001)
    assert {(r.site, r.reference) for r in done} == {("A", "B"), ("B", "A")}
    assert {(r.stage, r.backend, r.target) for r in done} == {("after", "x", "A")}


def test_the_targets_own_image_is_the_reference(written):
    """After to B: A's image is compared with the unharmonized one at B, 20 away; B's with A's."""
    before, after = written
    done = pair_metrics(before, after, "B", {"T1w": 100.0})
    assert done.select(measure="mae", reference="B").values() == pytest.approx([0.2] * 4, abs=0.01)
    assert done.select(measure="mae", reference="A").values() == pytest.approx(
        [0.008] * 4, abs=2e-3)
    assert set(subject_means(done, "mae", "B").values()) < set(done.select(measure="mae").values())


def test_pairs_may_be_kept_to_those_that_end_at_one_site(tmp_path, cohort):
    volume = Volume(np.random.default_rng(0).normal(size=SHAPE), np.eye(4))
    mask = write_mask(tmp_path / "m.nii.gz", np.ones(SHAPE, bool), np.eye(4))
    cohort = Cohort(tuple(replace(
        s, image=write_volume(tmp_path / f"{s.scan_id}.nii.gz", volume.with_data(volume.data * i)),
        mask=mask) for i, s in enumerate(cohort, 1) if s.modality == "T1w" and s.subject == "1"))
    read = []
    every = pair_metrics(cohort, None, "C", {"T1w": 1.0})
    some = pair_metrics(cohort, None, "C", {"T1w": 1.0}, to="C",
                        mapper=lambda f, jobs: read.extend(jobs) or map(f, jobs))
    assert len(every.select(measure="psnr")) == 6 and len(read) == 2
    assert some.rows == tuple(row for row in every if row.reference == "C")


def test_methods_are_compared_over_subjects(written):
    before, after = written
    tables = {"": pair_metrics(before, None, "A", {"T1w": 100.0}),
              "x": pair_metrics(before, after, "A", {"T1w": 100.0})}
    tests = compare_methods(tables, target="A")
    pairs = [t for t in tests if t.name == "traveling_wilcoxon"]
    change = next(t for t in pairs if t.reference == "rmse | unharmonized")
    assert (change.n, change.backend) == (4, "x")
    assert change.effect == pytest.approx(-0.19, abs=0.01)
    assert change.p == change.p_corrected == pytest.approx(0.125)
    means = {(t.reference, t.backend): t for t in tests if t.name == "traveling_pair"}
    assert means["rmse", "x"].effect == pytest.approx(0.01, abs=0.001)
    assert means["psnr", "x"].effect > means["psnr", ""].effect + 20


def test_a_linear_map_per_scan_is_a_stage_of_its_own(written):
    before, _ = written
    maps = {scan.scan_id: (1.0, -20.0 if scan.site == "B" else 0.0) for scan in before}
    rescaled = pair_metrics(before, None, "A", {"T1w": 100.0}, maps=maps)
    assert {(row.stage, row.backend) for row in rescaled} == {("rescaled", "")}
    assert np.mean(rescaled.select(measure="rmse").values()) == pytest.approx(0.01, abs=0.001)
    tests = compare_methods({"": pair_metrics(before, None, "A", {"T1w": 100.0}),
                             "rescaled": rescaled})
    assert [t.stage for t in tests if t.name == "traveling_pair" and t.reference == "mae"] == [
        "before", "rescaled"]


def test_a_missing_image_and_copies():
    rows = Metrics((Metric("psnr", math.inf, subject="1"), Metric("psnr", 20.0, subject="2")))
    assert subject_means(rows, "psnr") == {"2": 20.0}
    empty = compare_methods({"": Metrics()})
    assert {t.known for t in empty} == {False}


def test_images_on_other_grids_are_refused():
    volume = Volume(np.ones((12, 12, 12)), np.eye(4), np.ones((12, 12, 12), bool))
    with pytest.raises(InputError, match="on one grid"):
        compare_images(volume, Volume(volume.data, np.diag([2, 2, 2, 1.0]), volume.mask), 1.0)
