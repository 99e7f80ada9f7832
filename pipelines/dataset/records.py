"""`ScanRecord`: one raw image with its metadata, site and covariates.

Every image is a record of its own. Runs, sessions, acquisitions and reconstructions are never
averaged, because sessions may come from different scanners, as those of traveling subjects do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["Finding", "ScanRecord", "covariate_text", "covariate_texts", "entities_of",
           "split_name"]

Covariate = float | str | None


@dataclass(frozen=True)
class ScanRecord:
    """One image of one subject on one scanner.

    Records can be pickled, compared by value, and passed to other processes.
    """

    scan_id: str
    """Whole source name without extension, such as 'sub-01_ses-A_run-1_T1w'; unique."""
    stem: str
    """Source name without suffix, such as 'sub-01_ses-A_run-1'; derivatives start with it."""
    subject: str
    """Participant label without 'sub-'."""
    session: str | None
    """Session label without 'ses-', or None."""
    modality: str
    """'T1w', 'T2w', 'FLAIR' or 'PDw'."""
    path: Path
    """Absolute path of the raw image."""
    site: str
    """Label of the site: letters, digits, '.', '_', '-', '+'."""
    site_source: str
    """Provenance of the site, such as 'participants.tsv: site = NYU'."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Sidecar fields merged by BIDS inheritance, read-only."""
    covariates: Mapping[str, Covariate] = field(default_factory=dict, hash=False)
    """age (years or None), sex ('F', 'M', 'O' or None), and the other columns, read-only."""
    precomputed: Mapping[str, Path] = field(default_factory=dict, hash=False)
    """Usable precomputed files: 'mask' and 'preproc' on the raw image's grid, read-only."""

    def __post_init__(self) -> None:
        for name in ("metadata", "covariates", "precomputed"):
            frozen = MappingProxyType(dict(getattr(self, name)))
            object.__setattr__(self, name, frozen)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        plain = (dict(v) if isinstance(v, MappingProxyType) else v for v in values)
        return ScanRecord, tuple(plain)  # a mapping proxy itself cannot be pickled

    @property
    def age(self) -> float | None:
        """Return the age in years at this scan, if known."""
        return self.covariates.get("age")  # type: ignore[return-value]

    @property
    def sex(self) -> str | None:
        """Return 'F', 'M', 'O' (other), or None if not known."""
        return self.covariates.get("sex")  # type: ignore[return-value]

    @property
    def folder(self) -> Path:
        """Return the folder of the derivatives, relative to OUTPUT_DIR: sub-X[/ses-Y]/anat."""
        session = [f"ses-{self.session}"] if self.session else []
        return Path(f"sub-{self.subject}", *session, "anat")


@dataclass(frozen=True)
class Finding:
    """A problem of the dataset: where, what, and what to do about it."""

    path: Path
    """The file with the problem."""
    finding: str
    """What was expected and what was found."""
    remedy: str
    """What the user can do."""
    scan_id: str | None = None
    """The scan concerned; None for a warning about the dataset."""
    fatal: bool = False
    """Whether the scan is excluded."""

    def __str__(self) -> str:
        return f"{self.path}: {self.finding}. {self.remedy}"


def covariate_texts(covariates: Mapping[str, Covariate]) -> dict[str, str]:
    """Return covariates as text, without missing values; whole numbers have no decimals.

    >>> covariate_texts({"group": 1.0, "iq": 101.5, "smoker": None})
    {'group': '1', 'iq': '101.5'}
    """
    return {name: covariate_text(value) for name, value in covariates.items() if value is not None}


def covariate_text(value: float | str) -> str:
    """Return one value of a covariate as text; whole numbers have no decimals."""
    return value if isinstance(value, str) else str(value).removesuffix(".0")


def split_name(name: str) -> tuple[str, str, str]:
    """Split a BIDS file name into stem, suffix and extension.

    >>> split_name("sub-01_run-1_T1w.nii.gz")
    ('sub-01_run-1', 'T1w', '.nii.gz')
    """
    base, dot, extension = name.partition(".")
    stem, _, suffix = base.rpartition("_")
    return stem, suffix, dot + extension


def entities_of(name: str) -> dict[str, str]:
    """Return the entities of a BIDS name, in order.

    >>> entities_of("sub-01_ses-A_T1w.nii.gz")
    {'sub': '01', 'ses': 'A'}
    """
    return dict(re.findall(r"(?:^|_)([a-zA-Z0-9]+)-([^_.]+)", name))
