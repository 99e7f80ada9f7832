"""Brain masks on heads whose brain is known; the check doubts what is wrong."""
import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from harmonizer.errors import UsageError
from harmonizer.preprocessing import bias, brain
from harmonizer.preprocessing.brain import (
    check_quality,
    extract_brain,
    foreground_mask,
    is_brain_only,
)
from harmonizer.preprocessing.registration import register_to_template

from .heads import brain_in_head


def dice(one, two):
    return 2 * (one & two).sum() / (one.sum() + two.sum())


@pytest.fixture(scope="module")
def head():
    return brain_in_head(4, (8, -5, 4), (5, 10, 0))


@pytest.fixture(scope="module")
def found(head):
    return extract_brain(head[0].with_mask(None), sloppy=True)


def test_brain_in_a_head_is_found(head, found):
    assert dice(found.mask, head[0].mask) > 0.9
    assert (found.mask & head[0].mask).sum() / head[0].mask.sum() > 0.97
    assert found.method == "affine" and not found.brain_only
    assert found.mask.dtype == bool and found.mask.shape == head[0].shape


def test_good_mask_is_not_doubted(found):
    assert found.quality.reasons == () and not found.quality.low_confidence
    assert found.quality.overlap > 0.9
    assert 1.1 < found.quality.volume_l < 1.9


@pytest.mark.parametrize("agreement, doubted", [(None, False), (0.9, False), (0.8, True)])
def test_a_mask_that_the_network_does_not_share_is_doubted(head, found, agreement, doubted):
    check = check_quality(head[0], found.mask, found.matrix, agreement)
    assert check.network_dice == agreement and check.low_confidence == doubted
    assert ("agreement with the network's mask 0.80" in " ".join(check.reasons)) == doubted


def test_brain_only_input_is_detected_and_kept():
    only, truth = brain_in_head(4, skull=False)
    assert is_brain_only(only)
    result = extract_brain(only.with_mask(None), sloppy=True)
    assert result.brain_only and result.method == "foreground"
    assert dice(result.mask, only.mask) > 0.995
    back = result.matrix @ np.linalg.inv(truth) @ [20, -30, 25, 1]
    assert np.linalg.norm(back[:3] - [20, -30, 25]) < 6


def test_head_is_not_taken_for_a_brain(head):
    assert not is_brain_only(head[0])
    # a masked background (exactly zero) does not make a head a brain
    zeroed = head[0].with_data(np.where(head[0].data > 40, head[0].data, 0))
    assert not is_brain_only(zeroed)


def test_signal_around_the_brain_is_seen():
    only, _ = brain_in_head(4, skull=False)
    away = ndimage.distance_transform_edt(~only.mask, sampling=4)
    ring = only.with_data(np.where((away > 8) & (away < 16) & (only.data == 0), 150, only.data))
    assert is_brain_only(only) and not is_brain_only(ring)


def test_negative_ringing_is_not_foreground():
    only, _ = brain_in_head(4, skull=False)
    rim = ndimage.binary_dilation(only.mask, iterations=2) & ~only.mask
    ringing = only.with_data(np.where(rim, -3, only.data))
    np.testing.assert_array_equal(foreground_mask(ringing), foreground_mask(only))


def test_skip_takes_the_foreground_and_force_extracts():
    only, _ = brain_in_head(4, skull=False)
    skipped = extract_brain(only, skull_strip="skip", sloppy=True)
    forced = extract_brain(only, skull_strip="force", sloppy=True)
    assert skipped.method == "foreground" and forced.method == "affine"
    assert not forced.brain_only and dice(forced.mask, only.mask) > 0.9


def test_unknown_choice_is_refused(head):
    with pytest.raises(UsageError, match="must be one of .*'auto'.* got 'maybe'"):
        extract_brain(head[0], skull_strip="maybe")


def test_mask_of_the_whole_head_is_doubted(head, found):
    everything = ndimage.binary_dilation(head[0].mask, iterations=4)
    check = check_quality(head[0], everything, found.matrix)
    assert check.low_confidence
    assert any(reason.startswith("volume") for reason in check.reasons)


def test_half_a_mask_is_doubted(head, found):
    half = head[0].mask.copy()
    half[: half.shape[0] // 2] = False
    check = check_quality(head[0], half, found.matrix)
    assert any("overlap" in reason for reason in check.reasons)


def test_shifted_mask_and_wrong_pose_are_doubted(head, found):
    away = found.matrix.copy()
    away[:3, 3] += 60
    reasons = " ".join(check_quality(head[0], head[0].mask, away).reasons)
    assert "mutual information" in reasons and "overlap" in reasons


def test_quality_is_plain_numbers(found):
    facts = dataclasses.asdict(found.quality)
    assert all(isinstance(facts[name], float) for name in ("volume_l", "edge_fraction", "overlap"))


def test_depth_is_in_mm_and_zero_on_the_border():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15] = True
    depth = brain._signed_depth(mask, np.array([1.5, 1.5, 1.5]))
    np.testing.assert_allclose(depth[3:8, 10, 10], [-2.25, -0.75, 0.75, 2.25, 3.75])


def fingerprint():
    """SHA-256 of a corrected image, its mask and its registration, all with seed 7."""
    head, _ = brain_in_head(5, (6, 0, 4), (5, 0, 0))
    rough, _ = bias.correct_bias(head.with_mask(None), rough=True, sloppy=True)
    found = extract_brain(rough, seed=7, sloppy=True)
    found_mask = rough.with_mask(found.mask)
    registered = register_to_template(found_mask, found.matrix, seed=7, sloppy=True)
    content = rough.data.tobytes() + found.mask.tobytes() + registered.matrix.tobytes()
    return hashlib.sha256(content).hexdigest()


FRESH = """
import sys
sys.path.insert(0, {root!r})
from tests.harmonizer.preprocessing.test_brain import fingerprint
print(fingerprint())
"""


def test_same_seed_same_bits_in_a_fresh_process_and_in_a_used_one(request, monkeypatch):
    code = FRESH.format(root=str(request.config.rootpath))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    monkeypatch.setenv("ANTS_RANDOM_SEED", "99")
    assert run.stdout.strip() == fingerprint()
