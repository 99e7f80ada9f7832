"""Tissue probabilities of one scan on the template grid, or those of the template."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harmonizer.template import tissue_priors
from harmonizer.volume import read_volume

from .names import ScanPaths

__all__ = ["probabilities_of_scan"]


def probabilities_of_scan(paths: ScanPaths) -> tuple[Mapping[str, np.ndarray], bool]:
    """Read the tissue probabilities of a scan on the template grid.

    A sloppy run does not segment; the template's priors replace the scan's own probabilities.

    Returns
    -------
    probabilities : dict of str to ndarray, shape (I, J, K)
        CSF, GM and WM, 0 to 1.
    own : bool
        Whether they are the scan's own.
    """
    own = {tissue: read_volume(path).data for tissue, path in paths.probabilities_found().items()}
    return (own, True) if own else (tissue_priors(paths.resolution), False)
