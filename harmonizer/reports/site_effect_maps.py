"""What a scanner did to each tissue: the maps of local tissue matching, drawn on the template."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..contrast.local_statistics import Lattice, LocalStatistics, relative_gain
from ..template import load_template, tissue_priors
from ..tissues import TISSUES
from .draw import Colours, draw_mosaic
from .figures import Figure
from .mosaic import plan_mosaic

__all__ = ["tissue_difference", "explained_figure"]

SHOWN = 0.3  # share of a tissue in the template from which a voxel is coloured
LEAST_END = 5.0  # percent at which colours end, at least; each tissue has its own end
DIM = 2.5  # times as dark as usual is the template below
NAMES = {"CSF": "fluid", "GM": "grey matter", "WM": "white matter"}


def tissue_difference(site: LocalStatistics, target: LocalStatistics) -> np.ndarray:
    """(3, I, J, K) percent by which each tissue was brighter at a site than at the target.

    Both sites' overall brightness is made equal first: what one factor explains is no contrast.
    """
    gain = np.float32(relative_gain(site, target))
    return 100 * (site.mean / gain / target.mean - 1)


def explained_figure(site: str, target: str, lattice: Lattice, percent: np.ndarray) -> Figure:
    """Three frames, one a tissue, over the template.

    ``percent``: (3, I, J, K) on ``lattice``, positive where the site is brighter than the target.
    """
    template, priors = load_template(2), tissue_priors(2)
    drawn, words, ends = [], [], []
    for name, values in zip(TISSUES, percent):
        where = (priors[name] > SHOWN) & template.mask
        inside = _read(values, lattice, template.affine, where)
        drawn.append(np.where(where, inside, np.nan))
        low, middle, high = np.percentile(inside[where], [5, 50, 95])
        words.append(f"{NAMES[name]} {middle:+.0f} % (places from {low:+.0f} to {high:+.0f})")
        ends.append(max(LEAST_END, float(np.ceil(max(abs(low), abs(high))))))
    mosaic = plan_mosaic(template.mask, template.affine)
    low, high = np.percentile(template.in_mask(), [0.5, 99.5])
    window = (low, DIM * high)  # a dark ground, on which pale colours are seen
    return Figure(
        f"{site}: brighter or darker than {target}",
        f"At one overall brightness: {'; '.join(words)}. Red: this tissue is brighter here at "
        f"{site} than at {target}, blue: darker; the harmonization undoes it. Means of the site's "
        "people within some 8 mm, shown where the template has the tissue.",
        f"Slices of the template with the relative brightness of each tissue at {site}",
        tuple(draw_mosaic(mosaic, template.data, window, overlay=one,
                          colours=Colours("RdBu_r", -end, end, f"{NAMES[name]}, % brighter", 0.8))
              for name, one, end in zip(TISSUES, drawn, ends)),
        tuple(NAMES[name] for name in TISSUES))


def _read(values: np.ndarray, lattice: Lattice, affine: np.ndarray, where: np.ndarray
          ) -> np.ndarray:
    """The map on a grid, read linearly where it is asked for, 0 elsewhere."""
    points = np.argwhere(where) @ affine[:3, :3].T + affine[:3, 3]
    out = np.zeros(where.shape, np.float32)
    out[where] = ndimage.map_coordinates(values, lattice.indices(points), order=1, mode="nearest")
    return out
