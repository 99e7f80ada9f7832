"""A phantom study on disk: a BIDS raw dataset, and its truth in a folder beside it.

The truth is a sibling, `FOLDER-truth`, and not `FOLDER/derivatives/truth`: an app that is given
FOLDER must have no way to find it, a validator and pybids must not stumble over it, and either
folder can be deleted, moved or mounted read-only without the other.

Designs: `travelling` (every person at every scanner, one session per scanner), `nested` (`people`
at each scanner, nobody at two; no sessions) and `mixed` (nested people, and `travellers` besides).
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
from .anatomy import Person, make_person
from .scanner import MODALITIES, SCANNERS, Scan, Scanner, acquire, render, scanner_named

__all__ = ["DESIGNS", "Participant", "Study", "write_dataset", "plan_participants", "truth_folder"]

DESIGNS = ("travelling", "nested", "mixed")
INT16_TOP = 30000  # the brightest voxel of a stored image, in integer units


@dataclass(frozen=True)
class Participant:
    """Who is scanned where: `site` is None for a travelling person."""

    label: str
    seed: int
    age: float
    sex: str
    site: str | None
    scanners: tuple[Scanner, ...]

    @property
    def travels(self) -> bool:
        """Whether the person has a session per scanner."""
        return self.site is None

    def stem(self, scanner: Scanner, run: int | None = None) -> str:
        """BIDS name without suffix: sub-01_ses-aspen, or sub-01 for people of one site."""
        session = f"_ses-{scanner.name}" if self.travels else ""
        return f"sub-{self.label}{session}" + (f"_run-{run}" if run else "")

    def folder(self, scanner: Scanner) -> Path:
        """Where the person's images lie, below a dataset's root."""
        session = f"ses-{scanner.name}" if self.travels else ""
        return Path(f"sub-{self.label}") / session / "anat"


@dataclass(frozen=True)
class Study:
    """What was written: the two folders and who is in them."""

    folder: Path
    truth: Path
    participants: tuple[Participant, ...]
    scanners: tuple[Scanner, ...]
    modalities: tuple[str, ...]


def write_dataset(
    folder: str | os.PathLike[str],
    *,
    people: int = 4,
    scanners: int | Sequence[Scanner | str] = 3,
    modalities: Sequence[str] = ("T1w",),
    seed: int = 0,
    voxel_mm: float | None = None,
    design: str = "travelling",
    travellers: int = 0,
    runs: int = 1,
    skull: bool = True,
    ages: tuple[float, float] | Mapping[str, tuple[float, float]] = (20.0, 80.0),
    truth: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Write a phantom study as a BIDS raw dataset and, beside it, its truth.

    Parameters
    ----------
    folder : new or empty folder of the dataset; the truth goes to `folder` + "-truth"
    people : travelling people, or people per scanner in the nested and mixed designs
    scanners : how many of the presets, or scanners, or their names
    modalities : of "T1w", "T2w", "FLAIR", "PDw"
    seed : every random choice comes from it; the same seed writes the same bytes
    voxel_mm : smallest voxel side; the other sides in proportion. Default: the scanners' own
    design : "travelling", "nested" or "mixed"
    travellers : travelling people of the mixed design, at least one
    runs : repeated scans in a session (another pose, other noise); above one, names carry `run-`
    skull : False writes brain-only images, as after skull stripping
    ages : (low, high) years, or such a pair for each site, which confounds age with site
    truth : False writes the raw dataset alone
    progress : called with one line per session

    Raises
    ------
    UsageError
        If a value is not one of these, or a folder to be written is not empty.
    """
    machines = tuple(s.at_voxel(voxel_mm) for s in _scanners(scanners))
    _check(people, machines, modalities, design, runs, seed)
    participants = plan_participants(people, machines, seed, design, travellers, ages)
    root = Path(folder)
    beside = truth_folder(root)
    for target in (root, beside) if truth else (root,):
        _require_empty(target)
    study = Study(root, beside, participants, machines, tuple(modalities))
    _write_tables(study, seed, design)
    if truth:
        _write_truth_tables(study, seed)
    _write_images(study, runs, skull, truth, progress or (lambda line: None))
    return study


