"""PNG images from arrays, drawn with matplotlib's Agg canvas.

There is no global state, window or date, so that equal input gives equal bytes. Images are reduced
to a palette before they are saved: a report has about ten images per scan and must remain small
enough for email.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mosaic import Mosaic

__all__ = ["Contour", "ColorScale", "draw_mosaic", "new_canvas", "to_png"]

DPI = 100
COLOR_BAR_PIXELS = 40  # height of the strip with the color bar


@dataclass(frozen=True)
class Contour:
    """Outline of a mask (I, J, K) in a color."""

    mask: np.ndarray
    color: str
    width: float = 0.9


@dataclass(frozen=True)
class ColorScale:
    """Colormap with its range and the label of its bar.

    Attributes
    ----------
    name : str
        Name of a matplotlib colormap.
    low, high : float
        Values at both ends.
    label : str
        Text beside the color bar.
    alpha : float
        Opacity.
    """

    name: str
    low: float
    high: float
    label: str
    alpha: float = 1.0


def new_canvas(width: int, height: int) -> Any:
    """Return an empty matplotlib figure of that many pixels, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(canvas)
    return canvas


def to_png(canvas: Any) -> bytes:
    """Return the PNG bytes of a canvas: in grayscale if it has no color, else with 256 colors."""
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
    color_scale: ColorScale | None = None,
) -> bytes:
    """Draw slices of an image with contours and a colored overlay.

    Parameters
    ----------
    mosaic : Mosaic
        Plan of the slices.
    image : (I, J, K) ndarray, optional
        Image on the mosaic's grid; without it the background is white.
    window : tuple of float
        Intensities shown in black and in white.
    contours : sequence of Contour
        Outlines to draw.
    overlay : (I, J, K) ndarray, optional
        Values that are drawn in color where they are finite, with a color bar below.
    color_scale : ColorScale, optional
        Colors of the overlay.

    Returns
    -------
    bytes
        PNG image.
    """
    rows, columns = mosaic.size
    canvas = new_canvas(columns, rows + (COLOR_BAR_PIXELS if overlay is not None else 0))
    axes = _pixel_axes(canvas, rows)
    ground = np.full(mosaic.size, 1.0) if image is None else _gray(mosaic.cut(image), window)
    axes.imshow(ground, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if overlay is not None and color_scale is not None:
        _draw_overlay(canvas, axes, mosaic, overlay, color_scale)
    for contour in contours:
        line = mosaic.cut(np.asarray(contour.mask, dtype=np.float32))
        if line.max() > 0.5:
            axes.contour(line, levels=[0.5], colors=[contour.color], linewidths=contour.width)
    _write_letters(axes, mosaic, "black" if image is None else "white")
    return to_png(canvas)


def _pixel_axes(canvas: Any, rows: int) -> Any:
    """Return axes at the top of the canvas in which one unit is one pixel."""
    fraction = rows / round(canvas.get_figheight() * DPI)
    axes = canvas.add_axes((0, 1 - fraction, 1, fraction))
    axes.set_axis_off()
    return axes


def _gray(picture: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return np.clip((picture - low) / max(high - low, 1e-12), 0, 1)


def _draw_overlay(canvas: Any, axes: Any, mosaic: Mosaic, overlay: np.ndarray,
                  color_scale: ColorScale) -> None:
    layer = mosaic.cut(overlay, order=0, fill=np.nan)
    drawn = axes.imshow(np.ma.masked_invalid(layer), cmap=color_scale.name, vmin=color_scale.low,
                        vmax=color_scale.high, alpha=color_scale.alpha, interpolation="nearest")
    height = canvas.get_figheight() * DPI
    bar = canvas.colorbar(drawn, cax=canvas.add_axes((0.3, 26 / height, 0.4, 10 / height)),
                          orientation="horizontal")
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.ax.text(-0.02, 0.5, color_scale.label, transform=bar.ax.transAxes, ha="right", va="center",
                fontsize=8)


def _write_letters(axes: Any, mosaic: Mosaic, color: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="white" if color == "black" else "black")]
    for letter in mosaic.letters():
        direction = len(letter.text) == 1
        axes.text(letter.column, letter.row, letter.text, color=color,
                  ha="left" if letter.anchor == "l" else "right",
                  va="center" if direction else "bottom",
                  fontsize=10 if direction else 6.5, fontweight="bold" if direction else "normal",
                  path_effects=halo)
    rows, columns = mosaic.size
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
