"""Scans as preprocessing would leave them: on the template's grid, brain only, in seconds.

What preprocessing takes off is left out instead of being simulated and undone: pose and head size
are known exactly, skull and most of the bias field are not put in. What it cannot take off is
there: contrast, resolution, gain and noise of the scanner, a tenth of its bias field, and a
registration that repeats to a few tenths of a millimetre. So a hundred scans are made in minutes,
for whatever begins after preprocessing: backends, referee, benchmarks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..cohort import Cohort, Scan
from ..template import load_template
from ..volume import Volume, write_mask, write_volume
from .anatomy import Person, make_deformation, make_person
from .dataset import Participant, plan_participants
from .scanner import Grid, Scanner, _bias_field, _rician, _rng, _rotation, render

__all__ = ["aligned_image", "write_aligned"]

BIAS_LEFT = 0.1  # of the scanner's bias field
REGISTRATION_MM = 0.15  # standard deviation of shift and
REGISTRATION_DEGREES = 0.15  # rotation from scan to scan


def aligned_image(person: Person, scanner: Scanner, modality: str = "T1w", rescan: int = 0, *,
                  resolution_mm: int = 2, rendered: np.ndarray | None = None,
                  seen_by: Scanner | None = None) -> Volume:
    """A scan on the grid of `load_template(resolution_mm)`, with the person's true brain mask.

    Zero outside the mask; intensities in the scanner's gain. Another `rescan` has another noise and
    registration. `seen_by`: this very scan, in its place, as another scanner would show it, noise
    and all: what a perfect harmonization would give. `rendered` saves time where
    `render(person, seen_by or scanner, modality)` is already there.
    UsageError if the scanner has no such modality or the template no such resolution.
    """
    grid = _grid(person, scanner, modality, rescan, load_template(resolution_mm))
    scanner = seen_by or scanner
    shown = render(person, scanner, modality) if rendered is None else rendered
    voxel = person.spacing**3 / np.prod(scanner.voxel_mm)  # more tissue in a voxel, less noise
    sigma = scanner.noise * scanner.gain / np.sqrt(max(voxel, 1.0))
    noisy = _rician(shown, sigma, _rng(person, scanner, modality, rescan, "noise"))
    field = _bias_field(scanner, grid.shape, _rng(person, scanner, modality, rescan, "bias"))
    mask = grid.sample(person.brain, person.affine) > 0.5
    data = grid.sample(noisy, person.affine) * field**np.float32(BIAS_LEFT)
    return Volume(np.where(mask, data, np.float32(0)), grid.affine, mask)


def _grid(person: Person, scanner: Scanner, modality: str, rescan: int, template: Volume) -> Grid:
    """The template's grid, and the affine registration that finds the person's head size."""
    rng = _rng(person, scanner, modality, rescan, "registration")
    size = make_deformation(person.seed, person.age, person.sex).size
    pose = np.eye(4)
    pose[:3, :3] = _rotation(rng.normal(0, REGISTRATION_DEGREES, 3)) @ np.diag(1 / size)
    pose[:3, 3] = rng.normal(0, REGISTRATION_MM, 3)
    return Grid(template.shape, template.affine, pose)


def write_aligned(
    folder: str | os.PathLike[str],
    scanners: Sequence[Scanner],
    *,
    people: int = 4,
    modality: str = "T1w",
    design: str = "travelling",
    travellers: int = 0,
    runs: int = 1,
    seed: int = 0,
    resolution_mm: int = 2,
    ages: tuple[float, float] = (20.0, 80.0),
    progress: Callable[[str], None] | None = None,
) -> Cohort:
    """Write a preprocessed phantom study: `images/`, `masks/` and `cohort.tsv` in a folder.

    Parameters as in `write_dataset`: `people` travelling, or per scanner in the nested and mixed
    designs. Files that are there are overwritten; same seed, same bytes.
    """
    root, scans = Path(folder), []
    for who in plan_participants(people, scanners, seed, design, travellers, ages):
        scans += list(_visits(root, who, modality, runs, resolution_mm))
        if progress is not None:
            progress(f"sub-{who.label} ({who.age:g} years, {who.sex})")
    cohort = Cohort(tuple(scans))
    cohort.to_tsv(root / "cohort.tsv")
    return cohort


def _visits(root: Path, who: Participant, modality: str, runs: int, resolution_mm: int
            ) -> Iterator[Scan]:
    """Write all scans of one person."""
    spacing = 1.0 if resolution_mm < 2 else 2.0 if resolution_mm < 4 else 4.0
    person = make_person(who.seed, who.age, who.sex, spacing)
    for scanner in who.scanners:
        shown = render(person, scanner, modality)
        for run in range(runs):
            volume = aligned_image(person, scanner, modality, run, resolution_mm=resolution_mm,
                                   rendered=shown)
            name = f"{who.stem(scanner, run + 1 if runs > 1 else None)}_{modality}"
            image = write_volume(root / "images" / f"{name}.nii.gz", volume)
            mask = write_mask(root / "masks" / f"{name}_mask.nii.gz", volume.mask, volume.affine)
            yield Scan(name, who.label, scanner.name if who.travels else None, modality,
                       scanner.name, "phantom", image, mask, who.age, who.sex)
