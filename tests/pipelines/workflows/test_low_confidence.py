"""Brain masks and segmentations with low confidence are named in the log and in sidecars."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from harmonizer.segmentation.refine import MIN_CONTRAST_TO_NOISE
from pipelines.dataset.records import ScanRecord
from pipelines.outputs import sidecars
from pipelines.outputs.scanlog import ScanLog, write_log
from pipelines.settings import Settings
from pipelines.workflows import preprocessing


def test_a_run_names_the_scans_whose_tissues_or_brain_mask_have_low_confidence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings("/bids", tmp_path, ["participant"], sloppy=True)
    reasons = ["volume 2.22 L is outside 0.9-2.0 L", "overlap 0.50 is below 0.85"]
    found = {"sub-01_T1w": {"ContrastToNoise": 1.5, "Quality": {"reasons": []}},
             "sub-02_T2w": {"ContrastToNoise": 0.62}, "sub-03_T1w": {},
             "sub-04_T1w": {"Quality": {"reasons": reasons}}}
    records = [ScanRecord(name, name[:6], name[4:6], None, name[-3:], tmp_path / name, "A", "test")
               for name in found]
    jobs = [preprocessing.ScanJob(record, preprocessing.paths_of(record, tmp_path, settings), "")
            for record in records]

    def execute(*_):
        for name, facts in found.items():
            write_log(tmp_path, ScanLog(name, "preprocess", "done", "A", facts=facts))
        return ()

    monkeypatch.setattr(preprocessing, "plan", lambda *_: (jobs, (), 0))
    monkeypatch.setattr(preprocessing, "execute", execute)
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        assert preprocessing.preprocess(settings, records) == ((), 0)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("sub-02_T2w: ")
    assert f"0.62, less than {MIN_CONTRAST_TO_NOISE}" in messages[0]
    assert messages[1] == f"sub-04_T1w: check its brain mask: {reasons[0]}; {reasons[1]}."


def test_t1w_images_come_first_and_serve_their_session(tmp_path, monkeypatch, caplog) -> None:
    settings = Settings("/bids", tmp_path, ["participant"])
    names = ("sub-01_FLAIR", "sub-01_run-2_T1w", "sub-01_run-1_T1w", "sub-02_T2w")
    records = []
    for name in names:
        (tmp_path / name).write_text(name)
        stem, suffix = name.rsplit("_", 1)
        records.append(ScanRecord(name, stem, name[4:6], None, suffix, tmp_path / name, "A", "t"))
    monkeypatch.setattr("harmonizer.preprocessing.conform.check_image", lambda path: None)
    jobs, _, _ = preprocessing.plan(settings, records, tmp_path)
    fallbacks = {job.scan_id: job.fallback and job.fallback.scan_id for job in jobs}
    assert fallbacks == {**dict.fromkeys(names), "sub-01_FLAIR": "sub-01_run-1_T1w"}
    assert [[job.scan_id for job in part] for part in preprocessing._in_order(jobs)] == [
        list(names[1:]), [names[0]]]
    with_, without = (preprocessing.fingerprint(records[0], settings, fallback)
                      for fallback in (records[2], None))
    assert with_ != without
    sloppy = Settings("/bids", tmp_path, ["participant"], sloppy=True)
    assert all(job.fallback is None for job in preprocessing.plan(sloppy, records, tmp_path)[0])

    def execute(_, part, *__):
        for job in part:
            facts = {"ContrastToNoise": 0.9, **({"FallbackSegmentation": job.fallback.scan_id}
                                                if job.fallback else {})}
            write_log(tmp_path, ScanLog(job.scan_id, "preprocess", "done", "A", facts=facts))
        return ()

    monkeypatch.setattr(preprocessing, "execute", execute)
    with caplog.at_level(logging.INFO, logger="pipelines"):
        preprocessing.preprocess(settings, records)
    messages = {r.getMessage().split(":")[0]: r.getMessage() for r in caplog.records}
    assert "that of sub-01_run-1_T1w is used" in messages["sub-01_FLAIR"]
    assert "low confidence" in messages["sub-02_T2w"]


def test_sidecars_of_probability_maps_give_the_contrast_to_noise_ratio() -> None:
    content = sidecars.probability(["bids::x.nii.gz"], "GM", True, 1, "network-0-4", 0.61972)
    assert content["ContrastToNoise"] == pytest.approx(0.62, abs=1e-9)
    assert "FallbackSegmentation" not in content
    transferred = sidecars.probability(["bids::x.nii.gz"], "GM", True, 1, "network-0-4", 0.9, "sub-01_T1w")
    assert transferred["FallbackSegmentation"] == "sub-01_T1w"
