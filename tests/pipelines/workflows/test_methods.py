"""The text for a paper says what was done, not what is usually done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harmonizer.cohort import Scan
from harmonizer.files import write_json
from pipelines.outputs.collect import Preprocessed
from pipelines.outputs.names import ScanPaths, sidecar
from pipelines.settings import Settings
from pipelines.stages.citations import bibliography, cited_keys, readable
from pipelines.stages.methods_text import METHOD_KEYS, methods_text
from pipelines.workflows.preprocessing import brain_network_of


def settings(folder: Path, **changes: Any) -> Settings:
    """Of a participant run, all else by default."""
    return Settings(folder / "in", folder / "out", ["participant"], work_dir=folder / "work",
                    **changes)


def scan(folder: Path, name: str, way: str, modality: str = "T1w", **made: Any) -> Preprocessed:
    """Sidecars of a preprocessed scan, and of its harmonized image where anything is said of it."""
    paths = ScanPaths(folder, Path(f"sub-{name}/anat"), f"sub-{name}", modality, 1)
    write_json(sidecar(paths.mask(template=True)), {"QualityCheck": {"method": way}})
    if made:
        facts = {"HarmonizationMethod": "histogram_matching", "HarmonizationMethodVersion": "1",
                 "HarmonizationReference": "somebody", "Target": "birch", "TargetKind": "site",
                 "TargetScans": 7, "RandomSeed": 3}
        write_json(sidecar(paths.image("harmonized", template=True)), {**facts, **made})
    row = Scan(paths.scan_id, name, None, modality, "A", "test", folder, folder)
    return Preprocessed(row, paths, {})


@pytest.mark.parametrize("ways, messages, unsaid", [
    (["syn"], "The brain was found by registration of a brain-only template", "U-Net"),
    (["network"], "The brain was found by a small 3D U-Net", "brain-only template"),
    (["syn", "foreground", "syn"], "in 2 of 3 images found by registration", "U-Net"),
    (["precomputed"], "The brain was given with the data.", "brain-only"),
])
def test_the_way_to_the_brain_is_named(tmp_path, ways, messages: str, unsaid: str) -> None:
    found = [scan(tmp_path, f"{n}", way) for n, way in enumerate(ways)]
    text = methods_text(settings(tmp_path), found)
    assert messages in text and unsaid not in text
    assert ("[@Avants2008]" in text) == ("Avants et al. (2008)" in readable(text)) == (
        "syn" in ways)
    assert "No image is harmonized yet." in text


def test_what_lies_in_the_folder_is_told_and_not_what_the_flags_say(tmp_path) -> None:
    found = [scan(tmp_path, "01", "syn", Device="cpu"),
             scan(tmp_path, "02", "syn", TargetKind="site"),
             scan(tmp_path, "01", "syn", "FLAIR", Target="refs", TargetKind="reference",
                  HarmonizationMethod="disarm", Baseline="tissue_matching",
                  ResidualWeight=0.82),
             scan(tmp_path, "03", "syn", "FLAIR", HarmonizationMethod="a guest",
                  TargetKind="scanner-free", Detail="guided", Region="head")]
    text = methods_text(settings(tmp_path, backend="spectrum_swap", target=("aspen",)), found)
    assert "spectrum" not in text and "aspen" not in text
    assert text.count("T1w images: In-mask intensities were mapped") == 1
    assert "histogram_matching, version 1 [@Nyul2000]; the target was site birch (7 scans)" in text
    assert "the target was 7 reference image(s), refs." in text
    assert (
        "to the target by tissue_matching; the networks' residual was added with a weight of 0.82"
        in text
    )
    assert "FLAIR images: The method was a guest, version 1 (somebody)" in text
    assert "belongs to no scanner" in text
    assert "smooth maps for each tissue" in text and "the whole head was harmonized" in text
    assert text.count("Random seed: 3.") == 3


def test_every_citation_has_bibtex_and_a_reference_for_readers(tmp_path) -> None:
    found = [scan(tmp_path, f"{n}", "syn", HarmonizationMethod=method)
             for n, method in enumerate(METHOD_KEYS)] + [scan(tmp_path, "x", "network")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "group_statistics.tsv").touch()
    text = methods_text(settings(tmp_path), found)
    keys = cited_keys(text)
    assert {"Avants2008", "Hoopes2022", "Nyul2000", "Holm1979", "BrainHarmonizer"} <= set(keys)
    entries = bibliography(text)
    assert [line.partition("{")[2] for line in entries.splitlines() if line[:1] == "@"] == [
        f"{key}," for key in keys]
    assert entries.count("{") == entries.count("}")
    shown = readable(text)
    assert "[@" not in shown and "benchmarks.md" not in shown and "this project" not in shown
    assert "(Holm, 1979; Benjamini and Hochberg, 1995)" in shown
    assert ("* Nyúl et al. (2000). New variants of a method of MRI scale standardization. IEEE "
            "Transactions on Medical Imaging 19:143-150. https://doi.org/10.1109/42.836373"
            in shown)
    assert shown.count("\n* ") == len(keys)


def test_every_built_in_method_has_a_citation() -> None:
    from harmonizer.methods.registry import BUILT_IN

    assert set(BUILT_IN) <= set(METHOD_KEYS)


@pytest.mark.parametrize("how, sloppy, asked", [
    ("auto", False, True), ("auto", True, False), ("network", True, True),
])
def test_a_run_that_asks_the_network_knows_its_weights(tmp_path, how, sloppy, asked) -> None:
    weights = brain_network_of(settings(tmp_path, skull_strip=how, sloppy=sloppy))
    assert (weights is not None) == asked
