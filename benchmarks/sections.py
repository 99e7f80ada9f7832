"""One markdown file of results, a section for each benchmark, replaced when it is run again."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = "# Benchmarks\n\nEach section is written by the command it names.\n"


def put_section(path: Path, title: str, text: str) -> None:
    """Replace the section ``## title`` of a markdown file, or add it at the end."""
    old = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    section = f"## {title}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(old):
        new = pattern.sub(lambda match: section + "\n", old).rstrip() + "\n"
    else:
        new = old.rstrip() + "\n\n" + section
    path.write_text(new, encoding="utf-8")
