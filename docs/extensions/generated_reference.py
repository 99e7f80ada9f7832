"""Sphinx directives whose content comes from the code: flags, options of methods, exit codes.

Pages hold a directive instead of a copy, so that they cannot differ from the code::

    ```{command-line}
    ```

The functions return Markdown, which the tests read too.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

PROGRAM = "harmonizer"
EXIT_CODES = {
    0: "all done",
    1: "some participants failed or were excluded; the last lines of the log name them",
    130: "interrupted (Ctrl-C); the same command resumes",
    143: "terminated (SIGTERM, from a scheduler or `docker stop`); the same command resumes",
}


def command_line() -> str:
    """Return a table of flags for each group of the parser."""
    from pipelines.cli import build_parser

    parser = build_parser(PROGRAM)
    positional = [action for action in parser._actions if not action.option_strings]
    parts = ["## Usage\n", f"```text\n{parser.format_usage().strip()}\n```\n", _table(positional)]
    for group in parser._action_groups:
        flags = [action for action in group._group_actions if action.option_strings
                 and not isinstance(action, argparse._HelpAction)]
        if flags:
            title = "Program" if group.title in ("options", "optional arguments") else group.title
            parts += [f"## {title[0].upper()}{title[1:]}\n"]
            if group.description:
                parts.append(group.description.replace("Example: ", "Example: `") + "`\n")
            parts.append(_table(flags))
    return "\n".join(parts)


def _table(actions: list[argparse.Action]) -> str:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        value = "" if action.nargs == 0 and action.option_strings else _value(action)
        rows.append(f"| {' '.join(filter(None, (names, value)))} | {_help(action)} |")
    return "\n".join(rows) + "\n"


def _value(action: argparse.Action) -> str:
    more = " ..." if action.nargs == "+" else ""
    return f"`{action.metavar}{more}`" if action.metavar else ""


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("|", r"\|").replace("*", r"\*")
    return text[:1].upper() + text[1:]


def method_options() -> str:
    """Return settings, reference and defaults of every built-in method."""
    from harmonizer.methods import registry

    parts = []
    for name in registry.BUILT_IN:
        backend = registry.get(name)
        rows = [f"| `{name}` | `{field.name}` | `{field.default}` |"
                for field in dataclasses.fields(backend.Config)]
        table = "| method | setting | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        settings = inspect.cleandoc(backend.Config.__doc__ or "").strip()
        parts.append(f"## {name}\n\n{backend.reference}.\n\n```text\n{settings}\n```\n\n"
                     + (table if rows else ""))
    return "\n".join(parts)


def exit_codes() -> str:
    """Return a table of the exit codes of the app."""
    from harmonizer import errors

    found = dict(EXIT_CODES)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.HarmonizerError) \
                and kind not in (errors.HarmonizerError, errors.NotEstimableError):
            found[kind.exit_code] = (kind.__doc__ or "").split("\n")[0].rstrip(".")
    rows = [f"| {code} | {meaning} |" for code, meaning in sorted(found.items())]
    return "| code | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"


def method_summaries() -> str:
    """Return a table of the built-in methods with what each can do."""
    from harmonizer.methods import registry

    rows = []
    for name in registry.BUILT_IN:
        backend = registry.get(name)
        able = backend.capabilities
        marks = ["yes" if value else "no" for value in (
            able.trained, able.intensity_map, able.reference_target, able.scanner_free,
            able.modalities)]
        rows.append(f"| `{name}` | {' | '.join(marks)} | {backend.reference} |")
    head = ("| `--backend` | trains networks | is an intensity map | reference images or site card "
            "as target | scanner-free target | joint training of modalities | reference |\n"
            "|---|---|---|---|---|---|---|\n")
    return head + "\n".join(rows) + "\n"


CONTENT: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "exit-codes": exit_codes,
    "method-options": method_options,
    "method-summaries": method_summaries,
}


def plain_references(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
                     ) -> None:
    """Turn numbered references into a list: each docstring counts from 1, a page has several."""
    for number, line in enumerate(lines):
        line = re.sub(r"\[(\d+)\]_", r"[\1]", line)
        line = re.sub(r"^(\s*)\.\. \[(\d+)\] ", r"\1*  [\2] ", line)
        lines[number] = re.sub(r"\|(\w+)\|", r"\|\1\|", line)  # absolute values


def setup(app: Any) -> dict[str, bool]:
    """Register a directive for each entry of `CONTENT`, and the filter of docstrings."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", plain_references, priority=400)
    from sphinx.util.docutils import SphinxDirective

    def directive(content: Callable[[], str]) -> type:
        class Generated(SphinxDirective):
            def run(self) -> list[Any]:
                return self.parse_text_to_nodes(content(), allow_section_headings=True)

        return Generated

    for name, content in CONTENT.items():
        app.add_directive(name, directive(content))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
