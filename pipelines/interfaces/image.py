"""Nipype interfaces for geometry: conform an image, resample it onto the template grid."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import File, traits

from harmonizer.preprocessing.conform import conform
from harmonizer.preprocessing.pipeline import conform_mask, to_template
from harmonizer.preprocessing.transforms import read_itk_affine
from harmonizer.volume import read_volume, write_mask, write_volume

from .base import ExplainedInterface, InputSpec, OutputSpec


class _ConformInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="input image")


class _ConformOutputSpec(OutputSpec):
    out_file = File(desc="image with axes RAS+, float32")
    repairs = traits.List(traits.Str, desc="repairs of the header")


class Conform(ExplainedInterface):
    """Check the geometry of an image and reorient it to RAS+."""

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _work(self, folder: Path) -> None:
        conformed = conform(self.inputs.in_file)
        self._results["out_file"] = str(write_volume(folder / "conformed.nii", conformed.volume))
        self._results["repairs"] = list(conformed.repairs)


class _ConformMaskInputSpec(InputSpec):
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the raw image's grid")
    reference = File(exists=True, mandatory=True, desc="the conformed image")


class _ConformMaskOutputSpec(OutputSpec):
    out_mask = File(desc="the mask with axes RAS+, uint8")


class ConformMask(ExplainedInterface):
    """Reorient a precomputed brain mask to RAS+; it must lie on the grid of the image."""

    input_spec = _ConformMaskInputSpec
    output_spec = _ConformMaskOutputSpec

    def _work(self, folder: Path) -> None:
        image = read_volume(self.inputs.reference)
        mask = conform_mask(self.inputs.in_mask, image)
        self._results["out_mask"] = str(write_mask(folder / "mask.nii", mask, image.affine))


class _ToTemplateInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image, RAS+")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    transform = File(exists=True, mandatory=True, desc="ITK affine, image to template")
    resolution = traits.Int(mandatory=True, desc="voxel size of the template grid, mm")


class _ToTemplateOutputSpec(OutputSpec):
    out_file = File(desc="the image on the template grid, linear")
    out_mask = File(desc="the mask on the template grid")


class ToTemplate(ExplainedInterface):
    """Resample image and mask onto the template grid."""

    input_spec = _ToTemplateInputSpec
    output_spec = _ToTemplateOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        done = to_template(volume, read_itk_affine(self.inputs.transform), self.inputs.resolution)
        self._results["out_file"] = str(write_volume(folder / "template.nii", done, code=4))
        path = write_mask(folder / "mask.nii", done.require_mask(), done.affine, code=4)
        self._results["out_mask"] = str(path)
