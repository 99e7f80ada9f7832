"""Backend `unet`: tissue matching, corrected by a residual U-Net trained on simulated scanners.

The network is shipped with the package, so a fit trains nothing: it fits tissue matching and
measures the card of each site (`scan_card`). The network predicts a residual on the scan's own
voxels. The residual corrects noise, sharpness and partial volume towards the target; the mean
intensity of each tissue is left to tissue matching. DeepHarmony [1]_ trained such a network on
scans of traveling subjects; here the training pairs are simulated, and the target is a card.

The weight of the residual is zero

* for scans of the target site,
* if the cards of scan and target differ only as much as those of two scans of one scanner,
* for modalities on which the weights were not validated.

References
----------
.. [1] Dewey et al. (2019). DeepHarmony: a deep learning approach to contrast harmonization across
   scanner changes. doi:10.1016/j.mri.2019.05.041
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....cohort import Cohort, Scan
from ....contrast.local_statistics import LocalStatistics
from ....contrast.texture import ScanTexture
from ....volume import Volume
from ...base import Capabilities, Progress, ScanContext, read_scan
from ...config import setting
from ...statistical.tissue_matching import TissueMatching, TissueMatchingConfig
from ...target import Target
from .residual_map import ResidualMap
from .scan_card import CARD_NAMES, scan_card
from .weights import WEIGHTS, Weights, check_weights, read_weights

if TYPE_CHECKING:
    from typing import Self

__all__ = ["UNet", "UNetConfig"]

LOGGER = logging.getLogger("harmonizer")
NET = "net:"  # prefix of the network's tensors in a model
CARD_LIMIT = 100.0  # bound of the absolute value of a number of a card
ALIKE, DIFFERENT = 1.5, 3.0
"""The weight of the residual rises from 0 to 1 between these distances of two cards, in standard
deviations between scans of one scanner."""


@dataclass(frozen=True)
class UNetConfig(TissueMatchingConfig):
    """Settings of tissue matching, and the weights of the network.

    Attributes
    ----------
    texture : {"keep"}
        Not a choice here: the network replaces the texture step.
    weights : str
        Weights file; empty for the one of the package.
    """

    texture: str = setting("keep", choices=("keep",))
    weights: str = ""


class UNet(TissueMatching):
    """Tissue matching with a learned residual on the scan's own voxels."""

    name = "unet"
    version = "1"
    reference = ("residual U-Net on simulated scanner pairs, brain-harmonizer; after Dewey et al. "
                 "2019, doi:10.1016/j.mri.2019.05.041")
    summary = ("Local tissue matching to the target was corrected by a residual U-Net, trained on "
               "simulated scanners, with descriptors of the scan's and of the target's noise and "
               "sharpness as conditioning.")
    capabilities = Capabilities(intensity_map=True, tissue_statistics=True)
    Config = UNetConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.weights_: Weights | None = None
        self._network: Any = None
        self._device = "cpu"
        self._cards: dict[int, np.ndarray] = {}

    def check_settings_files(self) -> None:
        """Read the weights file; `UnavailableError` if it is invalid."""
        self._read_weights()

    def on(self, device: str) -> Self:
        """Move the network to a device; see `Backend.on`."""
        self._device, self._network = device, None
        return self

    def _read_weights(self) -> Weights:
        return read_weights(Path(self.config.weights) if self.config.weights else WEIGHTS)

    # Fit ------------------------------------------------------------------------------------

    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        self.weights_, self._network, self._cards = self._read_weights(), None, {}
        modality = cohort.scans[0].modality
        if self._validated_weight(modality) == 0:
            LOGGER.warning("unet: the weights were not validated on %s. The network's residual is "
                           "not used; the result is that of tissue_matching.", modality)
        super()._fit(cohort, seed, progress)
        self._cards = {}

    def _segment_and_measure(self, volume: Volume, tissues: Mapping[str, np.ndarray]
                             ) -> tuple[LocalStatistics, np.ndarray]:
        maps, probabilities = super()._segment_and_measure(volume, tissues)
        self._cards[_key(volume)] = scan_card(volume, probabilities)
        return maps, probabilities

    def _style(self, scans: list[Scan], shared: list[LocalStatistics],
               own: list[LocalStatistics], textures: list[ScanTexture],
               traveling_fraction: float = 0.0) -> dict[str, np.ndarray]:
        cards = [self._cards[_key(read_scan(scan))] for scan in scans]
        return {**super()._style(scans, shared, own, textures, traveling_fraction),
                "card": np.mean(cards, axis=0)}

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        super()._check_style(style)
        card = style["card"]
        if card.shape != (len(CARD_NAMES),) or not (np.abs(card) < CARD_LIMIT).all():
            raise ValueError(f"expected a card of {len(CARD_NAMES)} numbers below {CARD_LIMIT:g}")

    # Harmonize ------------------------------------------------------------------------------

    def _map_of(self, volume: Volume, target: Target, context: ScanContext) -> ResidualMap:
        same = target.kind == "site" and target.label == context.source
        change = self._tissue_map(volume, target.style, context, same)
        card = self._cards.pop(_key(volume))
        target_card = np.asarray(target.style["card"], np.float32)
        distance = self._card_distance(target_card, card)
        gate = float(np.clip((distance - ALIKE) / (DIFFERENT - ALIKE), 0, 1))
        weight = 0.0 if same else gate * self._validated_weight(str(self.modality_))
        facts = {"CardDistance": round(distance, 3)}
        return ResidualMap(change, self._net(), target_card, card, float(volume.spacing.max()),
                           weight, facts)

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> Any:
        target = Target("reference", "style", 1, self.name, str(self.modality_), style)
        return self._map_of(volume, target, ScanContext())

    def _card_distance(self, target_card: np.ndarray, card: np.ndarray) -> float:
        """Return the distance of two cards, in standard deviations between scans of one scanner."""
        assert self.weights_ is not None
        usual = np.asarray(self.weights_.facts["CardStd"], np.float64)
        return float(np.sqrt(np.mean(((target_card - card) / usual) ** 2)))

    def _validated_weight(self, modality: str) -> float:
        """Return the weight of the residual for a modality; 0 if it was not validated."""
        assert self.weights_ is not None
        return float(np.clip(self.weights_.facts.get("Modalities", {}).get(modality, 0.0), 0, 1))

    def _net(self) -> Any:
        if self._network is None:
            assert self.weights_ is not None
            self._network = self.weights_.network().to(self._device)
        return self._network

    # State ----------------------------------------------------------------------------------

    def _shared_state(self) -> dict[str, np.ndarray]:
        import json

        assert self.weights_ is not None
        facts = np.frombuffer(json.dumps(self.weights_.facts, sort_keys=True).encode(), np.uint8)
        return {**super()._shared_state(), "weights_facts": facts.copy(),
                **{NET + name: np.asarray(t) for name, t in self.weights_.tensors.items()}}

    def _set_shared_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        import json

        try:
            facts = json.loads(arrays["weights_facts"].astype(np.uint8).tobytes())
        except UnicodeDecodeError as error:
            raise ValueError("weights_facts is not UTF-8 text") from error
        tensors = {k[len(NET):]: v for k, v in arrays.items() if k.startswith(NET)}
        check_weights(tensors, facts)
        self.weights_, self._network = Weights(tensors, facts), None
        self._cards = {}
        try:
            self._net()
        except RuntimeError as error:
            raise ValueError(f"tensors do not fit the network: {error}") from error
        super()._set_shared_state({k: v for k, v in arrays.items()
                                   if not k.startswith(NET) and k != "weights_facts"})


def _key(volume: Volume) -> int:
    """Return a checksum that identifies an image."""
    return zlib.crc32(np.ascontiguousarray(volume.data).data)
