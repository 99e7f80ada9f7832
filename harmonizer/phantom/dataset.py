"""Phantom study on disk: a BIDS raw dataset, and its truth in a folder beside it.

The truth is `FOLDER-truth` and not `FOLDER/derivatives/truth`. An app that processes FOLDER cannot
find it, and validators and pybids do not read it. Each folder can be deleted, moved or mounted
separately.

Designs: `traveling` (every subject at every scanner, one session per scanner), `nested` (each
subject at one scanner, no sessions) and `mixed` (nested subjects, and some traveling subjects).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from .. import __version__
from ..errors import UsageError
from ..files import atomic_path, write_json, write_text
from ..volume import write_labels, write_mask
from . import describe
from .anatomy import Subject, make_subject
from .scanner import MODALITIES, SCANNERS, Scan, Scanner, acquire, render, scanner_named

__all__ = ["DESIGNS", "Participant", "Study", "write_dataset", "plan_participants", "truth_folder"]

DESIGNS = ("traveling", "nested", "mixed")
MAX_STORED_INTENSITY = 30000  # integer value of the brightest voxel of an image


@dataclass(frozen=True)
class Participant:
    """Plan for one subject: anatomy and scanners; `site` is None for a traveling subject."""

    label: str
    seed: int
    age: float
    sex: str
    site: str | None
    scanners: tuple[Scanner, ...]

    @property
    def is_traveling(self) -> bool:
        """Whether the subject has a session per scanner."""
        return self.site is None

    def stem(self, scanner: Scanner, run: int | None = None) -> str:
        """Return the BIDS name without suffix: sub-01_ses-aspen, or sub-01 if not traveling."""
        session = f"_ses-{scanner.name}" if self.is_traveling else ""
        return f"sub-{self.label}{session}" + (f"_run-{run}" if run else "")

    def folder(self, scanner: Scanner) -> Path:
        """Return the folder of the subject's images below a dataset's root."""
        session = f"ses-{scanner.name}" if self.is_traveling else ""
        return Path(f"sub-{self.label}") / session / "anat"


@dataclass(frozen=True)
class Study:
    """Folders and contents of a study that was written."""

    folder: Path
    truth: Path
    participants: tuple[Participant, ...]
    scanners: tuple[Scanner, ...]
    modalities: tuple[str, ...]


def write_dataset(
    folder: str | os.PathLike[str],
    *,
    subjects: int = 4,
    scanners: int | Sequence[Scanner | str] = 3,
    modalities: Sequence[str] = ("T1w",),
    seed: int = 0,
    voxel_mm: float | None = None,
    design: str = "traveling",
    traveling_subjects: int = 0,
    runs: int = 1,
    skull: bool = True,
    ages: tuple[float, float] | Mapping[str, tuple[float, float]] = (20.0, 80.0),
    truth: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Write a phantom study as a BIDS raw dataset and, beside it, its truth.

    Parameters
    ----------
    folder : path
        New or empty folder of the dataset; the truth goes to `folder` + "-truth".
    subjects : int
        Number of traveling subjects, or of subjects per scanner in the nested and mixed designs.
    scanners : int or sequence of Scanner or str
        Number of presets, or scanners, or their names.
    modalities : sequence of str
        Some of "T1w", "T2w", "FLAIR", "PDw".
    seed : int
        Seed of every random choice; the same seed writes the same bytes.
    voxel_mm : float, optional
        Smallest voxel side in mm; the other sides in proportion. Default: as the scanners have it.
    design : str
        "traveling", "nested" or "mixed".
    traveling_subjects : int
        Number of traveling subjects in the mixed design, at least one.
    runs : int
        Number of repeated scans in a session, each with another pose and noise; above one, names
        contain `run-`.
    skull : bool
        False writes brain-only images, as after skull stripping.
    ages : tuple of float, or mapping from site to such a tuple
        Lowest and highest age in years; ages that differ between sites confound age with site.
    truth : bool
        False writes the raw dataset alone.
    progress : callable, optional
        Function that is called with one line per session.

    Returns
    -------
    Study
        Folders and contents of the study.

    Raises
    ------
    UsageError
        If a value is out of range or a folder to be written is not empty.
    """
    machines = tuple(s.at_voxel(voxel_mm) for s in _scanners(scanners))
    _check(subjects, machines, modalities, design, runs, seed)
    participants = plan_participants(subjects, machines, seed, design, traveling_subjects, ages)
    root = Path(folder)
    truth_root = truth_folder(root)
    for target in (root, truth_root) if truth else (root,):
        _require_empty(target)
    study = Study(root, truth_root, participants, machines, tuple(modalities))
    _write_tables(study, seed, design)
    if truth:
        _write_truth_tables(study, seed)
    _write_images(study, runs, skull, truth, progress or (lambda line: None))
    return study


def truth_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder of the truth that belongs to a dataset's folder."""
    path = Path(folder)
    return path.with_name(path.name + "-truth")


