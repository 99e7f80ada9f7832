"""Preprocessed phantom subjects at 4 mm, and what methods of known quality made of their scans."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harmonizer.cohort import Cohort, Scan
from harmonizer.evaluation.paired_metrics import label_tissues
from harmonizer.phantom import make_person, render, scanner_named
from harmonizer.phantom.aligned import aligned_image
from harmonizer.phantom.dataset import plan_participants
from harmonizer.template import tissue_priors
from harmonizer.volume import Volume, write_mask, write_volume

RESOLUTION_MM = 4
TARGET = "aspen"
LESION_AT = (18, 36, 27)  # left frontal white matter
LESION_MM = 7.0


@dataclass(frozen=True)
class Study:
    """Scans, and for each what a perfect harmonization to the target would give."""

    before: Cohort
    truth: dict[str, np.ndarray]
    folder: Path

    def variant(self, name: str, change) -> Cohort:
        """The scans with ``change(truth, scan)`` for images."""
        return Cohort(tuple(replace(scan, image=write_volume(
            self.folder / name / f"{scan.scan_id}.nii.gz",
            scan.read().with_data(change(self.truth[scan.scan_id], scan))))
            for scan in self.before))


def study(folder: Path, subjects: int = 10, sites=(TARGET, "cedar"), ill: tuple[str, ...] = (),
          twice: tuple[str, ...] = ()) -> Study:
    """``subjects`` at each site, aged 20 to 80; scans of ``ill`` subjects show a lesion, and those of
    ``twice`` are there two times."""
    machines = tuple(scanner_named(name) for name in sites)
    scans, truth = [], {}
    for who in plan_participants(subjects, machines, 0, "nested"):
        subject = make_person(who.seed, who.age, who.sex, 4.0)
        scanner = who.scanners[0]
        rendered = {seen.name: render(subject, seen) for seen in (scanner, machines[0])}
        for run in range(1 + (who.label in twice)):
            name = f"sub-{who.label}_run-{run + 1}_T1w"
            source, truth_image = (aligned_image(subject, scanner, rescan=run, resolution_mm=RESOLUTION_MM,
                                          seen_by=seen, rendered=rendered[seen.name])
                            for seen in (scanner, machines[0]))
            if who.label in ill:
                source, truth_image = (v.with_data(with_lesion(v.data, v.mask)) for v in (source, truth_image))
            truth[name] = truth_image.data
            image = write_volume(folder / "before" / f"{name}.nii.gz", source)
            mask = write_mask(folder / "masks" / f"{name}_mask.nii.gz", source.mask, source.affine)
            scans.append(Scan(name, who.label, None, "T1w", scanner.name, "phantom", image, mask,
                              who.age, who.sex))
    return Study(Cohort(tuple(scans)), truth, folder)


def lesion(shape: tuple[int, ...]) -> np.ndarray:
    """A ball in white matter."""
    away = np.sum((np.indices(shape) - np.reshape(LESION_AT, (3, 1, 1, 1))) ** 2, axis=0)
    return away <= (LESION_MM / RESOLUTION_MM) ** 2


def with_lesion(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with a ball as dark as fluid (T1w)."""
    return np.where(lesion(data.shape) & mask, np.percentile(data[mask], 3), data)


def segment(volume: Volume) -> np.ndarray:
    """Nearest of three mean intensities, taken where the template is sure of a tissue."""
    sure = label_tissues(tissue_priors(RESOLUTION_MM))
    means = np.array([volume.data[(sure == code) & volume.mask].mean() for code in (1, 2, 3)])
    return np.where(volume.mask, np.abs(volume.data[..., None] - means).argmin(axis=-1) + 1, 0)
