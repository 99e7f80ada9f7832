"""Whose scanner it was, and on whose word.

Under `--site-from auto` the first source that has a value decides:

1. `--site LABEL`: the user's word, for all scans.
2. The site column of `sub-X_sessions.tsv`: nearest to the scan, and where people travel.
3. The site column of `participants.tsv`.
4. The sidecar: InstitutionName, Manufacturer, ManufacturersModelName, MagneticFieldStrength and
   DeviceSerialNumber (else StationName), as far as they are there.

The session label itself is never taken as a site unless `--site-from ses` asks for it: in a
longitudinal study ses-01 and ses-02 are times, and harmonizing them away would remove what the
study is about. A dataset of travelling people with one session for each scanner can say so with
that flag or, better, in sessions.tsv.

'n/a' is a missing value. A scan whose site stays unknown is left out with a `Finding`; nothing is
guessed. Labels from tables are kept distinct, also where they differ only by characters that a
file name cannot hold; sidecar fields are spelled freely by scanners, so there the vendor's many
names are one and punctuation does not count.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .records import Finding, ScanRecord
from .tables import Tables, cell, is_missing

__all__ = ["Site", "SiteFinder", "clean_label", "sidecar_site", "site_warnings"]

VENDORS = ("Siemens", "Philips", "GE", "Canon", "Toshiba", "Hitachi", "UIH", "Hyperfine")
NOMINAL_FIELDS_T = (0.064, 0.2, 0.35, 0.5, 0.55, 1.0, 1.5, 3.0, 4.7, 7.0, 9.4, 10.5, 11.7)
MAX_LABEL = 80  # characters; site cards are named after sites
FIELD_TOLERANCE = 0.06  # relative; a "3 T" Siemens magnet reports 2.89362 T


@dataclass(frozen=True)
class Site:
    """A site label and where it was read."""

    label: str
    source: str


class SiteFinder:
    """Attributes scans of one dataset to sites, by the precedence in the module's docstring.

    Parameters
    ----------
    tables : the dataset's participants and sessions tables
    site_from : 'auto', 'participants', 'sessions', 'ses' or 'sidecar'
    column : the column that names the site, its case ignored
    forced : a site for all scans, or None
    """

    def __init__(
        self,
        tables: Tables,
        site_from: str = "auto",
        column: str = "site",
        forced: str | None = None,
    ) -> None:
        self.tables = tables
        self.site_from = site_from
        self.column = column
        self.forced = forced
        self._labels: dict[str, str] | None = None

    def find(self, subject: str, session: str | None, metadata: Mapping[str, Any]) -> Site | None:
        """The site of one scan, or None if no source that may be used knows it."""
        if self.forced:
            return Site(clean_label(self.forced), f"--site {self.forced}")
        readers = {
            "sessions": lambda: self._from_sessions(subject, session),
            "participants": lambda: self._from_participants(subject, session),
            "ses": lambda: _from_session_label(session),
            "sidecar": lambda: sidecar_site(metadata),
        }
        auto = ("sessions", "participants", "sidecar")
        order = auto if self.site_from == "auto" else (self.site_from,)
        return next((site for name in order if (site := readers[name]())), None)

    def remedy(self, subject: str, session: str | None) -> str:
        """What the user can do about a scan whose site is not known."""
        if self.site_from == "ses":
            return "Give its session a name (ses-<site>), or use another --site-from."
        table = "participants.tsv"
        if self.site_from == "sessions" or (self.site_from == "auto" and session):
            table = self.tables.sessions_path(subject).name
        remedy = f"Fill the column {self.column!r} of {table}, or give --site-column"
        also = ", --site-from ses if each session was another scanner," if session else ""
        return f"{remedy}{also} or --site LABEL."

    def _from_sessions(self, subject: str, session: str | None) -> Site | None:
        value = cell(self.tables.session_row(subject, session), self.column)
        return self._table_site(value, self.tables.sessions_path(subject).name)

    def _from_participants(self, subject: str, session: str | None) -> Site | None:
        value = cell(self.tables.participant_row(subject, session), self.column)
        return self._table_site(value, "participants.tsv")

    def _table_site(self, value: str | None, table: str) -> Site | None:
        if value is None:
            return None
        return Site(self._distinct(value), f"{table}: {self.column} = {value}")

    def _distinct(self, value: str) -> str:
        """The clean label, with a mark from its bytes where another value has the same.

        All tables of the dataset are looked at, so the jobs of single participants agree.
        """
        if clean_label(value) == value:
            return value
        if self._labels is None:
            self._labels = distinct_labels(self.tables.all_values(self.column))
        return self._labels[value]


def clean_label(text: str) -> str:
    """A label of letters, digits, '.', '_' and '-' that reads like `text`.

    >>> clean_label("Hôpital Nord, Marseille")
    'Hopital-Nord-Marseille'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _of_file_length(re.sub(r"[^0-9A-Za-z._]+", "-", plain).strip("-.") or "site")


