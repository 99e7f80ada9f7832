"""The workflows are built and expanded over a grid of options; dangling ports fail here."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines.dataset.records import ScanRecord
from pipelines.outputs.names import ScanPaths
from pipelines.settings import Settings
from pipelines.workflows import preprocessing
from pipelines.workflows.engine import count_steps
from pipelines.workflows.preprocessing import ScanJob, init_preprocessing_wf

FILES = {"nothing": (), "mask": ("mask",), "both": ("mask", "preproc")}


def job(folder: Path, subject: str, precomputed: tuple[str, ...]) -> ScanJob:
    path = folder / f"sub-{subject}_T1w.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), path)
    record = ScanRecord(f"sub-{subject}_T1w", f"sub-{subject}", subject, None, "T1w", path, "A",
                        "test", precomputed=dict.fromkeys(precomputed, path))
    return ScanJob(record, ScanPaths(folder, record.folder, record.stem, "T1w", 1), "print")


@pytest.mark.parametrize("precomputed", FILES.values(), ids=FILES)
@pytest.mark.parametrize("sloppy", [False, True])
def test_graph_of_two_scans(tmp_path, precomputed, sloppy):
    settings = Settings("/bids", tmp_path / "out", ["participant"], sloppy=sloppy,
                        work_dir=tmp_path / "work")
    jobs = [job(tmp_path, subject, precomputed) for subject in ("01", "02")]
    workflow = init_preprocessing_wf(settings, jobs)
    graph = workflow._create_flat_graph()
    names = {node.fullname.split(".")[-1] for node in graph.nodes()}
    assert count_steps(workflow) == (16 if sloppy else 18)
    assert ("segment" in names) == (not sloppy)
    assert ("given_brain" in names) == ("mask" in precomputed)
    bias = {type(node.interface).__name__ for node in graph.nodes() if node.name == "bias"}
    assert bias == ({"KeepBias"} if "preproc" in precomputed else {"CorrectBias"})
    for node in graph.nodes():
        if node.name == "register":
            assert node.interface.inputs.sloppy is sloppy and node.interface.inputs.seed == 1
        if node.name in ("save", "draw"):
            assert node.overwrite


def test_scans_do_not_touch_each_other(tmp_path):
    import networkx as nx

    settings = Settings("/bids", tmp_path / "out", ["participant"], work_dir=tmp_path / "work")
    jobs = [job(tmp_path, subject, ()) for subject in ("01", "02", "03")]
    graph = init_preprocessing_wf(settings, jobs)._create_flat_graph()
    assert nx.number_weakly_connected_components(graph) >= 3
    for first, second in graph.edges():
        assert first.fullname.split(".")[1] == second.fullname.split(".")[1]


def test_every_step_announces_its_memory_and_a_large_head_more(tmp_path, monkeypatch):
    settings = Settings("/bids", tmp_path / "out", ["participant"], work_dir=tmp_path / "work")
    announced = []
    for measured in (15e6, 9 ** 3 / 2):
        monkeypatch.setattr(preprocessing, "MEASURED_VOXELS", measured)
        graph = init_preprocessing_wf(settings, [job(tmp_path, "01", ())])._create_flat_graph()
        announced.append({n.name: n.mem_gb for n in graph.nodes() if "putnode" not in n.name})
    assert announced[0] == {k: v for k, v in preprocessing.MEM_GB.items() if k != "given_brain"}
    assert announced[1] == pytest.approx({k: 2 * v for k, v in announced[0].items()})
