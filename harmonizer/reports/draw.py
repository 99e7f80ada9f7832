"""From numbers to PNG bytes: matplotlib's Agg canvas, no global state, no window, no dates inside.

Equal input gives equal bytes. Pictures are cut down to a palette before they are saved: a report
has ten of them for every scan and must stay small enough to be mailed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mosaic import Mosaic

__all__ = ["Contour", "Colours", "draw_mosaic", "new_canvas", "to_png"]

DPI = 100
BAR_PIXELS = 40  # height of the strip that holds a colour bar


@dataclass(frozen=True)
class Contour:
    """The outline of ``mask`` (I, J, K), drawn in ``colour``."""

    mask: np.ndarray
    colour: str
    width: float = 0.9


@dataclass(frozen=True)
class Colours:
    """A map of colours: its name, the values at both ends, the words beside its bar."""

    name: str
    low: float
    high: float
    label: str
    alpha: float = 1.0


def new_canvas(width: int, height: int) -> Any:
    """An empty matplotlib Figure of that many pixels, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(canvas)
    return canvas


def to_png(canvas: Any) -> bytes:
    """PNG bytes of a canvas, in greys where it has no colour, else in a palette of 256 colours."""
    from PIL import Image

    canvas.canvas.draw()
    pixels = np.asarray(canvas.canvas.buffer_rgba())[..., :3]
    if (pixels == pixels[..., :1]).all():
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    else:
        picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(
            256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def draw_mosaic(
    mosaic: Mosaic,
    image: np.ndarray | None,
    window: tuple[float, float] = (0.0, 1.0),
    contours: Sequence[Contour] = (),
    overlay: np.ndarray | None = None,
    colours: Colours | None = None,
) -> bytes:
    """The mosaic of ``image`` in greys between ``window``, with contours and a coloured overlay.

    Arrays are (I, J, K) on the mosaic's grid. ``overlay`` is drawn in ``colours`` where it is
    finite, with a colour bar below. Without ``image`` the ground is white.
    """
    rows, columns = mosaic.size
    canvas = new_canvas(columns, rows + (BAR_PIXELS if overlay is not None else 0))
    axes = _pixel_axes(canvas, rows)
    ground = np.full(mosaic.size, 1.0) if image is None else _grey(mosaic.cut(image), window)
    axes.imshow(ground, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if overlay is not None and colours is not None:
        _colour(canvas, axes, mosaic, overlay, colours)
    for contour in contours:
        line = mosaic.cut(np.asarray(contour.mask, dtype=np.float32))
        if line.max() > 0.5:
            axes.contour(line, levels=[0.5], colors=[contour.colour], linewidths=contour.width)
    _write_letters(axes, mosaic, "black" if image is None else "white")
    return to_png(canvas)


def _pixel_axes(canvas: Any, rows: int) -> Any:
    """Axes at the top of the canvas in which one unit is one pixel."""
    share = rows / round(canvas.get_figheight() * DPI)
    axes = canvas.add_axes((0, 1 - share, 1, share))
    axes.set_axis_off()
    return axes


def _grey(picture: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return np.clip((picture - low) / max(high - low, 1e-12), 0, 1)


def _colour(canvas: Any, axes: Any, mosaic: Mosaic, overlay: np.ndarray, colours: Colours) -> None:
    layer = mosaic.cut(overlay, order=0, fill=np.nan)
    drawn = axes.imshow(np.ma.masked_invalid(layer), cmap=colours.name, vmin=colours.low,
                        vmax=colours.high, alpha=colours.alpha, interpolation="nearest")
    height = canvas.get_figheight() * DPI
    bar = canvas.colorbar(drawn, cax=canvas.add_axes((0.3, 26 / height, 0.4, 10 / height)),
                          orientation="horizontal")
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.ax.text(-0.02, 0.5, colours.label, transform=bar.ax.transAxes, ha="right", va="center",
                fontsize=8)


def _write_letters(axes: Any, mosaic: Mosaic, colour: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="white" if colour == "black" else "black")]
    for letter in mosaic.letters():
        direction = len(letter.text) == 1
        axes.text(letter.column, letter.row, letter.text, color=colour,
                  ha="left" if letter.anchor == "l" else "right",
                  va="center" if direction else "bottom",
                  fontsize=10 if direction else 6.5, fontweight="bold" if direction else "normal",
                  path_effects=halo)
    rows, columns = mosaic.size
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
