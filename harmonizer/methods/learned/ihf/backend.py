"""The IHF-Harmony backend; see the package for the method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....deep.networks.vgg import read_vgg
from ....errors import UsageError
from ....volume import Volume
from ...base import Capabilities, HarmonizationResult, ScanContext
from ...target import Target
from ..base import LearnedBackend
from ..config import NONE
from .config import PRESETS, IhfConfig
from .model import IhfModel

__all__ = ["Ihf"]


class Ihf(LearnedBackend):
    """Invertible hierarchy flow (Zhu 2026)."""

    name = "ihf"
    reference = ("Zhu et al. 2026, IHF-Harmony: Multi-Modality Magnetic Resonance Images "
                 "Harmonization using Invertible Hierarchy Flow Model")
    summary = ("Slabs of slices were decomposed by an invertible hierarchy flow, its features were "
               "given the statistics that the target's features call for, and it was run back.")
    capabilities = Capabilities(trained=True, modalities=True)
    Config = IhfConfig
    Model = IhfModel
    presets = PRESETS

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """See `LearnedBackend.config_from`; the paper's features need a file."""
        if values.get("preset") == "paper" and "vgg" not in values:
            raise UsageError(
                "ihf: the preset paper uses features of VGG-19, whose weights are not part of this "
                "package. Name their file with --backend-option vgg=FILE "
                "(docs/how-to/method-options.md says how to make it), or use random filters "
                f"instead with vgg={NONE}.")
        return super().config_from(values)

    def check_settings_files(self) -> None:
        """Check that the weights of VGG-19 can be read, if the config names them."""
        if self.config.vgg != NONE:
            read_vgg(Path(self.config.vgg))

    def _harmonize(self, volume: Volume, target: Target, context: ScanContext,
                   rng: np.random.Generator, checkpoint_folder: Path | None
                   ) -> HarmonizationResult:
        if self.config.anchored and target.kind == "site" and context.source == target.label:
            return HarmonizationResult(volume)
        return super()._harmonize(volume, target, context, rng, checkpoint_folder)
