"""Tests of Volume, NIfTI reading and writing, and atomic files."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.files import atomic_path, read_json, write_json
from harmonizer.volume import Volume, read_volume, write_mask, write_volume

RNG = np.random.default_rng(0)


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(3)
    i, j = [a for a in range(3) if a != axis]
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


AFFINES = {
    "isotropic": np.diag([1.0, 1.0, 1.0, 1.0]),
    "anisotropic": np.diag([0.9, 0.9, 4.0, 1.0]),
    "flipped": np.diag([-1.0, 1.0, -2.0, 1.0]),
    "oblique": np.vstack([np.hstack([rotation(0, 17) @ rotation(2, -8) @ np.diag([1, 1.2, 3]),
                                     [[4.0], [-31.5], [12.25]]]), [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_round_trip_keeps_grid_and_bits(tmp_path, name):
    volume = Volume(RNG.normal(100, 20, (5, 6, 7)).astype(np.float32), AFFINES[name],
                    RNG.random((5, 6, 7)) > 0.5)
    write_volume(tmp_path / "x.nii.gz", volume)
    write_mask(tmp_path / "m.nii.gz", volume.mask, volume.affine)
    again = read_volume(tmp_path / "x.nii.gz", tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_array_equal(again.mask, volume.mask)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)
    assert again.same_grid(volume)
    assert nib.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8


def test_same_content_same_bytes(tmp_path):
    volume = Volume(RNG.normal(size=(4, 4, 4)), np.eye(4))
    first = write_volume(tmp_path / "a.nii.gz", volume).read_bytes()
    assert write_volume(tmp_path / "a.nii.gz", volume).read_bytes() == first


def test_volume_cannot_be_changed_and_does_not_freeze_the_callers_array():
    mine = np.ones((3, 3, 3), np.float32)
    volume = Volume(mine, np.eye(4))
    with pytest.raises(ValueError, match="read-only"):
        volume.data[0, 0, 0] = 2
    mine[0, 0, 0] = 5
    assert volume.with_data(2 * mine).affine is volume.affine


@pytest.mark.parametrize("data, message", [
    (np.zeros((4, 4), np.float32), r"expected one 3D image, got \(4, 4\)"),
    (np.zeros((4, 4, 4, 3), np.float32), r"expected one 3D image, got \(4, 4, 4, 3\)"),
    (np.full((4, 4, 4), np.nan, np.float32), "holds 64 NaN or infinite voxels"),
])
def test_unusable_images_are_named(tmp_path, data, message):
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match="bad.nii.gz: .*" + message):
        read_volume(tmp_path / "bad.nii.gz")


def test_trailing_axis_of_one_is_3d(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 1), np.float32), np.eye(4)), tmp_path / "x.nii")
    assert read_volume(tmp_path / "x.nii").shape == (4, 5, 6)


def test_missing_text_and_truncated_files_are_named(tmp_path):
    with pytest.raises(InputError, match="gone.nii.gz: no such file"):
        read_volume(tmp_path / "gone.nii.gz")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(InputError, match="text.nii.gz: cannot be opened as an image"):
        read_volume(tmp_path / "text.nii.gz")
    write_volume(tmp_path / "x.nii", Volume(RNG.normal(size=(9, 9, 9)), np.eye(4)))
    (tmp_path / "x.nii").write_bytes((tmp_path / "x.nii").read_bytes()[:1000])
    with pytest.raises(InputError, match="x.nii: its voxels cannot be read"):
        read_volume(tmp_path / "x.nii")


def test_mask_of_another_grid_is_refused(tmp_path):
    write_volume(tmp_path / "x.nii.gz", Volume(RNG.normal(size=(4, 4, 4)), np.eye(4)))
    write_mask(tmp_path / "m.nii.gz", np.ones((4, 4, 4)), np.diag([1, 1, 1.1, 1]))
    with pytest.raises(InputError, match="m.nii.gz: the mask's grid"):
        read_volume(tmp_path / "x.nii.gz", tmp_path / "m.nii.gz")


def test_header_lends_its_codes(tmp_path):
    source = nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4))
    source.set_qform(np.eye(4), 3)
    source.set_sform(np.eye(4), 2)
    volume = Volume(np.ones((3, 3, 3)), np.eye(4))
    header = nib.load(write_volume(tmp_path / "x.nii.gz", volume, header=source.header)).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (3, 2)
    header = nib.load(write_volume(tmp_path / "x.nii.gz", volume, code=4)).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (4, 4)


def test_killed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(RuntimeError, match="killed"), \
            atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("{half")
        raise RuntimeError("killed")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="a.json: is not valid JSON"):
        read_json(tmp_path / "a.json")


def with_unit(path, factor, unit, shape=(5, 6, 7)):
    """An image of 2 mm voxels whose affine is multiplied by `factor`, with a stated unit."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) + 3 * np.eye(4, k=3)
    affine[:3] *= factor
    image = nib.Nifti1Image(RNG.random(shape).astype(np.float32) + 1, affine)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("factor", "unit"), [
    (1000, "micron"), (0.001, "meter"), (1, "mm"), (1, "unknown"),
    (1, "micron"), (1, "meter"),  # the unit is wrong: no head has voxels of 2 um or 2 m
])
def test_affines_are_brought_to_mm(tmp_path, factor, unit):
    plain = read_volume(with_unit(tmp_path / "mm.nii", 1, "mm"))
    path = with_unit(tmp_path / "x.nii.gz", factor, unit)
    volume = read_volume(path, path)
    np.testing.assert_allclose(volume.affine, plain.affine, rtol=1e-6)
    np.testing.assert_allclose(volume.spacing, 2, rtol=1e-6)


@pytest.mark.parametrize(("factor", "unit"), [
    (1000, "mm"), (0.001, "mm"), (1000, "unknown"), (1e6, "micron"), (1e-6, "meter"), (15, "mm"),
])
def test_implausible_voxel_sizes_are_refused_by_name(tmp_path, factor, unit):
    path = with_unit(tmp_path / "x.nii.gz", factor, unit)
    with pytest.raises(InputError, match=r"x\.nii\.gz: expected voxels of 0\.05 to 20 mm.*got"):
        read_volume(path)


def test_a_field_of_view_of_meters_is_refused(tmp_path):
    path = with_unit(tmp_path / "x.nii.gz", 5, "mm", (5, 6, 101))
    with pytest.raises(InputError, match="at most 1000 mm along an axis.*50 x 60 x 1010 mm"):
        read_volume(path)


def test_a_step_without_a_mask_says_so():
    volume = Volume(np.ones((2, 2, 2), np.float32), np.eye(4))
    for step in (volume.require_mask, volume.in_mask):
        with pytest.raises(InputError, match="needs a brain mask and the volume has none"):
            step()
    mask = np.arange(8).reshape(2, 2, 2) > 4
    assert np.array_equal(volume.with_mask(mask).require_mask(), mask)
