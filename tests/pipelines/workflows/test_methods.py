"""The text for a paper says what was done, not what is usually done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import Settings
from pipelines.workflows.methods import methods_text
from pipelines.workflows.preprocessing import brain_network_of


def settings(folder: Path, **changes: Any) -> Settings:
    """Of a participant run, all else by default."""
    return Settings(folder / "in", folder / "out", ["participant"], work_dir=folder / "work",
                    **changes)


@pytest.mark.parametrize("how, said, unsaid", [
    ("auto", "registration of a brain-only template", "U-Net"),
    ("network", "unless the background showed that the image was brain only, by a small 3D U-Net",
     "brain-only template"),
])
def test_the_way_to_the_brain_is_named(tmp_path, how: str, said: str, unsaid: str) -> None:
    text = methods_text(settings(tmp_path, skull_strip=how))
    assert said in text and unsaid not in text


@pytest.mark.parametrize("how, sloppy, asked", [
    ("auto", False, True), ("auto", True, False), ("network", True, True),
])
def test_a_run_that_asks_the_network_knows_its_weights(tmp_path, how, sloppy, asked) -> None:
    weights = brain_network_of(settings(tmp_path, skull_strip=how, sloppy=sloppy))
    assert (weights is not None) == asked
