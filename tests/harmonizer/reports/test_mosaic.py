"""Which way is up: a bright spot at a known place must appear where a reader expects it."""
from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from harmonizer.reports.mosaic import plan_mosaic

WORLD = (24, 30, 20)  # voxels along right, front, top
CORNERS = {"right": (0, 1), "front": (1, 1), "top": (2, 1), "left": (0, 0), "back": (1, 0),
           "bottom": (2, 0)}


def spot(side: str, codes: str = "RAS", spacing=(2.0, 2.0, 2.0)) -> tuple[np.ndarray, np.ndarray]:
    """A block bright in the outer third towards ``side``, stored in the given voxel order."""
    axis, end = CORNERS[side]
    data = np.zeros(WORLD, np.float32)
    third = WORLD[axis] // 3
    data[tuple(slice(-third, None) if (a == axis and end) else slice(0, third) if a == axis
               else slice(None) for a in range(3))] = 1
    affine = np.diag([*spacing, 1.0])
    image = nib.Nifti1Image(data, affine)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(tuple(codes)))
    order = nib.orientations.ornt_transform(nib.io_orientation(affine),
                                            nib.orientations.axcodes2ornt(tuple(codes)))
    stored = nib.orientations.apply_orientation(data, order)
    stored_affine = affine @ nib.orientations.inv_ornt_aff(order, WORLD)
    assert nib.aff2axcodes(stored_affine) == tuple(codes), turned
    return stored, stored_affine


def centroid(side: str, plane: str, codes: str = "RAS", convention: str = "neurological"
             ) -> tuple[float, float]:
    """Where the bright block's weight lies in the plane's middle tile: (x, y) in -1..1, y up."""
    data, affine = spot(side, codes)
    mosaic = plan_mosaic(np.ones(data.shape, bool), affine, columns=3, tile_pixels=60,
                         planes=(plane,), convention=convention, margin_mm=0)
    tile = mosaic.tiles[1]
    picture = mosaic.cut(data)[tile.top:tile.top + tile.height, tile.left:tile.left + tile.width]
    rows, columns = np.indices(picture.shape)
    middle = (np.array(picture.shape) - 1) / 2
    weight = picture.sum()
    return (float((columns * picture).sum() / weight / middle[1] - 1),
            float(1 - (rows * picture).sum() / weight / middle[0]))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "AIR", "SAL"])
@pytest.mark.parametrize(("plane", "side", "expected"), [
    ("axial", "front", (0, 1)), ("axial", "back", (0, -1)),
    ("axial", "right", (1, 0)), ("axial", "left", (-1, 0)),
    ("coronal", "top", (0, 1)), ("coronal", "bottom", (0, -1)), ("coronal", "left", (-1, 0)),
    ("sagittal", "top", (0, 1)), ("sagittal", "front", (1, 0)), ("sagittal", "back", (-1, 0)),
])
def test_every_side_is_shown_where_it_belongs(plane, side, expected, codes):
    found = centroid(side, plane, codes)
    assert found == pytest.approx([0.67 * value for value in expected], abs=0.06)


def test_radiological_turns_left_and_right_only():
    assert centroid("right", "axial", convention="radiological")[0] < -0.5
    assert centroid("right", "coronal", convention="radiological")[0] < -0.5
    assert centroid("front", "axial", convention="radiological")[1] > 0.5
    assert centroid("front", "sagittal", convention="radiological")[0] > 0.5


@pytest.mark.parametrize(("convention", "left", "right"), [("neurological", "L", "R"),
                                                           ("radiological", "R", "L")])
def test_letters_say_what_is_shown(convention, left, right):
    mosaic = plan_mosaic(np.ones((9, 9, 9), bool), np.eye(4), convention=convention)
    letters = [letter for letter in mosaic.letters() if len(letter.text) == 1]
    assert sorted(zip([letter.text for letter in letters[::2]],
                      [letter.text for letter in letters[1::2]])) == sorted(
        [(left, right), (left, right), ("P", "A")])
    for first, second in itertools.pairwise(letters):
        if first.row == second.row:
            assert first.column < second.column


def test_nilearns_template_has_its_eyes_in_front():
    """Known anatomy: in the MNI template the cerebellum is behind and below, the falx in front."""
    from harmonizer.template import load_template

    template = load_template(8)
    mosaic = plan_mosaic(template.mask, template.affine, columns=3, planes=("sagittal",))
    tile = mosaic.tiles[1]
    view = mosaic.cut(template.mask.astype(float))[tile.top:tile.top + tile.height,
                                                   tile.left:tile.left + tile.width]
    height, width = view.shape
    behind_below = view[2 * height // 3:, :width // 2].mean()
    front_below = view[2 * height // 3:, width // 2:].mean()
    top = view[:height // 3].mean()
    assert behind_below > 1.5 * front_below  # cerebellum and brain stem
    assert top > front_below  # the vault is wider than the frontal floor is low


def test_pixels_are_square_in_millimeters():
    """A 40 mm cube on thick slices (1 x 1 x 5 mm) is as high as wide."""
    mask = np.zeros((60, 60, 12), bool)
    mask[10:50, 10:50, 2:10] = True
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    mosaic = plan_mosaic(mask, affine, columns=1, tile_pixels=100, planes=("coronal",), margin_mm=0)
    assert (mosaic.tiles[0].width, mosaic.tiles[0].height) == (100, 100)


def test_slice_places_are_world_coordinates():
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (30, -20, -10)
    mosaic = plan_mosaic(np.ones((31, 21, 11), bool), affine, columns=1, planes=("sagittal",))
    assert mosaic.letters()[-1].text in ("x -22", "x +22")
    index = mosaic.tiles[0].index
    assert mosaic.letters()[-1].text == f"x {-30 + 2 * index:+d}"


def test_labels_are_not_blended_and_gaps_are_filled():
    labels = (np.indices((12, 12, 12))[0] // 4).astype(np.uint8)
    mosaic = plan_mosaic(np.ones(labels.shape, bool), np.eye(4), columns=2, tile_pixels=50)
    assert set(np.unique(mosaic.cut(labels, order=0, fill=9))) <= {0, 1, 2, 9}
    assert mosaic.cut(labels, fill=9)[0, 0] == 9


def test_an_empty_mask_shows_the_whole_volume():
    mosaic = plan_mosaic(np.zeros((10, 12, 14), bool), np.eye(4))
    assert mosaic.cut(np.ones((10, 12, 14))).max() == 1
