"""Patterns of .bidsignore: files that are not part of the dataset.

The syntax is that of .gitignore, as in the BIDS validator:

* the last matching pattern decides, and ``!`` includes a file again;
* a trailing slash matches folders only; a slash elsewhere anchors the pattern at the root;
* files in an ignored folder are ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["BidsIgnore"]

IGNORE_FILE = ".bidsignore"
TOKEN_PATTERN = re.compile(
    r"\\(?P<literal>.)|(?P<deep>(?<![^/])\*\*/)|(?P<rest>\*\*)|(?P<star>\*)|(?P<one>\?)"
    r"|\[(?P<negation>[!^]?)(?P<set>\]?[^\]]*)\]|(?P<other>.)", re.DOTALL)


class BidsIgnore:
    """The .bidsignore file of a dataset; without it nothing is ignored.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        path = root / IGNORE_FILE
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._rules = [rule for line in text.splitlines() if (rule := _rule(line))]

    def ignores(self, path: Path) -> bool:
        """Return whether a file of the dataset, or a folder that contains it, is ignored."""
        if not self._rules or not path.is_relative_to(self.root):
            return False
        parts = path.relative_to(self.root).parts
        steps = range(1, len(parts) + 1)
        return any(self._decides("/".join(parts[:n]), n < len(parts) or path.is_dir())
                   for n in steps)

    def _decides(self, name: str, is_folder: bool) -> bool:
        fitting = [ignored for pattern, ignored, folders_only in self._rules
                   if (is_folder or not folders_only) and pattern.fullmatch(name)]
        return bool(fitting) and fitting[-1]


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """(pattern, whether it ignores, whether it fits folders only) of a line; None for a comment."""
    line = line.removeprefix("\ufeff").rstrip()
    if not line or line.startswith("#"):
        return None
    taken_back = line.startswith("!")
    line = line[taken_back:]
    folders_only, line = line.endswith("/"), line.rstrip("/")
    anchored, line = "/" in line, line.lstrip("/")
    try:
        prefix = "" if anchored else "(?:.*/)?"
        pattern = re.compile(prefix + TOKEN_PATTERN.sub(_translated, line))
    except re.error:  # a set such as [z-a] fits nothing
        return None
    return (pattern, not taken_back, folders_only) if line else None


def _translated(match: re.Match[str]) -> str:
    """One token of a .gitignore pattern as a regular expression."""
    kind = match.lastgroup
    if kind == "set":
        negation = "^" if match["negation"] else ""
        inside = match["set"].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
        return f"[{negation}{inside}]"
    fixed = {"deep": "(?:.*/)?", "rest": ".*", "star": "[^/]*", "one": "[^/]"}
    return fixed.get(str(kind)) or re.escape(match["literal"] or match["other"])