def plan_participants(
    subjects: int,
    scanners: Sequence[Scanner],
    seed: int,
    design: str = "traveling",
    traveling_subjects: int = 0,
    ages: tuple[float, float] | Mapping[str, tuple[float, float]] = (20.0, 80.0),
) -> tuple[Participant, ...]:
    """Assign subjects to scanners, with evenly distributed ages and alternating sex.

    Parameters as in `write_dataset`.
    """
    rng = np.random.default_rng([seed, 1])
    sites: list[tuple[str | None, tuple[Scanner, ...], int]] = []
    if design != "traveling":
        sites += [(scanner.name, (scanner,), subjects) for scanner in scanners]
    if design == "traveling":
        sites.append((None, tuple(scanners), subjects))
    elif design == "mixed":
        sites.append((None, tuple(scanners), max(traveling_subjects, 1)))
    planned: list[Participant] = []
    for site, visited, count in sites:
        for age, sex in _who(rng, count, _range_of(ages, site)):
            number = len(planned) + 1
            label = f"{number:02d}"
            planned.append(Participant(label, seed * 10007 + number, age, sex, site, visited))
    return tuple(planned)


def _range_of(
    ages: tuple[float, float] | Mapping[str, tuple[float, float]], site: str | None
) -> tuple[float, float]:
    """Return the age range of a site; for traveling subjects, the range that covers all sites."""
    if not isinstance(ages, Mapping):
        return ages
    if site is None:
        return min(low for low, _ in ages.values()), max(high for _, high in ages.values())
    if site not in ages:
        raise UsageError(
            f"no age range was given for site {site!r}; expected one for each site, got "
            f"{', '.join(ages)}.")
    return ages[site]


def _who(
    rng: np.random.Generator, count: int, ages: tuple[float, float]
) -> list[tuple[float, str]]:
    """Draw (age, sex) of `count` subjects: one age in each of `count` equal bins, shuffled."""
    low, high = ages
    bins = low + (high - low) * (np.arange(count) + rng.uniform(0.2, 0.8, count)) / max(count, 1)
    years = rng.permutation(np.round(bins, 1))
    first = int(rng.integers(2))
    return [(float(age), "FM"[(first + i) % 2]) for i, age in enumerate(years)]


def _scanners(scanners: int | Sequence[Scanner | str]) -> tuple[Scanner, ...]:
    """Return presets by count or name, and scanners as they are."""
    if isinstance(scanners, int):
        if not 1 <= scanners <= len(SCANNERS):
            raise UsageError(f"expected 1 to {len(SCANNERS)} preset scanners, got {scanners}.")
        return SCANNERS[:scanners]
    return tuple(scanner_named(s) if isinstance(s, str) else s for s in scanners)


def _check(
    subjects: int, scanners: Sequence[Scanner], modalities: Sequence[str], design: str, runs: int,
    seed: int,
) -> None:
    """Refuse invalid arguments before anything is written."""
    if subjects < 1 or runs < 1 or seed < 0:
        raise UsageError(
            f"expected at least one subject and one run and a seed of 0 or more, got {subjects} "
            f"subjects, {runs} runs, seed {seed}."
        )
    if design not in DESIGNS:
        raise UsageError(f"design {design!r} is unknown; choose one of {', '.join(DESIGNS)}.")
    if len({scanner.name for scanner in scanners}) < max(len(scanners), 1):
        raise UsageError("expected at least one scanner, each with a name of its own.")
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities:
        got = ", ".join(unknown) or "none"
        raise UsageError(f"modalities are {', '.join(MODALITIES)}; got {got}.")


def _require_empty(folder: Path) -> None:
    """Refuse a folder that is not empty or cannot be created."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder. Choose another folder or "
                         "empty it.")
    parent = next(p for p in folder.resolve().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UsageError(f"{folder} cannot be created: {parent} is not a writable folder.")


def _write_tables(study: Study, seed: int, design: str) -> None:
    """Write everything of the raw dataset that is not an image or its sidecar."""
    root = study.folder
    write_json(
        root / "dataset_description.json",
        describe.description(seed, design, study.scanners, __version__),
    )
    write_text(root / "README.md", describe.README)
    rows = [
        {"participant_id": f"sub-{p.label}", "age": p.age, "sex": p.sex, "site": p.site}
        for p in study.participants
    ]
    describe.write_tsv(root / "participants.tsv", ("participant_id", "age", "sex", "site"), rows)
    write_json(root / "participants.json", describe.PARTICIPANTS_JSON)
    for participant in study.participants:
        if participant.is_traveling:
            _write_sessions(root / f"sub-{participant.label}", participant)


def _write_sessions(folder: Path, participant: Participant) -> None:
    """Write the table of a traveling subject's sessions, with the site of each."""
    rows = [{"session_id": f"ses-{s.name}", "site": s.name} for s in participant.scanners]
    stem = folder / f"sub-{participant.label}_sessions"
    describe.write_tsv(stem.with_suffix(".tsv"), ("session_id", "site"), rows)
    write_json(stem.with_suffix(".json"), describe.SESSIONS_JSON)


