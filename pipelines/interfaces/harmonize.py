"""One scan, one fitted model, one target: the harmonized image on both grids."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, traits

from harmonizer.contrast.contrast_transfer import compute_residual, fit_contrast_transfer
from harmonizer.contrast.intensity_map import IntensityMap
from harmonizer.contrast.local_statistics import stack_probabilities
from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.image import gradient_agreement, ssim_structure
from harmonizer.files import read_json, write_json
from harmonizer.methods import registry
from harmonizer.methods.model_folder import model_hash
from harmonizer.methods.native_grid import apply_with_head, change_with_uncertainty
from harmonizer.methods.statistical.tissue_matching import DEFAULT_SEGMENTER, shares_with
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
    covariates = traits.Dict(usedefault=True, desc="what is known of the person")
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
        self._require_head(paths, backend.region)
        target = Target.load(inputs.card)
        brain = read_volume(paths.image("preproc", template=True), paths.mask(template=True))
        volume = brain
        if backend.region != "brain":
            volume = read_volume(paths.image("preproc", template=True),
                                 mask_of(paths, backend.region, template=True))
        tissues, own = probabilities_of_scan(paths)
        tissues = tissues if own and volume is brain else {}
        change, uncertainty = change_with_uncertainty(
            backend, volume, target, source=inputs.site, seed=inputs.seed,
            covariates=inputs.covariates, tissues=tissues,
            checkpoint_folder=Path(inputs.scratch))
        facts = {"Detail": inputs.detail, "IntensityMap": change.describe()}
        if inputs.detail == "guided":
            guided, summary = self._guided(paths, change, volume, tissues)
            facts["DirectMinusGuided"] = summary
            facts.update(DirectMap=facts["IntensityMap"], IntensityMap=guided.describe())
            change = guided
        after = apply_with_head(change, volume)
        if backend.region != "brain":
            facts["Region"] = backend.region
        run = {**self._provenance(target, volume), **backend.describe_model(),
               **backend.describe_target(target), **facts}
        if uncertainty is not None:
            self._save_spread(paths, volume.with_data(uncertainty))
        self._save_native(paths, change, run, backend.region)
        template_file = paths.image(inputs.desc, template=True)
        write_volume(template_file, after, code=4)
        self._sidecar(paths, template_file, True, run)
        self._log(paths, target, brain, after.with_mask(brain.mask))
        self._results["template_file"] = str(template_file)
        self._results["native_file"] = str(paths.image(inputs.desc))
        shutil.rmtree(inputs.scratch, ignore_errors=True)

    def _require_head(self, paths: ScanPaths, region: str) -> None:
        """A method of whole heads would take a brain's edge for skin; InputError for such."""
        image = paths.image("preproc", template=True)
        if region == "head" and read_json(sidecar(image))["SkullStripped"]:
            raise InputError(f"{image.name}: is brain only, and this model was fitted on whole "
                             "heads. Harmonize it by a model with region=brain.")

    def _guided(self, paths: ScanPaths, direct: IntensityMap, volume: Volume,
                tissues: Mapping[str, np.ndarray]) -> tuple[IntensityMap, dict[str, Any]]:
        """The method's change of contrast as local tissue maps, and a summary of the rest."""
        method = direct.apply(volume)
        shares = (stack_probabilities(tissues, volume) if tissues
                  else shares_with(DEFAULT_SEGMENTER, volume))
        change = fit_contrast_transfer(volume, method, shares)
        return change, compute_residual(method, change.apply(volume))[1]

    def _save_spread(self, paths: ScanPaths, spread: Volume) -> None:
        """How far apart the images are whose mean this one is."""
        goal = paths.uncertainty_map(self.inputs.desc)
        write_volume(goal, spread, code=4)
        write_json(sidecar(goal), {
            "Description": "standard deviation over the noise volumes that the method drew, of the "
                           "method's own result on the template grid", "Units": "arbitrary",
            **sidecars.space(True, paths.resolution)})

    def _save_native(self, paths: ScanPaths, change: Any, run: dict[str, Any], region: str
                     ) -> None:
        """On the stored grid, whose affine is the source's bit for bit, whichever form holds it."""
        conformed = conform(paths.image("preproc"))
        mask = conform(mask_of(paths, region)).volume.data > 0.5
        native = conformed.volume.with_mask(mask)
        after = apply_with_head(change, native, read_itk_affine(paths.to_template))
        goal = paths.image(self.inputs.desc)
        write_on_original_grid(goal, after.data, conformed)
        self._sidecar(paths, goal, False, run)

    def _sidecar(self, paths: ScanPaths, image: Path, template: bool, run: dict[str, Any]) -> None:
        before = paths.image("preproc", template=template)
        source = read_json(sidecar(before))
        content = sidecars.harmonized(
            [paths.uri(before)], bool(source["SkullStripped"]), template, paths.resolution, run)
        write_json(sidecar(image), {**sidecars.acquisition_metadata(source), **content})

    def _provenance(self, target: Target, volume: Volume) -> dict[str, Any]:
        """What was done, in words that a sidecar keeps."""
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
            "ForegroundVoxels": int(np.count_nonzero(volume.mask)),
        }

    def _log(self, paths: ScanPaths, target: Target, before: Volume, after: Volume) -> None:
        """Anatomy numbers for the reports; structure and edges do not care for gain."""
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
