"""Changes of contrast that keep anatomy: GIN, gamma, bias field, blur and Rician noise.

GIN is a shallow network with random weights, which are drawn for every view. CACD uses its views as
simulated scanners. `GIN_CACD` has the settings of the CACD authors' code: two 3x3 convolutions
without bias. `GIN` has those of the original method: four layers, kernels 1 and 3, random shifts,
preserved norm.

References
----------
Ouyang et al. 2022, "Causality-inspired single-source domain generalization for medical image
segmentation", arXiv:2111.12525 (GIN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

__all__ = ["ContrastChange", "GinSettings", "GIN", "GIN_CACD", "Gin", "Gamma", "BiasField", "Blur",
           "Rician", "ContrastSettings", "View", "draw_view"]

BACKGROUND = -1.0
BRAIN_QUANTILES = (0.005, 0.995)  # mapped to -1 and 1
MAX_QUANTILE_VALUES = 200_000
BIAS_NODE_FRACTION = 0.025  # nodes of a bias field along an axis, of its voxels


class ContrastChange:
    """A drawn change of contrast; subclasses are frozen dataclasses."""

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Apply the same change to all images of a batch.

        Parameters
        ----------
        image : Tensor, shape (N, 1, ...)
            In [-1, 1].
        mask : Tensor, shape (N, 1, ...)
            Brain.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class GinSettings:
    """Architecture of GIN's random networks.

    Attributes
    ----------
    layers : int
        Convolutions, with LeakyReLU 0.01 between.
    hidden : int
        Channels between.
    kernels : tuple of int
        Kernel sides that each layer draws from.
    shift : bool
        Whether each channel gets a random N(0, 1) shift.
    min_side : int
        2D images are enlarged to this side first, so that 3x3 kernels do not blur; 0 = not.
    keep_norm : bool
        Scale the network's output to the norm of its input before they are mixed.
    full_range : bool
        Rescale by minimum and maximum of the brain instead of by its quantiles.
    """

    layers: int = 4
    hidden: int = 2
    kernels: tuple[int, ...] = (1, 3)
    shift: bool = True
    min_side: int = 0
    keep_norm: bool = True
    full_range: bool = False


GIN = GinSettings(kernels=(1, 1, 1, 3))
GIN_CACD = GinSettings(layers=2, kernels=(3,), shift=False, min_side=2048, keep_norm=False,
                       full_range=True)


@dataclass(frozen=True)
class Gin(ContrastChange):
    """Mix an image with the output of a random network, rescaled to [-1, 1].

    The 0.5 and 99.5 % quantiles of the brain become -1 and 1. They are computed over all N images
    together, because a view is one scanner and preserves the differences between subjects. The CACD
    authors' code uses minimum and maximum (`full_range`), which depend on single vessels.

    Attributes
    ----------
    seed : int
        Seed of the network's weights.
    alpha : float
        Weight of the network's output, 0..1.
    settings : GinSettings
        Architecture.
    """

    seed: int
    alpha: float
    settings: GinSettings = GIN

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `ContrastChange.apply`."""
        y = self._network(image)
        if self.settings.keep_norm:
            y = y * (image.norm() / (y.norm() + 1e-6))
        y = self.alpha * y + (1 - self.alpha) * image
        return rescale(y, mask, (0.0, 1.0) if self.settings.full_range else BRAIN_QUANTILES)

    def _network(self, image: torch.Tensor) -> torch.Tensor:
        dims = image.ndim - 2
        rng = np.random.default_rng(self.seed)
        s = self.settings
        y = image
        if s.min_side and dims == 2:
            y = functional.interpolate(y, scale_factor=s.min_side / max(image.shape[2:]),
                                       mode="bilinear", antialias=True)
        for layer in range(s.layers):
            in_channels = 1 if layer == 0 else s.hidden
            out_channels = 1 if layer == s.layers - 1 else s.hidden
            side = int(rng.choice(s.kernels))
            weight = rng.standard_normal((out_channels, in_channels, *[side] * dims))
            shift = rng.standard_normal((1, out_channels, *[1] * dims)) if s.shift else 0.0
            y = _convolve(y, torch.as_tensor(weight).to(y))
            y = y + torch.as_tensor(shift).to(y)
            if layer < s.layers - 1:
                y = functional.leaky_relu(y, 0.01)
        if y.shape != image.shape:
            y = functional.interpolate(y, size=image.shape[2:], mode="bilinear", antialias=True)
        return y


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dims, pad = weight.ndim - 2, weight.shape[-1] // 2
    if pad:
        x = functional.pad(x, [pad] * 2 * dims, mode="replicate")
    return (functional.conv2d if dims == 2 else functional.conv3d)(x, weight)


def rescale(image: torch.Tensor, mask: torch.Tensor,
            quantiles: tuple[float, float] = BRAIN_QUANTILES) -> torch.Tensor:
    """Map two quantiles of the brain over a batch to -1 and 1, and clip there."""
    values = image[mask > 0].float()
    if values.numel() < 2:
        return torch.full_like(image, BACKGROUND)
    step = max(1, values.numel() // MAX_QUANTILE_VALUES)
    low, high = torch.quantile(values[::step], torch.tensor(quantiles, device=image.device))
    y = (2 * (image - low) / (high - low).clamp(min=1e-6) - 1).clamp(-1, 1)
    return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))


