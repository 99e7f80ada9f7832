"""Tissue of an image on the template grid, from the image and the template's priors.

ANTs Atropos (Avants et al. 2011, doi:10.1007/s12021-011-9109-y): a finite mixture of three normal
distributions with a Markov random field, started from and held to the template's tissue maps. The
priors tell the classes apart, so no order of brightness is assumed. It works at 2 mm, where it
takes seconds; what is wanted of it is the same answer for the same brain, not the best border.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..template import load_template, tissue_priors
from ..tissues import TISSUES
from ..volume import Volume
from .segmentations import dice

__all__ = ["AtroposSegmenter"]

LEAST_OVERLAP = 0.75  # Dice of the image's mask with the template's, below which it is elsewhere
_LOCK = threading.Lock()


@dataclass(frozen=True)
class AtroposSegmenter:
    """``segmenter(volume)`` -> probabilities of CSF, GM and WM on the template grid.

    ``resolution_mm``: grid to work on (2; 1 is eight times slower); ``iterations`` of Atropos;
    ``prior_weight``: 0 uses the priors to start only, 1 nothing but them; ``own_grid``: carry the
    answer to the volume's own grid (linear) instead of leaving it on the template's.
    """

    resolution_mm: int = 2
    iterations: int = 3
    prior_weight: float = 0.25
    smoothing: float = 0.1
    own_grid: bool = False

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """InputError unless the volume has a mask that lies on the template's brain."""
        grid = load_template(self.resolution_mm)
        image = _on_grid(volume, grid)
        overlap = dice(image.mask, grid.mask)
        if overlap < LEAST_OVERLAP:
            raise InputError(
                f"expected an image in the space of the template, but its brain mask overlaps the "
                f"template's by a Dice of {overlap:.2f} only. Register it first, or pass another "
                "segmentation.")
        found = _atropos(image, self)
        return _carried(found, image, volume) if self.own_grid else found

    @property
    def name(self) -> str:
        """One word for what it does and with which settings, for caches."""
        return (f"atropos-{self.resolution_mm}mm-{self.iterations}-{self.prior_weight:g}-"
                f"{self.smoothing:g}{'-own' if self.own_grid else ''}")


def _on_grid(volume: Volume, grid: Volume) -> Volume:
    """The volume on another grid: smoothed as far as voxels grow, then read linearly."""
    if volume.mask is None:
        raise InputError("segmentation needs a brain mask and the volume has none. Give a mask.")
    if volume.same_grid(grid):
        return volume
    ratio = grid.spacing / volume.spacing
    sigma = np.where(ratio > 1, 0.4 * ratio, 0.0)  # a box of the new voxel has 0.29 of its width
    inside = volume.mask.astype(np.float32)
    weight = ndimage.gaussian_filter(inside, sigma)
    smooth = ndimage.gaussian_filter(volume.data * inside, sigma)
    smooth = np.divide(smooth, weight, out=np.zeros_like(smooth), where=weight > 1e-3)
    step = np.linalg.inv(volume.affine) @ grid.affine
    data, share = (ndimage.affine_transform(array, step[:3, :3], step[:3, 3], grid.shape, order=1)
                   for array in (smooth, inside))
    return Volume(np.where(share > 0.5, data, 0), grid.affine, share > 0.5)


def _carried(maps: dict[str, np.ndarray], image: Volume, volume: Volume) -> dict[str, np.ndarray]:
    """The maps, on the grid of `image`, on the grid of `volume`; one in all inside its mask."""
    if not image.same_grid(volume):
        step = np.linalg.inv(image.affine) @ volume.affine
        maps = {name: ndimage.affine_transform(one, step[:3, :3], step[:3, 3], volume.shape,
                                               order=1, mode="nearest")
                for name, one in maps.items()}
    total = sum(maps.values())
    known = volume.mask & (total > 1e-3)
    return {name: np.divide(one, total, out=np.zeros_like(one), where=known)
            for name, one in maps.items()}


def _atropos(image: Volume, settings: AtroposSegmenter) -> dict[str, np.ndarray]:
    """Within the mask's box: Atropos walks through all voxels of what it is given, inside or not.

    Its sweeps visit voxels in random order; a constant seed (r) gives the same bits every time.
    """
    from ..preprocessing.ants_bridge import ants_module, to_ants

    ants = ants_module()
    low, high = np.percentile(image.in_mask(), [0.5, 99.5])
    if not high > low:
        raise InputError("expected an image with contrast inside the mask, got a constant one. "
                         "It cannot be segmented.")
    box = ndimage.find_objects(image.mask.astype(np.uint8))[0]
    small = _cut(image, box)
    scaled = np.clip((small.data - low) / (high - low), 0, 1) * 100
    priors = tissue_priors(settings.resolution_mm)
    with _own_temporary_folder():
        found = ants.atropos(
            a=to_ants(small, scaled), x=to_ants(small, small.mask),
            i=[to_ants(small, np.where(small.mask, priors[name][box], 0)) for name in TISSUES],
            m=f"[{settings.smoothing:g},1x1x1]", c=f"[{settings.iterations},0]",
            priorweight=settings.prior_weight, r=0)["probabilityimages"]
        maps = np.zeros((len(TISSUES), *image.shape), dtype=np.float32)
        maps[(slice(None), *box)] = np.stack([one.numpy() for one in found]) * small.mask
    total = maps.sum(axis=0)
    return {name: np.divide(one, total, out=np.zeros_like(one), where=total > 0)
            for name, one in zip(TISSUES, maps)}


def _cut(volume: Volume, box: tuple[slice, ...]) -> Volume:
    """The part of a masked volume in a box, at its place in the world."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return Volume(np.ascontiguousarray(volume.data[box]), affine,
                  np.ascontiguousarray(volume.mask[box]))


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Keep what ants leaves behind in the temporary folder in one of our own, removed at the end.

    antspyx 0.6.3 writes probability maps under `tempfile.mktemp` and does not delete them.
    """
    with _LOCK, tempfile.TemporaryDirectory(prefix="harmonizer-") as folder:
        before = tempfile.tempdir
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
