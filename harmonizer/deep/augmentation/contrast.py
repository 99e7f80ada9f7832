"""Changes of contrast that keep anatomy: GIN, gamma both ways, bias field, blur, Rician noise.

GIN (Ouyang 2022, arXiv 2111.12525) is a random shallow network, new for every draw. CACD uses its
views as scanners that nobody has seen. What the CACD paper's code does and what we do by default
differ; `RELEASE` is theirs (two 3x3 convolutions without bias: a curve with one knee), `GIN` ours
(four layers, kernels 1 and 3, random shifts, the norm kept; methods of the original).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Change", "GinSettings", "GIN", "RELEASE", "Gin", "Gamma", "BiasField", "Blur",
           "Rician", "ContrastSettings", "View", "draw_view"]

BACKGROUND = -1.0


class Change:
    """One drawn change; subclasses are frozen dataclasses of JSON types."""

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(N, 1, ...) image in [-1, 1] -> the same shape; all N get the very same change."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What was drawn, as JSON types; `View.from_record` makes it again."""
        return {"change": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class GinSettings:
    """How GIN's random networks are made.

    Attributes
    ----------
    layers : convolutions, LeakyReLU 0.01 between
    hidden : channels between
    kernels : of which each layer's kernel side is drawn
    shift : whether each channel gets a random N(0, 1) shift
    largest : 2D images are enlarged to this side first so that 3x3 kernels do not blur; 0 = not
    keep_norm : bring the network's output to the norm of its input before they are mixed
    """

    layers: int = 4
    hidden: int = 2
    kernels: tuple[int, ...] = (1, 3)
    shift: bool = True
    largest: int = 0
    keep_norm: bool = True


GIN = GinSettings(kernels=(1, 1, 1, 3))
RELEASE = GinSettings(layers=2, kernels=(3,), shift=False, largest=2048, keep_norm=False)


@dataclass(frozen=True)
class Gin(Change):
    """alpha GIN(x) + (1 - alpha) x, then the brain's 0.5 and 99.5 % quantiles back to [-1, 1].

    The quantiles are those of all N images together: a view is one scanner, and the order of
    brightness between its people is part of what it shows (the paper's code takes minimum and
    maximum, which one vessel decides).
    """

    seed: int
    alpha: float
    settings: GinSettings = GIN

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Change.apply`."""
        y = self._network(image)
        if self.settings.keep_norm:
            y = y * (image.norm() / (y.norm() + 1e-6))
        y = self.alpha * y + (1 - self.alpha) * image
        return rescaled(y, mask)

    def _network(self, image: torch.Tensor) -> torch.Tensor:
        dims = image.ndim - 2
        rng = np.random.default_rng(self.seed)
        s = self.settings
        y = image
        if s.largest and dims == 2:
            y = functional.interpolate(y, scale_factor=s.largest / max(image.shape[2:]),
                                       mode="bilinear", antialias=True)
        for layer in range(s.layers):
            before = 1 if layer == 0 else s.hidden
            after = 1 if layer == s.layers - 1 else s.hidden
            side = int(rng.choice(s.kernels))
            weight = rng.standard_normal((after, before, *[side] * dims))
            shift = rng.standard_normal((1, after, *[1] * dims)) if s.shift else 0.0
            y = _convolved(y, torch.as_tensor(weight).to(y))
            y = y + torch.as_tensor(shift).to(y)
            if layer < s.layers - 1:
                y = functional.leaky_relu(y, 0.01)
        if y.shape != image.shape:
            y = functional.interpolate(y, size=image.shape[2:], mode="bilinear", antialias=True)
        return y


def _convolved(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dims, pad = weight.ndim - 2, weight.shape[-1] // 2
    if pad:
        x = functional.pad(x, [pad] * 2 * dims, mode="replicate")
    return (functional.conv2d if dims == 2 else functional.conv3d)(x, weight)


def rescaled(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The brain's 0.5 and 99.5 % quantiles (of all images together) to [-1, 1], clipped there."""
    values = image[mask > 0].float()
    if values.numel() < 2:
        return torch.full_like(image, BACKGROUND)
    step = max(1, values.numel() // 200_000)  # quantiles of many voxels from evenly taken ones
    low, high = torch.quantile(values[::step], torch.tensor([0.005, 0.995], device=image.device))
    y = (2 * (image - low) / (high - low).clamp(min=1e-6) - 1).clamp(-1, 1)
    return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))


@dataclass(frozen=True)
class Gamma(Change):
    """y = x^exp(log_gamma) on [0, 1]: brighter below zero, darker above."""

    log_gamma: float

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Change.apply`."""
        unit = ((image + 1) / 2).clamp(0, 1)
        return 2 * unit ** math.exp(self.log_gamma) - 1


@dataclass(frozen=True)
class BiasField(Change):
    """x times exp of a smooth field: N(0, u strength) on a coarse grid of `share` of each side.

    Enlarged (bi- or trilinear) to the image, applied on [0, 1], clipped there.
    """

    seed: int
    strength: float
    share: float = 0.025

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Change.apply`."""
        unit = (image + 1) / 2 * self.field(tuple(image.shape[2:])).to(image)
        y = 2 * unit.clamp(0, 1) - 1
        return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))

    def field(self, shape: tuple[int, ...]) -> torch.Tensor:
        """(1, 1, ...) float32 factors > 0 for an image of this shape."""
        rng = np.random.default_rng(self.seed)
        coarse = [max(2, math.ceil(self.share * n)) for n in shape]
        nodes = rng.standard_normal(coarse) * rng.uniform(0, 1, coarse) * self.strength
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        nodes = torch.as_tensor(nodes, dtype=torch.float32)[None, None]
        return functional.interpolate(nodes, size=shape, mode=mode, align_corners=True).exp()


