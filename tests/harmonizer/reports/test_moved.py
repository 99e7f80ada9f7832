"""The map of where it moved: a picture for the report, and images on request."""
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.evaluation.__main__ import main, write_anatomy_change_maps
from harmonizer.evaluation.metrics.distribution import QuantileTable
from harmonizer.evaluation.questions.anatomy_limits import AnatomyCheck
from harmonizer.evaluation.run import EvaluationResult
from harmonizer.evaluation.statistics.resampling import Statistics
from harmonizer.evaluation.table import Metrics
from harmonizer.reports.anatomy_change import moved_figure
from harmonizer.volume import read_volume
from tests.harmonizer.evaluation import cohorts

SPOT = (13, 18, 9)


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Cohort:
    return cohorts.write(tmp_path_factory.mktemp("moved"), cohorts.nested_plan(4))


def painted(data: np.ndarray) -> np.ndarray:
    """A bright lesion of about 12 mm."""
    near = np.sum((np.indices(cohorts.SHAPE) - np.reshape(SPOT, (3, 1, 1, 1))) ** 2, axis=0) <= 3
    return np.where(near, data[cohorts.MASK].max() * 1.3, data)


def test_the_figure_goes_through_the_lesion_and_says_where(before):
    from PIL import Image

    source = before.scans[0].read()
    figure = moved_figure("sub-00", source, source.with_data(painted(source.data)), "too much")
    assert "(52, 72, 36) mm" in figure.caption and "too much" in figure.caption
    first, second = (np.asarray(Image.open(io.BytesIO(f)).convert("RGB")).astype(int)
                     for f in figure.frames)
    assert first.shape == second.shape and len(figure.labels) == 2
    red = (second[..., 0] - second[..., 2] > 60)[:-40]
    assert 50 < red.sum() < 0.2 * red.size  # a spot in the slices, not all over


def test_maps_of_flagged_images_or_of_all(before, tmp_path):
    after = cohorts.variant(before, tmp_path / "x", lambda data, scan: painted(data)
                            if scan.subject == "01" else data)
    ok, bad = AnatomyCheck(True, (), {}, {}), AnatomyCheck(False, ("spot",), {}, {})
    ruling = EvaluationResult(Metrics(), Statistics(), QuantileTable(), {"x": {
        scan.scan_id: bad if scan.subject == "01" else ok for scan in before}}, {})
    some = write_anatomy_change_maps(tmp_path / "some", before, {"x": after}, ruling)
    assert [path.name for path in some] == ["sub-01_ses-1_T1w_anatomychange.nii.gz"]
    moved = read_volume(some[0]).data
    assert np.hypot(*(np.subtract(np.unravel_index(np.abs(moved).argmax(), moved.shape), SPOT)
                      [:2])) < 2 and moved.max() > 0.1
    assert (moved[~cohorts.MASK] == 0).all()
    assert len(write_anatomy_change_maps(tmp_path / "all", before, {"x": after}, ruling, True)) == 4


def test_the_command_writes_them(before, tmp_path, capsys):
    folder = Path(before.scans[0].image).parent
    after = cohorts.variant(before, tmp_path / "x", lambda data, scan: painted(data)
                            if scan.subject == "01" else data)
    (tmp_path / "masks").mkdir()
    for scan in before:
        (tmp_path / "masks" / f"{scan.scan_id}_mask.nii.gz").write_bytes(scan.mask.read_bytes())
    assert main([str(folder), str(after.scans[0].image.parent), "--masks", str(tmp_path / "masks"),
                 "--permutations", "2", "--anatomy-change-maps", "flagged", "--out", str(tmp_path)]) == 0
    assert [p.name for p in (tmp_path / "anatomy_change" / "x").glob("*")] == [
        "sub-01_ses-1_T1w_anatomychange.nii.gz"]
    assert "flagged: sub-01_ses-1_T1w" in capsys.readouterr().out
