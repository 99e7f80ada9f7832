"""The Boutiques descriptor: valid, complete, and its command lines run."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from pipelines.app import main
from pipelines.cli import build_parser, parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def descriptor() -> dict:
    """The content that tools/boutiques_descriptor.py prints."""
    path = ROOT / "tools" / "boutiques_descriptor.py"
    spec = importlib.util.spec_from_file_location("boutiques_descriptor", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.descriptor()


def command(descriptor: dict, invocation: dict, tmp_path: Path) -> list[str]:
    """Let Boutiques check descriptor and invocation, and compose the command line."""
    bosh = pytest.importorskip("boutiques.bosh", reason="of the extra `test`")
    path, values = tmp_path / "harmonizer.json", tmp_path / "invocation.json"
    path.write_text(json.dumps(descriptor))
    values.write_text(json.dumps(invocation))
    bosh.validate(str(path))
    composed = bosh.execute("simulate", "-i", str(values), str(path)).shell_command
    program, *arguments = shlex.split(composed)
    assert program == "harmonizer"
    return arguments


def test_every_setting_of_the_parser_is_an_input(descriptor: dict) -> None:
    inputs = {entry["id"]: entry for entry in descriptor["inputs"]}
    actions = [action for action in build_parser()._actions
               if action.dest not in ("help", "version")]
    assert {action.dest for action in actions} == set(inputs)
    for action in actions:
        entry = inputs[action.dest]
        assert entry["optional"] == bool(action.option_strings)
        assert (action.nargs == "+") == entry.get("list", False)
    assert inputs["levels"]["value-choices"] == ["participant", "group"]
    assert "value-choices" not in inputs["device"], "cuda:1 is no listed choice"


def test_a_composed_command_line_has_the_given_values(descriptor: dict, tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    arguments = command(descriptor, {
        "bids_dir": str(tmp_path / "bids"), "output_dir": str(tmp_path / "out"),
        "levels": ["participant", "group"], "participant_label": ["01", "02"], "nprocs": 3,
        "sloppy": True, "backend": "histogram_matching", "modalities": ["T1w", "FLAIR"],
    }, tmp_path)
    settings = parse(arguments)
    assert settings.levels == ("participant", "group")
    assert settings.participant_label == ("01", "02")
    assert (settings.nprocs, settings.sloppy) == (3, True)
    assert settings.backend == "histogram_matching"
    assert settings.modalities == ("T1w", "FLAIR")


def test_boutiques_refuses_a_value_that_is_no_choice(descriptor: dict, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="levels"):
        command(descriptor, {"bids_dir": str(tmp_path), "output_dir": str(tmp_path / "out"),
                             "levels": ["subject"]}, tmp_path)


def test_a_composed_dry_run_of_a_phantom_works(
    descriptor: dict, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(descriptor, {
        "bids_dir": str(study), "output_dir": str(tmp_path / "out"),
        "levels": ["participant", "group"], "dry_run": True, "sloppy": True, "nprocs": 1,
        "skip_bids_validation": True, "work_dir": str(tmp_path / "work"),
    }, tmp_path)
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "Dry run: nothing is executed" in shown.out + shown.err
    assert not list((tmp_path / "out").glob("sub-*"))
