"""Application of a model's networks to whole volumes on any grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ...bounding_box import BoundingBox
from ...contrast.intensity import IntensityScale
from ...contrast.local_statistics import stack_probabilities
from ...deep.processor import full_precision
from ...errors import UnavailableError
from ...volume import Volume
from ..base import ScanContext, StatisticsBackend
from .baseline import PERCENTILES
from .config import InferenceOptions
from .model import LearnedModel, Residual
from .network_input import NetworkInput

__all__ = ["Inference", "first_line", "segmenter_of", "uses_tissues"]

T = TypeVar("T")
LOGGER = logging.getLogger("harmonizer")
MAX_RESIDUAL = 0.5  # bound of the residual after a baseline, for intensities in [-1, 1]


@dataclass(frozen=True)
class Inference:
    """A model, and the geometry and baseline of its fit.

    Attributes
    ----------
    name : str
        Name of the method, for messages.
    model : LearnedModel
        Trained networks.
    baseline : StatisticsBackend or None
        Fitted baseline.
    box : BoundingBox
        The box around all brains of the fit.
    grid_shape : tuple of int
        Grid of the fit.
    """

    name: str
    model: LearnedModel
    baseline: StatisticsBackend | None
    box: BoundingBox
    grid_shape: tuple[int, ...]

    @property
    def uses_tissues(self) -> bool:
        """Whether the networks' input has tissue probabilities."""
        return uses_tissues(type(self.model), self.baseline)

    def add_tissues(self, volume: Volume, context: ScanContext) -> ScanContext:
        """Segment the volume if tissues are needed and not known."""
        if context.tissues or not self.uses_tissues or self.baseline is None:
            return context
        return replace(context, tissues=self.baseline.segment(volume))

    def network_input(self, volume: Volume, context: ScanContext | None = None) -> NetworkInput:
        """Crop a volume and scale its robust percentiles to -1 and 1, clipped there."""
        assert volume.mask is not None
        context = context or ScanContext()
        box, scale = self._box_for(volume), IntensityScale.of(volume.in_mask())
        image = np.where(volume.mask, np.clip(scale.to_unit(volume.data), -1, 1), np.float32(-1))
        tissues = None
        if self.uses_tissues and context.tissues:  # as in training
            tissues = np.stack([box.crop(p) for p in stack_probabilities(context.tissues, volume)])
        return NetworkInput(box.crop(image, -1.0), box.crop(volume.mask, False), box, scale,
                            tissues, context.source, context.modality)

    def describe(self, volume: Volume, context: ScanContext) -> dict[str, np.ndarray]:
        """Describe a scan by its percentiles and by the model's own numbers."""
        scan = self.network_input(volume, self.add_tissues(volume, context))
        return {PERCENTILES: np.array([scan.scale.low, scan.scale.high]),
                **self.within_memory(lambda options: self.model.describe(scan, options))}

    def residual(self, volume: Volume, style: Mapping[str, np.ndarray], context: ScanContext,
                 rng: np.random.Generator, checkpoint_folder: Path | None = None) -> Residual:
        """Compute the residual of the networks for a volume after the baseline.

        Returns
        -------
        Residual
            On the volume's grid and in its intensity unit; 0 outside the brain.
        """
        scan, state = self.network_input(volume, context), rng.bit_generator.state

        def predict(options: InferenceOptions) -> Residual:
            rng.bit_generator.state = state  # a second attempt draws the same numbers
            return self.model.predict_residual(scan, style, rng, options)

        result = self.within_memory(predict, checkpoint_folder)
        change = result.change
        if self.baseline is not None:
            change = np.clip(change, -MAX_RESIDUAL, MAX_RESIDUAL)

        def to_volume(values: np.ndarray) -> np.ndarray:
            values = values * np.float32((scan.scale.high - scan.scale.low) / 2)
            return scan.box.paste(np.where(scan.mask, values, 0).astype(np.float32),
                                  np.zeros(volume.shape, np.float32))

        return Residual(to_volume(change), None if result.std is None else to_volume(result.std))

    def within_memory(self, work: Callable[[InferenceOptions], T],
                      checkpoint_folder: Path | None = None) -> T:
        """Run a computation in single precision; retry once with less memory on a full GPU.

        Fewer slices are then processed at once. Patches are not made smaller, because their size
        would change the result.

        Raises
        ------
        UnavailableError
            If the memory does not suffice either.
        """
        options = replace(self.model.options, checkpoint_folder=checkpoint_folder)
        try:
            with full_precision():
                return work(options)
        except torch.cuda.OutOfMemoryError as error:
            LOGGER.warning("%s: %s; retrying with fewer slices at once.", self.name,
                           first_line(error))
        torch.cuda.empty_cache()  # outside `except`, where no traceback holds tensors any more
        try:
            with full_precision():
                return work(options.with_less_memory())
        except torch.cuda.OutOfMemoryError as error:
            raise UnavailableError(
                f"{self.name}: {self.model.device} has not enough memory for one scan "
                f"({first_line(error)}). Use --device cpu or a GPU with more memory, or stop other "
                "programs on this one."
            ) from error

    def _box_for(self, volume: Volume) -> BoundingBox:
        """Return the box of the fit if the grid is the same and it has the brain, or a new one."""
        assert volume.mask is not None
        if (volume.shape == self.grid_shape
                and self.box.crop(volume.mask, False).sum() == volume.mask.sum()):
            return self.box
        return BoundingBox.around(volume.mask, self.model.multiple)


def uses_tissues(kind: type[LearnedModel], baseline: StatisticsBackend | None) -> bool:
    """Return whether a model uses tissue probabilities together with this baseline."""
    return kind.balances_tissues and baseline is not None and baseline.by_tissue


def segmenter_of(kind: type[LearnedModel], baseline: StatisticsBackend | None
                 ) -> Callable[[Volume], Mapping[str, Any]] | None:
    """Return the segmenter of the tissues that training needs; None if it needs none."""
    return baseline.segment if baseline is not None and uses_tissues(kind, baseline) else None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or ["out of memory"])[0]
