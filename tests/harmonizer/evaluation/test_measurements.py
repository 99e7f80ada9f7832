"""Tests that scans are measured in parallel, and that an interrupt does not wait for them."""

from __future__ import annotations

import threading
import time
from multiprocessing import active_children
from types import SimpleNamespace

import numpy as np
import pytest

from harmonizer.errors import Terminated
from harmonizer.evaluation.metrics.scan_features import (
    ScanJob,
    _noise_and_blur,
    process_pool,
    texture_rows,
)
from tests.harmonizer.contrast.texture_phantom import scan as texture_scan


def test_an_interrupt_ends_the_processes_at_once():
    began, threads = time.monotonic(), threading.active_count()
    with pytest.raises(Terminated), process_pool(workers=2) as mapped:
        jobs = mapped("sleep")(time.sleep, [0.0, 60.0, 60.0, 60.0])
        assert next(iter(jobs)) is None  # they have started
        raise Terminated
    assert threading.active_count() == threads  # those of the pool have ended
    while active_children():  # they are reaped by the pool's thread
        assert time.monotonic() - began < 30
        time.sleep(0.05)


def test_noise_and_blur_are_numbers_of_every_scan_and_method():
    noisy, quiet = texture_scan(0.06), texture_scan(0.02, seed=1)
    labels = np.where(noisy[0].mask, noisy[1].argmax(axis=0) + 1, 0)
    found = {}
    for name, (volume, _) in (("", noisy), ("method", quiet)):
        job = ScanJob(SimpleNamespace(read_tissues=dict), {}, labels, (0.0, 1.0))
        found[name] = _noise_and_blur(volume, job)
    assert found[""]["noise_wm"] > 2 * found["method"]["noise_wm"]
    scan = SimpleNamespace(subject="1", session=None, scan_id="s", modality="T1w", site="A")
    rows = {(row.measure, row.tissue, row.reference): row
            for row in texture_rows(scan, found["method"], "method", "B")}
    row = rows["noise_wm", "brain", ""]
    assert (row.value, row.stage, row.backend) == (found["method"]["noise_wm"], "after", "method")
    assert rows["blur_x", "brain", ""].unit == "mm"
    assert rows["band_std", "WM", "0 to 0.6 mm"].value == found["method"]["band1_wm"]
    assert ("band_std", "brain", "0.6 to 1.2 mm") in rows
