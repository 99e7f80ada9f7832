"""Nipype interfaces that draw the figures of one scan for the reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, traits

from harmonizer.evaluation.paired_metrics import label_tissues
from harmonizer.reports.figures import ScanImages, scan_figures
from harmonizer.reports.slices import scan_slices
from harmonizer.template import load_template, tissue_priors
from harmonizer.volume import read_volume

from ..outputs.figures import save_figures, save_slices
from ..outputs.names import ScanPaths
from ..outputs.tissues import probabilities_of_scan
from .base import ExplainedInterface, InputSpec, OutputSpec


class _DrawInputSpec(InputSpec):
    out_dir = traits.Str(mandatory=True, desc="the derivative dataset")
    folder = traits.Str(mandatory=True, desc="sub-X[/ses-Y]/anat")
    stem = traits.Str(mandatory=True, desc="source name without suffix")
    modality = traits.Str(mandatory=True, desc="BIDS suffix")
    resolution = traits.Int(mandatory=True, desc="voxel size of the template grid, mm")


class _DrawOutputSpec(OutputSpec):
    figures = traits.List(traits.Str, desc="titles of the figures")


class _DrawPreprocessedInputSpec(_DrawInputSpec):
    conformed = File(exists=True, mandatory=True, desc="image before bias correction, RAS+")
    mask = File(exists=True, mandatory=True, desc="brain mask, RAS+")
    field = File(exists=True, mandatory=True, desc="bias field, RAS+")
    registered = File(exists=True, mandatory=True, desc="image on the template grid")


class DrawPreprocessed(ExplainedInterface):
    """Draw mask outline, bias field and registration."""

    input_spec = _DrawPreprocessedInputSpec
    output_spec = _DrawOutputSpec

    def _work(self, folder: Path) -> None:
        paths = _paths(self.inputs)
        priors = label_tissues(tissue_priors(paths.resolution))
        registered = read_volume(paths.image("preproc", template=True), paths.mask(template=True))
        probabilities, own = probabilities_of_scan(paths)
        images = ScanImages(
            native=read_volume(self.inputs.conformed, self.inputs.mask),
            bias_field=np.asarray(read_volume(self.inputs.field).data),
            registered=registered,
            tissues=label_tissues(probabilities, registered.mask) if own else None,
            template=load_template(paths.resolution),
            template_tissues=priors,
        )
        figures = scan_figures(images)
        self._results["figures"] = save_figures(paths, "preprocess", figures)


class _DrawHarmonizedInputSpec(_DrawInputSpec):
    harmonized = File(exists=True, mandatory=True, desc="harmonized image, template grid")
    desc = traits.Str(mandatory=True, desc="desc entity of the harmonized images")
    target = traits.Str(mandatory=True, desc="name of the target")
    target_quantiles = traits.Dict(desc="tissue -> quantile functions of the target's scans")


class DrawHarmonized(ExplainedInterface):
    """Draw before, after, their difference, tissue histograms, and the slices of the viewer."""

    input_spec = _DrawHarmonizedInputSpec
    output_spec = _DrawOutputSpec

    def _work(self, folder: Path) -> None:
        paths, inputs = _paths(self.inputs), self.inputs
        before = read_volume(paths.image("preproc", template=True), paths.mask(template=True))
        after = read_volume(inputs.harmonized, paths.mask(template=True))
        probabilities, own = probabilities_of_scan(paths)
        bands = {name: np.asarray(rows) for name, rows in inputs.target_quantiles.items()}
        images = ScanImages(
            registered=before,
            harmonized=after,
            tissues=label_tissues(probabilities, before.mask),
            target_quantiles=bands or None,
        )
        figures = scan_figures(images, target=inputs.target)
        stage = f"harmonize-{inputs.desc}"
        brain = load_template(paths.resolution).require_mask()
        save_slices(paths, stage, scan_slices(before, after, brain,
                                              images.tissues if own else None))
        self._results["figures"] = save_figures(paths, stage, figures)


def _paths(inputs: Any) -> ScanPaths:
    return ScanPaths(Path(inputs.out_dir), Path(inputs.folder), inputs.stem, inputs.modality,
                     inputs.resolution)
