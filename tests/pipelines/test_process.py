"""Temporary files of a run: in the work folder, also of child processes, and removed."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, util
from pathlib import Path

import pytest

from pipelines.process import temporary_files_in


@pytest.fixture
def no_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_temporary_files_of_all_processes_are_in_the_work_folder(
    no_tmpdir: None, tmp_path: Path
) -> None:
    work = tmp_path / ("w" * 120)  # longer than the path of a socket may be
    with temporary_files_in(work):
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).is_relative_to(work)
        with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
            assert Path(pool.submit(tempfile.gettempdir).result()).is_relative_to(work)
        assert not Path(util.get_temp_dir()).is_relative_to(work), "sockets need a short path"
        Path(tempfile.gettempdir(), "left.nii.gz").touch()
    assert not work.exists(), "a new folder in which nothing stays is removed"
    assert not Path(tempfile.gettempdir()).is_relative_to(work)
    assert "TMPDIR" not in os.environ


def test_tmpdir_of_the_user_is_respected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    with temporary_files_in(tmp_path / "work"):
        assert os.environ["TMPDIR"] == str(tmp_path / "node")
    assert not (tmp_path / "work").exists()


def test_a_failed_run_leaves_no_temporary_file(no_tmpdir: None, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), temporary_files_in(tmp_path):
        Path(tempfile.mkdtemp(), "half").touch()
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []
