"""The figures of one scan: what was seen, what was decided, what was changed.

Each function takes arrays on one grid and returns a :class:`Figure`: PNG frames with the words that
go with them. Two frames of a figure lie on top of each other in the report and flicker, so they are
always drawn on the same slices with the same window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..volume import Volume

TISSUES = {1: "CSF", 2: "GM", 3: "WM"}


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    ``frames`` holds one PNG, or two or more that are shown in turn; ``labels`` names each frame.
    ``alt`` is read aloud in place of the picture. All text is escaped when the report is rendered.
    """

    title: str
    caption: str
    alt: str
    frames: tuple[bytes, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanImages:
    """The arrays that the figures of one scan are drawn from; what is ``None`` is left out.

    ``native``: the image as conformed, before bias correction, with its brain mask (native grid).
    ``bias_field``: the multiplicative field on the native grid; native / field = corrected.
    ``registered``: the preprocessed image on the template's grid, with its mask.
    ``template``, ``template_tissues``: template and its tissue labels (0 outside, 1 CSF, 2 GM,
    3 WM), same grid as ``registered``.
    ``harmonized``: the harmonized image, same grid as ``registered``.
    ``tissues``: tissue labels of this scan, same grid and codes as ``template_tissues``.
    ``target_quantiles``: quantile functions of the target's scans, (scans, levels) each, by tissue:
    "brain", "CSF", "GM", "WM"; levels as `harmonizer.evaluation.distribution.LEVELS`.
    """

    native: Volume | None = None
    bias_field: np.ndarray | None = None
    registered: Volume | None = None
    template: Volume | None = None
    template_tissues: np.ndarray | None = None
    harmonized: Volume | None = None
    tissues: np.ndarray | None = None
    target_quantiles: Mapping[str, np.ndarray] | None = None


def scan_figures(images: ScanImages, target: str = "target") -> tuple[Figure, ...]:
    """Every figure that the given arrays allow, in the order of the pipeline."""
    raise NotImplementedError
