"""Names, order and label values of the three brain tissues.

Arrays with one entry per tissue use the order of `TISSUES`. Discrete segmentations of the three
tissues use the values of `TISSUE_LABELS`, with 0 for background.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["TISSUES", "TISSUE_LABELS"]

TISSUES = ("CSF", "GM", "WM")
TISSUE_LABELS: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(TISSUES, 1)})
