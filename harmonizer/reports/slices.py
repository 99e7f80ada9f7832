"""Slices of one scan before and after harmonization, for the viewer and the wall of brains.

The slices of a plane are one tall image, compressed as WebP: three planes of a 1 mm scan take about
0.4 MB. All scans have the same slices, through the template's brain.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..volume import Volume
from .mosaic import PLANE_AXES, Mosaic, plan_stack, slice_positions

__all__ = ["SliceStack", "ScanSlices", "scan_slices", "read_gray", "gray_webp"]

SLICES_PER_PLANE = 24
MIN_PIXEL_MM = 1.0
WEBP_QUALITY = 78
MARGIN_MM = 4.0
OUTLINES = (("mask", (255, 75, 62)), ("GM", (63, 167, 255)), ("WM", (255, 212, 0)))
"""Outline -> color (red, green, blue), as in `figures`; the last one is on top."""
TISSUE_CODES = {"GM": 2, "WM": 3}


@dataclass(frozen=True)
class SliceStack:
    """Slices of one plane, in a column with the first on top.

    Attributes
    ----------
    plane : str
        "axial", "coronal" or "sagittal".
    positions : tuple of float
        World coordinate of each slice, mm.
    width, height : int
        Size of one slice in pixels.
    images : mapping
        "before", "after" and "outlines" -> WebP bytes.
    """

    plane: str
    positions: tuple[float, ...]
    width: int
    height: int
    images: Mapping[str, bytes]

    def nearest(self, position: float) -> int:
        """Return the number of the slice that is nearest to a world coordinate (mm)."""
        return int(np.abs(np.array(self.positions) - position).argmin())


@dataclass(frozen=True)
class ScanSlices:
    """Slices of one scan.

    Attributes
    ----------
    stacks : tuple of SliceStack
        One for each plane.
    windows : mapping
        "before" and "after" -> intensities that are shown in black and in white.
    """

    stacks: tuple[SliceStack, ...]
    windows: Mapping[str, tuple[float, float]]


def scan_slices(before: Volume, after: Volume, brain: np.ndarray,
                tissues: np.ndarray | None = None) -> ScanSlices:
    """Cut the slices of a scan before and after harmonization.

    The window of the image before harmonization is that of the image after it, divided by the ratio
    of their medians: the images may have different units.

    Parameters
    ----------
    before, after : Volume
        Images on the template grid; `before` has a mask, outside of which the slices are black.
    brain : (I, J, K) ndarray
        Brain mask of the template, which gives the slices.
    tissues : (I, J, K) ndarray, optional
        Labels: 0 outside, 1 CSF, 2 GM, 3 WM.
    """
    mask = before.require_mask()
    low, high = np.percentile(after.data[mask], [0.5, 99.5])
    window = min(0.0, float(low)), float(high + 0.05 * (high - low))
    medians = [float(np.median(volume.data[mask])) for volume in (before, after)]
    gain = medians[1] / medians[0] if min(medians) > 0 else 1.0
    windows = {"before": (window[0] / gain, window[1] / gain), "after": window}
    places = {"mask": mask}
    if tissues is not None:
        places |= {name: tissues >= code for name, code in TISSUE_CODES.items()}
    pixel_mm = max(MIN_PIXEL_MM, float(min(before.spacing)))
    stacks = []
    for plane in PLANE_AXES:
        mosaic = plan_stack(brain, before.affine, plane, SLICES_PER_PLANE, pixel_mm,
                            margin_mm=MARGIN_MM)
        images = {name: gray_webp(_window_to_gray(mosaic.cut(np.where(mask, volume.data, 0.0)),
                                                  windows[name]))
                  for name, volume in (("before", before), ("after", after))}
        images["outlines"] = _outlines(mosaic, places)
        tile = mosaic.tiles[0]
        stacks.append(SliceStack(plane, tuple(slice_positions(mosaic)), tile.width, tile.height,
                                 images))
    return ScanSlices(tuple(stacks), windows)


def read_gray(webp: bytes) -> np.ndarray:
    """Read a gray image: (rows, columns) uint8."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(webp)).convert("L"))


def gray_webp(pixels: np.ndarray, quality: int = WEBP_QUALITY) -> bytes:
    """Compress a gray image, (rows, columns) uint8, as WebP."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(stream, format="WEBP", quality=quality, method=4)
    return stream.getvalue()


def _window_to_gray(picture: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    fraction = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    return np.round(255 * fraction).astype(np.uint8)


def _outlines(mosaic: Mosaic, places: Mapping[str, np.ndarray]) -> bytes:
    """Draw the outline of each place as colored pixels on a transparent image."""
    from PIL import Image

    rows, columns = mosaic.size
    height = mosaic.tiles[0].height
    pixels = np.zeros((rows, columns, 4), np.uint8)
    for name, color in OUTLINES:
        if name not in places:
            continue
        inside = mosaic.cut(places[name].astype(np.float32), order=0) > 0.5
        slices = inside.reshape(-1, height, columns)
        inner = ndimage.binary_erosion(slices, structure=np.ones((1, 3, 3)), border_value=1)
        pixels[(slices & ~inner).reshape(rows, columns)] = (*color, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, format="WEBP", lossless=True, method=4)
    return stream.getvalue()
