"""The CACD backend; see the package for the method."""

from __future__ import annotations

from typing import Any

from ...base import Capabilities
from ...target import Target
from ..base import LearnedBackend
from .config import PRESETS, CacdConfig
from .model import CacdModel

__all__ = ["Cacd"]


class Cacd(LearnedBackend):
    """Contrastive anatomy-contrast disentanglement (Scholz 2025)."""

    name = "cacd"
    reference = ("Scholz et al. 2025, Contrastive Anatomy-Contrast Disentanglement: A "
                 "Domain-General MRI Harmonization Method, github.com/daniel-scholz/cacd")
    summary = ("Slices were inverted to noise by a diffusion autoencoder under their own contrast "
               "and anatomy vectors, and decoded under the mean contrast vector of the target.")
    capabilities = Capabilities(trained=True)
    Config = CacdConfig
    Model = CacdModel
    presets = PRESETS

    def describe_target(self, target: Target) -> dict[str, Any]:
        """Return the mean resultant length of the z_c of the target's scans.

        0 to 1; a single scan has 1.
        """
        return {"TargetHomogeneity": float(target.style["homogeneity"][0])}

    def training_facts(self) -> list[str]:
        """See `Backend.training_facts`; with the homogeneity of each site."""
        if not (facts := super().training_facts()):
            return []
        sites = ", ".join(f"{site} {style['homogeneity'][0]:.3f}"
                          for site, style in self.styles_.items())
        return [*facts, "Homogeneity of the scans of a site (mean resultant length of their "
                f"contrast vectors, at most 1): {sites}."]