@dataclass(frozen=True)
class Gamma(ContrastChange):
    """Gamma curve y = x^exp(log_gamma) on [0, 1]: brighter below zero, darker above."""

    log_gamma: float

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `ContrastChange.apply`."""
        unit = ((image + 1) / 2).clamp(0, 1)
        return 2 * unit ** math.exp(self.log_gamma) - 1


@dataclass(frozen=True)
class BiasField(ContrastChange):
    """Smooth multiplicative field: exp of N(0, u strength) nodes on a coarse grid, u ~ U(0, 1).

    The nodes are interpolated (bi- or trilinearly) to the image. The field is applied on [0, 1]
    and the result is clipped there.
    """

    seed: int
    strength: float

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `ContrastChange.apply`."""
        unit = (image + 1) / 2 * self.field(tuple(image.shape[2:])).to(image)
        y = 2 * unit.clamp(0, 1) - 1
        return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))

    def field(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the (1, 1, ...) float32 factors > 0 for an image of this shape."""
        rng = np.random.default_rng(self.seed)
        coarse = [max(2, math.ceil(BIAS_NODE_FRACTION * n)) for n in shape]
        values = rng.standard_normal(coarse) * rng.uniform(0, 1, coarse) * self.strength
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        nodes = torch.as_tensor(values, dtype=torch.float32)[None, None]
        return functional.interpolate(nodes, size=shape, mode=mode, align_corners=True).exp()


@dataclass(frozen=True)
class Blur(ContrastChange):
    """Gaussian blur within the brain; `sigma` in voxels along each axis."""

    sigma: tuple[float, ...]

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `ContrastChange.apply`; normalized by the mask, so that the brain's rim is kept."""
        inside = (mask > 0).to(image.dtype)
        y = self._smooth(image * inside) / self._smooth(inside).clamp(min=1e-3)
        return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))

    def _smooth(self, x: torch.Tensor) -> torch.Tensor:
        dims = x.ndim - 2
        for axis, sigma in enumerate(self.sigma[-dims:]):
            if sigma <= 0:
                continue
            radius = max(1, math.ceil(3 * sigma))
            places = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
            kernel = torch.exp(-0.5 * (places / sigma) ** 2)
            shape = [1, 1, *[1] * dims]
            shape[2 + axis] = -1
            padding = [0] * dims
            padding[axis] = radius
            convolve = functional.conv2d if dims == 2 else functional.conv3d
            x = convolve(x, (kernel / kernel.sum()).reshape(shape), padding=padding)
        return x


@dataclass(frozen=True)
class Rician(ContrastChange):
    """Magnitude of the image on [0, 1] plus complex Gaussian noise; independent for each image.

    The map is not linear in the image, so a strength of 0 is omitted when drawing.
    """

    seed: int
    sigma: float

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `ContrastChange.apply`."""
        rng = np.random.default_rng(self.seed)
        real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * self.sigma
        unit = (image + 1) / 2 + torch.as_tensor(real).to(image)
        y = 2 * torch.sqrt(unit ** 2 + torch.as_tensor(imaginary).to(image) ** 2).clamp(0, 1) - 1
        return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))


@dataclass(frozen=True)
class ContrastSettings:
    """Distribution of views; a strength of 0 omits a change.

    Attributes
    ----------
    gin : GinSettings, optional
        Settings of GIN; None omits it.
    gamma : float
        Standard deviation of log gamma (0.5 in the CACD authors' code, in both directions; the
        paper's text only darkens).
    bias : float
        Strength of the bias field.
    blur : float
        Largest sigma, voxels.
    noise : float
        Largest sigma of the noise, of the range [0, 1].
    """

    gin: GinSettings | None = GIN
    gamma: float = 0.5
    bias: float = 0.5
    blur: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class View:
    """A simulated scanner: changes of contrast, applied in order."""

    changes: tuple[ContrastChange, ...]

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Apply all changes to a batch; the result is -1 outside the mask."""
        for change in self.changes:
            image = change.apply(image, mask)
        return torch.where(mask > 0, image, torch.full_like(image, BACKGROUND))


def draw_view(rng: np.random.Generator, settings: ContrastSettings, dims: int = 2) -> View:
    """Draw a view: GIN, bias field and gamma in the order of the CACD code, then blur and noise.

    Parameters
    ----------
    settings : ContrastSettings
        Distribution.
    dims : {2, 3}
        Spatial dimensions of the images.
    """
    seeds = rng.integers(2 ** 31, size=3)
    draws = rng.uniform(size=4)
    log_gamma = float(rng.normal(0, settings.gamma)) if settings.gamma else 0.0
    sigmas = rng.uniform(0, 1, size=3) * settings.blur
    changes: list[ContrastChange] = []
    if settings.gin is not None:
        changes.append(Gin(int(seeds[0]), float(draws[1]), settings.gin))
    if settings.bias:
        changes.append(BiasField(int(seeds[1]), settings.bias))
    if settings.gamma:
        changes.append(Gamma(log_gamma))
    if settings.blur:
        changes.append(Blur(tuple(float(s) for s in sigmas[-dims:])))
    if settings.noise:
        changes.append(Rician(int(seeds[2]), float(draws[3] * settings.noise)))
    return View(tuple(changes))
