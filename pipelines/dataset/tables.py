"""Participants and sessions tables: age, sex, site and other covariates.

A value of a sessions table overrides the participants table. A participants table with one row for
each session (a column session_id, not valid BIDS) is read session by session. 'n/a' and empty cells
are missing values.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harmonizer.cohort import COLUMNS, MISSING_TEXTS
from harmonizer.errors import InputError
from harmonizer.files import decode_text, read_json

from .annex import FETCH_REMEDY, is_unfetched
from .records import Covariate, Finding

__all__ = ["Tables", "parse_age", "parse_sex", "read_table"]

MAX_AGE_YEARS = 130.0
YEARS_PER = {"year": 1.0, "month": 1 / 12, "week": 7 / 365.25, "day": 1 / 365.25}
DICOM_AGE_UNITS = {"Y": "year", "M": "month", "W": "week", "D": "day"}  # DICOM PS3.5, value type AS
SEXES = {
    "F": ("f", "female", "woman", "girl"),
    "M": ("m", "male", "man", "boy"),
    "O": ("o", "other", "intersex", "diverse", "non-binary", "nonbinary"),
}

Row = dict[str, str]


def read_table(path: Path, key: str) -> tuple[list[Row], list[Finding]]:
    """Read the rows of a BIDS table with a `key` column, and findings; both empty if absent."""
    if is_unfetched(path):
        return [], [Finding(path, "was not fetched", FETCH_REMEDY)]
    if not path.is_file():
        return [], []
    try:
        text, encoding = decode_text(path.read_bytes())
        stream = io.StringIO(text, newline="")
        lines = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [], [Finding(path, f"cannot be read ({error})", "Save it as UTF-8 text with tabs.")]
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if not lines or key not in [name.strip() for name in lines[0]]:
        got = ", ".join(lines[0]) if lines else "an empty file"
        remedy = "Its first line must name the columns, separated by tabs."
        return [], [Finding(path, f"expected a column {key!r}, got {got}", remedy)]
    rows, findings = _rows(path, lines)
    return rows, [*_encoding_note(path, text, encoding), *findings]


def _encoding_note(path: Path, text: str, encoding: str) -> list[Finding]:
    """Warn of a table that is not UTF-8, with a word that shows whether it was decoded well."""
    if encoding == "utf-8":
        return []
    words = (word for word in re.split(r"[\t\r\n]", text) if word.strip() and not word.isascii())
    word = next(words, "")
    remedy = "Save it as UTF-8 text" + (f"; check that {word!r:.40} is right." if word else ".")
    return [Finding(path, f"is {encoding} text, expected UTF-8; it was read as {encoding}", remedy)]


def _rows(path: Path, lines: list[list[str]]) -> tuple[list[Row], list[Finding]]:
    header = [name.strip() for name in lines[0]]
    rows, findings = [], []
    for name in sorted({name for name in header if header.count(name) > 1}):
        findings.append(Finding(path, f"has several columns named {name!r}", "The first is used; "
                                "give each column its own name."))
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            finding = f"row {number} has {len(line)} cells where the header has {len(header)}"
            findings.append(Finding(path, finding, "The row is not used; give every cell a value."))
            continue
        pairs = zip(reversed(header), reversed(line))  # of equal names the first stays
        rows.append(dict(reversed({name: cell.strip() for name, cell in pairs}.items())))
    return rows, findings


class Tables:
    """Participants and sessions tables of a dataset, each read once.

    Parameters
    ----------
    root : Path
        Root of the dataset.

    Attributes
    ----------
    findings : list of Finding
        Problems of the tables.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.findings: list[Finding] = []
        self._sessions: dict[str, dict[str, Row]] = {}
        self._broken: set[Path] = set()

    @property
    def participants_path(self) -> Path:
        """Return the path of the participants table, which may not exist."""
        return self.root / "participants.tsv"

    @cached_property
    def participants(self) -> dict[str, Row]:
        """Return the rows of participants.tsv by label without 'sub-'.

        Of a table with a row for each session, the rows hold the columns that are equal in all
        sessions of a participant.
        """
        rows = self._participant_rows
        if not self.has_session_rows:
            return self._by_label(self.participants_path, rows, "participant_id", "sub-")
        same = {name for name in rows[0] if all(
            len({row[name] for row in of_one if not is_missing(row[name])}) <= 1
            for of_one in self._grouped_rows.values())}
        return {label: {name: next((row[name] for row in of_one if not is_missing(row[name])), "")
                        for name in rows[0] if name in same}
                for label, of_one in self._grouped_rows.items()}

    @cached_property
    def has_session_rows(self) -> bool:
        """Return whether participants.tsv has a row for each session."""
        return any(len({row.get("session_id", "") for row in rows}) > 1
                   for rows in self._grouped_rows.values())

    def has_row(self, subject: str, session: str | None) -> bool:
        """Return whether participants.tsv has a row for a scan, if it has rows for sessions."""
        of_one = self._grouped_rows.get(subject, [])
        return not self.has_session_rows or (subject, session or "") in self._session_rows \
            or (session is None and len(of_one) == 1)

    def participant_row(self, subject: str, session: str | None) -> Row:
        """Return the values of participants.tsv for a scan; empty without a row."""
        row = self.participants.get(subject, {})
        if not self.has_session_rows:
            return row
        nearer = self._session_rows.get((subject, session or ""), {})
        of_one = self._grouped_rows.get(subject, [])
        if session is None and len(of_one) == 1:
            nearer = of_one[0]
        return {**row, **{name: text for name, text in nearer.items() if not is_missing(text)}}

    @cached_property
    def _participant_rows(self) -> list[Row]:
        return self._read(self.participants_path, "participant_id")

    @cached_property
    def _grouped_rows(self) -> dict[str, list[Row]]:
        return _grouped(self._participant_rows)

    @cached_property
    def _session_rows(self) -> dict[tuple[str, str], Row]:
        """Return rows of participants.tsv by participant and session; a missing session is ''."""
        path = self.participants_path
        found: dict[tuple[str, str], Row] = {}
        remedy = "BIDS has a sub-X_sessions.tsv for what differs between sessions."
        self.findings.append(
            Finding(path, "has a row for each session, and is read session by session", remedy))
        for label, rows in self._grouped_rows.items():
            sessions = [_session_of(row) for row in rows]
            for session, row in zip(sessions, rows):
                if found.setdefault((label, session), row) != row:
                    name = f"sub-{label}" + (f", ses-{session}," if session else "")
                    self.findings.append(Finding(path, f"{name} has several rows",
                                                 "The first row is used; keep one row for each."))
        return found

    def sessions(self, subject: str) -> dict[str, Row]:
        """Return the rows of sub-X_sessions.tsv by label without 'ses-'."""
        if subject not in self._sessions:
            path = self.sessions_path(subject)
            rows = self._read(path, "session_id")
            self._sessions[subject] = self._by_label(path, rows, "session_id", "ses-")
        return self._sessions[subject]

    def sessions_path(self, subject: str) -> Path:
        """Return the path of a sessions table, which may not exist."""
        return self.root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"

    def session_row(self, subject: str, session: str | None) -> Row:
        """Return the row of one session; empty if there is none."""
        return self.sessions(subject).get(session, {}) if session else {}

    def all_values(self, column: str) -> set[str]:
        """Return all values of a column in the participants table and all sessions tables."""
        subjects = [p.name.removeprefix("sub-") for p in self.root.glob("sub-*") if p.is_dir()]
        rows = [*self._participant_rows]
        rows += [row for subject in subjects for row in self.sessions(subject).values()]
        return {value for row in rows if (value := cell(row, column))}

    def covariates(
        self, subject: str, session: str | None, leave_out: str = "site"
    ) -> tuple[dict[str, Covariate], list[Finding]]:
        """Return age (years), sex and other columns of a scan, and findings about them."""
        nearer = self.session_row(subject, session)
        row = dict(self.participant_row(subject, session))
        row |= {name: text for name, text in nearer.items() if not is_missing(text)}
        names = {name.lower(): name for name in row}
        age, age_note = parse_age(row.get(names.get("age", ""), ""), self._units("age"))
        sex_name = names.get("sex") or names.get("gender") or "sex"
        sex, sex_note = parse_sex(row.get(sex_name, ""), self._levels(sex_name))
        skip = {"participant_id", "session_id", leave_out.lower(), "age", sex_name.lower()}
        kept_as = _covariate_names([n for low, n in names.items() if low not in skip])
        others = {new: self._typed(n, row[n]) for n, new in kept_as.items()}
        notes = [self._note(subject, note) for note in (age_note, sex_note) if note]
        return {"age": age, "sex": sex, **others}, notes + self._renaming(kept_as)

    def is_broken(self, path: Path) -> bool:
        """Return whether a table exists and could not be read."""
        return path in self._broken

    def _read(self, path: Path, key: str) -> list[Row]:
        rows, findings = read_table(path, key)
        self.findings += findings
        if findings and not rows:
            self._broken.add(path)
        return rows

    def _renaming(self, kept_as: Mapping[str, str]) -> list[Finding]:
        """Warn of columns that are renamed because cohort.tsv has columns of the same name."""
        changed = {old: new for old, new in kept_as.items() if old != new}
        if not changed:
            return []
        pairs = ", ".join(f"{old!r} as {new!r}" for old, new in changed.items())
        finding = f"keeps {pairs}, because cohort.tsv has a column of that name"
        return [Finding(self.participants_path, finding, "Use the new name in --covariates and "
                        "--fit-participants.")]

    def _by_label(self, path: Path, rows: list[Row], key: str, prefix: str) -> dict[str, Row]:
        by_label: dict[str, Row] = {}
        for row in rows:
            label = row[key].removeprefix(prefix)
            if label in by_label and by_label[label] != row:
                remedy = "The first row is used; keep one row for each."
                self.findings.append(Finding(path, f"{row[key]} has several rows", remedy))
            by_label.setdefault(label, row)
        return by_label

    @cached_property
    def _dictionary(self) -> Mapping[str, Any]:
        path = self.root / "participants.json"
        if is_unfetched(path):
            self.findings.append(Finding(path, "was not fetched, so units and levels are unknown",
                                         FETCH_REMEDY))
            return {}
        try:
            content = read_json(path) if path.is_file() else {}
        except InputError as error:
            self.findings.append(Finding(path, str(error), "It is not used."))
            return {}
        return content if isinstance(content, dict) else {}

    def _units(self, column: str) -> str:
        return str(self._description(column).get("Units", "year"))

    def _levels(self, column: str) -> Mapping[str, Any]:
        levels = self._description(column).get("Levels", {})
        return levels if isinstance(levels, dict) else {}

    def _description(self, column: str) -> Mapping[str, Any]:
        described = {name.lower(): text for name, text in self._dictionary.items()}
        entry = described.get(column.lower(), {})
        return entry if isinstance(entry, dict) else {}

    @cached_property
    def _numeric(self) -> frozenset[str]:
        """Return the columns of participants.tsv with only numbers and missing values."""
        columns = {name for row in self._participant_rows for name in row}
        return frozenset(name for name in columns if self._all_numbers(name))

    def _all_numbers(self, column: str) -> bool:
        values = [value for row in self._participant_rows if (value := cell(row, column))]
        return all(_is_number(value) for value in values)

    def _typed(self, column: str, text: str) -> Covariate:
        if is_missing(text):
            return None
        return float(text) if column in self._numeric and _is_number(text) else text

    def _note(self, subject: str, note: str) -> Finding:
        return Finding(self.root / "participants.tsv", f"sub-{subject}: {note}", "Check the table.")