@dataclass(frozen=True)
class Blur(Change):
    """A scanner's resolution: a Gaussian of `sigma` voxels along each axis, within the brain."""

    sigma: tuple[float, ...]

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Change.apply`; weights outside the brain are zero, so that its rim stays bright."""
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
class Rician(Change):
    """Magnitude of the image on [0, 1] plus complex Gaussian noise of `sigma`.

    The map is not linear, so sigma = 0 is left out by the drawing, not by a factor. The N images
    get noise of their own.
    """

    seed: int
    sigma: float

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See `Change.apply`."""
        rng = np.random.default_rng(self.seed)
        real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * self.sigma
        unit = (image + 1) / 2 + torch.as_tensor(real).to(image)
        y = 2 * torch.sqrt(unit ** 2 + torch.as_tensor(imaginary).to(image) ** 2).clamp(0, 1) - 1
        return torch.where(mask > 0, y, torch.full_like(y, BACKGROUND))


@dataclass(frozen=True)
class ContrastSettings:
    """What `draw_view` draws from; 0 leaves a change out.

    Attributes
    ----------
    gin : settings of GIN, or None
    gin_share : probability that a view has GIN
    gamma : standard deviation of log gamma (the CACD code's 0.5, two-sided; the paper's text only
        darkens)
    bias : strength of the bias field
    blur : largest sigma, voxels
    noise : largest sigma of the noise, of the range [0, 1]
    """

    gin: GinSettings | None = GIN
    gin_share: float = 1.0
    gamma: float = 0.5
    bias: float = 0.5
    blur: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class View:
    """Changes in order; what is outside the mask is background at the end."""

    changes: tuple[Change, ...]

    KINDS: ClassVar[dict[str, type[Change]]] = {
        kind.__name__: kind for kind in (Gin, Gamma, BiasField, Blur, Rician)}

    def apply(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(N, 1, ...) image -> its view."""
        for change in self.changes:
            image = change.apply(image, mask)
        return torch.where(mask > 0, image, torch.full_like(image, BACKGROUND))

    def record(self) -> list[dict[str, Any]]:
        """The changes as JSON types."""
        return [change.describe() for change in self.changes]

    @classmethod
    def from_record(cls, record: list[dict[str, Any]]) -> View:
        """The view that a record describes."""
        changes = []
        for entry in record:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            if isinstance(values.get("settings"), dict):
                gin = {k: tuple(v) if isinstance(v, list) else v
                       for k, v in values["settings"].items()}
                values["settings"] = GinSettings(**gin)
            changes.append(cls.KINDS[values.pop("change")](**values))
        return cls(tuple(changes))


def draw_view(rng: np.random.Generator, settings: ContrastSettings, dims: int = 2) -> View:
    """One scanner: GIN, bias field, gamma in the CACD code's order, then blur and noise."""
    seeds = rng.integers(2 ** 31, size=3)
    draws = rng.uniform(size=4)
    log_gamma = float(rng.normal(0, settings.gamma)) if settings.gamma else 0.0
    sigmas = rng.uniform(0, 1, size=3) * settings.blur
    changes: list[Change] = []
    if settings.gin is not None and draws[0] < settings.gin_share:
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
