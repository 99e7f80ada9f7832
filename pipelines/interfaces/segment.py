"""Tissues of one scan: found in it, or borrowed from the T1w image of the same session."""

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
    seed = traits.Int(mandatory=True, desc="of the registration to the donor")
    donor = traits.Tuple(traits.Str, traits.Str, traits.Str, desc="of the T1w image of the same "
                         "session: derivative dataset, folder and stem")
    fingerprint = traits.Str(desc="names source, donor and settings; part of the cache key")


class _SegmentOutputSpec(OutputSpec):
    native = traits.List(File, desc="shares of CSF, GM, WM on the image's grid")
    template = traits.List(File, desc="the same on the template grid")
    support = traits.Float(desc="how well the image bears the shares out")
    donor = traits.Str(desc="stem and suffix of the image that the shares are of; empty: its own")


class Segment(ExplainedInterface):
    """Shares of CSF, GM and WM inside the mask, on both grids.

    Where the image does not bear out what the network finds in it, and a T1w image of the session
    bears out its own, those are brought over, unless the image bears them out much less.
    """

    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        found = segment(volume)
        tissues, support, donor = found.tissues, float(found.contrast_to_noise), ""
        if low_confidence_warning(support) and isdefined(self.inputs.donor):
            others = self._fallback_segmentation(volume)
            if others is not None:
                theirs = float(contrast_to_noise(volume.in_mask(), np.stack(
                    [others[name][volume.mask] for name in TISSUES])))
                if theirs > MIN_CONTRAST_RATIO * support:
                    tissues, support, donor = others, theirs, f"{self.inputs.donor[2]}_T1w"
        grid = load_template(self.inputs.resolution)
        matrix = read_itk_affine(self.inputs.transform)
        native, template = [], []
        for name in TISSUES:
            share = volume.with_mask(None).with_data(tissues[name])
            native.append(str(write_volume(folder / f"{name}.nii", share)))
            moved = resample(share, grid, matrix, antialias=True)
            template.append(str(write_volume(folder / f"template_{name}.nii", moved, code=4)))
        self._results["native"], self._results["template"] = native, template
        self._results["support"], self._results["donor"] = support, donor

    def _fallback_segmentation(self, volume: Volume) -> Mapping[str, np.ndarray] | None:
        """The T1w image's shares on this image's grid; None where there is nothing to rely on."""
        out, folder, stem = self.inputs.donor
        paths = ScanPaths(Path(out), Path(folder), stem, "T1w", self.inputs.resolution)
        log = read_log(paths.out, paths.scan_id, "preprocess")
        support = log.facts.get("ContrastSupport") if log else None
        if support is None or low_confidence_warning(support) or not paths.shares_found():
            return None
        donor = read_volume(paths.image("preproc"), paths.mask())
        shares = {name: read_volume(paths.share(name)).data for name in TISSUES}
        start = np.linalg.inv(read_itk_affine(self.inputs.transform)) @ read_itk_affine(
            paths.to_template)
        found = transfer_segmentation(volume, donor, shares, start, seed=self.inputs.seed)
        return found.tissues if found.is_reliable else None
