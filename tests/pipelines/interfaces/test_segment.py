"""Tissues on both grids."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.preprocessing.transforms import write_itk_affine
from harmonizer.segmentation import predict
from harmonizer.segmentation.predict import TissueMaps
from harmonizer.segmentation.refine import REVISION
from harmonizer.volume import Volume, read_volume, write_mask, write_volume
from pipelines.interfaces import segment as module
from pipelines.interfaces.segment import Segment


def halves(volume: Volume) -> TissueMaps:
    """White matter on one side of the mask, grey matter on the other."""
    left = (np.arange(volume.shape[0]) < volume.shape[0] // 2)[:, None, None] & volume.mask
    right = volume.mask & ~left
    tissues = {"CSF": np.zeros(volume.shape, np.float32), "GM": right.astype(np.float32),
               "WM": left.astype(np.float32)}
    classes = np.where(left, 4, np.where(right, 3, 0)).astype(np.uint8)
    return TissueMaps(tissues, classes, support=0.7)


def test_both_grids_hold_the_tissues(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "segment", halves)
    mask = np.zeros((60, 60, 60), bool)
    mask[10:50, 10:50, 10:50] = True
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -60
    volume = Volume(np.where(mask, 100.0, 0), affine, mask)
    shift = np.eye(4)
    shift[:3, 3] = (4, 0, -2)
    found = Segment(
        in_file=str(write_volume(tmp_path / "image.nii", volume)),
        in_mask=str(write_mask(tmp_path / "mask.nii", mask, affine)),
        transform=str(write_itk_affine(tmp_path / "x.txt", shift)), resolution=2,
        weights="test").run(cwd=str(tmp_path)).outputs
    native = [read_volume(path) for path in found.native]
    np.testing.assert_array_equal(native[2].data, halves(volume).tissues["WM"])
    assert float(native[0].data.max()) == 0
    assert found.support == pytest.approx(0.7, abs=1e-9)
    white, grey = read_volume(found.template[2]), read_volume(found.template[1])
    for map_, centre in ((white, -16.0), (grey, 24.0)):  # -20 and 20 mm, shifted by 4
        where = np.argwhere(map_.data > 0.5).mean(axis=0)
        world = map_.affine @ [*where, 1]
        assert world[0] == pytest.approx(centre, abs=1.5)
        assert world[2] == pytest.approx(-3.0, abs=1.5)


def test_the_shipped_weights_name_themselves() -> None:
    name = predict.NetworkSegmenter().name
    kind, digest, revision = name.split("-")
    assert (kind, len(digest)) == ("network", 12) and int(revision) == REVISION