def truth_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of the truth that belongs to a dataset's folder."""
    path = Path(folder)
    return path.with_name(path.name + "-truth")


def plan_participants(
    people: int,
    scanners: Sequence[Scanner],
    seed: int,
    design: str = "travelling",
    travellers: int = 0,
    ages: tuple[float, float] | Mapping[str, tuple[float, float]] = (20.0, 80.0),
) -> tuple[Participant, ...]:
    """Who is scanned where, with ages spread evenly over their range and sexes alternating."""
    rng = np.random.default_rng([seed, 1])
    sites: list[tuple[str | None, tuple[Scanner, ...], int]] = []
    if design != "travelling":
        sites += [(scanner.name, (scanner,), people) for scanner in scanners]
    roaming = people if design == "travelling" else max(travellers, 1) * (design == "mixed")
    sites.append((None, tuple(scanners), roaming))
    planned: list[Participant] = []
    for site, machines, count in sites:
        for age, sex in _who(rng, count, _range_of(ages, site)):
            number = len(planned) + 1
            label = f"{number:02d}"
            planned.append(Participant(label, seed * 10007 + number, age, sex, site, machines))
    return tuple(planned)


def _range_of(
    ages: tuple[float, float] | Mapping[str, tuple[float, float]], site: str | None
) -> tuple[float, float]:
    """The age range of a site; travelling people get the hull of all ranges."""
    if not isinstance(ages, Mapping):
        return ages
    if site is None:
        return min(low for low, _ in ages.values()), max(high for _, high in ages.values())
    if site not in ages:
        raise UsageError(f"no age range was given for site {site!r}; have {', '.join(ages)}.")
    return ages[site]


def _who(
    rng: np.random.Generator, count: int, ages: tuple[float, float]
) -> list[tuple[float, str]]:
    """(age, sex) of `count` people: one age in each of `count` equal bins, shuffled."""
    low, high = ages
    bins = low + (high - low) * (np.arange(count) + rng.uniform(0.2, 0.8, count)) / max(count, 1)
    years = rng.permutation(np.round(bins, 1))
    first = int(rng.integers(2))
    return [(float(age), "FM"[(first + i) % 2]) for i, age in enumerate(years)]


def _scanners(scanners: int | Sequence[Scanner | str]) -> tuple[Scanner, ...]:
    """Presets by count or name, or scanners as they are."""
    if isinstance(scanners, int):
        if not 1 <= scanners <= len(SCANNERS):
            raise UsageError(f"there are presets of 1 to {len(SCANNERS)} scanners, not {scanners}.")
        return SCANNERS[:scanners]
    return tuple(scanner_named(s) if isinstance(s, str) else s for s in scanners)


def _check(
    people: int, scanners: Sequence[Scanner], modalities: Sequence[str], design: str, runs: int,
    seed: int,
) -> None:
    """Refuse what cannot be written, before anything is."""
    if people < 1 or runs < 1 or seed < 0:
        raise UsageError(
            f"expected at least one person and one run and a seed of 0 or more, got {people} "
            f"people, {runs} runs, seed {seed}."
        )
    if design not in DESIGNS:
        raise UsageError(f"design {design!r} is not known; choose one of {', '.join(DESIGNS)}.")
    if len({scanner.name for scanner in scanners}) < max(len(scanners), 1):
        raise UsageError("expected at least one scanner, and no two of one name.")
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities:
        got = ", ".join(unknown) or "none"
        raise UsageError(f"modalities are {', '.join(MODALITIES)}; got {got}.")


def _require_empty(folder: Path) -> None:
    """Refuse a folder that holds something, or that cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder. Choose another or empty it.")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UsageError(f"{folder} cannot be made: {parent} is not a folder to write to.")


def _write_tables(study: Study, seed: int, design: str) -> None:
    """Everything of the raw dataset that is not an image or its sidecar."""
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
        if participant.travels:
            _write_sessions(root / f"sub-{participant.label}", participant)


def _write_sessions(folder: Path, participant: Participant) -> None:
    """The table of a travelling person's sessions, with the site of each."""
    rows = [{"session_id": f"ses-{s.name}", "site": s.name} for s in participant.scanners]
    stem = folder / f"sub-{participant.label}_sessions"
    describe.write_tsv(stem.with_suffix(".tsv"), ("session_id", "site"), rows)
    write_json(stem.with_suffix(".json"), describe.SESSIONS_JSON)


