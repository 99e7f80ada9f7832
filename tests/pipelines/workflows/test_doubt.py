"""Tissues that an image does not bear out are said to be in doubt: in the log, and by the maps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from harmonizer.segmentation.refine import LEAST_SUPPORT
from pipelines.dataset.records import ScanRecord
from pipelines.outputs import sidecars
from pipelines.outputs.scanlog import ScanLog, write_log
from pipelines.settings import Settings
from pipelines.workflows import preprocessing


def test_a_run_names_the_scans_whose_tissues_are_in_doubt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings("/bids", tmp_path, ["participant"], sloppy=True)
    supports = {"sub-01_T1w": 1.5, "sub-02_T2w": 0.62, "sub-03_T1w": None}
    records = [ScanRecord(name, name[:6], name[4:6], None, name[-3:], tmp_path / name, "A", "test")
               for name in supports]
    jobs = [preprocessing.Job(record, preprocessing.paths_of(record, tmp_path, settings), "")
            for record in records]

    def execute(*_):
        for name, support in supports.items():
            facts = {} if support is None else {"ContrastSupport": support}
            write_log(tmp_path, ScanLog(name, "preprocess", "done", "A", facts=facts))
        return ()

    monkeypatch.setattr(preprocessing, "plan", lambda *_: (jobs, (), 0))
    monkeypatch.setattr(preprocessing, "execute", execute)
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        assert preprocessing.preprocess(settings, records) == ((), 0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("sub-02_T2w: ") and f"0.62, less than {LEAST_SUPPORT}" in said[0]


def test_the_maps_of_tissues_say_how_well_they_are_borne_out() -> None:
    content = sidecars.share(["bids::x.nii.gz"], "GM", True, 1, "network-0-4", 0.61972)
    assert content["ContrastSupport"] == pytest.approx(0.62, abs=1e-9)
