"""Networks of CACD, contrast vectors of scans, and the change of contrast by DDIM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from ....deep.diffusion.samplers import Denoiser, ddim, ddim_inversion, denoiser_of
from ....deep.diffusion.schedules import Schedule
from ....deep.networks.encoder import SemanticEncoder
from ....deep.networks.unet import UNet
from ....deep.training.data import BACKGROUND, VolumeStore
from ....deep.training.task import TrainingTask
from ..config import InferenceOptions
from ..model import LearnedModel, Residual
from ..network_input import NetworkInput
from .config import CacdConfig
from .training import CacdTask

__all__ = ["CacdModel"]


class CacdModel(LearnedModel):
    """Diffusion autoencoder; nothing in the networks depends on a site."""

    config: CacdConfig

    @property
    def multiple(self) -> tuple[int, int, int]:
        """In-plane sides are multiples of what both networks need."""
        c = self.config
        side = c.unshuffle * 2 ** (max(len(c.widths), len(c.encoder_widths)) - 1)
        return side, side, 1

    @property
    def options(self) -> InferenceOptions:
        """See `LearnedModel.options`."""
        return InferenceOptions(self.config.batch_slices)

    def build_networks(self) -> dict[str, nn.Module]:
        """See `LearnedModel.build_networks`."""
        c = self.config
        style = c.contrast + c.anatomy
        return {
            "denoiser": UNet(2, 1, 1, c.widths, c.blocks, time=max(4 * c.widths[0], style),
                             style=style, dropout=c.dropout, unshuffle=c.unshuffle),
            "encoder": SemanticEncoder(2, 1, c.encoder_widths, c.blocks, dropout=c.dropout,
                                       heads={"contrast": c.contrast, "anatomy": c.anatomy},
                                       unshuffle=c.unshuffle),
        }

    def training_task(self, store: VolumeStore, scans: tuple[int, ...], seed: int) -> TrainingTask:
        """See `LearnedModel.training_task`."""
        return CacdTask(self.config, self.networks, store, scans, seed)

    # Styles ---------------------------------------------------------------------------------

    def describe(self, scan: NetworkInput, options: InferenceOptions) -> dict[str, np.ndarray]:
        """Return the contrast vector z_c of a scan: the mean over brain slices by area."""
        contrast, area = self.vectors(scan, options)[0], scan.mask.sum(axis=(0, 1))
        return {"contrast": np.average(contrast, axis=0, weights=area).astype(np.float32)}

    def pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the mean z_c, and the mean resultant length of the scans' z_c, 0 to 1."""
        z = np.stack([s["contrast"] for s in summaries]).astype(np.float64)
        norms = np.linalg.norm(z, axis=1)
        direction = (z / np.maximum(norms, 1e-12)[:, None]).mean(axis=0)
        length = float(np.linalg.norm(direction))
        return {"contrast": z.mean(axis=0).astype(np.float32), "homogeneity": np.array([length])}

    def check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """See `LearnedModel.check_style`."""
        if style["contrast"].shape != (self.config.contrast,) or style["homogeneity"].shape != (1,):
            raise ValueError(f"expected {self.config.contrast} numbers as contrast, one as "
                             "homogeneity")

    def vectors(self, scan: NetworkInput, options: InferenceOptions
                ) -> tuple[np.ndarray, np.ndarray]:
        """Encode a scan.

        Returns
        -------
        contrast : ndarray, shape (K, contrast)
            z_c of every slice: its own, or, with `volume_contrast`, the mean over brain slices,
            weighted by area.
        anatomy : ndarray, shape (K, anatomy)
            z_a of every slice; zeros where there is no brain.
        """
        area = scan.mask.sum(axis=(0, 1))
        contrast = np.zeros((len(area), self.config.contrast), np.float32)
        anatomy = np.zeros((len(area), self.config.anatomy), np.float32)
        encoder = self.networks["encoder"]
        for at, x, mask in self.slices(scan, options):
            with torch.no_grad():
                vectors = encoder(x, mask if self.config.masked_pool else None)
            contrast[at] = vectors["contrast"].cpu().numpy()
            anatomy[at] = vectors["anatomy"].cpu().numpy()
        if self.config.volume_contrast:
            contrast[:] = np.average(contrast, axis=0, weights=area)
        return contrast, anatomy

    def slices(self, scan: NetworkInput, options: InferenceOptions
               ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Yield indices, images (n, 1, I, J) and masks of slices with brain, in batches."""
        places = np.flatnonzero(scan.mask.any(axis=(0, 1)))
        count = options.batch_slices or len(places)
        for first in range(0, len(places), count):
            at = places[first:first + count]
            yield (at, self.tensor(scan.image[:, :, at].transpose(2, 0, 1)[:, None]),
                   self.tensor(scan.mask[:, :, at].transpose(2, 0, 1)[:, None]))

    # Inference ------------------------------------------------------------------------------

    def predict_residual(self, scan: NetworkInput, style: Mapping[str, np.ndarray],
                         rng: np.random.Generator, options: InferenceOptions) -> Residual:
        """See `LearnedModel.predict_residual`."""
        contrast, anatomy = self.vectors(scan, options)
        anatomy = smooth_vectors(anatomy, np.any(scan.mask, axis=(0, 1)),
                                 self.config.anatomy_smoothing)
        change = np.zeros(scan.image.shape, np.float32)
        for at, x, _ in self.slices(scan, options):
            source = self.condition(contrast[at], anatomy[at])
            target = self.condition(np.repeat(style["contrast"][None], len(at), 0), anatomy[at])
            after = self.swap(x, source, target).cpu().numpy()
            change[:, :, at] = after[:, 0].transpose(1, 2, 0)
        return Residual(smooth_across_slices(change, scan.mask, self.config.change_smoothing))

    def condition(self, contrast: np.ndarray, anatomy: np.ndarray) -> torch.Tensor:
        """Concatenate z_c and z_a, (n, contrast + anatomy), in the order of the authors' code."""
        return self.tensor(np.concatenate([contrast, anatomy], axis=1))

    def swap(self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the change of (n, 1, I, J) slices when one condition is replaced by another.

        Decoded under its own condition a slice is itself again but for the error of inversion and
        sampling, whatever the networks learned. With `residual` this error is subtracted; without,
        voxels at -1 are kept, as in the authors' code.
        """
        latent = self.invert(x, source)
        after = self.decode(latent, target)
        if self.config.residual:
            return after - self.decode(latent, source)
        return torch.where(x > BACKGROUND, after - x, torch.zeros_like(x))

    def invert(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Invert slices to noise maps at timestep `strength` T."""
        c = self.config
        with torch.no_grad():
            return ddim_inversion(self._denoiser(condition, c.clip_inversion), self._schedule, x,
                                  self._grid, c.corrections)

    def decode(self, latent: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Decode noise maps to slices."""
        with torch.no_grad():
            return ddim(self._denoiser(condition, self.config.clip_sampling), self._schedule,
                        latent, self._grid)

    def _denoiser(self, condition: torch.Tensor, clip: bool) -> Denoiser:
        network = self.networks["denoiser"]
        return denoiser_of(lambda x, t: network(x, t, condition), self._schedule,
                           self.config.prediction, 1.0 if clip else None)  # type: ignore[arg-type]

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.config.timesteps)

    @property
    def _grid(self) -> tuple[int, ...]:
        c = self.config
        return self._schedule.grid(c.sampling_steps, c.spacing, c.strength)  # type: ignore


def smooth_vectors(vectors: np.ndarray, valid: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth (K, d) vectors over the valid slices by a Gaussian of `sigma` slices."""
    if sigma <= 0:
        return vectors
    weight = ndimage.gaussian_filter1d(valid.astype(np.float64), sigma, mode="constant")
    total = ndimage.gaussian_filter1d(vectors * valid[:, None].astype(np.float64), sigma, axis=0,
                                      mode="constant")
    return (total / np.maximum(weight, 1e-9)[:, None]).astype(np.float32)


def smooth_across_slices(change: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth an (I, J, K) change along its last axis, within the mask."""
    if sigma <= 0:
        return change
    inside = mask.astype(np.float32)
    weight = ndimage.gaussian_filter1d(inside, sigma, axis=2, mode="constant")
    total = ndimage.gaussian_filter1d(change * inside, sigma, axis=2, mode="constant")
    return total / np.maximum(weight, 1e-6)
