"""The `Cohort`: which preprocessed scans there are, whose, and from which site.

It is a table and is kept as one (`cohort.tsv`): a fit reads nothing else. Splits go by subject,
never by scan: two scans of one person are never on both sides.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .errors import InputError, did_you_mean
from .files import write_text
from .volume import Volume, read_volume

__all__ = ["COLUMNS", "Cohort", "Scan"]

COLUMNS = (
    "scan_id", "participant_id", "session_id", "modality", "site", "site_source",
    "image", "mask", "age", "sex",
)
"""Columns of cohort.tsv that every scan has; covariates have other names."""
MISSING = "n/a"


@dataclass(frozen=True)
class Scan:
    """One preprocessed image and what is known of it.

    Attributes
    ----------
    scan_id : source name without extension, such as ``sub-01_ses-A_run-1_T1w``; unique
    subject, session : labels without ``sub-``/``ses-``; session may be None
    modality : BIDS suffix, such as ``T1w``
    site, site_source : acquisition site, and on whose word (``participants.tsv: site``)
    image, mask : template-grid image and brain mask
    age : years, or None
    sex : ``M``, ``F`` or None
    covariates : other columns of participants.tsv, as text
    tissues : tissue -> map of its share, same grid; empty where none were found. Not in the table
    """

    scan_id: str
    subject: str
    session: str | None
    modality: str
    site: str
    site_source: str
    image: Path
    mask: Path
    age: float | None = None
    sex: str | None = None
    covariates: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tissues: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        plain = (dict(v) if isinstance(v, MappingProxyType) else v for v in values)
        return Scan, tuple(plain)  # a mapping proxy itself cannot be pickled

    def read(self) -> Volume:
        """The image with its mask; `InputError` if either cannot be read."""
        return read_volume(self.image, self.mask)

    def read_tissues(self) -> dict[str, np.ndarray]:
        """Tissue -> (I, J, K) float32 share of each voxel, 0..1; empty where none were found."""
        return {name: read_volume(path).data for name, path in self.tissues.items()}


@dataclass(frozen=True)
class Cohort:
    """Scans in a stable order (by scan_id); iterating gives `Scan`."""

    scans: tuple[Scan, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scans", tuple(sorted(self.scans, key=lambda s: s.scan_id)))
        twice = [name for name, n in Counter(s.scan_id for s in self.scans).items() if n > 1]
        if twice:
            raise InputError(f"scan {twice[0]} is listed twice. Each scan may enter a cohort once.")

    def __iter__(self) -> Iterator[Scan]:
        return iter(self.scans)

    def __len__(self) -> int:
        return len(self.scans)

    @property
    def sites(self) -> dict[str, int]:
        """Scans per site, sites in alphabetical order."""
        return dict(sorted(Counter(scan.site for scan in self.scans).items()))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject labels, sorted, each once."""
        return tuple(sorted({scan.subject for scan in self.scans}))

    @property
    def largest_site(self) -> str:
        """The site with most scans; of equals the first by name. `InputError` when empty."""
        if not self.scans:
            raise InputError("the cohort is empty: no preprocessed scan was found.")
        return max(self.sites, key=lambda site: self.sites[site])

    def of_site(self, site: str) -> Cohort:
        """Scans of one site; an unknown label is an `InputError` that lists the known ones."""
        if site not in self.sites:
            raise InputError(f"site {site!r} is not known here. {did_you_mean(site, self.sites)}")
        return self.where(lambda scan: scan.site == site)

    def of_modality(self, modality: str) -> Cohort:
        """Scans of one modality; may be empty."""
        return self.where(lambda scan: scan.modality == modality)

    def of_subjects(self, subjects: Iterable[str]) -> Cohort:
        """Scans of the named subjects."""
        wanted = set(subjects)
        return self.where(lambda scan: scan.subject in wanted)

    def where(self, condition: Callable[[Scan], bool]) -> Cohort:
        """Scans for which `condition` holds."""
        return Cohort(tuple(scan for scan in self.scans if condition(scan)))

    def split(self, fraction: float, seed: int) -> tuple[Cohort, Cohort]:
        """(rest, held out): about `fraction` of the subjects of each site are held out.

        Subjects are drawn site by site (a traveller counts at the first of his sites), so that
        both sides see every site that has two or more subjects; a person is never divided.
        """
        rng = np.random.default_rng(seed)
        held: set[str] = set()
        home = {s: min(x.site for x in self.scans if x.subject == s) for s in self.subjects}
        for site in sorted(set(home.values())):
            people = [s for s in self.subjects if home[s] == site]
            count = min(int(round(fraction * len(people))), len(people) - 1)
            held.update(rng.permutation(people)[:count].tolist())
        return self.where(lambda s: s.subject not in held), self.of_subjects(held)

    def to_tsv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table atomically; paths relative to the table's folder where they lie below.

        A covariate with the name of one of the table's own columns is an `InputError`.
        """
        folder = Path(path).resolve().parent
        extra = sorted({key for scan in self.scans for key in scan.covariates})
        if taken := [name for name in extra if name.lower() in COLUMNS]:
            raise InputError(f"{path}: covariates {', '.join(taken)} have names of the table's own "
                             "columns. Rename them.")
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow((*COLUMNS, *extra))
        for scan in self.scans:
            writer.writerow(_row(scan, folder) + [scan.covariates.get(k, MISSING) for k in extra])
        return write_text(path, stream.getvalue())

    @classmethod
    def from_tsv(cls, path: str | os.PathLike[str]) -> Cohort:
        """Read a table written by `to_tsv`; `InputError` if it is missing or lacks a column."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}). Run the preprocess stage first."
            ) from error
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
        lacking = [c for c in COLUMNS if rows and c not in rows[0]]
        if lacking:
            raise InputError(f"{path}: lacks the column(s) {', '.join(lacking)}. Write it anew.")
        folder = Path(path).resolve().parent
        return cls(tuple(_scan(row, folder) for row in rows))


def _row(scan: Scan, folder: Path) -> list[str]:
    session = f"ses-{scan.session}" if scan.session else MISSING
    age = MISSING if scan.age is None else f"{scan.age:g}"
    return [
        scan.scan_id, f"sub-{scan.subject}", session, scan.modality, scan.site, scan.site_source,
        _relative(scan.image, folder), _relative(scan.mask, folder), age, scan.sex or MISSING,
    ]


def _scan(row: Mapping[str, str], folder: Path) -> Scan:
    extra = {k: v for k, v in row.items() if k not in COLUMNS and v != MISSING}
    session = row["session_id"]
    return Scan(
        scan_id=row["scan_id"],
        subject=row["participant_id"].removeprefix("sub-"),
        session=None if session == MISSING else session.removeprefix("ses-"),
        modality=row["modality"],
        site=row["site"],
        site_source=row["site_source"],
        image=folder / row["image"],
        mask=folder / row["mask"],
        age=None if row["age"] == MISSING else float(row["age"]),
        sex=None if row["sex"] == MISSING else row["sex"],
        covariates=MappingProxyType(extra),
    )


def _relative(path: Path, folder: Path) -> str:
    path = Path(path).resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
