"""Scanners: geometry as the header says, noise as Rice says, truth where the image is."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from harmonizer.errors import UsageError
from harmonizer.phantom import SCANNERS, UNSEEN, acquire, grid_of, image_of, render, scanner_named

PRESETS = [scanner.at_voxel(4.0) for scanner in (*SCANNERS, UNSEEN)]


def shown_by(subject, scanner, modality, grid):
    """Image without noise and bias field, on any grid of the same subject."""
    return grid.sample(render(subject, scanner, modality), subject.affine)


EACH = pytest.mark.parametrize("scanner", PRESETS, ids=lambda s: s.name)


@EACH
def test_the_header_says_what_the_scanner_says(young, scanner):
    noisy, _ = image_of(young, scanner)
    assert "".join(nib.aff2axcodes(noisy.affine)) == scanner.orientation
    assert sorted(noisy.spacing) == pytest.approx(sorted(scanner.voxel_mm), rel=1e-6)
    oblique = np.degrees(nib.affines.obliquity(noisy.affine).max())
    assert oblique == pytest.approx(abs(scanner.tilt_deg), abs=0.01)


@EACH
def test_the_head_lies_where_affine_and_pose_say(young, scanner):
    """The mask's centroid, taken through the header and the pose, is the subject's own."""
    scan = acquire(young, scanner)
    world = scan.grid.affine @ [*np.argwhere(scan.mask).mean(axis=0), 1]
    own = young.affine @ [*np.argwhere(young.brain > 0.5).mean(axis=0), 1]
    assert (np.linalg.inv(scan.grid.pose) @ world)[:3] == pytest.approx(own[:3], abs=0.6)
    assert np.linalg.det(scan.grid.pose[:3, :3]) == pytest.approx(1)


@EACH
def test_sampling_only_where_something_is_changes_nothing(young, scanner):
    grid = grid_of(young, scanner)
    matrix = np.linalg.inv(young.affine) @ np.linalg.inv(grid.pose) @ grid.affine
    everywhere = ndimage.affine_transform(
        young.brain, matrix[:3, :3], matrix[:3, 3], grid.shape, np.float32, order=1
    )
    assert grid.sample(young.brain, young.affine) == pytest.approx(everywhere, abs=1e-5)
    assert not grid.sample(np.zeros_like(young.brain), young.affine).any()


@EACH
def test_the_head_is_up_and_looks_ahead(young, scanner):
    """In canonical axes the neck is below the brain and the nose before it."""
    noisy, _ = image_of(young, scanner)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(noisy.data, noisy.affine))
    mask = nib.as_closest_canonical(nib.Nifti1Image(noisy.mask.astype(np.uint8), noisy.affine))
    brain = np.argwhere(mask.get_fdata() > 0)
    head = ndimage.gaussian_filter(canonical.get_fdata(), 1) > 0.25 * noisy.in_mask().mean()
    z_low, z_high = brain[:, 2].min(), brain[:, 2].max()
    assert head[:, :, :z_low].sum() > 5 * head[:, :, z_high + 1:].sum()
    face = head[:, :, z_low: z_low + 8]
    assert face[:, brain[:, 1].max():].sum() > face[:, : brain[:, 1].min()].sum()


@EACH
def test_labels_lie_on_the_image(young, scanner):
    """White matter's label fits the bias-free image best where it is, not a voxel beside."""
    grid = grid_of(young, scanner)
    scan, shown = acquire(young, scanner), shown_by(young, scanner, "T1w", grid)
    white, brain = scan.labels == 3, scan.mask
    shifts = [(0, 0, 0), *[tuple(s * np.eye(3, dtype=int)[a]) for a in range(3) for s in (-1, 1)]]
    fits = [np.corrcoef(np.roll(white, s, (0, 1, 2))[brain], shown[brain])[0, 1] for s in shifts]
    assert int(np.argmax(fits)) == 0
    assert fits[0] > 0.6
    means = [shown[brain & (scan.labels == label)].mean() for label in (1, 2, 3)]
    assert means == sorted(means)


def test_intensities_are_the_scanners_gain(young):
    for scanner in PRESETS:
        scan = acquire(young, scanner)
        white = np.median((scan.clean / scan.bias)[ndimage.binary_erosion(scan.labels == 3)])
        assert white == pytest.approx(scanner.gain, rel=0.12), scanner.name


