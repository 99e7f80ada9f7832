"""Results of the benchmarks in files: a section in a Markdown file, and numbers as TSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

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


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as TSV; the columns are those of the first row."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
