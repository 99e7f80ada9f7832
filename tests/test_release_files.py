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


TRIGGERS = {"push", "pull_request", "release", "workflow_dispatch"}
JOB_KEYS = {"runs-on", "steps", "needs", "if", "strategy", "permissions", "environment",
            "timeout-minutes"}
STEP_KEYS = {"name", "id", "if", "uses", "with", "run", "env"}
SCOPES = {"contents", "packages", "pages", "id-token"}
CONTEXTS = {"github", "matrix", "needs", "secrets", "steps"}


def problems(content: dict) -> list[str]:
    """Find what actionlint would report: unknown keys, scopes and references of expressions."""
    triggers = content.get("on", content.get(True))  # YAML 1.1 reads the key `on` as true
    found = [f"trigger {name}" for name in triggers if name not in TRIGGERS]
    for name, job in content["jobs"].items():
        found += [f"{name}: key {key}" for key in set(job) - JOB_KEYS]
        scopes = {**content["permissions"], **job.get("permissions", {})}
        found += [f"{name}: scope {scope}" for scope in set(scopes) - SCOPES]
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        found += [f"{name}: needs {other}" for other in needs if other not in content["jobs"]]
        matrix = job.get("strategy", {}).get("matrix", {})
        known = set(matrix) | {key for row in matrix.get("include", []) for key in row}
        ids: set[str] = set()
        for step in job["steps"]:
            found += [f"{name}: step key {key}" for key in set(step) - STEP_KEYS]
            for context, value in re.findall(r"\b([a-z]+)\.([\w-]+)",
                                             " ".join(re.findall(r"\$\{\{(.*?)\}\}", str(step)))):
                if context == "steps" and value not in ids or context == "matrix" and \
                        value not in known or context not in CONTEXTS | {"outputs"}:
                    found.append(f"{name}: {context}.{value}")
            ids |= {step["id"]} if "id" in step else set()
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_known_keys_and_expressions(path):
    text = re.sub(r"\.labels\['[^']*'\]", "", path.read_text(encoding="utf-8"))
    assert problems(yaml.safe_load(text)) == []


def test_a_wrong_workflow_is_found():
    content = yaml.safe_load("""
        on: [pushed]
        permissions: {content: read}
        jobs:
          build:
            runs_on: ubuntu-latest
            needs: tests
            steps:
              - run: echo ${{ steps.base.outputs.image }} ${{ matrix.os }}
                id: base
              - {run: make, shel: bash}
        """)
    assert set(problems(content)) == {
        "trigger pushed", "build: key runs_on", "build: scope content", "build: needs tests",
        "build: steps.base", "build: matrix.os", "build: step key shel"}


def test_every_supported_python_is_tested():
    content = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    tested = content["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert tested == named
