"""Ages, sexes and tables as they are written in practice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.tables import Tables, cell, parse_age, parse_sex, read_table


@pytest.mark.parametrize(
    ("text", "years", "note"),
    [
        ("34", 34.0, ""), ("34.5", 34.5, ""), (" 7 ", 7.0, ""), ("0", 0.0, ""),
        ("n/a", None, ""), ("", None, ""), ("NaN", None, ""),
        ("89+", 89.0, "lower limit"), (">89", 89.0, "lower limit"), (">=90", 90.0, "lower limit"),
        ("034Y", 34.0, ""), ("018M", 1.5, ""),
        ("20-25", None, "not a number"), ("young", None, "not a number"),
        ("-3", None, "not a number"), ("620", None, "no age in years"),
    ],
)
def test_age(text: str, years: float | None, note: str) -> None:
    age, messages = parse_age(text)
    assert age == (None if years is None else pytest.approx(years, rel=1e-12))
    assert (note in messages) if note else messages == ""


@pytest.mark.parametrize(("units", "years"), [
    ("year", 24.0), ("years", 24.0), ("month", 2.0), ("Months", 2.0), ("week", 24 * 7 / 365.25),
])
def test_age_units(units: str, years: float) -> None:
    assert parse_age("24", units)[0] == pytest.approx(years, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "sex"),
    [("F", "F"), ("female", "F"), ("Woman", "F"), ("m", "M"), ("Male", "M"), ("other", "O"),
     ("n/a", None), ("", None)],
)
def test_sex(text: str, sex: str | None) -> None:
    assert parse_sex(text) == (sex, "")


def test_sex_codes_need_levels() -> None:
    assert parse_sex("1", {"1": "male", "2": "female"}) == ("M", "")
    assert parse_sex("2", {"1": "male", "2": "female"}) == ("F", "")
    sex, note = parse_sex("1")
    assert sex is None and "not understood" in note


PEOPLE = ("participant_id\tAge\tgender\tgroup\tscore\tcode\tsite\n"
          "sub-01\t30\tmale\tHC\t1.5\t001\tNYU\n"
          "sub-02\t89+\tF\tMS\tn/a\t002\tn/a\n")
SESSIONS = "session_id\tage\tgroup\tsite\nses-A\t31\tn/a\tKKI\nB\tn/a\tMS\tn/a\n"


def test_covariates(make_tree: Any) -> None:
    tables = Tables(make_tree({"participants.tsv": PEOPLE}))
    covariates, notes = tables.covariates("01", None)
    assert covariates == {"age": 30.0, "sex": "M", "group": "HC", "score": 1.5, "code": "001"}
    assert notes == []
    covariates, notes = tables.covariates("02", None)
    assert (covariates["age"], covariates["sex"], covariates["score"]) == (89.0, "F", None)
    assert ["lower limit" in str(note) for note in notes] == [True]


def test_the_sessions_table_is_nearer_except_where_it_is_silent(make_tree: Any) -> None:
    root = make_tree({"participants.tsv": PEOPLE, "sub-01/sub-01_sessions.tsv": SESSIONS})
    tables = Tables(root)
    first, _ = tables.covariates("01", "A")
    second, _ = tables.covariates("01", "B")
    assert (first["age"], first["group"]) == (31.0, "HC")
    assert (second["age"], second["group"]) == (30.0, "MS")
    assert tables.all_values("SITE") == {"NYU", "KKI"}


def test_units_and_levels_come_from_the_dictionary(make_tree: Any) -> None:
    subjects = "participant_id\tage\tsex\nsub-01\t18\t2\n"
    root = make_tree({"participants.tsv": subjects, "participants.json": {
        "age": {"Units": "month"}, "sex": {"Levels": {"1": "Male", "2": "Female"}}}})
    covariates, notes = Tables(root).covariates("01", None)
    assert covariates == {"age": pytest.approx(1.5), "sex": "F"}
    assert notes == []


def test_without_tables_all_is_unknown(make_tree: Any) -> None:
    tables = Tables(make_tree({}))
    assert tables.covariates("01", "A") == ({"age": None, "sex": None}, [])
    assert tables.findings == []


def test_a_column_is_found_whatever_its_case() -> None:
    assert cell({"Site": "A"}, "site") == "A"
    assert cell({"site": "n/a"}, "site") is None
    assert cell({}, "site") is None


@pytest.mark.parametrize(
    ("content", "finding", "rows"),
    [
        ("participant_id,age\nsub-01,3\n", "expected a column 'participant_id'", 0),
        ("", "got an empty file", 0),
        (b"participant_id\tname\nsub-01\t\x81\xff\n", "cannot be read", 0),
        ("participant_id\tname\nsub-01\tKöln\n".encode("utf-16"), "check that 'Köln'", 1),
        ("participant_id\tname\nsub-01\tKöln\n".encode("utf-16-be"), "check that 'Köln'", 1),
        ("participant_id\tname\nsub-01\tKöln\n".encode("utf-32"), "check that 'Köln'", 1),
        ("participant_id\tname\nsub-01\tKöln\n".encode("latin-1"), "check that 'Köln'", 1),
        ("participant_id\tsite\tsite\nsub-01\tA\tB\n", "several columns named 'site'", 1),
        ("participant_id\tage\nsub-01\nsub-02\t3\n", "row 2 has 1 cells", 1),
        ("participant_id \tage\nsub-01\t3\n", None, 1),
        ("\ufeffparticipant_id\tage\r\nsub-01\t3\r\n\r\n", None, 1),
    ],
)
def test_tables_as_found(tmp_path: Path, content: Any, finding: str | None, rows: int) -> None:
    path = tmp_path / "participants.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    got, findings = read_table(path, "participant_id")
    assert len(got) == rows
    assert [str(path) in str(f) and finding in str(f) for f in findings] == [True] * bool(finding)


def test_a_participant_with_two_rows(make_tree: Any) -> None:
    subjects = "participant_id\tage\nsub-01\t3\nsub-01\t4\n"
    tables = Tables(make_tree({"participants.tsv": subjects}))
    assert tables.participants["01"]["age"] == "3"
    assert ["sub-01 has several rows" in str(finding) for finding in tables.findings] == [True]


def test_of_two_columns_of_one_name_the_first_is_used(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tsite\tsite\nsub-01\tA\tB\n")
    assert read_table(path, "participant_id")[0] == [{"participant_id": "sub-01", "site": "A"}]


BY_SESSION = ("participant_id\tsession_id\tage\tsex\tsite\tscore\n"
              "sub-01\tses-A\t30\tF\tNYU\t1\nsub-01\tses-B\t31\tn/a\tKKI\t2\n"
              "sub-02\tA\t50\tM\tNYU\t3\n")


def test_rows_of_sessions_are_read_session_by_session(make_tree: Any) -> None:
    tables = Tables(make_tree({"participants.tsv": BY_SESSION}))
    got = {(who, ses): tables.covariates(who, ses)[0]
           for who, ses in (("01", "A"), ("01", "B"), ("01", "C"), ("02", "A"), ("02", "B"))}
    assert [(c["age"], c["sex"], c.get("score")) for c in got.values()] == [
        (30, "F", 1), (31, "F", 2), (None, "F", None), (50, "M", 3), (None, "M", None)]
    assert cell(tables.participant_row("01", "B"), "site") == "KKI"
    assert cell(tables.participant_row("02", None), "site") == "NYU"  # its only row
    assert tables.all_values("site") == {"NYU", "KKI"}
    assert ["has a row for each session" in str(f) for f in tables.findings] == [True]


def test_a_session_with_two_rows_uses_the_first_and_says_so(make_tree: Any) -> None:
    tables = Tables(make_tree({"participants.tsv": BY_SESSION + "sub-01\tses-B\t40\tF\tX\t2\n"}))
    assert tables.covariates("01", "B")[0]["age"] == 31
    assert any("sub-01, ses-B, has several rows" in str(f) for f in tables.findings)


def test_columns_named_like_those_of_cohort_tsv_get_other_names(make_tree: Any) -> None:
    subjects = ("participant_id\tsite\tscanner\tImage\tmask\tscan_id\tparticipants_mask\n"
              "sub-01\tNorth\tTrio\tyes\tlesion\tX1\tno\n")
    covariates, notes = Tables(make_tree({"participants.tsv": subjects})).covariates(
        "01", None, "scanner")
    assert covariates == {
        "age": None, "sex": None, "participants_site": "North", "participants_Image": "yes",
        "participants_mask_": "lesion", "participants_scan_id": "X1", "participants_mask": "no"}
    assert ["keeps 'site' as 'participants_site', 'Image' as" in str(note)
            for note in notes] == [True]
