"""Small cohorts with known site, age and subject, written as images, and what methods made of them.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from harmonizer.cohort import Cohort, Scan
from harmonizer.volume import Volume, write_mask, write_volume

SHAPE = (26, 28, 26)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
MASK = np.sum((np.indices(SHAPE) - (np.array(SHAPE) - 1).reshape(3, 1, 1, 1) / 2) ** 2,
              axis=0) < 121
GAINS = {"A": (1.0, 1.0), "B": (1.2, 0.9), "C": (0.9, 1.1)}  # gain and gamma of each site


def brain(subject: int, age: float) -> np.ndarray:
    """Tissue contrast 30, 70, 110; with age there is less gray matter and more CSF."""
    folds = ndimage.gaussian_filter(np.random.default_rng(subject).normal(size=SHAPE), 1.8)
    folds = (folds - folds[MASK].mean()) / folds[MASK].std()
    older = (age - 50) / 60
    tissue = np.select([folds < -0.9 + older, folds < 0.5], [30.0, 70.0], 110.0)
    return ndimage.gaussian_filter(tissue, 0.5)


def at_site(tissue: np.ndarray, site: str, visit: int) -> np.ndarray:
    """What the site's scanner makes of it."""
    gain, gamma = GAINS[site]
    noise = np.random.default_rng(10_000 + visit).normal(0, 1.5, SHAPE)
    return np.where(MASK, 100 * gain * (np.maximum(tissue + noise, 1) / 100) ** gamma, 0)


def at_site_a(data: np.ndarray, site: str) -> np.ndarray:
    """The site's contrast undone."""
    gain, gamma = GAINS[site]
    return np.where(MASK, 100 * (np.maximum(data, 0) / (100 * gain)) ** (1 / gamma), 0)


def segment(volume: Volume) -> np.ndarray:
    """Thresholds at fixed gray levels: what a segmentation that the scanner misleads would say."""
    return np.where(volume.mask, 1 + (volume.data > 45) + (volume.data > 85), 0)


def write(folder: Path, plan: list[tuple[int, str, str, float, str]]) -> Cohort:
    """`plan`: (subject, site, session, age, sex) per scan; session a2: run 2 of session a."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mask(folder / "mask.nii.gz", MASK, AFFINE)
    scans = []
    for visit, (subject, site, session, age, sex) in enumerate(plan):
        run = f"_run-{session[1:]}" if session[1:] else ""
        session = session[0]
        name = f"sub-{subject:02d}_ses-{session}{run}_T1w"
        path = write_volume(folder / f"{name}.nii.gz",
                            Volume(at_site(brain(subject, age), site, visit), AFFINE))
        scans.append(Scan(name, f"{subject:02d}", session, "T1w", site, "test", path,
                          folder / "mask.nii.gz", age, sex, {"dx": "hc" if subject % 3 else "pd"}))
    return Cohort(tuple(scans))


def variant(before: Cohort, folder: Path, change) -> Cohort:
    """The cohort with `change(data, scan)` for images."""
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for scan in before:
        volume = scan.read()
        path = write_volume(folder / scan.image.name,
                            volume.with_data(change(volume.data, scan)))
        done.append(replace(scan, image=path))
    return Cohort(tuple(done))


def all_variants(before: Cohort, folder: Path) -> dict[str, Cohort]:
    """good: contrast undone; none: nothing done; mean: everybody's image is the mean image."""
    mean = np.mean([at_site_a(scan.read().data, scan.site) for scan in before], axis=0)
    return {
        "good": variant(before, folder / "good", lambda data, scan: at_site_a(data, scan.site)),
        "none": variant(before, folder / "none", lambda data, scan: data),
        "mean": variant(before, folder / "mean", lambda data, scan: mean),
    }


def nested_plan(subjects: int) -> list[tuple[int, str, str, float, str]]:
    """Subjects dealt to A and B, ages 20 to 80 alike at both."""
    ages = np.linspace(20, 80, subjects // 2)
    return [(i, "AB"[i % 2], "1", float(ages[i // 2]), "FM"[(i // 2) % 2]) for i in range(subjects)]


def traveling_plan(subjects: int) -> list[tuple[int, str, str, float, str]]:
    """Everybody at A, B and C, and once more at A."""
    return [(i, site[0], site.lower(), 25.0 + 6 * i, "FM"[i % 2])
            for i in range(subjects) for site in ("A", "A2", "B", "C")]
