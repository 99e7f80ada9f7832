"""Networks of IHF-Harmony, artifact statistics of scans, and the change by the flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ....deep.networks.feature_pyramid import FeaturePyramid
from ....deep.networks.hierarchy_flow import FlowNetwork, Stage
from ....deep.networks.vgg import WIDTHS, VggFeatures, read_vgg
from ....deep.training.data import VolumeStore
from ....deep.training.task import TrainingTask
from ...base import MAX_INTENSITY
from ..config import NONE, InferenceOptions
from ..model import LearnedModel, Residual
from ..network_input import NetworkInput
from .config import NEIGHBORS, IhfConfig
from .features import (
    Features,
    artifact_statistics,
    feature_moments,
    height_of,
    mean_by_height,
    modality_code,
    sum_slices,
)
from .training import IhfTask

__all__ = ["IhfModel"]


class IhfModel(LearnedModel):
    """Flow network; it depends on statistics, not on sites."""

    config: IhfConfig
    balances_tissues = True

    @property
    def multiple(self) -> tuple[int, int, int]:
        """In-plane sides are multiples of all squeezes and halvings."""
        side = int(np.lcm(np.prod(self.config.squeezes), 2 ** (len(self.widths) - 1)))
        return side, side, 1

    @property
    def options(self) -> InferenceOptions:
        """See `LearnedModel.options`."""
        return InferenceOptions(self.config.batch_slices)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels of the features."""
        return WIDTHS if self.config.vgg != NONE else self.config.pyramid

    def build_networks(self) -> dict[str, nn.Module]:
        """See `LearnedModel.build_networks`."""
        c = self.config
        stages = tuple(Stage(*stage) for stage in zip(c.squeezes, c.splits, c.hidden))
        codes = len(self.modalities) if len(self.modalities) > 1 else 0
        flow = FlowNetwork(2 * NEIGHBORS + 1, stages, 2 * sum(self.widths), c.style, c.fusion,
                           c.instance, c.anchored, codes)
        return {"flow": flow, "vgg": VggFeatures()} if c.vgg != NONE else {"flow": flow}

    def load_user_weights(self) -> None:
        """Load the weights of VGG-19, if the config names them."""
        if self.config.vgg != NONE:
            self.networks["vgg"].load_state_dict(read_vgg(Path(self.config.vgg)))

    @property
    def features(self) -> Features:
        """The fixed features, on the device."""
        if self.config.vgg != NONE:
            return self.networks["vgg"].to(self.device)
        return FeaturePyramid(2 * NEIGHBORS + 1, self.config.pyramid).to(self.device)

    def training_task(self, store: VolumeStore, scans: tuple[int, ...], seed: int) -> TrainingTask:
        """See `LearnedModel.training_task`."""
        return IhfTask(self.config, self.networks, self.features, store, scans, seed)

    # Styles ---------------------------------------------------------------------------------

    def describe(self, scan: NetworkInput, options: InferenceOptions) -> dict[str, np.ndarray]:
        """Return the artifact statistics z_s of a scan (eq. 1), (2 C,) or (heights, 2 C)."""
        features = self.features
        with torch.no_grad():
            sums = (feature_moments(features(x), w) for _, x, w
                    in self.slabs(scan, scan.weights(), options))
            if not self.config.heights:
                return {"z_s": artifact_statistics(sum_slices(sums))[0].cpu().numpy()}
            z_s = np.concatenate([artifact_statistics(s).cpu().numpy() for s in sums])
        middles = np.flatnonzero(scan.mask.any(axis=(0, 1)))
        return {"z_s": mean_by_height(z_s, middles, self.config.heights)}

    def pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the mean z_s."""
        return {"z_s": np.stack([s["z_s"] for s in summaries]).mean(axis=0, dtype=np.float64
                                                                    ).astype(np.float32)}

    def check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """See `LearnedModel.check_style`."""
        z_s, size, heights = np.asarray(style["z_s"]), 2 * sum(self.widths), self.config.heights
        shape = (heights, size) if heights else (size,)
        if z_s.shape != shape or not (np.abs(z_s) < MAX_INTENSITY).all():
            raise ValueError(f"expected {size} statistics of features")

    # Inference ------------------------------------------------------------------------------

    def predict_residual(self, scan: NetworkInput, style: Mapping[str, np.ndarray],
                         rng: np.random.Generator, options: InferenceOptions) -> Residual:
        """See `LearnedModel.predict_residual`.

        With statistics of whole volumes, two passes over the slabs.
        """
        flow, heights = self.networks["flow"], self.config.heights
        target_s, source_s = (self._with_code(z, scan.modality) for z in
                              (style["z_s"], self.describe(scan, options)["z_s"]))
        change, counts = np.zeros(scan.image.shape, np.float32), np.zeros(scan.image.shape[2])
        at = np.zeros(scan.image.shape[2], int)
        middles = np.flatnonzero(scan.mask.any(axis=(0, 1)))
        at[middles] = height_of(middles, max(heights, 1))
        with torch.no_grad():
            pooled = None if heights else sum_slices(
                flow.statistics(flow.encode(x), mask)
                for _, x, mask in self.slabs(scan, scan.mask, options))
            for places, x, mask in self.slabs(scan, scan.mask, options):
                encoded, rows = flow.encode(x), at[places[:, NEIGHBORS]]
                sums = flow.statistics(encoded, mask) if pooled is None else \
                    [s.expand(len(x), -1) for s in pooled]
                after = flow.decode(encoded, sums, target_s[rows], source_s[rows])
                _add_slabs(change, counts, (after - x).cpu().numpy(), places)
        return Residual(change / np.maximum(counts, 1).astype(np.float32))

    def _with_code(self, z_s: np.ndarray, modality: str | None) -> torch.Tensor:
        """Return z_s with the code of a modality, (max(heights, 1), 2 C + m)."""
        rows = np.atleast_2d(z_s)
        code = modality_code(modality, self.modalities)
        return self.tensor(np.concatenate([rows, np.tile(code, (len(rows), 1))], axis=1))

    def slabs(self, scan: NetworkInput, weights: np.ndarray, options: InferenceOptions
              ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Yield the slabs around all slices with brain, in batches.

        Beyond the volume its last slice is repeated.

        Yields
        ------
        places : ndarray, shape (n, 3)
            Slices of each slab.
        slabs : Tensor, shape (n, 3, I, J)
        weights : Tensor, shape (n, 1, I, J)
            Of the middle slices.
        """
        image = scan.image
        middles = np.flatnonzero(scan.mask.any(axis=(0, 1)))
        count = options.batch_slices or len(middles)
        for first in range(0, len(middles), count):
            at = middles[first:first + count]
            places = np.clip(at[:, None] + np.arange(-NEIGHBORS, NEIGHBORS + 1), 0,
                             image.shape[2] - 1)
            yield (places, self.tensor(image[:, :, places].transpose(2, 3, 0, 1)),
                   self.tensor(weights[:, :, at].transpose(2, 0, 1)[:, None]))


def _add_slabs(change: np.ndarray, counts: np.ndarray, slabs: np.ndarray, places: np.ndarray
               ) -> None:
    """Add (n, 3, I, J) changes at their places (n, 3), and count them."""
    for slab, at in zip(slabs, places):
        for part, place in zip(slab, at):
            change[:, :, place] += part
            counts[place] += 1