def test_noise_is_rician(young):
    scanner = replace(PRESETS[1], noise=0.05, bias=0.0)
    noisy, clean = image_of(young, scanner)
    sigma = 0.05 * scanner.gain
    air = clean.data == 0
    assert noisy.data[air].mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert noisy.data[air].std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.02)
    bright = clean.data > 10 * sigma
    difference = noisy.data[bright] - clean.data[bright]
    assert difference.std() == pytest.approx(sigma, rel=0.03)
    lift = (sigma**2 / (2 * clean.data[bright])).mean()  # Gudbjartsson and Patz 1995
    assert difference.mean() == pytest.approx(lift, abs=4 * sigma / np.sqrt(bright.sum()))


def test_without_noise_the_scan_is_its_clean_self(young):
    scan = acquire(young, replace(PRESETS[0], noise=0.0))
    assert scan.noisy == pytest.approx(scan.clean, rel=1e-6)


def test_clean_is_shown_times_bias(young):
    scan = acquire(young, PRESETS[2])
    shown = shown_by(young, PRESETS[2], "T1w", scan.grid)
    assert np.array_equal(scan.clean, shown * scan.bias)


@EACH
def test_the_bias_field_has_the_scanners_amplitude_and_is_smooth(young, scanner):
    field = np.log(acquire(young, scanner).bias)
    assert 0.85 * scanner.bias < abs(field).max() < 1.15 * scanner.bias
    assert max(abs(np.diff(field, axis=a)).max() for a in range(3)) < 0.2 * scanner.bias


def test_a_rescan_is_another_pose_and_other_noise_of_the_same_brain(young):
    first, second = (acquire(young, PRESETS[0], rescan=run) for run in (0, 1))
    assert not np.array_equal(first.noisy, second.noisy)
    assert not np.allclose(first.grid.pose, second.grid.pose, atol=1e-3)
    volumes = [scan.mask.sum() for scan in (first, second)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_the_same_scan_has_the_same_bits(young):
    first, second = (image_of(young, PRESETS[3], "T2w", 2)[0] for _ in range(2))
    assert np.array_equal(first.data, second.data)
    assert np.array_equal(first.affine, second.affine)


def test_the_modalities_of_a_session_lie_together(young):
    t1w, t2w = (grid_of(young, PRESETS[0], modality).pose for modality in ("T1w", "T2w"))
    moved = np.linalg.inv(t1w) @ t2w
    assert 0 < np.abs(moved[:3, 3]).max() < 3  # mm


def test_a_wider_point_spread_blurs_more(young):
    sharp, blunt = (render(young, replace(PRESETS[0], psf_mm=mm)) for mm in (0.0, 8.0))
    assert np.abs(np.diff(blunt, axis=0)).mean() < 0.8 * np.abs(np.diff(sharp, axis=0)).mean()


def test_scanners_show_one_person_differently_on_one_grid(young):
    grid = grid_of(young, PRESETS[0])
    brain = acquire(young, PRESETS[0]).mask
    images = [shown_by(young, scanner, "T1w", grid)[brain] / scanner.gain for scanner in PRESETS]
    for i, one in enumerate(images):
        for other in images[i + 1:]:
            assert np.abs(one - other).mean() > 0.008
            assert np.corrcoef(one, other)[0, 1] > 0.9


@pytest.mark.parametrize(("wrong", "message"), [
    ({"name": "site A"}, "letters and digits only"),
    ({"tesla": 7.0}, "expected 1.5 or 3 T, got 7"),
    ({"orientation": "RAR"}, "axis codes such as 'LAS', got 'RAR'"),
    ({"orientation": "XYZ"}, "axis codes such as 'LAS', got 'XYZ'"),
    ({"gain": 0.0}, "must be positive"),
])
def test_impossible_scanners_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        replace(PRESETS[0], **wrong)


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(UsageError, match="Did you mean 'birch'"):
        scanner_named("brich")
    with pytest.raises(UsageError, match="has no 'T1'. Did you mean 'T1w'"):
        PRESETS[0].sequence("T1")
    with pytest.raises(UsageError, match="0.5 to 12 mm, got -1"):
        PRESETS[0].at_voxel(-1)