def _write_truth_tables(study: Study, seed: int) -> None:
    """The texts of the truth; `truth.tsv` itself comes last, when all that it names is there."""
    root = study.truth
    content = describe.truth_description(seed, study.folder.name, __version__)
    write_json(root / "dataset_description.json", content)
    write_text(root / "README.md", describe.TRUTH_README)
    write_json(root / "truth.json", describe.TRUTH_JSON)
    describe.write_tsv(root / "dseg.tsv", ("index", "name"), describe.LABEL_ROWS)


# --- images ---------------------------------------------------------------------------------------


class _Visitor:
    """One participant's way through the scanners: writes each scan and collects `truth.tsv`."""

    def __init__(self, study: Study, participant: Participant, skull: bool, truth: bool) -> None:
        self.study, self.participant, self.skull, self.truth = study, participant, skull, truth
        person = _person_of(participant)
        self.person = person if skull else person.without_skull()
        self.rendered: dict[tuple[str, str], np.ndarray] = {}

    def shown(self, scanner: Scanner, modality: str) -> np.ndarray:
        """What a scanner shows of the person, on the person's grid; computed once."""
        key = (scanner.name, modality)
        if key not in self.rendered:
            self.rendered[key] = render(self.person, scanner, modality)
        return self.rendered[key]

    def visit(self, scanner: Scanner, modality: str, run: int, runs: int) -> list[dict[str, str]]:
        """Write one scan with its sidecar and its truth; the rows of `truth.tsv` come back."""
        who = self.participant
        scan = acquire(self.person, scanner, modality, run, self.shown(scanner, modality))
        stem = str(who.folder(scanner) / who.stem(scanner, run + 1 if runs > 1 else None))
        noisy = scan.noisy if self.skull else np.where(scan.mask, scan.noisy, np.float32(0))
        _write_int16(self.study.folder / f"{stem}_{modality}.nii.gz", noisy, scan.grid.affine)
        content = describe.sidecar(scanner, modality, stripped=not self.skull)
        write_json(self.study.folder / f"{stem}_{modality}.json", content)
        return self._write_truth(scanner, modality, stem, scan) if self.truth else []

    def _write_truth(
        self, scanner: Scanner, modality: str, stem: str, scan: Scan
    ) -> list[dict[str, str]]:
        """Mask, labels, bias field, and the scan as every scanner would show it."""
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
            shown = grid.sample(self.shown(target, modality), self.person.affine)
            _write_int16(where / image, shown, grid.affine)
            rows.append({**shared, "target_site": target.name, "image": image})
        return rows


def _write_images(
    study: Study, runs: int, skull: bool, truth: bool, progress: Callable[[str], None]
) -> None:
    """All scans of all participants, and `truth.tsv` when all that it names is there."""
    rows: list[dict[str, str]] = []
    for participant in study.participants:
        visitor = _Visitor(study, participant, skull, truth)
        for scanner in participant.scanners:
            for run in range(runs):
                for modality in study.modalities:
                    rows += visitor.visit(scanner, modality, run, runs)
            progress(f"sub-{participant.label} ({participant.age:g} years, {participant.sex}) "
                     f"on {scanner.name} ({scanner.manufacturer} {scanner.model})")
    if truth:
        describe.write_tsv(study.truth / "truth.tsv", describe.TRUTH_JSON, rows)


def _person_of(participant: Participant) -> Person:
    """The anatomy on the grid that the finest of the participant's scanners needs."""
    finest = min(min(scanner.voxel_mm) for scanner in participant.scanners)
    spacing = 1.0 if finest < 1.5 else 2.0 if finest < 3.5 else 4.0
    return make_person(participant.seed, participant.age, participant.sex, spacing)


def _write_int16(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Store non-negative intensities as int16 with a slope, as scanners' converters do."""
    slope = max(float(data.max()), 1e-6) / INT16_TOP
    stored = np.round(data / np.float32(slope)).astype(np.int16)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
