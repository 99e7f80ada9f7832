"""One phantom study and one whole run over it, shared by the tests of the app."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.app.road import Answer, run_app


@dataclass(frozen=True)
class Road:
    """A raw dataset, its truth, and what one whole run made of it."""

    raw: Path
    truth: Path
    out: Path
    work: Path
    answer: Answer


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people who were both scanned on two scanners, 4 mm."""
    from harmonizer.phantom.dataset import write_dataset

    folder = tmp_path_factory.mktemp("phantom") / "raw"
    write_dataset(folder, subjects=2, scanners=2, voxel_mm=4, seed=3)
    return folder


@pytest.fixture(scope="session")
def road(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """Both levels in one command, two processes."""
    folder = tmp_path_factory.mktemp("road")
    answer = run_app(study, folder / "out", "participant", "group", "--sloppy", "--nprocs", 2,
                     "-w", folder / "work", "--target", "birch")
    return Road(study, study.with_name("raw-truth"), folder / "out", folder / "work", answer)


@pytest.fixture
def copy(road: Road, tmp_path: Path) -> Path:
    """A copy of the finished output folder, to be changed."""
    shutil.copytree(road.out, tmp_path / "out")
    return tmp_path / "out"
