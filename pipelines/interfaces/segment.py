"""Nipype interface for the tissue segmentation of one scan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from harmonizer.preprocessing.transforms import read_itk_affine, resample
from harmonizer.segmentation.fallback_segmentation import MIN_CONTRAST_RATIO, transfer_segmentation
from harmonizer.segmentation.predict import low_confidence_warning, segment
from harmonizer.segmentation.refine import contrast_to_noise
from harmonizer.template import load_template
from harmonizer.tissues import TISSUES
from harmonizer.volume import Volume, read_volume, write_volume

from ..outputs.names import ScanPaths
from ..outputs.scanlog import read_log
from .base import ExplainedInterface, InputSpec, OutputSpec


class _SegmentInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image, RAS+")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    transform = File(exists=True, mandatory=True, desc="ITK affine, image to template")
    resolution = traits.Int(mandatory=True, desc="voxel size of the template grid, mm")
    weights = traits.Str(mandatory=True, desc="name of the network's weights")
    seed = traits.Int(mandatory=True, desc="random seed of the registration to the T1w image")
    fallback = traits.Tuple(traits.Str, traits.Str, traits.Str, desc="T1w image of the same "
                            "session: derivative dataset, folder and stem")
    fingerprint = traits.Str(desc="hash of source, fallback and settings; part of the cache key")


class _SegmentOutputSpec(OutputSpec):
    native = traits.List(File, desc="probabilities of CSF, GM, WM on the image's grid")
    template = traits.List(File, desc="the same on the template grid")
    contrast_to_noise = traits.Float(desc="contrast-to-noise ratio between the tissues")
    fallback = traits.Str(desc="scan that was segmented instead; empty: this image")


class Segment(ExplainedInterface):
    """Segment CSF, GM and WM inside the brain mask; write probabilities on both grids.

    If the contrast-to-noise ratio is low and the T1w image of the session has a reliable
    segmentation, the latter is transferred. It is not used if its contrast-to-noise ratio in this
    image is much lower.
    """

    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        found = segment(volume)
        tissues, cnr, fallback = found.tissues, float(found.contrast_to_noise), ""
        if low_confidence_warning(cnr) and isdefined(self.inputs.fallback):
            others = self._fallback_segmentation(volume)
            if others is not None:
                theirs = float(contrast_to_noise(volume.in_mask(), np.stack(
                    [others[name][volume.mask] for name in TISSUES])))
                if theirs > MIN_CONTRAST_RATIO * cnr:
                    tissues, cnr, fallback = others, theirs, f"{self.inputs.fallback[2]}_T1w"
        grid = load_template(self.inputs.resolution)
        matrix = read_itk_affine(self.inputs.transform)
        native, template = [], []
        for name in TISSUES:
            probability = volume.with_mask(None).with_data(tissues[name])
            native.append(str(write_volume(folder / f"{name}.nii", probability)))
            resampled = resample(probability, grid, matrix, antialias=True)
            template.append(str(write_volume(folder / f"template_{name}.nii", resampled,
                                             code=4)))
        self._results["native"], self._results["template"] = native, template
        self._results["contrast_to_noise"], self._results["fallback"] = cnr, fallback

    def _fallback_segmentation(self, volume: Volume) -> Mapping[str, np.ndarray] | None:
        """Transfer the probabilities of the T1w image to this grid; None if they are unreliable."""
        out, folder, stem = self.inputs.fallback
        paths = ScanPaths(Path(out), Path(folder), stem, "T1w", self.inputs.resolution)
        log = read_log(paths.out, paths.scan_id, "preprocess")
        cnr = log.facts.get("ContrastToNoise") if log else None
        if cnr is None or low_confidence_warning(cnr) or not paths.probabilities_found():
            return None
        t1w = read_volume(paths.image("preproc"), paths.mask())
        probabilities = {name: read_volume(paths.probability(name)).data for name in TISSUES}
        initial = np.linalg.inv(read_itk_affine(self.inputs.transform)) @ read_itk_affine(
            paths.to_template)
        found = transfer_segmentation(volume, t1w, probabilities, initial,
                                      seed=self.inputs.seed)
        return found.tissues if found.is_reliable else None