def _of_file_length(label: str) -> str:
    """The label, its end replaced by a mark where it would be too long for a file name."""
    return label if len(label) <= MAX_LABEL else f"{label[:MAX_LABEL - 7]}-{_mark(label)}"


def distinct_labels(values: Iterable[str]) -> dict[str, str]:
    """A clean label for each value; two values never share one."""
    values = sorted(set(values))
    groups = defaultdict(list)
    for value in values:
        groups[clean_label(value)].append(value)
    return {v: v if v == clean else clean if len(group) == 1 else f"{clean}-{_mark(v)}"
            for clean, group in groups.items() for v in group}


def _mark(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:6]


def _from_session_label(session: str | None) -> Site | None:
    return Site(session, f"session label: ses-{session}") if session else None


def sidecar_site(metadata: Mapping[str, Any]) -> Site | None:
    """A site from scanner facts; None unless they name a place, a model, or a device.

    A manufacturer or a field strength alone is shared by too many scanners to be a site.
    """
    facts = {
        "InstitutionName": _word(metadata, "InstitutionName"),
        "Manufacturer": _vendor(metadata),
        "ManufacturersModelName": _word(metadata, "ManufacturersModelName"),
        "MagneticFieldStrength": _field(metadata.get("MagneticFieldStrength")),
    }
    device = "DeviceSerialNumber" if _word(metadata, "DeviceSerialNumber") else "StationName"
    facts[device] = _word(metadata, device)
    enough = ("InstitutionName", "ManufacturersModelName", device)
    if not any(facts[name] for name in enough):
        return None
    known = {name: text for name, text in facts.items() if text}
    label = _of_file_length("_".join(known.values()))
    return Site(label, "sidecar: " + ", ".join(known))


def _word(metadata: Mapping[str, Any], name: str) -> str:
    """A field as one word of letters and digits; '' if missing."""
    value = metadata.get(name)
    if value is None or isinstance(value, (list, dict)) or is_missing(str(value)):
        return ""
    plain = unicodedata.normalize("NFKD", str(value)).encode("ascii", "ignore").decode()
    return re.sub(r"[^0-9A-Za-z]", "", plain) or _mark(str(value))


def _vendor(metadata: Mapping[str, Any]) -> str:
    """The manufacturer by its short name: SIEMENS and Siemens Healthineers are one."""
    word = _word(metadata, "Manufacturer")
    near = (name for name in VENDORS if word.lower().startswith(name.lower()))
    return next(near, word)


def _field(value: Any) -> str:
    """The nominal field strength, such as '3T'; '' if missing."""
    try:
        tesla = float(value)
    except (TypeError, ValueError, OverflowError):
        return ""
    if not 0 < tesla < 1e6:
        return ""
    tesla = tesla / 1e4 if tesla > 100 else tesla  # some GE headers state gauss
    nominal = min(NOMINAL_FIELDS_T, key=lambda t: abs(t - tesla))
    near = abs(nominal - tesla) <= FIELD_TOLERANCE * nominal
    return f"{nominal if near else round(tesla, 2):g}T"


def site_warnings(records: Iterable[ScanRecord], finder: SiteFinder) -> list[Finding]:
    """Doubts about the sites of a dataset as a whole; none of them leaves a scan out."""
    records = list(records)
    table = finder.tables.root / "participants.tsv"
    return [
        *(Finding(table, text, "If they are one site, spell them alike.")
          for text in _look_alikes({r.site for r in records})),
        *(Finding(table, text, "Check that no scanner has two names; fill the tables.")
          for text in _mixed_vocabularies(records)),
    ]


def _look_alikes(labels: set[str]) -> list[str]:
    groups = defaultdict(list)
    for label in sorted(labels):
        groups[re.sub(r"[^0-9a-z]", "", label.lower())].append(label)
    return [f"site labels {' and '.join(group)} look alike"
            for group in groups.values() if len(group) > 1]


def _mixed_vocabularies(records: list[ScanRecord]) -> list[str]:
    """Labels from tables and labels made of sidecar fields in one dataset."""
    count = sum(record.site_source.startswith("sidecar") for record in records)
    if count in (0, len(records)):
        return []
    return [f"the sites of {count} scans come from sidecars, those of {len(records) - count} "
            "from tables"]
