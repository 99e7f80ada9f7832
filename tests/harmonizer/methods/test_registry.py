"""Registry: built-ins, and plug-ins that are found, cannot replace built-ins, and may be broken."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from harmonizer.errors import UnavailableError, UsageError
from harmonizer.methods import registry


@pytest.fixture
def plugins(monkeypatch):
    """Pretend that these entry points are installed: name -> value."""
    def install(*points: tuple[str, str]) -> None:
        found = tuple(EntryPoint(name, value, registry.GROUP) for name, value in points)
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        registry._plugins.cache_clear()

    yield install
    registry._plugins.cache_clear()


def test_every_built_in_has_its_name_and_says_what_it_is():
    for name in registry.BUILT_IN:
        backend = registry.get(name)
        assert backend.name == name
        assert backend.reference and backend.summary.endswith(".")


def test_unknown_name_says_what_was_meant():
    with pytest.raises(UsageError, match="Did you mean 'histogram_matching'"):
        registry.get("histogram_match")


def test_guest_is_found(plugins):
    plugins(("guest", "harmonizer.methods.statistical.moment_matching:MomentMatching"))
    assert "guest" in registry.names()
    assert registry.get("guest").__name__ == "MomentMatching"


def test_guest_cannot_shadow_a_built_in(plugins, caplog):
    plugins(("moment_matching", "evil:Backend"))
    assert registry.names().count("moment_matching") == 1
    module = registry.get("moment_matching").__module__
    assert module == "harmonizer.methods.statistical.moment_matching"
    assert "cannot replace a built-in" in caplog.text


@pytest.mark.parametrize("value, message", [
    ("no_such_module_here:Backend", "cannot be imported: ModuleNotFoundError"),
    ("pathlib:Path", "is not a subclass of"),
])
def test_broken_guest_is_named_and_skipped(plugins, caplog, value, message):
    plugins(("broken", value))
    with pytest.raises(UnavailableError, match=message):
        registry.get("broken")
    assert set(registry.available()) == set(registry.BUILT_IN)
    assert "broken" in caplog.text


def test_names_import_no_backend():
    code = ("import sys; from harmonizer.methods import registry; registry.names();"
            "assert not [m for m in sys.modules if m in ('torch', 'nibabel', 'numpy')], 'heavy'")
    subprocess.run([sys.executable, "-c", code], check=True)
