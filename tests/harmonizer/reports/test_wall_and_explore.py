"""Slices of scans, the wall of brains, and the numbers that the linked plots are made of."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from harmonizer.evaluation.metrics.distribution import LEVELS, QuantileRow, QuantileTable
from harmonizer.evaluation.table import Metric, Metrics
from harmonizer.reports.explore import explore_data, scan_lines
from harmonizer.reports.group import ScanRow
from harmonizer.reports.slices import SLICES_PER_PLANE, read_gray, scan_slices
from harmonizer.reports.wall import WALL_POSITION_MM, WallSlice, make_wall, wall_picture, wall_slice
from harmonizer.volume import Volume
from pipelines.outputs.figures import load_slices, save_slices
from pipelines.outputs.names import ScanPaths

SHAPE, AFFINE = (40, 48, 36), np.array([[-3, 0, 0, 60], [0, 3, 0, -70], [0, 0, 3, -50],
                                        [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, Volume, np.ndarray]:
    """A box brain whose intensity is its height; after harmonization it is half as bright."""
    mask = np.zeros(SHAPE, bool)
    mask[6:34, 6:42, 4:32] = True
    heights = np.broadcast_to(np.arange(SHAPE[2]) * 10.0 + 100, SHAPE)
    before = Volume(np.where(mask, heights, 900.0), AFFINE, mask)
    tissues = np.where(mask, 1, 0)
    tissues[10:30, 10:38, 8:28] = 2
    tissues[14:26, 14:34, 12:24] = 3
    return before, before.with_data(before.data / 2), tissues


def test_slices_are_those_of_the_volume_at_their_position(scan):
    before, after, tissues = scan
    slices = scan_slices(before, after, before.mask, tissues)
    assert [stack.plane for stack in slices.stacks] == ["axial", "coronal", "sagittal"]
    low, high = slices.windows["after"]
    assert slices.windows["before"] == (low * 2, high * 2)
    axial = slices.stacks[0]
    gray = {name: read_gray(axial.images[name]) for name in ("before", "after")}
    assert gray["before"].shape == (SLICES_PER_PLANE * axial.height, axial.width)
    assert np.abs(gray["before"].astype(int) - gray["after"]).max() < 6  # at one brightness
    for number, position in enumerate(axial.positions):
        middle = gray["after"][number * axial.height + axial.height // 2, axial.width // 2]
        intensity = ((position + 50) / 3 * 10 + 100) / 2
        assert middle == pytest.approx(255 * (intensity - low) / (high - low), abs=5)
    assert gray["after"][0].max() < 100  # dark outside the mask, where the image is 255
    outlines = np.asarray(Image.open(io.BytesIO(axial.images["outlines"])))
    colors = {tuple(color) for color in outlines[outlines[..., 3] > 0][:, :3]}
    assert colors == {(255, 75, 62), (63, 167, 255), (255, 212, 0)}


def test_slices_are_stored_and_one_plane_can_be_read(scan, tmp_path):
    before, after, _ = scan
    slices = scan_slices(before, after, before.mask)
    paths = ScanPaths(tmp_path, tmp_path.joinpath("sub-1/anat").relative_to(tmp_path), "sub-1",
                      "T1w", 2)
    assert load_slices(paths, "harmonize-x") is None
    save_slices(paths, "harmonize-x", slices)
    assert load_slices(paths, "harmonize-x") == slices
    one = load_slices(paths, "harmonize-x", ("axial",))
    assert one == replace(slices, stacks=slices.stacks[:1])
    number = slices.stacks[0].nearest(WALL_POSITION_MM)
    top = number * slices.stacks[0].height
    whole = read_gray(slices.stacks[0].images["after"])
    assert (wall_slice(one).after == whole[top:top + slices.stacks[0].height]).all()


def tiles_of(wall, title: str) -> list[np.ndarray]:
    return [read_gray(tile.image).astype(int) for row in wall.rows for tile in row.stages[title]]


def test_the_wall_shows_all_scans_at_one_window(tmp_path):
    ramp = np.tile(np.linspace(40, 255, 60), (70, 1)).round().astype(np.uint8)
    curve = 20 + 80 * LEVELS
    rows, slices = [], {}
    for number, (site, gain, offset) in enumerate((("A", 1, 0), ("A", 1, 0), ("B", 2, 20))):
        scan = f"sub-{number}_T1w"
        slices[scan] = WallSlice(ramp, ramp, {"before": (offset, 100.0 * gain + offset),
                                              "after": (0.0, 100.0)})
        rows += [QuantileRow(scan, str(number), site, "T1w", "before", "brain",
                             gain * curve + offset),
                 QuantileRow(scan, str(number), site, "T1w", "after", "brain", curve)]
    wall = make_wall(slices, QuantileTable(tuple(rows)), curve)
    assert [row.site for row in wall.rows] == ["A", "B"]
    first, _, other = tiles_of(wall, "before")
    assert wall.before == "all scans are multiplied by one common factor"
    assert other.mean() > first.mean() + 40  # B is brighter
    for title in ("only rescaled", "after"):
        first, _, other = tiles_of(wall, title)
        assert np.abs(first - other).max() < 8, title
    picture = Image.open(io.BytesIO(wall_picture(wall)))
    assert picture.size[0] > 3 * 2 * wall.width and picture.size[1] > 2 * wall.height
    assert make_wall({}, QuantileTable(tuple(rows)), curve) is None


def test_sites_with_other_units_are_brought_to_the_window_one_by_one():
    ramp = np.tile(np.linspace(40, 255, 60), (70, 1)).round().astype(np.uint8)
    curve = 20 + 80 * LEVELS
    rows, slices = [], {}
    for number, (site, gain) in enumerate((("A", 1), ("B", 40), ("B", 60))):
        scan = f"sub-{number}_T1w"
        slices[scan] = WallSlice(ramp, ramp, {"before": (0.0, 100.0 * gain), "after": (0, 100.0)})
        rows.append(QuantileRow(scan, str(number), site, "T1w", "before", "brain", gain * curve))
    wall = make_wall(slices, QuantileTable(tuple(rows)), curve)
    assert "the sites' units differ" in wall.before
    first, darker, brighter = (tile.mean() for tile in tiles_of(wall, "before"))
    assert darker < first < brighter  # within a site, brightness still differs


def test_the_plots_have_every_number_of_every_scan_and_no_pair():
    scans = tuple(ScanRow(f"sub-{n}_T1w", f"{n}", "AB"[n % 2], "T1w", 30.0 + n) for n in range(4))
    place = [("T1w", scan.site) for scan in scans]
    rows = [Metric("wasserstein_to_target", 0.123456 * n, "R", stage, f"{n}", "", f"sub-{n}_T1w",
                   *place[n]) for n in range(3) for stage in ("before", "after")]
    rows += [Metric("noise_wm", float("nan"), "1", "before", "0", "", "sub-0_T1w", *place[0]),
             Metric("tissue_ratio", 0.4, "1", "after", "0", "", "sub-0_T1w", *place[0], "GM")]
    rows += [Metric("psnr", 20.0 + n, "dB", "before", "0", "", "sub-0_T1w", *place[0],
                    reference="AB"[n]) for n in range(2)]
    rows += [Metric("p95", 1.0, "1", "after", "0", "", "sub-0_T1w", *place[0], backend="another")]
    lines = scan_lines(scans, Metrics(tuple(rows)), "own", {"0": "sub-0.html"},
                       {"sub-0_T1w": True, "sub-1_T1w": False})
    assert [line.link for line in lines] == ["sub-0.html#sub-0_T1w", "", "", ""]
    assert [line.verdict for line in lines] == ["within limits", "flagged", "", ""]
    assert (lines[1].before, lines[3].before) == (0.123456, None)
    data = explore_data(lines, Metrics(tuple(rows)), "own")
    assert data["flags"] == ["within limits", "flagged", "n/a", "n/a"]
    columns = {column["name"]: column for column in data["columns"]}
    assert list(columns) == ["age", "distance to target", "tissue ratio, GM"]
    assert columns["age"]["stages"] == {"": [30.0, 31.0, 32.0, 33.0]}
    assert columns["distance to target"]["stages"]["after"] == [0.0, 0.1235, 0.2469, None]
