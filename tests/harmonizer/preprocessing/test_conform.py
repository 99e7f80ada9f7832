"""Geometry in, geometry out: whatever a header says, voxels and affine come back bit for bit."""
import nibabel as nib
import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.preprocessing.conform import (
    check_image,
    conform,
    original_image,
    to_original_grid,
    write_on_original_grid,
)

from .heads import blob, grids

GRIDS = grids()


def save(path, data, affine, sform=1, qform=1, qform_affine=None):
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine if qform_affine is None else qform_affine, qform)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 4), (0, 1), (1, 0), (0, 0)])
def test_way_back_is_exact(tmp_path, name, codes):
    data = blob()
    path = save(tmp_path / "in.nii.gz", data, GRIDS[name], *codes)
    conformed = conform(path)
    assert "".join(nib.aff2axcodes(conformed.volume.affine)) == "RAS"
    np.testing.assert_array_equal(to_original_grid(conformed.volume.data, conformed), data)
    out = write_on_original_grid(tmp_path / "out.nii.gz", conformed.volume.data, conformed)
    before, after = nib.load(path), nib.load(out)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), data)
    assert int(after.header["sform_code"]) == codes[0]
    assert int(after.header["qform_code"]) == codes[1]


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_stays_at_its_place_in_the_world(tmp_path, name):
    data = blob()
    conformed = conform(save(tmp_path / "in.nii.gz", data, GRIDS[name]))
    source = nib.load(tmp_path / "in.nii.gz")
    for index in ([0, 0, 0], [3, 17, 5], [19, 23, 17]):
        world = source.affine @ [*index, 1]
        inside = np.linalg.inv(conformed.volume.affine) @ world
        nearest = np.round(inside[:3]).astype(int)
        np.testing.assert_allclose(inside[:3], nearest, atol=1e-4)
        assert conformed.volume.data[tuple(nearest)] == data[tuple(index)]


def test_sound_header_needs_no_repair(tmp_path):
    conformed = conform(save(tmp_path / "in.nii.gz", blob(), GRIDS["LPS"]))
    assert conformed.repairs == () and not conformed.affine_repaired
    assert conformed.original_axes == "LPS"


def head_in_air(background=0.0):
    """A bright block in noise that is never below zero, whose faces are air."""
    data = np.random.default_rng(1).integers(0, 12, (20, 24, 18)).astype(np.float32)
    data[5:15, 6:18, 4:14] += 600
    data[:6, 0, 0] = 0
    return data + np.float32(background)


@pytest.mark.parametrize("offset", [-200, -500, -1000, -32768])
def test_a_negative_offset_is_removed_and_reported(tmp_path, offset):
    """All that follows sees the same image with and without the offset."""
    plain = conform(save(tmp_path / "a.nii.gz", head_in_air(), GRIDS["LPS"]))
    shifted = conform(save(tmp_path / "b.nii.gz", head_in_air(offset), GRIDS["LPS"]))
    np.testing.assert_array_equal(shifted.volume.data, plain.volume.data)
    assert plain.repairs == () and len(shifted.repairs) == 1
    assert f"; {-offset} was added to all voxels" in shifted.repairs[0]


def test_other_negative_values_stay(tmp_path):
    """Undershoot of resampling, a standardized brain in zeros, and an offset above zero."""
    ringing = head_in_air(-5)
    standardized = np.where(head_in_air() > 100, (head_in_air() - 606) / 3, 0).astype(np.float32)
    assert standardized.min() < -1
    for data in (ringing, standardized, head_in_air(1000)):
        conformed = conform(save(tmp_path / "a.nii.gz", data, GRIDS["RAS"]))
        np.testing.assert_array_equal(conformed.volume.data, data)
        assert conformed.repairs == ()


def test_disagreeing_forms_take_the_sform_and_say_so(tmp_path):
    path = save(tmp_path / "in.nii.gz", blob(), GRIDS["RAS"], 2, 1, GRIDS["LPS"])
    conformed = conform(path)
    np.testing.assert_array_equal(conformed.original_affine, nib.load(path).affine)
    assert "differ" in conformed.repairs[0] and "sform was used" in conformed.repairs[0]


