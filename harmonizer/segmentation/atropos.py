"""Segment tissues on the template grid with ANTs Atropos and the template's tissue priors.

Atropos [1]_ fits a finite mixture of three normal distributions with a Markov random field. The
template's tissue maps initialize it and act as spatial priors, which identify the classes, so no
order of tissue intensities is assumed. At 2 mm a brain takes seconds. The segmenter is meant to be
consistent across images of one brain rather than precise at borders.

References
----------
.. [1] Avants, B. B. et al. (2011). An open source multivariate framework for n-tissue segmentation
   with evaluation on public data. Neuroinformatics 9(4), 381-400. doi:10.1007/s12021-011-9109-y
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

MIN_MASK_DICE = 0.75  # of the image's mask with the template's; below it, not in template space
_LOCK = threading.Lock()


@dataclass(frozen=True)
class AtroposSegmenter:
    """Segment an image in template space with Atropos.

    Attributes
    ----------
    resolution_mm : int
        Voxel size of the working grid, mm; 1 takes eight times as long as 2.
    iterations : int
        Iterations of Atropos.
    prior_weight : float
        0 uses the priors for initialization only, 1 uses nothing else.
    smoothing : float
        Weight of the Markov random field.
    own_grid : bool
        Resample the result to the volume's grid (linear) instead of the template's.
    """

    resolution_mm: int = 2
    iterations: int = 3
    prior_weight: float = 0.25
    smoothing: float = 0.1
    own_grid: bool = False

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """Compute the probabilities of CSF, GM and WM.

        Parameters
        ----------
        volume : Volume
            Image in template space, with a brain mask.

        Returns
        -------
        dict of str to (I, J, K) float32 ndarray
            Probabilities on the template grid, or on the volume's with `own_grid`.

        Raises
        ------
        InputError
            If there is no mask, or if its Dice coefficient with the template's mask is below
            `MIN_MASK_DICE`.
        """
        grid = load_template(self.resolution_mm)
        image = _to_template_grid(volume, grid)
        overlap = dice(image.require_mask(), grid.require_mask())
        if overlap < MIN_MASK_DICE:
            raise InputError(
                f"expected an image in the space of the template, but the Dice coefficient of its "
                f"brain mask and the template's is {overlap:.2f}. Register the image first, or "
                "give another segmentation.")
        maps = _atropos(image, self)
        return _to_volume_grid(maps, image, volume) if self.own_grid else maps

    @property
    def name(self) -> str:
        """Name of the segmenter and its settings, for caches."""
        return (f"atropos-{self.resolution_mm}mm-{self.iterations}-{self.prior_weight:g}-"
                f"{self.smoothing:g}{'-own' if self.own_grid else ''}")


def _to_template_grid(volume: Volume, grid: Volume) -> Volume:
    """Resample a volume to another grid: smooth in proportion to the voxel size, then linear."""
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
    data, coverage = (
        ndimage.affine_transform(array, step[:3, :3], step[:3, 3], grid.shape, order=1)
        for array in (smooth, inside))
    return Volume(np.where(coverage > 0.5, data, 0), grid.affine, coverage > 0.5)


def _to_volume_grid(maps: dict[str, np.ndarray], image: Volume, volume: Volume
                    ) -> dict[str, np.ndarray]:
    """Resample maps from the grid of `image` to that of `volume`, normalized inside its mask."""
    if not image.same_grid(volume):
        step = np.linalg.inv(image.affine) @ volume.affine
        maps = {name: ndimage.affine_transform(one, step[:3, :3], step[:3, 3], volume.shape,
                                               order=1, mode="nearest")
                for name, one in maps.items()}
    total = sum(maps.values())
    covered = volume.require_mask() & (total > 1e-3)
    return {name: np.divide(one, total, out=np.zeros_like(one), where=covered)
            for name, one in maps.items()}


def _atropos(image: Volume, settings: AtroposSegmenter) -> dict[str, np.ndarray]:
    """Run Atropos inside the bounding box of the mask, since it processes every voxel it gets.

    The random order of its updates is seeded by a constant (r), so repeated runs give equal bits.
    """
    from ..preprocessing.ants_bridge import ants_module, to_ants

    ants = ants_module()
    low, high = np.percentile(image.in_mask(), [0.5, 99.5])
    if not high > low:
        raise InputError("expected an image with contrast inside the mask, got a constant one. "
                         "Exclude it.")
    box = ndimage.find_objects(image.require_mask().astype(np.uint8))[0]
    small = _crop(image, box)
    scaled = np.clip((small.data - low) / (high - low), 0, 1) * 100
    mask, priors = small.require_mask(), tissue_priors(settings.resolution_mm)
    with _own_temporary_folder():
        found = ants.atropos(
            a=to_ants(small, scaled), x=to_ants(small, mask),
            i=[to_ants(small, np.where(mask, priors[name][box], 0)) for name in TISSUES],
            m=f"[{settings.smoothing:g},1x1x1]", c=f"[{settings.iterations},0]",
            priorweight=settings.prior_weight, r=0)["probabilityimages"]
        maps = np.zeros((len(TISSUES), *image.shape), dtype=np.float32)
        maps[(slice(None), *box)] = np.stack([one.numpy() for one in found]) * mask
    total = maps.sum(axis=0)
    return {name: np.divide(one, total, out=np.zeros_like(one), where=total > 0)
            for name, one in zip(TISSUES, maps)}


def _crop(volume: Volume, box: tuple[slice, ...]) -> Volume:
    """Crop a masked volume to a box, keeping its position in world space."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return Volume(np.ascontiguousarray(volume.data[box]), affine,
                  np.ascontiguousarray(volume.require_mask()[box]))


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Redirect the temporary files of ants to a folder that is removed afterwards.

    antspyx 0.6.3 writes probability maps under `tempfile.mktemp` and does not delete them.
    """
    with _LOCK, tempfile.TemporaryDirectory(prefix="harmonizer-") as folder:
        before = tempfile.tempdir
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
