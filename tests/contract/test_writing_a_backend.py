"""docs/extend/backend.md is run as it stands: the page's own files make a working plug-in."""

from __future__ import annotations

import configparser
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from harmonizer.methods import registry
from tests.contract.brains import brain_of

PAGE = Path(__file__).parents[2] / "docs" / "extend" / "backend.md"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The page's package, on the path, with its entry point as pip would register it."""
    text = PAGE.read_text(encoding="utf-8")
    for name, body in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    parser = configparser.ConfigParser()
    parser.read(tmp_path / "setup.cfg")
    lines = parser["options.entry_points"][registry.GROUP].strip().splitlines()
    points = tuple(EntryPoint(*map(str.strip, line.split("=")), registry.GROUP) for line in lines)
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry._plugins.cache_clear()
    yield registry.get("median_matching")
    registry._plugins.cache_clear()
    sys.modules.pop("median_matching", None)


def test_the_page_makes_a_working_backend(plugin, cohort, tmp_path):
    assert "median_matching" in registry.names()
    backend = plugin().fit(cohort)
    loud = brain_of(70).with_data(5 * brain_of(70).data)
    after = plugin.load(backend.save(tmp_path / "model")).harmonize(loud, backend.target("A"))
    medians = [np.median(scan.read().in_mask()) for scan in cohort.of_site("A")]
    assert np.median(after.in_mask()) == pytest.approx(np.mean(medians), rel=1e-3)


def test_every_capability_is_on_the_page():
    import dataclasses

    from harmonizer.methods.base import Capabilities

    text = PAGE.read_text(encoding="utf-8")
    for field in dataclasses.fields(Capabilities):
        assert f"`{field.name}`" in text, field.name
