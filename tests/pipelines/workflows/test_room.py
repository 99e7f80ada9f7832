"""When nothing can be written any more, the run reports the folder and no scan fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from harmonizer.errors import InputError, OutputError
from pipelines.interfaces.base import ERROR_FILE, ExplainedInterface
from pipelines.workflows import engine


def test_a_folder_with_room_is_left_as_it_was(tmp_path: Path) -> None:
    engine.require_disk_space(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written any more .*same command again"):
        engine.require_disk_space(tmp_path, tmp_path / "file" / "logs")


def test_a_full_disk_leaves_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine.os, "replace", full, raising=True)
    with pytest.raises(OutputError, match="No space left on device"):
        engine.require_disk_space(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert OutputError.exit_code == 74


class Step(ExplainedInterface):
    """A step that meets an error."""

    error: Exception

    def _work(self, folder: Path) -> None:
        raise self.error


@pytest.mark.parametrize(("error", "message"), [
    (OSError(errno.ENOSPC, "No space left on device", "/out/x.nii.gz"),
     "/out/x.nii.gz: No space left on device. Check disk space"),
    (InputError("a.nii: is empty. Drop it."), "a.nii: is empty. Drop it."),
    (MemoryError("is empty"), "out of memory. Lower --nprocs"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory; is empty"), "out of memory"),
])
def test_a_step_leaves_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    step = Step()
    step.error = error
    with pytest.raises(type(error), match="No space|is empty"):
        step.run(cwd=str(tmp_path))
    assert (tmp_path / ERROR_FILE).read_text().startswith(message)


def test_a_step_that_cannot_even_leave_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ERROR_FILE).mkdir()  # as good as a full disk: it cannot be written
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    step = Step()
    step.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left on device"):
        step.run(cwd=str(tmp_path))
