"""Print the Boutiques descriptor of the app, made from its parser.

    python tools/boutiques_descriptor.py > harmonizer.json

Boutiques (https://boutiques.github.io) describes command-line tools for platforms such as CBRAIN. A
descriptor names no container image, because none is published.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harmonizer import __version__  # noqa: E402
from pipelines.cli import Switch, build_parser  # noqa: E402

PROGRAM = "harmonizer"
SCHEMA_VERSION = "0.5"
FILE_METAVARS = ("JSON", "TOML", "YAML")
FILE_FLAGS = ("bids_dir", "model")  # folders that must exist before the run
OPEN_CHOICES = ("backend", "device")  # other values are possible: plug-ins, cuda:N


def descriptor() -> dict[str, Any]:
    """Return the descriptor as the Boutiques schema 0.5 has it."""
    actions = [action for action in build_parser(PROGRAM)._actions
               if action.dest not in ("help", "version")]
    inputs = [_input(action) for action in _first_of_each(actions)]
    return {
        "name": PROGRAM,
        "tool-version": __version__,
        "schema-version": SCHEMA_VERSION,
        "description": "BIDS App that harmonizes brain MRI across scanners",
        "command-line": " ".join([PROGRAM, *(entry["value-key"] for entry in inputs)]),
        "inputs": inputs,
        "output-files": [
            {"id": "derivative_dataset", "name": "Derivative dataset",
             "path-template": "[OUTPUT_DIR]"},
            {"id": "group_report", "name": "Group report", "optional": True,
             "path-template": "[OUTPUT_DIR]/group.html"},
        ],
        "tags": {"domain": ["neuroinformatics", "mri"], "method": ["harmonization", "BIDS App"]},
    }


def _first_of_each(actions: list[argparse.Action]) -> list[argparse.Action]:
    """Return one action for each setting; --mem and --mem-gb are one."""
    return list({action.dest: action for action in reversed(actions)}.values())[::-1]


def _input(action: argparse.Action) -> dict[str, Any]:
    """Describe a positional argument or a flag."""
    name = action.dest
    entry: dict[str, Any] = {
        "id": name,
        "name": name.replace("_", " "),
        "type": _type(action),
        "description": (action.help or "").replace("%%", "%"),
        "value-key": f"[{name.upper()}]",
        "optional": bool(action.option_strings),
    }
    if action.option_strings:
        entry["command-line-flag"] = next(s for s in action.option_strings if s.startswith("--"))
    if action.nargs == "+":
        entry["list"] = True
    if action.type is int:
        entry["integer"] = True
    choices = re.fullmatch(r"\{([\w,-]+)\}", action.metavar or "")
    if choices and name not in OPEN_CHOICES:
        entry["value-choices"] = choices.group(1).split(",")
    return entry


def _type(action: argparse.Action) -> str:
    if isinstance(action, Switch) or action.nargs == 0:
        return "Flag"
    if action.type in (int, float):
        return "Number"
    return "File" if action.metavar in FILE_METAVARS or action.dest in FILE_FLAGS else "String"


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2))
