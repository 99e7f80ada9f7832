"""Site attribution: each source alone, the precedence among them, and what is never guessed."""

from __future__ import annotations

import string
from typing import Any

import pytest

from pipelines.dataset.sites import SiteFinder, clean_label, distinct_labels, sidecar_site
from pipelines.dataset.tables import Tables

PEOPLE = "participant_id\tsite\tscanner\nsub-01\tNYU\tS1\nsub-02\tn/a\tS2\n"
SESSIONS = "session_id\tsite\nses-A\tKKI\nses-B\tn/a\n"
SIDECAR = {"InstitutionName": "Hôpital Nord", "Manufacturer": "SIEMENS",
           "ManufacturersModelName": "Trio Tim", "MagneticFieldStrength": 2.89362}
FROM_SIDECAR = "HopitalNord_Siemens_TrioTim_3T"


@pytest.fixture
def tables(make_tree: Any) -> Tables:
    return Tables(make_tree({"participants.tsv": PEOPLE,
                             "sub-01/sub-01_sessions.tsv": SESSIONS,
                             "sub-02/sub-02_sessions.tsv": SESSIONS}))


@pytest.mark.parametrize(
    ("options", "subject", "session", "label", "source"),
    [
        ({}, "01", "A", "KKI", "sub-01_sessions.tsv: site = KKI"),
        ({}, "01", "B", "NYU", "participants.tsv: site = NYU"),
        ({}, "01", None, "NYU", "participants.tsv: site = NYU"),
        ({}, "02", "B", FROM_SIDECAR, "sidecar: InstitutionName, Manufacturer, "),
        ({}, "99", None, FROM_SIDECAR, "sidecar: InstitutionName"),
        ({"column": "scanner"}, "01", "A", "S1", "participants.tsv: scanner = S1"),
        ({"column": "SITE"}, "01", "B", "NYU", "participants.tsv: SITE = NYU"),
        ({"forced": "mine"}, "01", "A", "mine", "--site mine"),
        ({"site_from": "participants"}, "01", "A", "NYU", "participants.tsv: site = NYU"),
        ({"site_from": "sessions"}, "01", "A", "KKI", "sub-01_sessions.tsv: site = KKI"),
        ({"site_from": "sidecar"}, "01", "A", FROM_SIDECAR, "sidecar: "),
        ({"site_from": "ses"}, "01", "A", "A", "session label: ses-A"),
    ],
)
def test_precedence(
    tables: Tables, options: dict, subject: str, session: str | None, label: str, source: str
) -> None:
    site = SiteFinder(tables, **options).find(subject, session, SIDECAR)
    assert site is not None
    assert site.label == label
    assert site.source.startswith(source)


@pytest.mark.parametrize(
    ("options", "subject", "session", "metadata", "remedy"),
    [
        ({}, "02", "B", {}, "--site-from ses if each session is from another scanner"),
        ({}, "02", None, {}, "Fill the column 'site' of participants.tsv"),
        ({"site_from": "participants"}, "02", "A", SIDECAR, "participants.tsv"),
        ({"site_from": "sessions"}, "01", "B", SIDECAR, "sub-01_sessions.tsv"),
        ({"site_from": "ses"}, "01", None, SIDECAR, "Give its session a name"),
        ({"column": "nothing"}, "01", "A", {}, "'nothing'"),
    ],
)
def test_an_unknown_site_stays_unknown(
    tables: Tables, options: dict, subject: str, session: str | None, metadata: dict, remedy: str
) -> None:
    finder = SiteFinder(tables, **options)
    assert finder.find(subject, session, metadata) is None
    assert remedy in finder.remedy(subject, session)


def test_the_times_of_a_longitudinal_study_are_no_sites(make_tree: Any) -> None:
    rows = "".join(f"sub-0{n}\tn/a\n" for n in range(1, 4))
    finder = SiteFinder(Tables(make_tree({"participants.tsv": "participant_id\tsite\n" + rows})))
    for subject in ("01", "02", "03"):
        for session in ("01", "02"):
            assert finder.find(subject, session, {}) is None


@pytest.mark.parametrize(
    ("metadata", "label"),
    [
        ({"Manufacturer": "GE", "MagneticFieldStrength": 3}, None),  # shared by thousands
        ({"Manufacturer": "n/a", "InstitutionName": ""}, None),
        ({"InstitutionName": "A & B"}, "AB"),
        ({"Manufacturer": "GE MEDICAL SYSTEMS", "ManufacturersModelName": "DISCOVERY MR750",
          "MagneticFieldStrength": 3.0}, "GE_DISCOVERYMR750_3T"),
        ({"Manufacturer": "Philips Healthcare", "ManufacturersModelName": "Achieva",
          "MagneticFieldStrength": 1.494}, "Philips_Achieva_1.5T"),
        ({"Manufacturer": "Siemens", "ManufacturersModelName": "Terra",
          "MagneticFieldStrength": 70000}, "Siemens_Terra_7T"),
        ({"ManufacturersModelName": "Skyra", "DeviceSerialNumber": 45123, "StationName": "X"},
         "Skyra_45123"),
        ({"ManufacturersModelName": "Skyra", "StationName": "AWP45"}, "Skyra_AWP45"),
        ({"ManufacturersModelName": "Skyra", "MagneticFieldStrength": "n/a"}, "Skyra"),
        ({"ManufacturersModelName": "Skyra", "MagneticFieldStrength": 2.0}, "Skyra_2T"),
    ],
)
def test_sidecar_site(metadata: dict, label: str | None) -> None:
    site = sidecar_site(metadata)
    assert (site and site.label) == label


def test_one_scanner_is_one_site_however_the_vendor_is_spelled() -> None:
    names = ("SIEMENS", "Siemens", "Siemens Healthineers")
    sites = {sidecar_site({**SIDECAR, "Manufacturer": name}) for name in names}
    assert {site.label for site in sites if site} == {FROM_SIDECAR}


def test_institutions_without_latin_letters_stay_apart() -> None:
    first, second = (sidecar_site({"InstitutionName": name}) for name in ("北京", "上海"))
    assert first and second and first.label != second.label


@pytest.mark.parametrize(("text", "label"), [
    ("NYU", "NYU"), ("site_1.a-b", "site_1.a-b"), ("St. John's / East", "St.-John-s-East"),
    ("Hôpital Nord, Marseille", "Hopital-Nord-Marseille"), ("..", "site"), ("北京", "site"),
])
def test_clean_labels(text: str, label: str) -> None:
    assert clean_label(text) == label
    assert set(label) <= set(string.ascii_letters + string.digits + "._-")


def test_distinct_labels_stay_distinct_and_clean_ones_stay_as_they_are() -> None:
    values = ["Site A", "Site-A", "Site/A", "B", "C D", "北京", "上海"]
    labels = distinct_labels(values)
    assert len(set(labels.values())) == len(values)
    assert (labels["Site-A"], labels["B"], labels["C D"]) == ("Site-A", "B", "C-D")
    assert labels["Site A"].startswith("Site-A-")
    assert distinct_labels(reversed(values)) == labels


def test_single_jobs_agree_on_labels(make_tree: Any) -> None:
    subjects = "participant_id\tsite\nsub-01\tSite A\nsub-02\tSite/A\n"
    root = make_tree({"participants.tsv": subjects, "sub-01/x": "", "sub-02/x": ""})
    together = SiteFinder(Tables(root))
    both = [together.find(subject, None, {}) for subject in ("01", "02")]
    alone = [SiteFinder(Tables(root)).find(subject, None, {}) for subject in ("01", "02")]
    assert both == alone
    assert both[0] != both[1]
