"""Phantom scans as after preprocessing: on the template's grid, brain only, made in seconds.

Pose, head size, skull and most of the bias field are left out instead of being simulated and then
removed. What preprocessing cannot remove remains: contrast, resolution, gain and noise of the
scanner, a tenth of its bias field, and registration errors of a few tenths of a millimeter. The
fast simulation serves tests and benchmarks of the backends and of the evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..cohort import Cohort, Scan
from ..template import load_template
from ..volume import Volume, write_mask, write_volume
from .anatomy import Subject, make_deformation, make_subject
from .dataset import Participant, plan_participants
from .scanner import Grid, Scanner, _bias_field, _rician, _rng, _rotation, render

__all__ = ["aligned_image", "write_aligned"]

RESIDUAL_BIAS_FRACTION = 0.1  # exponent of the scanner's bias field
REGISTRATION_STD_MM = 0.15  # shift from scan to scan
REGISTRATION_STD_DEG = 0.15  # rotation from scan to scan


def aligned_image(subject: Subject, scanner: Scanner, modality: str = "T1w", rescan: int = 0, *,
                  resolution_mm: int = 2, rendered: np.ndarray | None = None,
                  as_scanner: Scanner | None = None) -> Volume:
    """Simulate a preprocessed scan on the grid of `load_template(resolution_mm)`.

    Parameters
    ----------
    subject : Subject
        Anatomy.
    scanner : Scanner
        Scanner that made the scan; it determines noise pattern, bias field and registration.
    modality : str
        "T1w", "T2w", "FLAIR" or "PDw".
    rescan : int
        Number of the repeated scan; each has its own noise and registration error.
    resolution_mm : int
        Resolution of the template.
    rendered : ndarray, optional
        Result of `render(subject, as_scanner or scanner, modality)`, where it was computed before.
    as_scanner : Scanner, optional
        Scanner whose contrast, resolution, gain, noise level and bias field are used, in the same
        place and with the same random numbers: the image that a perfect harmonization would give.

    Returns
    -------
    Volume
        Image in units of the scanner's gain, 0 outside the true brain mask.

    Raises
    ------
    UsageError
        If the scanner has no such modality or the template no such resolution.
    """
    grid = _grid(subject, scanner, modality, rescan, load_template(resolution_mm))
    scanner = as_scanner or scanner
    if rendered is None:
        rendered = render(subject, scanner, modality)
    voxel = subject.spacing**3 / float(np.prod(scanner.voxel_mm))  # larger voxels have less noise
    sigma = scanner.noise * scanner.gain / np.sqrt(max(voxel, 1.0))
    noisy = _rician(rendered, sigma, _rng(subject, scanner, modality, rescan, "noise"))
    field = _bias_field(scanner, grid.shape, _rng(subject, scanner, modality, rescan, "bias"))
    mask = grid.sample(subject.brain, subject.affine) > 0.5
    data = grid.sample(noisy, subject.affine) * field**np.float32(RESIDUAL_BIAS_FRACTION)
    return Volume(np.where(mask, data, np.float32(0)), grid.affine, mask)


def _grid(subject: Subject, scanner: Scanner, modality: str, rescan: int, template: Volume) -> Grid:
    """Return the template's grid with an imperfect affine registration of the subject's head."""
    rng = _rng(subject, scanner, modality, rescan, "registration")
    size = make_deformation(subject.seed, subject.age, subject.sex).size
    pose = np.eye(4)
    pose[:3, :3] = _rotation(rng.normal(0, REGISTRATION_STD_DEG, 3)) @ np.diag(1 / size)
    pose[:3, 3] = rng.normal(0, REGISTRATION_STD_MM, 3)
    return Grid(template.shape, template.affine, pose)


def write_aligned(
    folder: str | os.PathLike[str],
    scanners: Sequence[Scanner],
    *,
    subjects: int = 4,
    modality: str = "T1w",
    design: str = "traveling",
    traveling_subjects: int = 0,
    runs: int = 1,
    seed: int = 0,
    resolution_mm: int = 2,
    ages: tuple[float, float] = (20.0, 80.0),
    progress: Callable[[str], None] | None = None,
) -> Cohort:
    """Write a preprocessed phantom study: `images/`, `masks/` and `cohort.tsv` in a folder.

    Existing files are overwritten. The same seed gives the same bytes.

    Parameters
    ----------
    folder : path
        Folder of the study.
    scanners : sequence of Scanner
        Scanners of the study.
    subjects : int
        Number of traveling subjects, or of subjects per scanner in the nested and mixed designs.
    modality : str
        "T1w", "T2w", "FLAIR" or "PDw".
    design : str
        "traveling", "nested" or "mixed", see `write_dataset`.
    traveling_subjects : int
        Number of traveling subjects in the mixed design, at least one.
    runs : int
        Number of repeated scans in a session.
    seed : int
        Seed of every random choice.
    resolution_mm : int
        Resolution of the template.
    ages : tuple of float
        Lowest and highest age in years.
    progress : callable, optional
        Function that is called with one line per subject.

    Returns
    -------
    Cohort
        The scans that were written.
    """
    root, scans = Path(folder), []
    for who in plan_participants(subjects, scanners, seed, design, traveling_subjects, ages):
        scans += list(_write_scans(root, who, modality, runs, resolution_mm))
        if progress is not None:
            progress(f"sub-{who.label} ({who.age:g} years, {who.sex})")
    cohort = Cohort(tuple(scans))
    cohort.to_tsv(root / "cohort.tsv")
    return cohort


def _write_scans(root: Path, who: Participant, modality: str, runs: int, resolution_mm: int
                 ) -> Iterator[Scan]:
    """Write all scans of one subject."""
    spacing = 1.0 if resolution_mm < 2 else 2.0 if resolution_mm < 4 else 4.0
    subject = make_subject(who.seed, who.age, who.sex, spacing)
    for scanner in who.scanners:
        rendered = render(subject, scanner, modality)
        for run in range(runs):
            volume = aligned_image(subject, scanner, modality, run, resolution_mm=resolution_mm,
                                   rendered=rendered)
            name = f"{who.stem(scanner, run + 1 if runs > 1 else None)}_{modality}"
            image = write_volume(root / "images" / f"{name}.nii.gz", volume)
            mask = write_mask(root / "masks" / f"{name}_mask.nii.gz", volume.require_mask(),
                              volume.affine)
            yield Scan(name, who.label, scanner.name if who.is_traveling else None, modality,
                       scanner.name, "phantom", image, mask, who.age, who.sex)
