"""Errors that the BIDS validator finds in an exported dataset are logged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipelines.dataset.checks import Issue
from pipelines.settings import Settings
from pipelines.stages import export


def test_errors_of_the_validator_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = Issue("EMPTY_FILE", "/sub-01", "EMPTY_FILE: /sub-01: no bytes")
    monkeypatch.setattr(export, "validate_bids", lambda folder: [issue, issue])
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        assert export._export_warnings(Settings("/bids", tmp_path, ["group"]), [], tmp_path) == []
    assert f"finds 2 errors: {issue.text}; {issue.text}" in caplog.text
