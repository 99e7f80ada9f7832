"""Nipype interface that harmonizes one scan to one target, on both grids."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, traits

from harmonizer.evaluation.metrics.image import gradient_agreement, ssim_structure
from harmonizer.files import read_json, write_json
from harmonizer.methods import registry
from harmonizer.methods.harmonize_scan import harmonize_scan
from harmonizer.methods.model_folder import model_hash
from harmonizer.methods.target import Target
from harmonizer.preprocessing.conform import conform, write_on_original_grid
from harmonizer.preprocessing.transforms import read_itk_affine
from harmonizer.volume import Volume, read_volume, write_volume

from ..outputs import scanlog, sidecars
from ..outputs.figures import figures_index
from ..outputs.heads import mask_of
from ..outputs.names import ScanPaths, sidecar
from ..outputs.tissues import probabilities_of_scan
from .base import ExplainedInterface, InputSpec, OutputSpec


class _HarmonizeInputSpec(InputSpec):
    out_dir = traits.Directory(exists=True, mandatory=True, desc="the derivative dataset")
    folder = traits.Str(mandatory=True, desc="sub-X[/ses-Y]/anat")
    stem = traits.Str(mandatory=True, desc="source name without suffix")
    modality = traits.Str(mandatory=True, desc="BIDS suffix")
    resolution = traits.Int(mandatory=True, desc="voxel size of the template grid, mm")
    site = traits.Str(mandatory=True, desc="site of the scan")
    backend = traits.Str(mandatory=True, desc="name of the method")
    model = traits.Directory(exists=True, mandatory=True, desc="model folder")
    model_sha256 = traits.Str(mandatory=True, desc="names the model; part of the cache key")
    card = File(exists=True, mandatory=True, desc="target as a site card")
    card_sha256 = traits.Str(mandatory=True, desc="names the target; part of the cache key")
    source_sha256 = traits.Str(mandatory=True, desc="names the preprocessed image")
    detail = traits.Enum("direct", "guided", usedefault=True, desc="whose voxels: the method's map "
                         "or result, or its change of contrast on the scan's own")
    covariates = traits.Dict(usedefault=True, desc="what is known of the subject")
    desc = traits.Str(mandatory=True, desc="desc entity of the results")
    device = traits.Str("cpu", usedefault=True, nohash=True, desc="where networks run")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="takes a GPU slot")
    seed = traits.Int(mandatory=True, desc="random seed")
    scratch = traits.Str(mandatory=True, nohash=True, desc="folder of what a long sampling has "
                         "finished of this image; gone when it is done")


class _HarmonizeOutputSpec(OutputSpec):
    template_file = File(desc="harmonized image on the template grid")
    native_file = File(desc="harmonized image on the subject's own grid")


class Harmonize(ExplainedInterface):
    """Apply a fitted backend to one scan and write the derivatives with their sidecars."""

    input_spec = _HarmonizeInputSpec
    output_spec = _HarmonizeOutputSpec

    def _work(self, folder: Path) -> None:
        inputs = self.inputs
        paths = ScanPaths(Path(inputs.out_dir), Path(inputs.folder), inputs.stem, inputs.modality,
                          inputs.resolution)
        figures_index(paths, f"harmonize-{inputs.desc}").unlink(missing_ok=True)
        backend = registry.get(inputs.backend).load(inputs.model).on(inputs.device)
        target = Target.load(inputs.card)
        preprocessed = paths.image("preproc", template=True)
        brain = read_volume(preprocessed, paths.mask(template=True))
        whole = backend.region != "brain"
        stripped = bool(read_json(sidecar(preprocessed))["SkullStripped"])
        template = read_volume(preprocessed, mask_of(paths, backend.region, template=True)) \
            if whole else brain
        conformed = conform(paths.image("preproc"))
        native_mask = conform(mask_of(paths, backend.region)).volume.data > 0.5
        tissues, own = probabilities_of_scan(paths)
        done = harmonize_scan(
            backend, target, template, conformed.volume.with_mask(native_mask),
            read_itk_affine(paths.to_template), source=inputs.site, seed=inputs.seed,
            covariates=inputs.covariates, tissues=tissues if own and not whole else {},
            detail=inputs.detail, brain_only=stripped,
            checkpoint_folder=Path(inputs.scratch))
        run = {**self._provenance(target, template), **done.facts}
        if done.uncertainty is not None:
            self._save_uncertainty(paths, template.with_data(done.uncertainty))
        assert done.native is not None
        native_file = paths.image(inputs.desc)
        write_on_original_grid(native_file, done.native.data, conformed)
        self._sidecar(paths, native_file, False, run)
        template_file = paths.image(inputs.desc, template=True)
        write_volume(template_file, done.template, code=4)
        self._sidecar(paths, template_file, True, run)
        self._log(paths, target, brain, done.template.with_mask(brain.mask))
        self._results["template_file"] = str(template_file)
        self._results["native_file"] = str(native_file)
        shutil.rmtree(inputs.scratch, ignore_errors=True)

    def _save_uncertainty(self, paths: ScanPaths, uncertainty: Volume) -> None:
        """Write the standard deviation over the samples whose mean is the image."""
        path = paths.uncertainty_map(self.inputs.desc)
        write_volume(path, uncertainty, code=4)
        write_json(sidecar(path), {
            "Description": "standard deviation over the noise volumes that the method drew, of the "
                           "method's own result on the template grid", "Units": "arbitrary",
            **sidecars.space(True, paths.resolution)})

    def _sidecar(self, paths: ScanPaths, image: Path, template: bool, run: dict[str, Any]) -> None:
        before = paths.image("preproc", template=template)
        source = read_json(sidecar(before))
        content = sidecars.harmonized(
            [paths.uri(before)], bool(source["SkullStripped"]), template, paths.resolution, run)
        write_json(sidecar(image), {**sidecars.acquisition_metadata(source), **content})

    def _provenance(self, target: Target, volume: Volume) -> dict[str, Any]:
        """Return the facts about the harmonization for the sidecar."""
        inputs = self.inputs
        backend = registry.get(inputs.backend)
        return {
            "HarmonizationMethod": inputs.backend,
            "HarmonizationMethodVersion": backend.version,
            "HarmonizationReference": backend.reference,
            "ScanId": f"{inputs.stem}_{inputs.modality}",
            "SourceSite": inputs.site,
            "Target": target.label,
            "TargetKind": target.kind,
            "TargetScans": target.n_scans,
            "TargetSHA256": inputs.card_sha256,
            "ModelSHA256": model_hash(Path(inputs.model)),
            "PreprocessedSHA256": inputs.source_sha256,
            "RandomSeed": inputs.seed,
            "Device": inputs.device,
            "Precision": "float32",
            "ForegroundVoxels": int(np.count_nonzero(volume.require_mask())),
        }

    def _log(self, paths: ScanPaths, target: Target, before: Volume, after: Volume) -> None:
        """Write anatomy measures for the reports; neither of them depends on a gain."""
        assert before.mask is not None
        spacing = tuple(float(s) for s in before.spacing)
        ranges = [float(np.ptp(np.percentile(v.in_mask(), [0.5, 99.5]))) for v in (before, after)]
        facts = {
            "Target": target.label,
            "SSIMStructure": ssim_structure(before.data, after.data, before.mask, *ranges),
            "GradientAgreement": gradient_agreement(before.data, after.data, before.mask, spacing),
            "RangeBefore": [float(v) for v in np.percentile(before.in_mask(), [0.5, 50, 99.5])],
            "RangeAfter": [float(v) for v in np.percentile(after.in_mask(), [0.5, 50, 99.5])],
        }
        scanlog.write_log(paths.out, scanlog.ScanLog(
            paths.scan_id, f"harmonize-{self.inputs.desc}", "done", self.inputs.site, facts=facts))
