"""A tiny two-site cohort with a known shift, on an odd, oblique grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harmonizer.cohort import Scan
from harmonizer.volume import Volume, write_mask, write_volume

SHAPE = (17, 14, 11)  # odd and even axes
GAIN, OFFSET = 1.6, 40.0  # site B = GAIN * site A + OFFSET


def oblique_affine() -> np.ndarray:
    """2 x 2.5 x 3 mm voxels, turned by 20 and 10 degrees, first axis flipped."""
    a, b = np.deg2rad(20), np.deg2rad(10)
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([-2.0, 2.5, 3.0])
    affine[:3, 3] = (12.0, -20.0, 7.0)
    return affine


def brain_of(subject: int) -> Volume:
    """Three tissues in an ellipsoid, a subject's own layout and texture; site A's contrast."""
    rng = np.random.default_rng(100 + subject)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    stretch = 1 + 0.05 * rng.standard_normal(3)
    radius = np.sqrt(((grid / stretch[:, None, None, None]) ** 2).sum(axis=0))
    data = np.select([radius < 0.5, radius < 0.75, radius < 0.9], [150.0, 100.0, 50.0], 0.0)
    data[radius < 0.9] += rng.normal(0, 6, int((radius < 0.9).sum()))
    return Volume(data.astype(np.float32), oblique_affine(), radius < 0.9)


def at_site_b(volume: Volume) -> Volume:
    """The same brain on the other scanner; the background stays zero."""
    return volume.with_data(np.where(volume.mask, GAIN * volume.data + OFFSET, 0.0))


def scan_of(folder: Path, subject: int, site: str, modality: str = "T1w") -> Scan:
    """Write one subject at one site and return its row."""
    volume = brain_of(subject) if site == "A" else at_site_b(brain_of(subject))
    name = f"sub-{subject:02d}_ses-{site}"
    write_volume(folder / f"{name}_{modality}.nii.gz", volume)
    write_mask(folder / f"{name}_mask.nii.gz", volume.mask, volume.affine)
    return Scan(f"{name}_{modality}", f"{subject:02d}", site, modality, site, "test",
                folder / f"{name}_{modality}.nii.gz", folder / f"{name}_mask.nii.gz")


def three_levels(volume: Volume) -> dict[str, np.ndarray]:
    """Hard memberships by brightness (one-dimensional 3-means): a brain of 34 mm has no template.
    """
    values = volume.in_mask().astype(np.float64)
    centers = np.quantile(values, [0.1, 0.5, 0.9])
    for _ in range(30):
        nearest = np.abs(values[:, None] - centers).argmin(axis=1)
        centers = np.array([values[nearest == c].mean() if (nearest == c).any() else centers[c]
                            for c in range(3)])
    maps = {}
    for code, name in enumerate(("CSF", "GM", "WM")):
        maps[name] = np.zeros(volume.shape, np.float32)
        maps[name][volume.mask] = nearest == code
    return maps
