"""Tissue maps of one scan on the template grid: its own, or the template's where it has none."""

from __future__ import annotations

import numpy as np

from harmonizer.template import tissue_priors
from harmonizer.volume import read_volume

from .names import ScanPaths

__all__ = ["shares_of_scan"]


def shares_of_scan(paths: ScanPaths) -> tuple[dict[str, np.ndarray], bool]:
    """({'CSF', 'GM', 'WM' -> (I, J, K) 0..1}, whether they are the scan's own).

    A sloppy run finds no tissues; the template's priors stand in.
    """
    own = {tissue: read_volume(path).data for tissue, path in paths.shares_found().items()}
    return (own, True) if own else (tissue_priors(paths.resolution), False)
