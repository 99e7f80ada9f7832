"""SVG charts of numbers with confidence intervals.

The inline SVG has no colors of its own. The style sheet assigns them to classes, so that a chart
follows the light, dark and print styles of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .html import number_words

__all__ = ["Mark", "Band", "interval_chart", "strip_chart", "Strip"]

CHART_WIDTH = 560  # units of the drawing; it is scaled to its place
LABEL_WIDTH = 168  # for labels, at the left
VALUE_WIDTH = 62  # for numbers, at the right
ROW_HEIGHT = 25
AXIS_HEIGHT = 22
TOP_MARGIN = 18  # for the band's label
MAX_DOTS_PER_ROW = 200
MAX_LIMIT_FRACTION = 2.0  # a strip shows twice the limit; what lies beyond stands at the edge


@dataclass(frozen=True)
class Mark:
    """Row of an interval chart.

    Attributes
    ----------
    label : str
        Text at the left.
    value : float
        Number; NaN if it is unknown.
    low, high : float, optional
        Its interval.
    look : str
        CSS class: "before", "other", "after" or "bad".
    words : str
        Text at the right instead of the number.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    look: str = "after"
    words: str = ""


@dataclass(frozen=True)
class Band:
    """Labeled range of an interval chart, such as the 95 % range of chance."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Strip:
    """Row of a strip chart: (fraction of the limit, whether it is exceeded) per image."""

    label: str
    values: tuple[tuple[float, bool], ...]


def interval_chart(marks: Sequence[Mark], words: str, *, band: Band | None = None,
                   zero: bool = False, ends: tuple[float, float] | None = None) -> Any:
    """Draw a dot and an interval per mark over one axis.

    Parameters
    ----------
    marks : sequence of Mark
        Rows; a mark without a value shows n/a.
    words : str
        Description for screen readers.
    band : Band, optional
        Range in the background.
    zero : bool
        Include 0 in the axis and draw a line there.
    ends : tuple of float, optional
        Ends of the axis; default: from the marks.
    """
    axis = _Axis(*(_ends(marks, band, zero) if ends is None else ends))
    height = TOP_MARGIN + ROW_HEIGHT * len(marks) + AXIS_HEIGHT
    parts = [_band(axis, band, height)] if band is not None else []
    if zero:
        parts.append(_line("zero", axis(0), TOP_MARGIN - 4, axis(0), height - AXIS_HEIGHT))
    parts += [_row(axis, mark, TOP_MARGIN + ROW_HEIGHT * (i + 0.5)) for i, mark in enumerate(marks)]
    return _svg(height, words, [*parts, _ticks(axis, height)])


def strip_chart(strips: Sequence[Strip], words: str, limit: str) -> Any:
    """Draw a row of dots per measure, from 0 to twice its limit, with a line at the limit."""
    axis = _Axis(0.0, MAX_LIMIT_FRACTION)
    height = TOP_MARGIN + ROW_HEIGHT * len(strips) + AXIS_HEIGHT
    parts = [_text(axis(1), TOP_MARGIN - 7, limit, "middle", "soft"),
             _line("limit", axis(1), TOP_MARGIN - 3, axis(1), height - AXIS_HEIGHT)]
    for i, strip in enumerate(strips):
        y = TOP_MARGIN + ROW_HEIGHT * (i + 0.5)
        parts.append(_text(LABEL_WIDTH - 10, y + 4, strip.label, "end"))
        parts += [_dots(axis, y, strip.values)]
    ticks = [_text(axis(x), height - 5, words, "middle", "soft") for x, words in
             ((0, "unmoved"), (MAX_LIMIT_FRACTION, "twice the limit or more"))]
    ticks[-1] = _text(CHART_WIDTH, height - 5, "twice the limit or more", "end", "soft")
    return _svg(height, words, [*parts, *ticks])


class _Axis:
    """Linear axis from values to horizontal positions; values outside are drawn at the edge."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return LABEL_WIDTH + min(max(share, 0.0), 1.0) * (CHART_WIDTH - LABEL_WIDTH - VALUE_WIDTH)

    def ticks(self) -> list[float]:
        """Return three to six round numbers inside."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(step * k for k in (0.5, 1, 2, 2.5, 5, 10)
                    if (self.high - self.low) / (step * k) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def _finite(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _ends(marks: Sequence[Mark], band: Band | None, zero: bool) -> tuple[float, float]:
    """Return ends that cover every value and the band, and intervals unless they dominate."""
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
                  '<title>{}</title>{}</svg>').format(CHART_WIDTH, height, words, words,
                                                      Markup("").join(parts))


def _text(x: float, y: float, words: str, where: str = "start", kind: str = "") -> Any:
    from markupsafe import Markup

    words = words if len(words) <= 24 or where != "end" or x > LABEL_WIDTH else words[:23] + "…"
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
        left, TOP_MARGIN - 3, max(right - left, 1.0), height - AXIS_HEIGHT - TOP_MARGIN + 3)
    middle = min(max((left + right) / 2, LABEL_WIDTH + 40), CHART_WIDTH - VALUE_WIDTH - 20)
    return shape + _text(middle, TOP_MARGIN - 7, band.label, "middle", "soft")


def _row(axis: _Axis, mark: Mark, y: float) -> Any:
    from markupsafe import Markup

    parts = _text(LABEL_WIDTH - 10, y + 4, mark.label, "end")
    if not _finite(mark.value):
        return parts + _text(LABEL_WIDTH, y + 4, "n/a", "start", "soft")
    if len(ends := _finite(mark.low, mark.high)) == 2:
        parts += _line(f"span {mark.look}", axis(ends[0]), y, axis(ends[1]), y)
    parts += Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(
        mark.look, axis(mark.value), y)
    return parts + _text(CHART_WIDTH, y + 4, mark.words or number_words(mark.value), "end",
                         "value")


def _dots(axis: _Axis, y: float, values: Sequence[tuple[float, bool]]) -> Any:
    """Draw all images beyond the limit and at most `MAX_DOTS_PER_ROW` others."""
    from markupsafe import Markup

    good = sorted(value for value, bad in values if not bad)
    if len(good) > MAX_DOTS_PER_ROW:
        good = [good[i] for i in np.linspace(0, len(good) - 1, MAX_DOTS_PER_ROW).astype(int)]
    chosen = [(v, "after") for v in good] + [(v, "bad") for v, bad in values if bad]
    return Markup("").join(
        Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(
            look, axis(value), y + (i * 7 % 5 - 2) * 2.2)
        for i, (value, look) in enumerate(chosen))


def _ticks(axis: _Axis, height: float) -> Any:
    from markupsafe import Markup

    bottom = height - AXIS_HEIGHT
    parts = [_line("axis", LABEL_WIDTH, bottom, CHART_WIDTH - VALUE_WIDTH, bottom)]
    for tick in axis.ticks():
        parts += [_line("axis", axis(tick), bottom, axis(tick), bottom + 4),
                  _text(axis(tick), height - 5, f"{tick:g}", "middle", "soft")]
    return Markup("").join(parts)
