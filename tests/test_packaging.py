"""The wheel: its one top-level name, its console script, its version and URL."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from pipelines.outputs import dataset

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.cfg", "setup.py", "pyproject.toml", "LICENSE", "README.md")
STRANGER = 'NAME = "pipelines of another project"\n'
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, and another project's top-level package `pipelines`."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in ("harmonizer", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True,
                          env={**os.environ, "SETUPTOOLS_SCM_PRETEND_VERSION": "1.2.3"})
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:  # all that the installation of a pure wheel does
        archive.extractall(folder)
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "__init__.py").write_text(STRANGER)
    return folder


def run(site_packages: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python outside of the repository with the installed wheel."""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=site_packages.parent,
                          env={**os.environ, "PYTHONPATH": str(site_packages)},
                          capture_output=True, text=True)


def console_script(site_packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what the installed script `harmonizer` runs."""
    (info,) = site_packages.glob("*.dist-info")
    parser = configparser.ConfigParser()
    parser.read(info / "entry_points.txt")
    module, _, function = parser["console_scripts"]["harmonizer"].partition(":")
    code = (f"import sys, {module} as module; sys.argv[0] = 'harmonizer'; "
            f"assert module.__file__.startswith({str(site_packages)!r}); "
            f"sys.exit(module.{function}())")
    return run(site_packages, code, *arguments)


def test_the_wheel_has_one_top_level_name(site_packages: Path) -> None:
    names = {path.name for path in site_packages.iterdir()} - {"pipelines"}
    assert sum(name.endswith(".dist-info") for name in names) == 1
    assert {name for name in names if not name.endswith(".dist-info")} == {"harmonizer"}
    assert (site_packages / "harmonizer" / "pipelines" / "app.py").is_file()


def test_the_wheel_has_every_module_and_data_file(site_packages: Path) -> None:
    for top, installed in (("harmonizer", "harmonizer"), ("pipelines", "harmonizer/pipelines")):
        for path in (ROOT / top).rglob("*"):
            relative = path.relative_to(ROOT / top)
            if path.is_file() and path.suffix not in (".pyc", ".pyo"):
                assert (site_packages / installed / relative).is_file(), f"{top}/{relative}"


def test_the_console_script_works_from_the_wheel(site_packages: Path) -> None:
    help_text = console_script(site_packages, "--help")
    assert help_text.returncode == 0, help_text.stderr
    assert "usage: harmonizer BIDS_DIR" in help_text.stdout
    bad = console_script(site_packages, str(site_packages / "none"), str(site_packages / "out"),
                         "participant")
    assert bad.returncode == 2 and "does not exist" in bad.stderr


def test_the_installed_app_imports_every_module_and_no_strange_one(site_packages: Path) -> None:
    code = """if True:
        import importlib, pkgutil, sys
        import harmonizer.pipelines as app
        for module in pkgutil.walk_packages(app.__path__, "harmonizer.pipelines."):
            importlib.import_module(module.name)
        assert not [name for name in sys.modules if name.split(".")[0] == "pipelines"]
        import pipelines
        print(pipelines.NAME)
    """
    done = run(site_packages, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in STRANGER


def test_the_version_is_that_of_the_build(site_packages: Path) -> None:
    pytest.importorskip("setuptools_scm", reason="of the extra `test`")
    assert console_script(site_packages, "--version").stdout == "harmonizer 1.2.3\n"
    assert "version" not in SETUP["metadata"], "versions come from git tags"


def test_the_url_of_the_code_is_that_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    content = Message()
    monkeypatch.setattr(dataset, "metadata", lambda name: content)
    assert "CodeURL" not in dataset.generated_by()
    content["Project-URL"] = "Documentation, https://example.org/docs"
    content["Project-URL"] = "Source, https://example.org/code"
    assert dataset.generated_by()["CodeURL"] == "https://example.org/code"


def test_the_url_of_the_code_is_in_one_place() -> None:
    """No other file names a repository of this project: while none is public, none is claimed."""
    declared = re.findall(r"Source = (\S+)", SETUP["metadata"].get("project_urls", ""))
    for name in ("README.md", "Dockerfile", "CITATION.cff", "CONTRIBUTING.md", ".zenodo.json",
                 "pipelines/outputs/dataset.py", ".github/ISSUE_TEMPLATE/config.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.findall(r"https?://(?:github|gitlab)\.com/[\w-]*/[\w-]*harmonizer", text)
        assert found == [] or set(found) == set(declared), name
