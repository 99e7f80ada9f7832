"""Nipype interfaces to ANTs: brain extraction, bias correction, registration, quality check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from harmonizer.preprocessing.bias import correct_bias
from harmonizer.preprocessing.brain import (
    BrainExtraction,
    check_quality,
    extract_brain,
    is_brain_only,
)
from harmonizer.preprocessing.registration import register_to_template
from harmonizer.preprocessing.transforms import read_itk_affine, write_itk_affine
from harmonizer.volume import Volume, read_volume, write_mask, write_volume

from .base import ExplainedInterface, InputSpec, OutputSpec


class _ExtractBrainInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="conformed image")
    mode = traits.Enum(
    "auto",
    "force",
    "skip",
    "network",
    usedefault=True,
     desc="brain extraction method")
    seed = traits.Int(mandatory=True, desc="random seed")
    sloppy = traits.Bool(False, usedefault=True, desc="fast and coarse")
    weights = traits.Str(desc="name of the network's weights; absent: do not use it")


class _ExtractBrainOutputSpec(OutputSpec):
    out_mask = File(desc="brain mask")
    transform = File(desc="initial ITK affine, image to template")
    quality = traits.Dict(desc="extraction method and quality")


class ExtractBrain(ExplainedInterface):
    """Correct the bias roughly, extract the brain, and compare the mask with the network's."""

    input_spec = _ExtractBrainInputSpec
    output_spec = _ExtractBrainOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file)
        rough, _ = correct_bias(volume, rough=True, sloppy=self.inputs.sloppy)
        found = self._found(volume, rough)
        path = write_mask(folder / "mask.nii", found.mask, volume.affine)
        self._results["out_mask"] = str(path)
        self._results["transform"] = str(write_itk_affine(folder / "pose.txt", found.matrix))
        self._results["quality"] = {"method": found.method, "brain_only": found.brain_only}
        if isdefined(self.inputs.weights) and not found.brain_only and found.method != "network":
            self._results["quality"]["network_dice"] = agreement(volume, found)

    def _found(self, volume: Volume, rough: Volume) -> BrainExtraction:
        """Extract the brain with the requested method."""
        how = {"seed": self.inputs.seed, "sloppy": self.inputs.sloppy}
        if self.inputs.mode != "network":
            return extract_brain(rough, skull_strip=self.inputs.mode, **how)
        from harmonizer.segmentation.brain import brain_by_network

        return brain_by_network(volume, rough, **how)


def agreement(volume: Volume, found: BrainExtraction) -> float:
    """Return the Dice coefficient (0 to 1) of the mask and the network's mask of the raw image."""
    from harmonizer.segmentation.brain import network_mask
    from harmonizer.segmentation.segmentations import dice

    return dice(found.mask, network_mask(volume))


class _CorrectBiasInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="conformed image")
    in_mask = File(exists=True, mandatory=True, desc="brain mask")
    sloppy = traits.Bool(False, usedefault=True, desc="fast and coarse")


class _CorrectBiasOutputSpec(OutputSpec):
    out_file = File(desc="image / field")
    out_field = File(desc="multiplicative field")


class CorrectBias(ExplainedInterface):
    """Correct the bias field with N4 inside the brain mask."""

    input_spec = _CorrectBiasInputSpec
    output_spec = _CorrectBiasOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        corrected, field = correct_bias(volume, sloppy=self.inputs.sloppy)
        self._results["out_file"] = str(write_volume(folder / "corrected.nii", corrected))
        path = write_volume(folder / "field.nii", volume.with_data(field))
        self._results["out_field"] = str(path)


class KeepBias(ExplainedInterface):
    """Pass on an image that is bias-corrected already; the field is 1 everywhere."""

    input_spec = _CorrectBiasInputSpec
    output_spec = _CorrectBiasOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file)
        self._results["out_file"] = self.inputs.in_file
        field = volume.with_data(np.ones(volume.shape))
        self._results["out_field"] = str(write_volume(folder / "field.nii", field))


class _RegisterInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image")
    in_mask = File(exists=True, mandatory=True, desc="brain mask")
    initial = File(exists=True, desc="ITK affine to start from")
    seed = traits.Int(mandatory=True, desc="random seed")
    sloppy = traits.Bool(False, usedefault=True, desc="fast and coarse")


class _RegisterOutputSpec(OutputSpec):
    transform = File(desc="ITK affine, image to template")


class Register(ExplainedInterface):
    """Register the brain to the template with an affine transform."""

    input_spec = _RegisterInputSpec
    output_spec = _RegisterOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        given = self.inputs.initial
        start = read_itk_affine(given) if isdefined(given) else None
        found = register_to_template(volume, start, seed=self.inputs.seed,
                                     sloppy=self.inputs.sloppy)
        self._results["transform"] = str(write_itk_affine(folder / "affine.txt", found.matrix))


STEPS = ("conform", "brain", "bias", "register", "to_template", "segment")


class _CheckQualityInputSpec(InputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image")
    in_mask = File(exists=True, mandatory=True, desc="brain mask")
    transform = File(exists=True, mandatory=True, desc="final ITK affine")
    extraction = traits.Dict(desc="extraction method; absent for a precomputed mask")
    conform = traits.Float(desc="seconds")
    brain = traits.Float(desc="seconds")
    bias = traits.Float(desc="seconds")
    register = traits.Float(desc="seconds")
    to_template = traits.Float(desc="seconds")
    segment = traits.Float(desc="seconds")


class _CheckQualityOutputSpec(OutputSpec):
    quality = traits.Dict(desc="measures, result, reasons")
    seconds_of = traits.Dict(desc="seconds by step")


class CheckQuality(ExplainedInterface):
    """Check the quality of mask and registration, after the last step that changes them."""

    input_spec = _CheckQualityInputSpec
    output_spec = _CheckQualityOutputSpec

    def _work(self, folder: Path) -> None:
        volume = read_volume(self.inputs.in_file, self.inputs.in_mask)
        given = self.inputs.extraction
        how: dict[str, Any] = dict(given) if isdefined(given) else {
            "method": "precomputed", "brain_only": is_brain_only(volume)}
        check = check_quality(volume.with_mask(None), volume.require_mask(),
                              read_itk_affine(self.inputs.transform), how.get("network_dice"))
        known = {key: value for key, value in asdict(check).items() if value is not None}
        self._results["quality"] = {**how, **_plain(known), "low_confidence": check.low_confidence}
        seconds = {step: getattr(self.inputs, step) for step in STEPS}
        self._results["seconds_of"] = {k: v for k, v in seconds.items() if isdefined(v)}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Convert values to JSON types with four significant digits."""
    def tidy(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [tidy(v) for v in value]
        return float(f"{value:.4g}") if isinstance(value, (float, np.floating)) else value

    return {key: tidy(value) for key, value in values.items()}
