"""Tissue segmentation at 2 mm in about two seconds, from the template's tissue priors.

Used for images with coarse voxels, such as those of ``--sloppy`` runs. The template's tissue maps
are the prior, and the image's intensities move the borders (`refine`). The result is less accurate
than that of the network at 1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..preprocessing.transforms import resample
from ..template import load_template, tissue_priors
from ..tissues import TISSUES
from ..volume import Volume
from .refine import PriorSettings, refine

__all__ = ["CoarseSegmenter"]

TEMPLATE_PRIOR = PriorSettings(
    contrast_to_noise_range=(0.25, 0.5), blur_mm=0.7, csf_floor=0.8, csf_floor_in_wm=0.8,
    csf_logit=0.15, likelihood_weight=1.0, outlier_density=0.0)
"""The template prior is independent of the image, so the likelihood has full weight. The contrast
limits are lower than for a network prior: ventricles and gyri of a subject do not lie where the
template's do, which mixes the tissue means under the template's probabilities."""


@dataclass(frozen=True)
class CoarseSegmenter:
    """Segment an image in template space at 2 mm.

    Attributes
    ----------
    name : str
        Name and revision, for caches.
    """

    name: str = "coarse-2"

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """Segment one image.

        Parameters
        ----------
        volume : Volume
            Image in template space with a brain mask, on any grid.

        Returns
        -------
        dict of str to (I, J, K) float32 ndarray
            Probabilities of CSF, GM and WM on the volume's grid.

        Raises
        ------
        InputError
            If the mask is missing or empty.
        """
        if volume.mask is None or not volume.mask.any():
            raise InputError("segmentation needs a brain mask, got none or an empty one. "
                             "Give a mask.")
        grid, priors = load_template(2), tissue_priors(2)
        image = volume if volume.same_grid(grid) else resample(volume, grid, antialias=True)
        mask = image.require_mask()
        prior = np.stack([priors[name] for name in TISSUES]) + np.float32(1e-3) * mask
        posterior = refine(image.data, mask, prior, TEMPLATE_PRIOR)
        if image is volume:
            return dict(zip(TISSUES, posterior))
        maps = [resample(grid.with_mask(None).with_data(one), volume).data for one in posterior]
        total = sum(maps)
        covered = volume.mask & (total > 1e-3)
        return {name: np.divide(one, total, out=np.zeros_like(one), where=covered)
                for name, one in zip(TISSUES, maps)}
