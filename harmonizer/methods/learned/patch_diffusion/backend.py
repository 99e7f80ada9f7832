"""The patch diffusion backend; see the package for the method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ....cohort import Scan
from ...base import Capabilities, read_scan
from ..base import LearnedBackend
from ..baseline import PERCENTILES
from .config import PRESETS, PatchDiffusionConfig
from .model import PatchDiffusionModel

__all__ = ["PatchDiffusion"]

SAME_SCANS_TOLERANCE = 1e-6  # relative difference of percentiles


class PatchDiffusion(LearnedBackend):
    """Patch-level diffusion guided by anatomy and style (Hache 2026)."""

    name = "patch_diffusion"
    version = "6"
    reference = "Hache et al. 2026, Patch-level anatomy- and style-guided 3D diffusion"
    summary = ("Volumes were inverted part of the way to noise by a 3D diffusion model that sees "
               "overlapping patches and a map of tissue borders, and sampled under the style of "
               "the target with CFG++ guidance.")
    capabilities = Capabilities(trained=True)
    Config = PatchDiffusionConfig
    Model = PatchDiffusionModel
    model_: PatchDiffusionModel
    presets = PRESETS

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        """Return the numbers of the scans with fitted tokens.

        If they are all scans of a site of the fit, its tokens are used, which were trained longer.
        """
        style = super()._enroll(scans)
        for label, known in self.styles_.items():
            if np.allclose(style[PERCENTILES], known[PERCENTILES], rtol=SAME_SCANS_TOLERANCE,
                           atol=0):
                return self._site_style(label)
        inference = self.inference
        inputs = [inference.network_input(read_scan(scan)) for scan in scans]
        tokens = inference.within_memory(lambda options: self.model_.fit_tokens(inputs))
        return {**style, "tokens": tokens}
