"""Numbers with their intervals as small vector drawings, in the page's own colours.

Inline SVG has no colours of its own here: classes of the style sheet give them, so that a drawing
is light on light paper, dark on dark, and black on a printer's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .html import number_words

__all__ = ["Mark", "Band", "interval_chart", "strip_chart", "Strip"]

WIDTH = 560  # units of the drawing; it is scaled to its place
NAMES = 168  # for labels, at the left
VALUES = 62  # for numbers, at the right
ROW = 25
AXIS = 22
TOP = 18  # for the band's label
MOST_DOTS = 200
FURTHEST = 2.0  # a strip shows twice the limit; what lies beyond stands at the edge


@dataclass(frozen=True)
class Mark:
    """One row: a number, its interval, and a look: "before", "other", "after" or "bad".

    ``words``: what is written instead of the number, where that says too much.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    look: str = "after"
    words: str = ""


@dataclass(frozen=True)
class Band:
    """A range that means something, such as what chance gives."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Strip:
    """One row of dots: (value, whether it is bad) per image, in shares of its limit."""

    label: str
    values: tuple[tuple[float, bool], ...]


def interval_chart(marks: Sequence[Mark], words: str, *, band: Band | None = None,
                   zero: bool = False, ends: tuple[float, float] | None = None) -> Any:
    """A row per mark: dot and interval over one axis; ``words`` say what it shows, for screens read
    aloud.

    ``zero``: draw a line at 0 and let the axis hold it. ``ends``: of the axis, where the measure
    has natural ones. A mark without a value says n/a.
    """
    axis = _Axis(*(_ends(marks, band, zero) if ends is None else ends))
    height = TOP + ROW * len(marks) + AXIS
    parts = [_band(axis, band, height)] if band is not None else []
    if zero:
        parts.append(_line("zero", axis(0), TOP - 4, axis(0), height - AXIS))
    parts += [_row(axis, mark, TOP + ROW * (i + 0.5)) for i, mark in enumerate(marks)]
    return _svg(height, words, [*parts, _ticks(axis, height)])


def strip_chart(strips: Sequence[Strip], words: str, limit: str) -> Any:
    """A row of dots per measure, 0 to twice its limit, with a line at the limit."""
    axis = _Axis(0.0, FURTHEST)
    height = TOP + ROW * len(strips) + AXIS
    parts = [_text(axis(1), TOP - 7, limit, "middle", "soft"),
             _line("limit", axis(1), TOP - 3, axis(1), height - AXIS)]
    for i, strip in enumerate(strips):
        y = TOP + ROW * (i + 0.5)
        parts.append(_text(NAMES - 10, y + 4, strip.label, "end"))
        parts += [_dots(axis, y, strip.values)]
    ticks = [_text(axis(x), height - 5, words, "middle", "soft") for x, words in
             ((0, "unmoved"), (FURTHEST, "twice the limit or more"))]
    ticks[-1] = _text(WIDTH, height - 5, "twice the limit or more", "end", "soft")
    return _svg(height, words, [*parts, *ticks])


class _Axis:
    """From a number to a place between names and values; what lies outside stands at the edge."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return NAMES + min(max(share, 0.0), 1.0) * (WIDTH - NAMES - VALUES)

    def ticks(self) -> list[float]:
        """Three to six round numbers inside."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(step * k for k in (0.5, 1, 2, 2.5, 5, 10)
                    if (self.high - self.low) / (step * k) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def _finite(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _ends(marks: Sequence[Mark], band: Band | None, zero: bool) -> tuple[float, float]:
    """Ends that hold every value and the band, and intervals as far as they do not dwarf those."""
    values = _finite(*(mark.value for mark in marks)) + ([0.0] if zero else [])
    values += [band.low, band.high] if band is not None else []
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    reach = 2 * (high - low) or abs(high) or 1.0
    bounds = np.clip(_finite(*(b for m in marks for b in (m.low, m.high))) + [low, high],
                     low - reach, high + reach)
    pad = 0.04 * (bounds.max() - bounds.min() or 1.0)
    return float(bounds.min() - pad), float(bounds.max() + pad)


def _svg(height: float, words: str, parts: Sequence[Any]) -> Any:
    from markupsafe import Markup

    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">'
                  '<title>{}</title>{}</svg>').format(WIDTH, height, words, words,
                                                      Markup("").join(parts))


def _text(x: float, y: float, words: str, where: str = "start", kind: str = "") -> Any:
    from markupsafe import Markup

    words = words if len(words) <= 24 or where != "end" or x > NAMES else words[:23] + "…"
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, where, kind, words)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Any:
    from markupsafe import Markup

    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2)


def _band(axis: _Axis, band: Band, height: float) -> Any:
    from markupsafe import Markup

    left, right = axis(band.low), axis(band.high)
    shape = Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
        left, TOP - 3, max(right - left, 1.0), height - AXIS - TOP + 3)
    middle = min(max((left + right) / 2, NAMES + 40), WIDTH - VALUES - 20)
    return shape + _text(middle, TOP - 7, band.label, "middle", "soft")


def _row(axis: _Axis, mark: Mark, y: float) -> Any:
    from markupsafe import Markup

    parts = _text(NAMES - 10, y + 4, mark.label, "end")
    if not _finite(mark.value):
        return parts + _text(NAMES, y + 4, "n/a", "start", "soft")
    if len(_finite(mark.low, mark.high)) == 2:
        parts += _line(f"span {mark.look}", axis(mark.low), y, axis(mark.high), y)
    parts += Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(
        mark.look, axis(mark.value), y)
    return parts + _text(WIDTH, y + 4, mark.words or number_words(mark.value), "end",
                         "value")


def _dots(axis: _Axis, y: float, values: Sequence[tuple[float, bool]]) -> Any:
    """All bad images and at most 200 of the others, evenly chosen; spread a little up and down."""
    from markupsafe import Markup

    good = sorted(value for value, bad in values if not bad)
    if len(good) > MOST_DOTS:
        good = [good[i] for i in np.linspace(0, len(good) - 1, MOST_DOTS).astype(int)]
    chosen = [(v, "after") for v in good] + [(v, "bad") for v, bad in values if bad]
    return Markup("").join(
        Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(
            look, axis(value), y + (i * 7 % 5 - 2) * 2.2)
        for i, (value, look) in enumerate(chosen))


def _ticks(axis: _Axis, height: float) -> Any:
    from markupsafe import Markup

    bottom = height - AXIS
    parts = [_line("axis", NAMES, bottom, WIDTH - VALUES, bottom)]
    for tick in axis.ticks():
        parts += [_line("axis", axis(tick), bottom, axis(tick), bottom + 4),
                  _text(axis(tick), height - 5, f"{tick:g}", "middle", "soft")]
    return Markup("").join(parts)
