"""Signal equations against closed forms, a brute-force simulation, and radiology."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harmonizer.errors import UsageError
from harmonizer.phantom import SCANNERS, UNSEEN, Sequence
from harmonizer.phantom.physics import (
    PHANTOM_TISSUES,
    Relaxation,
    relaxation_of,
    signal,
    signal_slopes,
    signals,
)

ALL_SCANNERS = pytest.mark.parametrize("scanner", (*SCANNERS, UNSEEN), ids=lambda s: s.name)


def _brain(scanner, modality: str) -> dict[str, float]:
    table = np.abs(signals(scanner.tesla, scanner.sequence(modality))[:, 0])
    return dict(zip(PHANTOM_TISSUES, table))


def test_the_ernst_angle_is_the_brightest_flip_of_a_spoiled_gradient_echo():
    tissue = Relaxation(1000, 80, 50, 1.0)
    flips = np.arange(1, 90, 0.1)
    bright = [signal(tissue, Sequence("spgr", 20, 3, flip=float(flip))) for flip in flips]
    ernst = math.degrees(math.acos(math.exp(-20 / 1000)))
    assert flips[int(np.argmax(bright))] == pytest.approx(ernst, abs=0.11)


def test_a_relaxed_spin_echo_shows_the_proton_density():
    tissue = Relaxation(1000, 80, 50, 0.7)
    assert signal(tissue, Sequence("spin_echo", 20000, 0.01)) == pytest.approx(0.7, rel=1e-3)


def test_flair_nulls_what_its_inversion_time_is_made_for():
    fluid = Relaxation(4000, 1500, 800, 1.0)
    tr, te = 9000.0, 100.0
    null = 4000 * math.log(2 / (1 + math.exp(-(tr - te) / 4000)))
    assert signal(fluid, Sequence("flair", tr, te, null)) == pytest.approx(0, abs=1e-12)
    early, late = (signal(fluid, Sequence("flair", tr, te, null + d)) for d in (-200, 200))
    assert early < 0 < late


@pytest.mark.parametrize("t1", [370.0, 832.0, 1331.0, 4200.0])
def test_mprage_agrees_with_playing_the_sequence_pulse_by_pulse(t1):
    sequence = Sequence("mprage", 2300, 3, 900, 9, 176, 7.1)
    angle, start = math.radians(9), 900 - 88 * 7.1
    mz = center = 1.0
    for _ in range(60):  # repetitions until the steady state
        mz = 1 - (1 + mz) * math.exp(-start / t1)
        for shot in range(176):
            center = mz if shot == 88 else center
            mz = 1 - (1 - mz * math.cos(angle)) * math.exp(-7.1 / t1)
        mz = 1 - (1 - mz) * math.exp(-(2300 - 900 - 88 * 7.1) / t1)
    expected = center * math.sin(angle) * math.exp(-3 / 50)
    assert signal(Relaxation(t1, 80, 50, 1.0), sequence) == pytest.approx(expected, rel=1e-9)


@ALL_SCANNERS
def test_t1w_shows_white_over_deep_over_cortex_over_fluid(scanner):
    s = _brain(scanner, "T1w")
    assert s["wm"] > s["deep"] > s["gm"] > 1.5 * s["csf"]
    assert s["fat"] > 1.4 * s["wm"] and s["bone"] < 0.1 * s["wm"]


@ALL_SCANNERS
def test_t2w_turns_the_order_round(scanner):
    s = _brain(scanner, "T2w")
    assert s["csf"] > 1.3 * s["gm"] and s["gm"] > s["deep"] > s["wm"]


@ALL_SCANNERS
def test_flair_is_t2_weighted_with_dark_fluid(scanner):
    s = _brain(scanner, "FLAIR")
    assert s["gm"] > s["wm"] and s["csf"] < 0.35 * s["wm"]


@ALL_SCANNERS
def test_pdw_shows_gray_over_white(scanner):
    s = _brain(scanner, "PDw")
    assert s["gm"] > s["wm"] and s["bone"] < 0.1 * s["wm"]


def test_no_two_scanners_have_one_contrast():
    ratios = {s.name: _brain(s, "T1w")["gm"] / _brain(s, "T1w")["wm"] for s in SCANNERS}
    assert max(ratios.values()) - min(ratios.values()) > 0.1


def test_textures_move_gray_matter_as_shorter_relaxation_does():
    t1w = signal_slopes("gm", 3.0, SCANNERS[0].sequence("T1w"))
    t2w = signal_slopes("gm", 3.0, SCANNERS[0].sequence("T2w"))
    assert t1w[1] < 0 < t2w[1], "texture one prolongs T1 and T2"
    assert abs(t1w[2]) < 0.05 * abs(t1w[1]) and t2w[2] > 0.3 * t2w[1], "texture two hides on T1w"


def test_what_is_not_known_is_named():
    with pytest.raises(UsageError, match="Did you mean 'mprage'"):
        Sequence("mprag", 2000, 3)
    with pytest.raises(UsageError, match="0 < TE < TR"):
        Sequence("spgr", 5, 9)
    with pytest.raises(UsageError, match="got 7 T"):
        relaxation_of("gm", 7)
    with pytest.raises(UsageError, match="'gray' is not known"):
        relaxation_of("gray", 3.0)
