"""`Cohort`: the preprocessed scans of a dataset, with their subjects, sites and covariates.

A cohort is stored as a table (`cohort.tsv`), which is all that a fit reads. Splits are by subject,
so all scans of a subject are on the same side.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .errors import InputError, did_you_mean
from .files import write_text
from .volume import AFFINE_TOLERANCE_MM, Volume, load_nifti, read_volume, same_grid

__all__ = ["COLUMNS", "MAX_TRAVELING_YEARS", "MISSING_TEXTS", "Cohort", "Scan", "years_between",
           "years_of"]

COLUMNS = (
    "scan_id", "participant_id", "session_id", "modality", "site", "site_source",
    "image", "mask", "age", "sex",
)
"""Columns of cohort.tsv that every scan has; covariates have other names."""
NOT_AVAILABLE = "n/a"  # missing value in written tables (BIDS)
MISSING_TEXTS = ("", "n/a", "na", "nan", "none", "null")  # missing values in read tables
MAX_TRAVELING_YEARS = 1.0
"""Scans of one subject at two sites show one and the same brain if they are at most this far apart.
Ages are often whole years, so that a birthday between two scans makes them one apart.
"""
ACQUISITION_TIME = "acq_time"  # column of sessions.tsv (BIDS, Sessions file)
DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class Scan:
    """One preprocessed scan.

    Attributes
    ----------
    scan_id : str
        Source name without extension, such as ``sub-01_ses-A_run-1_T1w``; unique.
    subject, session : str
        Labels without ``sub-`` and ``ses-``; the session may be None.
    modality : str
        BIDS suffix, such as ``T1w``.
    site : str
        Acquisition site.
    site_source : str
        Where the site was found, such as ``participants.tsv: site``.
    image, mask : Path
        Image and brain mask on the template grid.
    age : float or None
        Years.
    sex : str or None
        ``M`` or ``F``.
    covariates : mapping of str to str
        Further columns of participants.tsv.
    tissues : mapping of str to Path
        Probability map of each tissue on the template grid; empty without a segmentation. Not part
        of the table.
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
        """Read the image with its mask.

        Raises
        ------
        InputError
            If either file cannot be read.
        """
        return read_volume(self.image, self.mask)

    def read_tissues(self) -> dict[str, np.ndarray]:
        """Read the tissue probabilities, (I, J, K) float32 in 0..1; may be empty."""
        return {name: read_volume(path).data for name, path in self.tissues.items()}


@dataclass(frozen=True)
class Cohort:
    """Scans in order of their ID; iterating yields `Scan`."""

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
        """Number of scans of each site, in alphabetical order."""
        return dict(sorted(Counter(scan.site for scan in self.scans).items()))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject labels, sorted and unique."""
        return tuple(sorted({scan.subject for scan in self.scans}))

    @property
    def largest_site(self) -> str:
        """Site with the most scans, the first by name if several are equal.

        Raises
        ------
        InputError
            If the cohort is empty.
        """
        if not self.scans:
            raise InputError("the cohort is empty: no preprocessed scan was found. Run the "
                             "preprocess stage first.")
        return max(self.sites, key=lambda site: self.sites[site])

    def of_site(self, site: str) -> Cohort:
        """Return the scans of one site.

        Raises
        ------
        InputError
            If the site is unknown; the message lists the known ones.
        """
        if site not in self.sites:
            raise InputError(f"unknown site {site!r}. {did_you_mean(site, self.sites)}")
        return self.where(lambda scan: scan.site == site)

    def of_modality(self, modality: str) -> Cohort:
        """Return the scans of one modality; may be empty."""
        return self.where(lambda scan: scan.modality == modality)

    def of_subjects(self, subjects: Iterable[str]) -> Cohort:
        """Return the scans of the named subjects."""
        wanted = set(subjects)
        return self.where(lambda scan: scan.subject in wanted)

    def where(self, condition: Callable[[Scan], bool]) -> Cohort:
        """Return the scans for which `condition` holds."""
        return Cohort(tuple(scan for scan in self.scans if condition(scan)))

    def traveling(self) -> Cohort:
        """Return the scans of traveling subjects; may be empty.

        A traveling subject was scanned in one modality at two or more sites, the scans at most
        `MAX_TRAVELING_YEARS` apart. Where a subject was scanned over a longer time (a longitudinal
        study with a change of scanner), only the scans of the year that covers most sites count.
        Where the time between scans is not known, all of them count.
        """
        chosen = {scan.scan_id for visit, _ in self._visits() for scan in visit}
        return self.where(lambda scan: scan.scan_id in chosen)

    def scanned_years_apart(self) -> Cohort:
        """Return the scans of subjects at several sites that do not count as `traveling`."""
        others = {scan.scan_id for _, rest in self._visits() for scan in rest}
        return self.where(lambda scan: scan.scan_id in others)

    def _visits(self) -> Iterator[tuple[list[Scan], list[Scan]]]:
        """Traveling scans and the others, of each subject and modality with two or more sites."""
        groups: dict[tuple[str, str], list[Scan]] = {}
        for scan in self.scans:
            groups.setdefault((scan.subject, scan.modality), []).append(scan)
        for scans in groups.values():
            if _count_sites(scans) > 1:
                visit = _visit_with_most_sites(scans)
                visit = visit if _count_sites(visit) > 1 else []
                yield visit, [scan for scan in scans if scan not in visit]

    def require_one_grid(self) -> None:
        """Check that all images lie on one grid; only headers are read.

        Raises
        ------
        InputError
            If two images differ in shape, or a corner of the grid differs by more than 0.001 mm.
        """
        first: tuple[Scan, Any] | None = None
        for scan in self.scans:
            image = load_nifti(scan.image)
            if first is None:
                first = scan, image
            elif not same_grid(_shape(first[1]), first[1].affine, _shape(image), image.affine):
                raise InputError(
                    f"expected images on one grid, got {first[0].image} (shape "
                    f"{_shape(first[1])}) and {scan.image} (shape {_shape(image)}), whose shapes "
                    f"or affines differ (tolerance {AFFINE_TOLERANCE_MM} mm). Register them to the "
                    "template and resample them on its grid first."
                )

    def split(self, fraction: float, seed: int) -> tuple[Cohort, Cohort]:
        """Split the cohort by subject, within each site.

        A subject with scans at several sites counts at the first site by name. At least one subject
        of each site stays in the first part, so both parts have every site with two or more
        subjects.

        Parameters
        ----------
        fraction : float
            Fraction of each site's subjects in the second part, 0 to 1.
        seed : int
            Seed of the draw.

        Returns
        -------
        training, held_out : Cohort
        """
        rng = np.random.default_rng(seed)
        held_out: set[str] = set()
        site_of = {s: min(x.site for x in self.scans if x.subject == s) for s in self.subjects}
        for site in sorted(set(site_of.values())):
            subjects = [s for s in self.subjects if site_of[s] == site]
            count = min(int(round(fraction * len(subjects))), len(subjects) - 1)
            held_out.update(rng.permutation(subjects)[:count].tolist())
        return self.where(lambda s: s.subject not in held_out), self.of_subjects(held_out)

    def to_tsv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table, atomically.

        Parameters
        ----------
        path : path-like
            The file. Paths below its folder are written relative to it.

        Returns
        -------
        Path

        Raises
        ------
        InputError
            If a covariate has the name of one of the table's own columns.
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
            writer.writerow([*_row(scan, folder),
                             *(scan.covariates.get(k, NOT_AVAILABLE) for k in extra)])
        return write_text(path, stream.getvalue())

    @classmethod
    def from_tsv(cls, path: str | os.PathLike[str]) -> Cohort:
        """Read a table written by `to_tsv`.

        Raises
        ------
        InputError
            If the file is missing or lacks a column.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}). Run the preprocess stage first."
            ) from error
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
        lacking = [c for c in COLUMNS if rows and c not in rows[0]]
        if lacking:
            raise InputError(f"{path}: lacks the column(s) {', '.join(lacking)}. Run the "
                             "preprocess stage again.")
        folder = Path(path).resolve().parent
        return cls(tuple(_scan(row, folder) for row in rows))


