"""Tissues on both grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmonizer.preprocessing.transforms import write_itk_affine
from harmonizer.segmentation import predict
from harmonizer.segmentation.fallback_segmentation import FallbackSegmentation
from harmonizer.segmentation.predict import TissueMaps
from harmonizer.segmentation.refine import REVISION
from harmonizer.volume import Volume, read_volume, write_mask, write_volume
from pipelines.interfaces import segment as module
from pipelines.interfaces.segment import Segment
from pipelines.outputs.names import ScanPaths
from pipelines.outputs.scanlog import ScanLog, write_log


def halves(volume: Volume) -> TissueMaps:
    """White matter on one side of the mask, gray matter on the other."""
    left = (np.arange(volume.shape[0]) < volume.shape[0] // 2)[:, None, None] & volume.mask
    right = volume.mask & ~left
    tissues = {"CSF": np.zeros(volume.shape, np.float32), "GM": right.astype(np.float32),
               "WM": left.astype(np.float32)}
    classes = np.where(left, 4, np.where(right, 3, 0)).astype(np.uint8)
    return TissueMaps(tissues, classes, contrast_to_noise=0.7)


def cube() -> Volume:
    """8 cm wide, its front brighter than its back."""
    mask = np.zeros((60, 60, 60), bool)
    mask[10:50, 10:50, 10:50] = True
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -60
    noise = np.random.default_rng(0).normal(0, 5, mask.shape)
    front = np.arange(60)[None, :, None] < 30
    return Volume(np.where(mask, np.where(front, 100, 150) + noise, 0), affine, mask)


def test_both_grids_hold_the_tissues(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "segment", halves)
    volume = cube()
    mask, affine = volume.mask, volume.affine
    shift = np.eye(4)
    shift[:3, 3] = (4, 0, -2)
    found = Segment(
        in_file=str(write_volume(tmp_path / "image.nii", volume)),
        in_mask=str(write_mask(tmp_path / "mask.nii", mask, affine)),
        transform=str(write_itk_affine(tmp_path / "x.txt", shift)), resolution=2,
        weights="test", seed=1).run(cwd=str(tmp_path)).outputs
    native = [read_volume(path) for path in found.native]
    np.testing.assert_array_equal(native[2].data, halves(volume).tissues["WM"])
    assert float(native[0].data.max()) == 0
    assert found.contrast_to_noise == pytest.approx(0.7, abs=1e-9) and not found.fallback
    white, gray = read_volume(found.template[2]), read_volume(found.template[1])
    for map_, center in ((white, -16.0), (gray, 24.0)):  # -20 and 20 mm, shifted by 4
        where = np.argwhere(map_.data > 0.5).mean(axis=0)
        world = map_.affine @ [*where, 1]
        assert world[0] == pytest.approx(center, abs=1.5)
        assert world[2] == pytest.approx(-3.0, abs=1.5)


@pytest.mark.parametrize("own, theirs, overlap, worse, expected", [
    (0.3, 1.2, 0.95, False, "sub-01_T1w"),  # the usual case
    (0.3, 0.8, 0.95, False, ""),  # the T1w image is in doubt itself
    (0.3, 1.2, 0.50, False, ""),  # the two do not show one brain in one place
    (1.1, 1.2, 0.95, False, ""),  # nothing is amiss with its own
    (0.3, 1.2, 0.95, True, ""),  # its own are borne out much better
    (0.3, None, 0.95, False, ""),  # the T1w image was not preprocessed
])
def test_tissues_in_doubt_are_taken_from_the_sessions_t1w(
        tmp_path, monkeypatch, own, theirs, overlap, worse, expected) -> None:
    volume = cube()
    mine = halves(volume)
    monkeypatch.setattr(module, "segment", lambda v: TissueMaps(mine.tissues, mine.classes, own))
    paths = ScanPaths(tmp_path / "out", Path("sub-01/anat"), "sub-01", "T1w", 2)
    for template in (False, True):
        for tissue, probability in mine.tissues.items():
            write_volume(paths.probability(tissue, template=template), volume.with_data(probability))
    write_volume(paths.image("preproc"), volume)
    write_mask(paths.mask(), volume.mask, volume.affine)
    write_itk_affine(paths.to_template, np.eye(4))
    if theirs is not None:
        write_log(paths.out, ScanLog(paths.scan_id, "preprocess", "done", "A",
                                     facts={"ContrastToNoise": theirs}))
    first = volume.mask & (np.arange(60)[None, :, None] < 30)
    probabilities = {"CSF": np.zeros(volume.shape, np.float32), "GM": first.astype(np.float32),
              "WM": (volume.mask & ~first).astype(np.float32)}
    if worse:  # left and right are equally bright
        probabilities = dict(mine.tissues)
    monkeypatch.setattr(module, "transfer_segmentation",
                        lambda *_, **__: FallbackSegmentation(probabilities, overlap))
    found = Segment(
        in_file=str(write_volume(tmp_path / "image.nii", volume)),
        in_mask=str(write_mask(tmp_path / "mask.nii", volume.mask, volume.affine)),
        transform=str(write_itk_affine(tmp_path / "x.txt", np.eye(4))), resolution=2, seed=1,
        weights="test", fallback=(str(paths.out), "sub-01/anat", "sub-01"),
        ).run(cwd=str(tmp_path)).outputs
    assert found.fallback == expected
    wanted = probabilities if expected else mine.tissues
    np.testing.assert_array_equal(read_volume(found.native[2]).data, wanted["WM"])
    assert found.contrast_to_noise > own if expected else found.contrast_to_noise == pytest.approx(own)


def test_the_shipped_weights_name_themselves() -> None:
    name = predict.NetworkSegmenter().name
    kind, digest, revision = name.split("-")
    assert (kind, len(digest)) == ("network", 12) and int(revision) == REVISION
