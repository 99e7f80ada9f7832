"""The monitor: silent over a good training, ends a lost one, warns once."""

from __future__ import annotations

import logging

import pytest

from harmonizer.deep.training.stability import StabilityMonitor
from harmonizer.errors import InternalError


def test_a_falling_and_a_noisy_loss_are_let_pass():
    monitor = StabilityMonitor(window=5)
    for step in range(100):
        monitor.check_divergence("self", 1 / (1 + step) + 0.05 * (step % 2))


def test_nothing_is_judged_before_the_window_is_full():
    monitor = StabilityMonitor(window=5)
    for value in (0.01, 0.01, 9.0, 9.0):
        monitor.check_divergence("self", value)


def test_a_loss_that_was_learned_and_is_lost_ends_the_training():
    monitor = StabilityMonitor(window=5, factor=4, floor=0.1)
    for _ in range(20):
        monitor.check_divergence("self", 0.05)
    for _ in range(5):
        monitor.check_divergence("self", 0.09)
    with pytest.raises(InternalError, match="diverged: self was 0.0500 and is 0.2.* again"):
        for _ in range(5):
            monitor.check_divergence("self", 0.3)


def test_a_number_out_of_its_range_is_told_once(caplog):
    monitor = StabilityMonitor(window=3)
    with caplog.at_level(logging.WARNING, logger="harmonizer"):
        for value in (0.0, 0.5, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0):
            monitor.warn_outside_range("accuracy", value, 0.2, 0.95, "More noise.")
    assert [r.getMessage() for r in caplog.records] == [
        "training: accuracy is 0.967 over 3 steps, expected 0.2 to 0.95. More noise."]
