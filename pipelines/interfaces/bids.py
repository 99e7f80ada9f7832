"""Nipype interface that writes the derivatives of one preprocessed scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from harmonizer.evaluation.metrics.distribution import quantile_function
from harmonizer.evaluation.paired_metrics import label_tissues, tissue_values
from harmonizer.files import sha256_of, write_json
from harmonizer.preprocessing.conform import Conformed, conform, write_on_original_grid
from harmonizer.preprocessing.transforms import read_itk_affine, write_itk_affine
from harmonizer.segmentation.predict import low_confidence_warning
from harmonizer.tissues import TISSUES
from harmonizer.volume import Volume, read_volume, write_mask, write_volume

from ..outputs import scanlog, sidecars
from ..outputs.figures import figures_index
from ..outputs.names import ScanPaths, sidecar
from ..outputs.tissues import probabilities_of_scan
from .base import ExplainedInterface, InputSpec, OutputSpec


class _SavePreprocessedInputSpec(InputSpec):
    record = traits.Any(mandatory=True, desc="the ScanRecord")
    raw_dir = traits.Str(mandatory=True, desc="root of the raw dataset, for BIDS URIs")
    out_dir = traits.Str(mandatory=True, desc="the derivative dataset")
    resolution = traits.Int(mandatory=True, desc="voxel size of the template grid, mm")
    fingerprint = traits.Str(mandatory=True, desc="hash of source and settings")
    source = File(exists=True, mandatory=True, desc="image that defines the native grid")
    corrected = File(exists=True, mandatory=True, desc="bias-corrected image, RAS+")
    mask = File(exists=True, mandatory=True, desc="brain mask, RAS+")
    transform = File(exists=True, mandatory=True, desc="ITK affine, image to template")
    template_file = File(exists=True, mandatory=True, desc="image on the template grid")
    template_mask = File(exists=True, mandatory=True, desc="mask on the template grid")
    native_probabilities = traits.List(
    File, desc="probabilities of CSF, GM, WM, RAS+; absent without "
    "segmentation")
    template_probabilities = traits.List(File, desc="the same on the template grid")
    contrast_to_noise = traits.Float(desc="contrast-to-noise ratio between the tissues")
    fallback = traits.Str(desc="scan of the session that was segmented; empty: this image")
    weights = traits.Str(desc="name of the network's weights")
    repairs = traits.List(traits.Str, desc="header repairs")
    quality = traits.Dict(desc="quality check of mask and registration")
    seconds_of = traits.Dict(desc="seconds by step")


class _SavePreprocessedOutputSpec(OutputSpec):
    template_file = File(desc="preprocessed image on the template grid")


class SavePreprocessed(ExplainedInterface):
    """Write native and template images, masks, transforms, sidecars and the scan's log.

    The sidecar of the template-grid image is written last: if it exists, all files exist. The index
    of the figures of an earlier run is removed first, because they are drawn again.
    """

    input_spec = _SavePreprocessedInputSpec
    output_spec = _SavePreprocessedOutputSpec

    def _work(self, folder: Path) -> None:
        record, inputs = self.inputs.record, self.inputs
        paths = ScanPaths(Path(inputs.out_dir), record.folder, record.stem, record.modality,
                          inputs.resolution)
        figures_index(paths, "preprocess").unlink(missing_ok=True)
        sidecar(paths.image("preproc", template=True)).unlink(missing_ok=True)
        conformed = conform(inputs.source)
        self._save_native(paths, conformed)
        matrix = read_itk_affine(inputs.transform)
        write_itk_affine(paths.to_template, matrix)
        write_itk_affine(paths.from_template, np.linalg.inv(matrix))
        volume = read_volume(inputs.template_file, inputs.template_mask)
        if isdefined(inputs.native_probabilities):
            self._save_probabilities(paths, conformed)
        self._write_log(paths, volume, conformed)
        self._save_template(paths, volume)
        self._results["template_file"] = str(paths.image("preproc", template=True))

    @property
    def _stripped(self) -> bool:
        return bool(self.inputs.quality.get("brain_only", False))

    def _save_native(self, paths: ScanPaths, conformed: Conformed) -> None:
        source = [sidecars.relative_uri(Path(self.inputs.raw_dir), Path(self.inputs.source))]
        corrected = read_volume(self.inputs.corrected, self.inputs.mask)
        write_on_original_grid(paths.image("preproc"), corrected.data, conformed)
        self._sidecar(paths.image("preproc"), sidecars.preproc(
            source, self._stripped, False, paths.resolution, list(self.inputs.repairs)))
        write_on_original_grid(paths.mask(), corrected.require_mask(), conformed)
        write_json(sidecar(paths.mask()), sidecars.mask(
            [paths.uri(paths.image("preproc"))], False, paths.resolution, self.inputs.quality))

    def _save_template(self, paths: ScanPaths, volume: Volume) -> None:
        image, mask = paths.image("preproc", template=True), paths.mask(template=True)
        write_mask(mask, volume.require_mask(), volume.affine, code=4)
        write_json(sidecar(mask), sidecars.mask(
            [paths.uri(paths.mask())], True, paths.resolution, self.inputs.quality))
        write_volume(image, volume, code=4)
        content = sidecars.preproc([paths.uri(paths.image("preproc"))], self._stripped, True,
                                   paths.resolution, list(self.inputs.repairs))
        self._sidecar(image, {**content, "ImageSHA256": sha256_of(image),
                              "Fingerprint": self.inputs.fingerprint})

    def _save_probabilities(self, paths: ScanPaths, conformed: Conformed) -> None:
        kinds = ((False, self.inputs.native_probabilities),
                 (True, self.inputs.template_probabilities))
        for template, files in kinds:
            source = [paths.uri(paths.image("preproc", template=template))]
            for tissue, file in zip(TISSUES, files):
                path, found = paths.probability(tissue, template=template), read_volume(file)
                if template:
                    write_volume(path, found, code=4)
                else:
                    write_on_original_grid(path, found.data, conformed)
                write_json(sidecar(path), sidecars.probability(
                    source, tissue, template, paths.resolution, self.inputs.weights,
                    self.inputs.contrast_to_noise, self.inputs.fallback))

    def _sidecar(self, image: Path, content: dict[str, Any]) -> None:
        record = self.inputs.record
        write_json(sidecar(image), {**sidecars.acquisition_metadata(record.metadata), **content,
                                    **sidecars.scan_facts(record)})

    def _write_log(self, paths: ScanPaths, volume: Volume, conformed: Conformed) -> None:
        labels = label_tissues(probabilities_of_scan(paths)[0], volume.mask)
        quantiles = {tissue: [float(f"{q:.6g}") for q in quantile_function(values)]
                     for tissue, values in tissue_values(volume, labels).items()}
        quality = dict(self.inputs.quality)
        warnings = [*self.inputs.repairs, *quality.get("reasons", ())]
        facts = {"Quality": quality, "Input": _input_facts(conformed), "Quantiles": quantiles}
        if isdefined(self.inputs.contrast_to_noise):
            facts["ContrastToNoise"] = round(self.inputs.contrast_to_noise, 3)
            if self.inputs.fallback:
                facts["FallbackSegmentation"] = self.inputs.fallback
            else:
                warning = low_confidence_warning(self.inputs.contrast_to_noise)
                warnings += [warning] if warning else []
        scanlog.write_log(paths.out, scanlog.ScanLog(
            paths.scan_id, "preprocess", "done", self.inputs.record.site,
            warnings=tuple(warnings), seconds=dict(self.inputs.seconds_of),
            facts=facts))


def _input_facts(conformed: Conformed) -> dict[str, Any]:
    """Describe the input image for the report."""
    spacing = np.linalg.norm(conformed.original_affine[:3, :3], axis=0)
    return {
        "VoxelSize": [float(f"{s:.4g}") for s in spacing],
        "Shape": list(conformed.original_shape),
        "Axes": conformed.original_axes,
        "DataType": str(conformed.header.get_data_dtype()),
    }
