"""The evaluation uses as many processes as are allowed and fit into memory."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harmonizer.volume import write_mask
from pipelines.settings import Settings
from pipelines.stages.evaluation import _workers


def scans(folder: Path, shape: tuple[int, int, int]) -> list[SimpleNamespace]:
    mask = folder / "mask.nii.gz"
    write_mask(mask, np.ones(shape, bool), np.eye(4))
    return [SimpleNamespace(scan=SimpleNamespace(mask=mask))]


@pytest.mark.parametrize(("mem_gb", "shape", "sloppy", "workers"), [
    (None, (197, 233, 189), False, 16),
    (8.0, (197, 233, 189), False, 5),  # 1.3 GB each and 0.7 GB beside them
    (8.0, (197, 233, 189), True, 6),  # nothing is segmented
    (8.0, (99, 117, 95), True, 16),  # 2 mm
    (2.0, (197, 233, 189), False, 1),
    (1.0, (197, 233, 189), False, 1),
])
def test_processes_that_memory_holds(tmp_path: Path, caplog, mem_gb, shape, sloppy, workers
                                     ) -> None:
    settings = Settings("/bids", tmp_path, ["group"], nprocs=16, mem_gb=mem_gb, sloppy=sloppy)
    with caplog.at_level(logging.INFO, logger="pipelines"):
        assert _workers(settings, scans(tmp_path, shape)) == workers
    assert ("memory is limited to" in caplog.text) == (workers < 16)