def sheared():
    affine = GRIDS["RAS"].copy()
    affine[0, 1] = 0.6
    return affine


def test_sheared_sform_falls_back_to_the_qform(tmp_path):
    path = save(tmp_path / "in.nii.gz", blob(), sheared(), 1, 1, GRIDS["oblique"])
    conformed = conform(path)
    np.testing.assert_allclose(conformed.original_affine, GRIDS["oblique"], atol=1e-4)
    assert conformed.affine_repaired and "sheared" in conformed.repairs[0]
    image = original_image(conformed.volume.data, conformed)
    np.testing.assert_array_equal(image.header.get_sform(), conformed.original_affine)


def test_sheared_sform_alone_loses_its_shear_about_the_center(tmp_path):
    data = blob()
    conformed = conform(save(tmp_path / "in.nii.gz", data, sheared(), 1, 0, GRIDS["RAS"]))
    axes = conformed.original_affine[:3, :3] / 3
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-5)
    center = [*((np.array(data.shape) - 1) / 2), 1]
    np.testing.assert_allclose(
        conformed.original_affine @ center, sheared() @ center, atol=1e-4
    )


def test_singular_sform_falls_back(tmp_path):
    path = save(tmp_path / "in.nii", blob(), GRIDS["LPS"])
    image = nib.load(path)
    image.header["srow_x"] = 0
    broken = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    nib.save(broken, tmp_path / "broken.nii")
    conformed = conform(tmp_path / "broken.nii")
    np.testing.assert_allclose(conformed.original_affine, GRIDS["LPS"], atol=1e-4)
    assert "singular" in conformed.repairs[0]


def test_no_codes_take_voxel_sizes_and_say_that_sides_are_assumed(tmp_path):
    conformed = conform(save(tmp_path / "in.nii.gz", blob(), GRIDS["thick"], 0, 0))
    assert conformed.original_axes == "LAS"
    np.testing.assert_allclose(np.abs(np.diag(conformed.original_affine)[:3]), (1.5, 1.25, 4))
    assert "left and right are an assumption" in conformed.repairs[0]


def test_trailing_axis_of_one_is_dropped_and_said(tmp_path):
    data = blob()
    conformed = conform(save(tmp_path / "in.nii.gz", data[..., None], GRIDS["LPS"]))
    np.testing.assert_array_equal(to_original_grid(conformed.volume.data, conformed), data)
    assert "was read as (20, 24, 18)" in conformed.repairs[0]


