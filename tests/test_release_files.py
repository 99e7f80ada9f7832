"""The release files agree with the package: version, license, URL, and jobs that exist."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_citation_and_zenodo_agree_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    assert "version" not in citation, "versions come from git tags"
    assert citation["license"] == zenodo["license"] == "Apache-2.0"
    assert set(citation["keywords"]) == set(zenodo["keywords"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_complete_and_call_targets_that_exist(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"], "a workflow names the least permissions that it needs"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for job in content["jobs"].values():
        assert job["runs-on"] and job["steps"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.fullmatch(r"[\w.-]+/[\w./-]+@[\w./-]+", step["uses"])
            for target in re.findall(r"^make ([a-z]+)", step.get("run", ""), re.M):
                assert target in targets


def test_every_supported_python_is_tested():
    content = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    tested = content["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert tested == named
