"""Scans are measured side by side, and an interrupt does not wait for them."""

from __future__ import annotations

import threading
import time
from multiprocessing import active_children

import pytest

from harmonizer.errors import Terminated
from harmonizer.evaluation.metrics.scan_features import spread


def test_an_interrupt_ends_the_processes_at_once():
    began, threads = time.monotonic(), threading.active_count()
    with pytest.raises(Terminated), spread(workers=2) as mapped:
        jobs = mapped("sleep")(time.sleep, [0.0, 60.0, 60.0, 60.0])
        assert next(iter(jobs)) is None  # they have started
        raise Terminated
    assert threading.active_count() == threads  # the pool's has ended: nobody asks for them later
    while active_children():  # they are reaped by the pool's thread
        assert time.monotonic() - began < 30
        time.sleep(0.05)
