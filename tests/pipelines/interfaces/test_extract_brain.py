"""The second opinion on a brain mask: asked where a head was extracted, and only there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonizer.preprocessing.brain import BrainExtraction, QualityCheck
from harmonizer.preprocessing.transforms import write_itk_affine
from harmonizer.segmentation import brain
from harmonizer.volume import Volume, write_mask, write_volume
from pipelines.interfaces import ants

SOUND = QualityCheck(1.4, (1.1, 1.1, 1.1), 0.2, 0.9, 0.95, 0.0)


@pytest.fixture
def head(monkeypatch) -> Volume:
    """A block that the network is sure is the brain."""
    data = np.full((12, 14, 10), 5.0, np.float32)
    data[3:9, 3:11, 3:8] = 100
    monkeypatch.setattr(brain, "network_mask", lambda volume: volume.data > 50)
    return Volume(data, np.diag([3.0, 3, 3, 1]), data > 50)


def extraction(mask: np.ndarray, brain_only: bool = False) -> BrainExtraction:
    """As `extract_brain` would return it."""
    return BrainExtraction(mask, SOUND, "syn", brain_only, np.eye(4))


def extracted(tmp_path: Path, monkeypatch, head: Volume, found: BrainExtraction, **inputs) -> dict:
    """What the node says of a mask that was found."""
    monkeypatch.setattr(ants, "correct_bias", lambda volume, **_: (volume, None))
    monkeypatch.setattr(ants, "extract_brain", lambda volume, **_: found)
    path = write_volume(tmp_path / "head.nii", head.with_mask(None))
    monkeypatch.chdir(tmp_path)
    return ants.ExtractBrain(in_file=str(path), seed=0, **inputs).run().outputs.quality


def test_what_both_say_is_compared(
    tmp_path: Path, monkeypatch, head: Volume
) -> None:
    right = extracted(tmp_path, monkeypatch, head, extraction(head.mask), weights="brain")
    assert right["network_dice"] == 1
    away = np.roll(head.mask, 2, axis=1)  # 6 of its 8 voxels still lie on one another
    wrong = extracted(tmp_path, monkeypatch, head, extraction(away), weights="brain")
    assert wrong["network_dice"] == pytest.approx(0.75)


def test_nobody_is_asked_about_brain_only_input_or_in_a_sloppy_run(
    tmp_path: Path, monkeypatch, head: Volume
) -> None:
    only = extraction(head.mask, brain_only=True)
    assert "network_dice" not in extracted(tmp_path, monkeypatch, head, only, weights="brain")
    whole = extraction(head.mask)
    assert "network_dice" not in extracted(tmp_path, monkeypatch, head, whole, sloppy=True)


def test_the_network_finds_the_brain_where_it_is_asked_to_and_does_not_judge_itself(
    tmp_path: Path, monkeypatch, head: Volume
) -> None:
    away = extraction(np.roll(head.mask, 2, axis=1))
    monkeypatch.setattr(brain, "brain_by_network", lambda volume, rough, **_: replace(
        away, mask=head.mask, method="network"))
    quality = extracted(tmp_path, monkeypatch, head, away, weights="brain", mode="network")
    assert quality == {"method": "network", "brain_only": False}
    mask = nib.load(next(tmp_path.rglob("mask.nii"))).get_fdata() > 0
    np.testing.assert_array_equal(mask, head.mask)


@pytest.mark.parametrize("messages", [None, 0.95, 0.5])
def test_the_verdict_counts_the_second_opinion(
    tmp_path: Path, monkeypatch, head: Volume, messages: float | None
) -> None:
    image = write_volume(tmp_path / "head.nii", head.with_mask(None))
    mask = write_mask(tmp_path / "mask.nii", head.mask, head.affine)
    affine = write_itk_affine(tmp_path / "affine.txt", np.eye(4))
    given = {"method": "syn", "brain_only": False}
    given |= {} if messages is None else {"network_dice": messages}
    monkeypatch.chdir(tmp_path)
    quality = ants.CheckQuality(in_file=str(image), in_mask=str(mask), transform=str(affine),
                                extraction=given).run().outputs.quality
    assert quality.get("network_dice") == messages
    doubts = [reason for reason in quality["reasons"] if "network" in reason]
    assert len(doubts) == (messages == 0.5) and quality["low_confidence"]  # the block is no brain
