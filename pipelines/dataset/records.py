"""`ScanRecord`: all that is known of one image before anything is done to it.

Every image is its own record. Runs, sessions, acquisitions and reconstructions are never merged:
a session may be another scanner (BIDS keeps travelling people that way), and an average over
scanners is not a scan of anybody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["Finding", "ScanRecord", "entities_of", "split_name"]

Covariate = float | str | None


@dataclass(frozen=True)
class ScanRecord:
    """One image of one person on one scanner.

    Records can be pickled, compared by value, and handed to other processes.
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
        """Age in years at this scan, if known."""
        return self.covariates.get("age")  # type: ignore[return-value]

    @property
    def sex(self) -> str | None:
        """'F', 'M', 'O' (other), or None if not known."""
        return self.covariates.get("sex")  # type: ignore[return-value]

    @property
    def folder(self) -> Path:
        """Where derivatives of this scan go, relative to the output folder: sub-X[/ses-Y]/anat."""
        session = [f"ses-{self.session}"] if self.session else []
        return Path(f"sub-{self.subject}", *session, "anat")


@dataclass(frozen=True)
class Finding:
    """Something found at the door: where, what, and what to do about it."""

    path: Path
    """The file that it is about."""
    finding: str
    """What was expected and what came."""
    remedy: str
    """What the user can do."""
    scan_id: str | None = None
    """The scan that is left out because of it; None for a warning about the dataset."""
    fatal: bool = False
    """Whether the scan is left out."""

    def __str__(self) -> str:
        return f"{self.path}: {self.finding}. {self.remedy}"


def split_name(name: str) -> tuple[str, str, str]:
    """(stem, suffix, extension) of a BIDS file name.

    >>> split_name("sub-01_run-1_T1w.nii.gz")
    ('sub-01_run-1', 'T1w', '.nii.gz')
    """
    base, dot, extension = name.partition(".")
    stem, _, suffix = base.rpartition("_")
    return stem, suffix, dot + extension


def entities_of(name: str) -> dict[str, str]:
    """Entities of a BIDS name, in order.

    >>> entities_of("sub-01_ses-A_T1w.nii.gz")
    {'sub': '01', 'ses': 'A'}
    """
    return dict(re.findall(r"(?:^|_)([a-zA-Z0-9]+)-([^_.]+)", name))
