"""Rendering of a self-contained HTML file.

The file needs no network and no other file; images are inlined as data. Subject labels, site names
and error messages are not trusted, and Jinja2 escapes them. A content security policy forbids
loading anything, and running any script except the bundled one, which is identified by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import write_text

__all__ = ["render", "script_hash", "markdown", "image_uri", "number_words", "relative_link"]

_INLINE = re.compile(r"\*\*(?P<bold>[^*]+)\*\*|\*(?P<slanted>[^*\s][^*]*)\*|`(?P<code>[^`]+)`"
                     r"|\[(?P<words>[^\]]+)\]\((?P<target>https?://[^\s)]+)\)"
                     r"|(?P<link>https?://[^\s<>\"')\]]*[^\s<>\"')\].,;:])")


def render(template: str, path: Path, context: Mapping[str, Any], *,
           scripts: Sequence[str] = ()) -> Path:
    """Render `templates/<template>` with `context` and write it to `path` atomically.

    `scripts` are the files of `templates` that the page may run, in this order, as one script.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("harmonizer.reports"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(markdown=markdown, image=image_uri, number=number_words,
                               href=relative_link, anchor=anchor)
    assert environment.loader is not None
    texts = [environment.loader.get_source(environment, name)[0].strip() for name in scripts]
    code = "\n".join(['"use strict";', *texts]) if texts else ""
    return write_text(Path(path), environment.get_template(template).render(
        **context, script=code, script_hash=script_hash(code) if code else ""))


def script_hash(code: str) -> str:
    """Return the hash by which a content security policy allows an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")


def image_uri(image: bytes) -> str:
    """Return the bytes of a PNG or WebP image as a data URI."""
    kind = "webp" if image[:4] == b"RIFF" else "png"
    return f"data:image/{kind};base64," + base64.b64encode(image).decode("ascii")


def number_words(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits and no exponent; n/a for None and NaN.

    Values below 1e-12 are rounding errors and shown as 0.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if abs(value) < 1e-12:
        return "0"
    if abs(value) < 1e-4:
        return "< 0.0001" if value > 0 else "> -0.0001"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def relative_link(path: str) -> str:
    """Percent-encode a relative path for a link, except plain characters and slashes."""
    return quote(path, safe="/._-")


def anchor(text: str) -> str:
    """Return a fragment name made of letters, digits, underscores and hyphens."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)


def markdown(text: str) -> Any:
    """Convert a small Markdown to HTML: headings, lists, bold, italics, code, web links.

    Everything else, including HTML tags, is shown literally.
    """
    from markupsafe import Markup

    blocks = re.split(r"\n\s*\n", text.strip().replace("\r\n", "\n"))
    parts = [part for block in blocks for part in _split_headings(block) if part]
    return Markup("\n").join(_block(part) for part in parts)


def _split_headings(block: str) -> list[str]:
    """Split a block so that every heading is separate, even without a blank line after it."""
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
    """Escape text and convert bold, italics, code and web links."""
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