def test_slope_and_intercept_are_applied(tmp_path):
    stored = (blob() / 10).astype(np.int16)
    image = nib.Nifti1Image(stored, GRIDS["RAS"])
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "in.nii.gz")
    conformed = conform(tmp_path / "in.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "in.nii.gz").dataobj, np.float32)
    assert expected.min() < 0
    np.testing.assert_array_equal(conformed.volume.data, expected)


def test_mask_is_written_as_uint8_on_the_stored_grid(tmp_path):
    conformed = conform(save(tmp_path / "in.nii.gz", blob(), GRIDS["PSR"]))
    mask = conformed.volume.data > np.median(conformed.volume.data)
    image = nib.load(write_on_original_grid(tmp_path / "mask.nii.gz", mask, conformed))
    assert image.get_data_dtype() == np.uint8 and image.shape == (20, 24, 18)
    np.testing.assert_array_equal(np.asarray(image.dataobj) > 0, blob() > np.median(blob()))


def test_same_content_same_bytes(tmp_path):
    conformed = conform(save(tmp_path / "in.nii.gz", blob(), GRIDS["PSR"]))
    one, two = (
        write_on_original_grid(tmp_path / name / "a.nii.gz", conformed.volume.data, conformed)
        for name in ("x", "y")
    )
    assert one.read_bytes() == two.read_bytes()


def test_array_of_another_grid_is_refused(tmp_path):
    conformed = conform(save(tmp_path / "in.nii.gz", blob(), GRIDS["PSR"]))
    with pytest.raises(InputError, match=r"expected an array of shape .* got \(4, 4, 4\)"):
        to_original_grid(np.zeros((4, 4, 4)), conformed)


def with_value(value):
    data = blob()
    data[4, 5, 6] = value
    return data


REFUSED = {
    "4D": (np.ones((12, 12, 12, 3), np.float32), "4D .*single volume"),
    "2D": (np.ones((12, 12), np.float32), "is a 2D image .*whole stack"),
    "one slice": (np.ones((12, 12, 1), np.float32), "is a 2D image .*whole stack"),
    "slab": (blob((20, 20, 4)), "only 4 voxels along one axis"),
    "NaN": (with_value(np.nan), "1 NaN or infinite .*Replace"),
    "inf": (with_value(-np.inf), "1 NaN or infinite .*Replace"),
    "constant": (np.full((12, 12, 12), 7, np.float32), "is constant .*7"),
    "complex": (blob().astype(np.complex64), "complex64.*magnitude"),
    "empty": (np.zeros((0, 12, 12), np.float32), "is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("reader", [conform, check_image])
def test_what_cannot_be_used_is_refused_by_name(tmp_path, name, reader):
    data, message = REFUSED[name]
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "sub-x_T1w.nii")
    with pytest.raises(InputError, match=f"sub-x_T1w.nii: .*{message}"):
        reader(tmp_path / "sub-x_T1w.nii")


def test_color_is_refused(tmp_path):
    color = np.zeros((12, 12, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(color, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(InputError, match="rgb.nii: .*not one real number"):
        check_image(tmp_path / "rgb.nii")


@pytest.mark.parametrize("content", [b"", b"not an image at all" * 40])
def test_unreadable_file_is_refused(tmp_path, content):
    (tmp_path / "bad.nii").write_bytes(content)
    with pytest.raises(InputError, match="bad.nii: cannot be opened"):
        check_image(tmp_path / "bad.nii")


def test_truncated_file_is_refused(tmp_path):
    path = save(tmp_path / "cut.nii.gz", blob(), np.eye(4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    check_image(path, read_data=False)
    with pytest.raises(InputError, match="cut.nii.gz: .*truncated"):
        check_image(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere.nii.gz: no such file"):
        check_image(tmp_path / "nowhere.nii.gz")


def test_other_format_is_refused(tmp_path):
    nib.save(nib.MGHImage(blob(), np.eye(4)), tmp_path / "in.mgz")
    with pytest.raises(InputError, match="in.mgz: expected NIfTI, got MGHImage"):
        check_image(tmp_path / "in.mgz")


def test_good_image_passes_the_door(tmp_path):
    check_image(save(tmp_path / "in.nii.gz", blob(), GRIDS["oblique"]))


def in_unit(path, factor, unit, codes=(1, 1)):
    affine = GRIDS["oblique"].copy()
    affine[:3] *= factor
    image = nib.Nifti1Image(blob(), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize(("factor", "unit", "repairs"), [
    (1000, "micron", "is in micrometers"), (1e-4, "meter", "is in meters"),
    (1, "micron", "states micrometers"),
])
def test_other_units_are_brought_to_mm_and_reported(tmp_path, codes, factor, unit, repairs):
    scale = {"is in micrometers": 1e-3, "is in meters": 1e3}.get(repairs, 1)
    path = in_unit(tmp_path / "in.nii.gz", factor, unit, codes)
    conformed = conform(path)
    expected = GRIDS["oblique"].copy()
    expected[:3] *= factor * scale
    np.testing.assert_allclose(conformed.original_affine, expected, atol=1e-4)
    assert len(conformed.repairs) == 1 and repairs in conformed.repairs[0]
    path = write_on_original_grid(tmp_path / "out.nii.gz", conformed.volume.data, conformed)
    out = nib.load(path)
    assert out.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(out.affine, expected, atol=1e-4)
    sizes = np.linalg.norm(expected[:3, :3], axis=0)
    np.testing.assert_allclose(out.header.get_zooms(), sizes, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(out.dataobj), blob())


def test_implausible_voxels_are_refused_before_voxels_are_read(tmp_path):
    path = in_unit(tmp_path / "in.nii.gz", 1000, "mm")
    with pytest.raises(InputError, match="in.nii.gz: expected voxels of 0.05 to 20 mm"):
        check_image(path, read_data=False)
    with pytest.raises(InputError, match="in.nii.gz: expected voxels of 0.05 to 20 mm"):
        conform(path)
