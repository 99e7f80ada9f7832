"""Site effect maps: relative brightness of each tissue at a site, drawn on the template."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..contrast.local_statistics import Lattice, LocalStatistics, relative_gain
from ..template import load_template, tissue_priors
from ..tissues import TISSUES
from .draw import ColorScale, draw_mosaic
from .figures import Figure
from .mosaic import plan_mosaic

__all__ = ["tissue_difference", "site_effect_figure"]

MIN_TISSUE_PROBABILITY = 0.3  # of the template, from which a voxel is colored
MIN_COLOR_LIMIT_PERCENT = 5.0  # each tissue has its own limit, at least this
TEMPLATE_WINDOW_FACTOR = 2.5  # factor of the upper window: a dark background shows pale colors
TISSUE_NAMES = {"CSF": "fluid", "GM": "gray matter", "WM": "white matter"}


def tissue_difference(site: LocalStatistics, target: LocalStatistics) -> np.ndarray:
    """Return by how many percent (3, I, J, K) each tissue is brighter than at the target.

    The overall brightness of both sites is made equal first, because a common factor is not
    contrast.
    """
    gain = np.float32(relative_gain(site, target))
    return 100 * (site.mean / gain / target.mean - 1)


def site_effect_figure(site: str, target: str, lattice: Lattice, percent: np.ndarray) -> Figure:
    """Draw three frames, one per tissue, over the template.

    Parameters
    ----------
    site, target : str
        Labels.
    lattice : Lattice
        Grid of the map.
    percent : (3, I, J, K) ndarray
        Values on the lattice, positive where the site is brighter than the target.
    """
    template, priors = load_template(2), tissue_priors(2)
    drawn, words, ends = [], [], []
    for name, values in zip(TISSUES, percent):
        where = (priors[name] > MIN_TISSUE_PROBABILITY) & template.require_mask()
        inside = _read(values, lattice, template.affine, where)
        drawn.append(np.where(where, inside, np.nan))
        low, middle, high = np.percentile(inside[where], [5, 50, 95])
        words.append(f"{TISSUE_NAMES[name]} {middle:+.0f} % (5th to 95th percentile "
                     f"{low:+.0f} to {high:+.0f})")
        ends.append(max(MIN_COLOR_LIMIT_PERCENT, float(np.ceil(max(abs(low), abs(high))))))
    mosaic = plan_mosaic(template.require_mask(), template.affine)
    low, high = np.percentile(template.in_mask(), [0.5, 99.5])
    window = (low, TEMPLATE_WINDOW_FACTOR * high)
    return Figure(
        f"{site}: brighter or darker than {target}",
        f"At one overall brightness: {'; '.join(words)}. Red: this tissue is brighter at "
        f"{site} than at {target}, blue: darker. Harmonization removes this. Means of the "
        "site's subjects within about 8 mm, shown where the template has the tissue.",
        f"Slices of the template with the relative brightness of each tissue at {site}",
        tuple(draw_mosaic(mosaic, template.data, window, overlay=one,
                          color_scale=ColorScale("RdBu_r", -end, end,
                                                 f"{TISSUE_NAMES[name]}, % brighter", 0.8))
              for name, one, end in zip(TISSUES, drawn, ends)),
        tuple(TISSUE_NAMES[name] for name in TISSUES))


def _read(values: np.ndarray, lattice: Lattice, affine: np.ndarray, where: np.ndarray
          ) -> np.ndarray:
    """Interpolate the map linearly on a grid inside a mask; 0 elsewhere."""
    points = np.argwhere(where) @ affine[:3, :3].T + affine[:3, 3]
    out = np.zeros(where.shape, np.float32)
    out[where] = ndimage.map_coordinates(values, lattice.indices(points), order=1, mode="nearest")
    return out
