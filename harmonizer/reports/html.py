"""One HTML file that needs nothing else: no network, no folder beside it, no trust in its text.

Participant labels, site names and error messages come from strangers. Jinja2 escapes all of them;
pictures are inlined as data; a content security policy forbids the file to load anything and to run
anything but the one script that sorts tables, known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import write_text

__all__ = ["render", "script_hash", "markdown", "image_uri", "number_words", "relative_link"]

_INLINE = re.compile(r"\*\*(?P<bold>[^*]+)\*\*|\*(?P<slanted>[^*\s][^*]*)\*|`(?P<code>[^`]+)`"
                     r"|\[(?P<words>[^\]]+)\]\((?P<target>https?://[^\s)]+)\)"
                     r"|(?P<link>https?://[^\s<>\"')\]]*[^\s<>\"')\].,;:])")


def render(template: str, path: Path, context: Mapping[str, Any], *, script: str = "") -> Path:
    """Fill ``templates/<template>`` with ``context`` and write it to ``path`` atomically.

    ``script``: a file of ``templates``, the only one that the page may run, or none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("harmonizer.reports"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(markdown=markdown, image=image_uri, number=number_words,
                               href=relative_link, anchor=anchor)
    code = script and environment.loader.get_source(environment, script)[0].strip()
    return write_text(Path(path), environment.get_template(template).render(
        **context, script=code, script_hash=script_hash(code) if code else ""))


def script_hash(code: str) -> str:
    """The hash by which a content security policy knows an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")


def image_uri(png: bytes) -> str:
    """PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def number_words(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits; n/a for None and NaN; no exponents."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if 0 < abs(value) < 1e-4:
        return "< 0.0001" if value > 0 else "> -0.0001"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def relative_link(path: str) -> str:
    """A relative path as a link: everything but plain characters and slashes is percent-encoded."""
    return quote(path, safe="/._-")


def anchor(text: str) -> str:
    """A fragment name made of letters, digits, underscores and hyphens."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)


def markdown(text: str) -> Any:
    """HTML of a small Markdown: headings, lists, paragraphs, bold, slanted, code, web links.

    Everything else, HTML tags included, is shown as it stands.
    """
    from markupsafe import Markup

    blocks = re.split(r"\n\s*\n", text.strip().replace("\r\n", "\n"))
    parts = [part for block in blocks for part in _split_headings(block) if part]
    return Markup("\n").join(_block(part) for part in parts)


def _split_headings(block: str) -> list[str]:
    """A block cut so that every heading stands alone, also where no blank line follows it."""
    parts: list[str] = [""]
    for line in block.split("\n"):
        if line.startswith("#"):
            parts += [line, ""]
        else:
            parts[-1] += line + "\n"
    return [part.strip() for part in parts]


def _block(block: str) -> Any:
    from markupsafe import Markup

    heading = re.match(r"(#{1,6})\s+(.*)", block)
    if heading:
        level = min(6, len(heading[1]) + 2)  # the page's own headings end at h2
        return Markup(f"<h{level}>%s</h{level}>") % _inline(heading[2])
    if re.match(r"[-*]\s", block):
        items = re.split(r"(?m)^[-*]\s+", block)[1:]
        return Markup("<ul>%s</ul>") % Markup("").join(
            Markup("<li>%s</li>") % _inline(" ".join(item.split())) for item in items)
    return Markup("<p>%s</p>") % _inline(" ".join(block.split()))


def _inline(text: str) -> Any:
    """Escaped text with bold, slanted, code and web links."""
    from markupsafe import Markup, escape

    done, end = Markup(""), 0
    for match in _INLINE.finditer(text):
        done += escape(text[end:match.start()]) + _mark(match)
        end = match.end()
    return done + escape(text[end:])


def _mark(match: re.Match[str]) -> Any:
    from markupsafe import Markup

    for name, tag in (("bold", "strong"), ("slanted", "em"), ("code", "code")):
        if match[name]:
            return Markup(f"<{tag}>%s</{tag}>") % match[name]
    target = match["target"] or match["link"]
    return Markup('<a href="%s">%s</a>') % (target, match["words"] or target)
