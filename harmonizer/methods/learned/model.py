"""Networks of a learned method, and what they compute from one scan.

A method derives from `LearnedModel` and implements `build_networks`, `training_task`, `describe`,
`pool` and `predict_residual`. A model knows the config, sites and modalities of the fit, and the
device. It does not know volumes, baselines or files; see `harmonizer.methods.learned.inference`,
`fit`, `validation` and `persistence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...deep.networks.blocks import to_channels_last
from ...deep.training.data import VolumeStore
from ...deep.training.task import TrainingTask
from .config import InferenceOptions
from .network_input import NetworkInput

__all__ = ["Residual", "LearnedModel"]

Style = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Residual:
    """Change that the networks add to the baseline.

    Attributes
    ----------
    change : ndarray, shape (I, J, K), float32
        After - before. Values outside the mask are ignored.
    std : ndarray, shape (I, J, K), float32, optional
        Standard deviation over several samples; None if one or none is drawn.
    """

    change: np.ndarray
    std: np.ndarray | None = None


class LearnedModel(ABC):
    """Networks of one method.

    Parameters
    ----------
    config : LearnedConfig
        Settings of the method.
    sites : tuple of str
        Sites of the fit, sorted.
    modalities : tuple of str
        Modalities that the networks are fitted on, sorted.
    device : str
        Where the networks run.

    Attributes
    ----------
    networks : dict of str to Module
        Empty until they are built or loaded.
    """

    balances_tissues: ClassVar[bool] = False
    """Whether training or statistics use tissue probabilities, if the baseline is by tissue."""
    recovers_from_divergence: ClassVar[bool] = False
    """Whether a training that diverges ends with the best weights before that."""

    def __init__(self, config: Any, sites: tuple[str, ...] = (), modalities: tuple[str, ...] = (),
                 device: str = "cpu") -> None:
        self.config, self.sites, self.modalities, self.device = config, sites, modalities, device
        self.networks: dict[str, Any] = {}  # each method calls functions of its own networks

    @property
    def multiple(self) -> tuple[int, int, int]:
        """Sides of the networks' input must be multiples of these."""
        return 1, 1, 1

    @property
    def options(self) -> InferenceOptions:
        """Default options of inference."""
        return InferenceOptions()

    @abstractmethod
    def build_networks(self) -> dict[str, nn.Module]:
        """Create new networks by name, on the CPU; torch's generator is seeded."""

    def load_user_weights(self) -> None:
        """Load weights from files that the config names into new networks, before training.

        They are saved in the model, which therefore does not need the files again.
        """

    @abstractmethod
    def training_task(self, store: VolumeStore, scans: tuple[int, ...], seed: int) -> TrainingTask:
        """Return the task that trains `networks` on the given scans of a store.

        `identity` and `validate` are filled in by the fit.
        """

    @abstractmethod
    def describe(self, scan: NetworkInput, options: InferenceOptions) -> dict[str, np.ndarray]:
        """Describe one scan by numbers, with the trained networks."""

    @abstractmethod
    def pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Make the style of a site from its scans' numbers."""

    def site_style(self, site: str) -> dict[str, np.ndarray]:
        """Return what the networks themselves know of a site of the fit, besides `pool`."""
        return {}

    @abstractmethod
    def predict_residual(self, scan: NetworkInput, style: Style, rng: np.random.Generator,
                         options: InferenceOptions) -> Residual:
        """Compute the change that brings a scan, after the baseline, to a style."""

    def check_style(self, style: Style) -> None:
        """Raise KeyError or ValueError if these arrays are not a style of this model."""

    def to(self, device: str) -> None:
        """Move the networks to a device."""
        self.device = device
        for network in self.networks.values():
            network.to(device)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Build the networks and load their weights, for inference on the device.

        Parameters
        ----------
        weights : mapping
            ``network.parameter`` -> array.

        Raises
        ------
        RuntimeError
            If the weights do not fit.
        """
        with torch.random.fork_rng([]):
            networks = self.build_networks()
        for name, network in networks.items():
            own = {k.split(".", 1)[1]: torch.from_numpy(np.array(v)) for k, v in weights.items()
                   if k.split(".", 1)[0] == name}
            network.load_state_dict(own)
            to_channels_last(network.to(self.device)).eval().requires_grad_(False)
        self.networks = networks

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array to the device, as contiguous float32."""
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)
