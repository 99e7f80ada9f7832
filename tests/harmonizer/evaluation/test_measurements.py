"""Scans are measured side by side, and an interrupt does not wait for them."""

from __future__ import annotations

import time
from multiprocessing import active_children

import pytest

from harmonizer.errors import Terminated
from harmonizer.evaluation.measurements import spread


def test_an_interrupt_ends_the_processes_at_once():
    began = time.monotonic()
    with pytest.raises(Terminated), spread(workers=2) as mapped:
        jobs = mapped("sleep")(time.sleep, [0.0, 60.0, 60.0, 60.0])
        assert next(iter(jobs)) is None  # they have started
        raise Terminated
    while active_children():  # they are reaped by the pool's thread
        assert time.monotonic() - began < 30
        time.sleep(0.05)
