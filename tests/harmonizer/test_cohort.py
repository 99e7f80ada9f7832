"""Tests of the cohort table and of splits by subject."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError


def scan(subject: str, site: str, folder: Path, session: str | None = None) -> Scan:
    name = f"sub-{subject}" + (f"_ses-{session}" if session else "") + "_T1w"
    return Scan(name, subject, session, "T1w", site, "participants.tsv: site",
                folder / f"{name}.nii.gz", folder / f"{name}_mask.nii.gz", 31.5, "F",
                {"group": "HC"})


@pytest.fixture
def cohort(tmp_path):
    nested = [scan(f"{site}{i}", site, tmp_path) for site in "AB" for i in range(5)]
    traveling = [scan("T", site, tmp_path, site) for site in "AB"]
    return Cohort((*nested, *traveling))


def test_table_round_trip(cohort, tmp_path):
    path = cohort.to_tsv(tmp_path / "cohort.tsv")
    assert str(tmp_path) not in path.read_text()
    again = Cohort.from_tsv(path)
    assert [s.scan_id for s in again] == sorted(s.scan_id for s in cohort)
    assert again.scans[0].covariates == {"group": "HC"}
    assert (again.scans[0].age, again.scans[0].sex, again.scans[0].session) == (31.5, "F", None)
    assert again.scans[0].image == tmp_path / "sub-A0_T1w.nii.gz"


@pytest.mark.parametrize("name", ["site", "image", "Scan_ID"])
def test_a_covariate_never_makes_a_second_column_of_one_name(cohort, tmp_path, name):
    clashing = Cohort(tuple(replace(scan, covariates={name: "x"}) for scan in cohort))
    with pytest.raises(InputError, match=f"covariates {name} have names of the table's own"):
        clashing.to_tsv(tmp_path / "cohort.tsv")
    assert not (tmp_path / "cohort.tsv").exists()


def test_scans_travel_to_other_processes(cohort, tmp_path):
    """Also those that a table gave: their covariates are read-only."""
    for scans in (cohort, Cohort.from_tsv(cohort.to_tsv(tmp_path / "cohort.tsv"))):
        assert pickle.loads(pickle.dumps(scans)) == scans


def test_sites_and_the_largest(cohort):
    assert cohort.sites == {"A": 6, "B": 6}
    assert cohort.largest_site == "A"
    assert len(cohort.of_site("B")) == 6
    with pytest.raises(InputError, match="unknown site 'C'. Known: A, B."):
        cohort.of_site("C")


def test_split_keeps_subjects_together_and_covers_every_site(cohort):
    rest, held = cohort.split(0.4, seed=1)
    assert not set(rest.subjects) & set(held.subjects)
    assert len(rest) + len(held) == len(cohort)
    assert set(held.sites) == set(rest.sites) == {"A", "B"}
    assert cohort.split(0.4, seed=1)[1].scans == held.scans
    assert cohort.split(0.4, seed=2)[1].scans != held.scans


def test_scan_listed_twice_is_refused(cohort):
    with pytest.raises(InputError, match="scan sub-A0_T1w is listed twice"):
        Cohort((*cohort.scans, cohort.scans[0]))


def test_missing_table_and_columns_are_named(tmp_path):
    with pytest.raises(InputError, match="cohort.tsv: cannot be read .* Run the preprocess stage"):
        Cohort.from_tsv(tmp_path / "cohort.tsv")
    (tmp_path / "cohort.tsv").write_text("scan_id\tsite\nx\tA\n")
    with pytest.raises(InputError, match="lacks the column.*participant_id"):
        Cohort.from_tsv(tmp_path / "cohort.tsv")