def _write_truth_tables(study: Study, seed: int) -> None:
    """Write the descriptions of the truth; `truth.tsv` follows after the files it lists."""
    root = study.truth
    content = describe.truth_description(seed, study.folder.name, __version__)
    write_json(root / "dataset_description.json", content)
    write_text(root / "README.md", describe.TRUTH_README)
    write_json(root / "truth.json", describe.TRUTH_JSON)
    describe.write_tsv(root / "dseg.tsv", ("index", "name"), describe.LABEL_ROWS)


# --- images ---------------------------------------------------------------------------------------


class _ScanWriter:
    """Write the scans of one participant and collect the rows of `truth.tsv`."""

    def __init__(self, study: Study, participant: Participant, skull: bool, truth: bool) -> None:
        self.study, self.participant, self.skull, self.truth = study, participant, skull, truth
        subject = _subject_of(participant)
        self.subject = subject if skull else subject.without_skull()
        self.rendered: dict[tuple[str, str], np.ndarray] = {}

    def rendered_by(self, scanner: Scanner, modality: str) -> np.ndarray:
        """Return the noise-free image by a scanner on the subject's grid; computed once."""
        key = (scanner.name, modality)
        if key not in self.rendered:
            self.rendered[key] = render(self.subject, scanner, modality)
        return self.rendered[key]

    def write_scan(self, scanner: Scanner, modality: str, run: int, runs: int
                   ) -> list[dict[str, str]]:
        """Write one scan with its sidecar and its truth, and return the rows of `truth.tsv`."""
        participant = self.participant
        scan = acquire(self.subject, scanner, modality, run, self.rendered_by(scanner, modality))
        name = participant.stem(scanner, run + 1 if runs > 1 else None)
        stem = str(participant.folder(scanner) / name)
        noisy = scan.noisy if self.skull else np.where(scan.mask, scan.noisy, np.float32(0))
        _write_int16(self.study.folder / f"{stem}_{modality}.nii.gz", noisy, scan.grid.affine)
        content = describe.sidecar(scanner, modality, stripped=not self.skull)
        write_json(self.study.folder / f"{stem}_{modality}.json", content)
        return self._write_truth(scanner, modality, stem, scan) if self.truth else []

    def _write_truth(
        self, scanner: Scanner, modality: str, stem: str, scan: Scan
    ) -> list[dict[str, str]]:
        """Write mask, labels, bias field, and the scan as every scanner would make it."""
        shared = {
            "scan": f"{stem}_{modality}.nii.gz", "participant": f"sub-{self.participant.label}",
            "modality": modality, "source_site": scanner.name,
            "mask": f"{stem}_desc-brain{modality}_mask.nii.gz",
            "labels": f"{stem}_desc-{modality}_dseg.nii.gz",
            "bias": f"{stem}_desc-{modality}_biasfield.nii.gz",
        }
        where, grid = self.study.truth, scan.grid
        write_mask(where / shared["mask"], scan.mask, grid.affine)
        write_labels(where / shared["labels"], scan.labels, grid.affine)
        _write_int16(where / shared["bias"], scan.bias, grid.affine)
        rows = []
        for target in self.study.scanners:
            image = f"{stem}_scanner-{target.name}_{modality}.nii.gz"
            image_data = grid.sample(self.rendered_by(target, modality), self.subject.affine)
            _write_int16(where / image, image_data, grid.affine)
            rows.append({**shared, "target_site": target.name, "image": image})
        return rows


def _write_images(
    study: Study, runs: int, skull: bool, truth: bool, progress: Callable[[str], None]
) -> None:
    """Write all scans of all participants and, after them, `truth.tsv`."""
    rows: list[dict[str, str]] = []
    for participant in study.participants:
        writer = _ScanWriter(study, participant, skull, truth)
        for scanner in participant.scanners:
            for run in range(runs):
                for modality in study.modalities:
                    rows += writer.write_scan(scanner, modality, run, runs)
            progress(f"sub-{participant.label} ({participant.age:g} years, {participant.sex}) "
                     f"on {scanner.name} ({scanner.manufacturer} {scanner.model})")
    if truth:
        describe.write_tsv(study.truth / "truth.tsv", describe.TRUTH_JSON, rows)


def _subject_of(participant: Participant) -> Subject:
    """Make the anatomy on the grid that the finest of the participant's scanners needs."""
    finest = min(min(scanner.voxel_mm) for scanner in participant.scanners)
    spacing = 1.0 if finest < 1.5 else 2.0 if finest < 3.5 else 4.0
    return make_subject(participant.seed, participant.age, participant.sex, spacing)


def _write_int16(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Store non-negative intensities as int16 with a slope, as converters of scanner data do."""
    slope = max(float(data.max()), 1e-6) / MAX_STORED_INTENSITY
    stored = np.round(data / np.float32(slope)).astype(np.int16)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