def _grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """Group the rows of participants.tsv by label."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["participant_id"].removeprefix("sub-"), []).append(row)
    return groups


def _session_of(row: Row) -> str:
    """Return the session label of a row; empty if it has none."""
    text = row.get("session_id", "")
    return "" if is_missing(text) else text.removeprefix("ses-")


def _covariate_names(columns: list[str]) -> dict[str, str]:
    """Return column -> name of the covariate, which differs if cohort.tsv has such a column.

    >>> _covariate_names(["iq", "Image"])
    {'iq': 'iq', 'Image': 'participants_Image'}
    """
    names: dict[str, str] = {}
    for column in columns:
        name = f"participants_{column}" if column.lower() in COLUMNS else column
        while name != column and name.lower() in {c.lower() for c in columns}:
            name += "_"
        names[column] = name
    return names


def is_missing(text: str) -> bool:
    """Return whether a cell is a missing value."""
    return text.strip().lower() in MISSING_TEXTS


def cell(row: Row, column: str) -> str | None:
    """Return the value of a column, its case ignored; None if missing."""
    names = {name.lower(): name for name in row}
    text = row.get(column, row.get(names.get(column.lower(), ""), ""))
    return None if is_missing(text) else text


def parse_age(text: str, units: str = "year") -> tuple[float | None, str]:
    """Parse an age; return years or None, and a note if the text is unusual.

    Accepts '34', '34.5', '89+' and '>89' (ages hidden above a limit), and DICOM's '034Y'.

    >>> parse_age("89+")
    (89.0, "age '89+' is a lower limit; 89 is used")
    """
    if is_missing(text):
        return None, ""
    match = re.fullmatch(r"(>?=?)\s*(\d+(?:\.\d*)?)\s*([YMWD]?)(\+?)", text.strip())
    if match is None:
        return None, f"age {text!r} is not a number; it is taken as unknown"
    over, number, letter, plus = match.groups()
    unit = DICOM_AGE_UNITS[letter] if letter else units.lower().rstrip("s")
    age = float(number) * YEARS_PER.get(unit, 1.0)
    if age > MAX_AGE_YEARS:
        return None, f"age {text!r} is no age in years; it is taken as unknown"
    note = f"age {text!r} is a lower limit; {age:g} is used" if over or plus else ""
    return age, note


def parse_sex(text: str, levels: Mapping[str, Any] | None = None) -> tuple[str | None, str]:
    """Parse a sex; return 'F', 'M', 'O' or None, and a note if the text is not understood.

    Codes such as '1' are looked up in the Levels of the column.

    >>> parse_sex("female")
    ('F', '')
    """
    if is_missing(text):
        return None, ""
    meaning = (levels or {}).get(text, text)
    for word in (text, meaning if isinstance(meaning, str) else text):
        for sex, words in SEXES.items():
            if word.strip().lower() in words:
                return sex, ""
    return None, f"sex {text!r} is not understood; it is taken as unknown"


def _is_number(text: str) -> bool:
    """Return whether text is a finite number; '0012' is a code."""
    form = re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", text)
    return form is not None and math.isfinite(float(text))
