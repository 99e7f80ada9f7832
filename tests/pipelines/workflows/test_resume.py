"""A scan is finished when its last file is there; a run that was killed before goes on with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonizer.cohort import Scan
from harmonizer.errors import UsageError
from pipelines.dataset.records import ScanRecord
from pipelines.outputs import sidecars
from pipelines.outputs.collect import Preprocessed
from pipelines.outputs.names import ScanPaths, sidecar
from pipelines.outputs.scanlog import log_path
from pipelines.settings import Settings
from pipelines.stages.targets import Aim
from pipelines.workflows import harmonization, preprocessing


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("/bids", tmp_path / "out", ["participant"], sloppy=True)


@pytest.fixture
def record(tmp_path: Path) -> ScanRecord:
    path = tmp_path / "sub-01_T1w.nii.gz"
    data = np.random.default_rng(0).normal(100, 9, (12, 12, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return ScanRecord("sub-01_T1w", "sub-01", "01", None, "T1w", path, "A", "test")


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def preprocessed(record: ScanRecord, settings: Settings) -> list[Path]:
    """The files of a scan that is preprocessed, empty but for its fingerprint."""
    p = preprocessing.paths_of(record, settings.output_dir, settings)
    image = p.image("preproc", template=True)
    files = [p.image("preproc"), p.mask(), p.mask(template=True), p.to_template, p.from_template,
             log_path(p.out, p.scan_id, "preprocess"), image, sidecar(image),
             p.figures / "sub-01_T1w_preprocess.json"]
    make(*files)
    sidecar(image).write_text(json.dumps({
        "Fingerprint": preprocessing.fingerprint(record, settings),
        **sidecars.scan_facts(record)}))
    return files


def test_a_scan_that_lacks_one_file_is_preprocessed_again(
    record: ScanRecord, settings: Settings
) -> None:
    files = preprocessed(record, settings)
    assert preprocessing.plan(settings, [record], settings.output_dir) == ([], (), 1)
    for path in files:
        content = path.read_text()
        path.unlink()
        jobs, _, reused = preprocessing.plan(settings, [record], settings.output_dir)
        assert ([job.scan_id for job in jobs], reused) == (["sub-01_T1w"], 0), path
        path.write_text(content)


def test_a_scan_whose_figures_are_missing_is_harmonized_again(settings: Settings) -> None:
    paths = ScanPaths(settings.output_dir, Path("sub-01/anat"), "sub-01", "T1w", 2)
    scan = Scan("sub-01_T1w", "01", None, "T1w", "A", "test", Path("x"), Path("m"))
    item = Preprocessed(scan, paths, {"ImageSHA256": "p"})
    aim, key = Aim(Path("model"), Path("card"), "B", "site"), {"ModelSHA256": "m"}
    images = [paths.image("harmonized", template=t) for t in (False, True)]
    drawn = paths.figures / "sub-01_T1w_harmonize-harmonized.json"
    make(*images, *map(sidecar, images), drawn)
    facts = {"HarmonizationMethod": settings.backend, "Target": "B", "PreprocessedSHA256": "p",
             "SourceSite": "A"}
    sidecar(images[1]).write_text(json.dumps({**facts, **key}))
    assert harmonization._is_finished(item, settings, aim, key)
    assert not harmonization._is_finished(item, settings, aim, {"ModelSHA256": "another"})
    moved = replace(item, scan=replace(scan, site="C"))
    assert not harmonization._is_finished(moved, settings, aim, key)
    drawn.unlink()
    assert not harmonization._is_finished(item, settings, aim, key)
    with pytest.raises(UsageError, match="was made by .* to 'B', this run is"):
        harmonization._is_finished(item, settings, replace(aim, label="C"), key)
