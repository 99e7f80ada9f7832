"""One phantom study and one whole run over it, shared by the tests of the app."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.app.running import AppResult, run_app


@dataclass(frozen=True)
class FullRun:
    """A raw dataset, its truth, and what one whole run made of it."""

    raw: Path
    truth: Path
    out: Path
    work: Path
    answer: AppResult


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects scanned on two scanners, 4 mm."""
    from harmonizer.phantom.dataset import write_dataset

    folder = tmp_path_factory.mktemp("phantom") / "raw"
    write_dataset(folder, people=2, scanners=2, voxel_mm=4, seed=3)
    return folder


@pytest.fixture(scope="session")
def full_run(study: Path, tmp_path_factory: pytest.TempPathFactory) -> FullRun:
    """Both levels in one command, two processes."""
    folder = tmp_path_factory.mktemp("full_run")
    answer = run_app(study, folder / "out", "participant", "group", "--sloppy", "--nprocs", 2,
                     "-w", folder / "work", "--target", "birch")
    return FullRun(study, study.with_name("raw-truth"), folder / "out", folder / "work", answer)


@pytest.fixture
def copy(full_run: FullRun, tmp_path: Path) -> Path:
    """A copy of the finished output folder, to be changed."""
    shutil.copytree(full_run.out, tmp_path / "out")
    return tmp_path / "out"
