"""Site of each scan, and the source that it was read from.

With ``--site-from auto`` the first source that has a value is used:

1. ``--site LABEL``, for all scans.
2. The site column of `sub-X_sessions.tsv`, which distinguishes the scans of traveling subjects.
3. The site column of `participants.tsv`.
4. The sidecar: InstitutionName, Manufacturer, ManufacturersModelName, MagneticFieldStrength and
   DeviceSerialNumber (else StationName), as far as they exist.

The session label is used as a site only with ``--site-from ses``. In a longitudinal study ses-01
and ses-02 are time points, and harmonizing them would remove the effect of interest. Datasets of
traveling subjects with one session for each scanner can use that flag or, better, sessions.tsv.

'n/a' is a missing value. A scan whose site is unknown is excluded with a `Finding`. Labels from
tables stay distinct even if they differ only by characters that a file name cannot hold. Scanners
spell sidecar fields in different ways, so vendor names are unified and punctuation is dropped.
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
    """A site label and its source."""

    label: str
    source: str


class SiteFinder:
    """Finds the site of each scan; the module docstring states the order of the sources.

    Parameters
    ----------
    tables : Tables
        Participants and sessions tables of the dataset.
    site_from : str
        'auto', 'participants', 'sessions', 'ses' or 'sidecar'.
    column : str
        Column that names the site, its case ignored.
    forced : str, optional
        One site for all scans.
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
        """Return the site of one scan, or None if no allowed source has a value."""
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
        """Return the advice for a scan of unknown site."""
        if self.site_from == "ses":
            return "Give its session a name (ses-<site>), or use another --site-from."
        table = "participants.tsv"
        if self.site_from == "sessions" or (self.site_from == "auto" and session):
            table = self.tables.sessions_path(subject).name
        remedy = f"Fill the column {self.column!r} of {table}, or give --site-column"
        also = ", --site-from ses if each session is from another scanner," if session else ""
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
        """Return the clean label, with a hash if another value has the same clean label.

        All tables of the dataset are read, so that jobs of single participants agree.
        """
        if clean_label(value) == value:
            return value
        if self._labels is None:
            self._labels = distinct_labels(self.tables.all_values(self.column))
        return self._labels[value]


def clean_label(text: str) -> str:
    """Convert text to a similar label of letters, digits, '.', '_' and '-'.

    >>> clean_label("Hôpital Nord, Marseille")
    'Hopital-Nord-Marseille'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _of_file_length(re.sub(r"[^0-9A-Za-z._]+", "-", plain).strip("-.") or "site")


def _of_file_length(label: str) -> str:
    """Replace the end of a label that is too long for a file name by a hash."""
    return label if len(label) <= MAX_LABEL else f"{label[:MAX_LABEL - 7]}-{_mark(label)}"


def distinct_labels(values: Iterable[str]) -> dict[str, str]:
    """Return a clean label for each value; different values get different labels."""
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
    """Make a site label from scanner fields; None unless they name institution, model or device.

    Manufacturer and field strength alone do not identify a scanner.
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
    """Return a field as one word of letters and digits; empty if missing."""
    value = metadata.get(name)
    if value is None or isinstance(value, (list, dict)) or is_missing(str(value)):
        return ""
    plain = unicodedata.normalize("NFKD", str(value)).encode("ascii", "ignore").decode()
    return re.sub(r"[^0-9A-Za-z]", "", plain) or _mark(str(value))


def _vendor(metadata: Mapping[str, Any]) -> str:
    """Return the short name of the manufacturer: Siemens for Siemens Healthineers."""
    word = _word(metadata, "Manufacturer")
    near = (name for name in VENDORS if word.lower().startswith(name.lower()))
    return next(near, word)


def _field(value: Any) -> str:
    """Return the nominal field strength, such as '3T'; empty if missing."""
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
    """Warn of similar site labels and of mixed site sources in a dataset."""
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
    """Warn if some labels come from tables and others from sidecars."""
    count = sum(record.site_source.startswith("sidecar") for record in records)
    if count in (0, len(records)):
        return []
    return [f"the sites of {count} scans come from sidecars, those of {len(records) - count} "
            "from tables"]
