"""Tissues of one scan."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import File, traits

from harmonizer.preprocessing.transforms import read_itk_affine, resample
from harmonizer.segmentation.predict import segment
from harmonizer.template import load_template
from harmonizer.volume import read_volume, write_volume

from ..outputs.names import TISSUES
from .base import ExplainedInterface, InputSpec, OutputSpec


class _SegmentInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image, RAS+")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    transform = File(exists=True, mandatory=True, desc="ITK affine, image to template")
    resolution = traits.Int(mandatory=True, desc="voxel size of the template grid, mm")
    weights = traits.Str(mandatory=True, desc="name of the network's weights")


class _SegmentOutputSpec(OutputSpec):
    native = traits.List(File, desc="shares of CSF, GM, WM on the image's grid")
    template = traits.List(File, desc="the same on the template grid")
    support = traits.Float(desc="how well the image bears the shares out")


class Segment(ExplainedInterface):
    """Shares of CSF, GM and WM inside the mask, on both grids."""

    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        found = segment(volume)
        grid = load_template(self.inputs.resolution)
        matrix = read_itk_affine(self.inputs.transform)
        native, template = [], []
        for name in TISSUES:
            share = volume.with_mask(None).with_data(found.tissues[name])
            native.append(str(write_volume(folder / f"{name}.nii", share)))
            moved = resample(share, grid, matrix, antialias=True)
            template.append(str(write_volume(folder / f"template_{name}.nii", moved, code=4)))
        self._results["native"], self._results["template"] = native, template
        self._results["support"] = float(found.support)