def years_between(one: Scan, two: Scan) -> float | None:
    """Return the time between two scans of a subject in years, or None where it is not known.

    From the column ``acq_time`` of both, else from both ages.
    """
    years = years_of([one, two])
    return None if years is None else abs(years[1] - years[0])


def years_of(scans: Iterable[Scan]) -> list[float] | None:
    """Return the times of one subject's scans in years on one scale, or None if one is unknown.

    From the column ``acq_time`` of all scans, else from the ages.
    """
    scans = list(scans)
    for known in (_acquired, lambda scan: scan.age):
        years = [known(scan) for scan in scans]
        if None not in years:
            return [time for time in years if time is not None]
    return None


def _acquired(scan: Scan) -> float | None:
    """Return the date of a scan in years, from ``acq_time``."""
    try:
        date = datetime.fromisoformat(str(scan.covariates[ACQUISITION_TIME]).removesuffix("Z"))
    except (KeyError, ValueError):
        return None
    return date.toordinal() / DAYS_PER_YEAR


def _count_sites(scans: Iterable[Scan]) -> int:
    return len({scan.site for scan in scans})


def _visit_with_most_sites(scans: list[Scan]) -> list[Scan]:
    """Return the scans within `MAX_TRAVELING_YEARS` that cover most sites; all without dates."""
    years = years_of(scans)
    if years is None:
        return scans
    visits = [[scan for scan, time in zip(scans, years)
               if start <= time <= start + MAX_TRAVELING_YEARS] for start in years]
    return max(visits, key=lambda visit: (_count_sites(visit), len(visit)))


def _shape(image: Any) -> tuple[int, ...]:
    """Return the shape of an image in three dimensions; trailing ones do not count."""
    return tuple(image.shape[:3]) if set(image.shape[3:]) <= {1} else tuple(image.shape)


def _row(scan: Scan, folder: Path) -> list[str]:
    session = f"ses-{scan.session}" if scan.session else NOT_AVAILABLE
    age = NOT_AVAILABLE if scan.age is None else f"{scan.age:g}"
    return [
        scan.scan_id, f"sub-{scan.subject}", session, scan.modality, scan.site, scan.site_source,
        _relative(scan.image, folder), _relative(scan.mask, folder), age, scan.sex or NOT_AVAILABLE,
    ]


def _scan(row: Mapping[str, str], folder: Path) -> Scan:
    extra = {k: v for k, v in row.items() if k not in COLUMNS and v != NOT_AVAILABLE}
    session = row["session_id"]
    return Scan(
        scan_id=row["scan_id"],
        subject=row["participant_id"].removeprefix("sub-"),
        session=None if session == NOT_AVAILABLE else session.removeprefix("ses-"),
        modality=row["modality"],
        site=row["site"],
        site_source=row["site_source"],
        image=folder / row["image"],
        mask=folder / row["mask"],
        age=None if row["age"] == NOT_AVAILABLE else float(row["age"]),
        sex=None if row["sex"] == NOT_AVAILABLE else row["sex"],
        covariates=MappingProxyType(extra),
    )


def _relative(path: Path, folder: Path) -> str:
    path = Path(path).resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
