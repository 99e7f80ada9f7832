"""The DISARM backend; see the package for the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....cohort import Scan
from ...base import SCANNER_FREE, Capabilities
from ..base import LearnedBackend
from ..baseline import PERCENTILES, baseline_style, with_prefix
from ..config import TINY_BASELINE
from .config import PRESETS, DisarmConfig
from .model import DisarmModel

__all__ = ["Disarm"]


class Disarm(LearnedBackend):
    """Disentangled scanner-free image generation (Caldera 2024)."""

    name = "disarm"
    reference = ("Caldera et al. 2024, DISARM: Disentangled Scanner-Free Image Generation via "
                 "Unsupervised Image2Image Translation, doi:10.1007/978-3-031-78761-4_10")
    summary = ("Images were encoded into anatomy and scanner codes by adversarially trained "
               "networks, and generated from their own anatomy and the mean scanner code of "
               "the target, or, scanner-free, one code that belongs to no scanner.")
    capabilities = Capabilities(trained=True, scanner_free=True)
    Config = DisarmConfig
    Model = DisarmModel
    model_: DisarmModel
    presets = PRESETS

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """See `LearnedBackend.config_from`; whole heads use histogram matching as the baseline."""
        preset = cls.presets.get(str(values.get("preset", "small")), {})
        if values.get("region") == "head" and "baseline" not in {**preset, **values}:
            values = {**values, "baseline": TINY_BASELINE}
        return super().config_from(values)

    @property
    def region(self) -> str:
        """Which masks the method needs: ``brain`` or ``head``."""
        return str(self.config.region)

    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        if label == SCANNER_FREE:
            return self._scanner_free_style()
        return super()._site_style(label)

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        label = self.model_.label([scan.site for scan in scans])
        return {**super()._enroll(scans), "label": label}

    def _scanner_free_style(self) -> dict[str, np.ndarray]:
        """Return code 0 without label, over the mean baseline of the sites in their own units.

        With `sample_codes`, as in the paper, each image draws its code from N(0, 1).
        """
        styles = [self.styles_[site] for site in self.sites_]
        percentiles = np.array([style[PERCENTILES] for style in styles])
        gains = percentiles[:, 1].mean() / percentiles[:, 1]
        baseline = (self.baseline_._mean_style([baseline_style(style) for style in styles], gains)
                    if self.baseline_ else {})
        zeros = np.zeros(self.config.style, np.float32)
        return {**with_prefix(baseline),
                PERCENTILES: (percentiles * gains[:, None]).mean(axis=0), "code": zeros,
                "std": zeros + np.float32(self.config.sample_codes),
                "label": np.zeros(len(self.model_.sites), np.float32)}
