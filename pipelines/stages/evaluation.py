"""The stage `evaluate` of the group level; it reads only the output folder.

It tests site effects, subject identity, biological effects and anatomical preservation, and writes
`metrics.tsv`, `group_statistics.tsv` and `group.html`. The result of the anatomy guard is added to
the sidecar of each image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.distribution import QuantileTable
from harmonizer.evaluation.questions.anatomy import anatomy_change_map
from harmonizer.evaluation.run import EvaluationResult
from harmonizer.evaluation.run import evaluate as evaluate_methods
from harmonizer.evaluation.statistics.resampling import Statistics
from harmonizer.evaluation.table import Metrics
from harmonizer.evaluation.verdicts import QUESTIONS, compute_verdicts
from harmonizer.files import read_json, write_json
from harmonizer.methods.model_folder import is_model, model_hash
from harmonizer.progress import phases
from harmonizer.reports.__main__ import verdicts_of
from harmonizer.reports.anatomy_change import anatomy_change_figure
from harmonizer.reports.figures import Figure
from harmonizer.reports.group import Failure as FailureRow
from harmonizer.reports.group import GroupReport, ScanRow, render_group_report
from harmonizer.reports.wall import WallSlice, wall_slice
from harmonizer.segmentation.predict import NetworkSegmenter
from harmonizer.template import tissue_priors
from harmonizer.volume import load_nifti, write_volume

from ..dataset.records import split_name
from ..outputs.collect import Preprocessed, cohort_of
from ..outputs.figures import load_slices
from ..outputs.names import MODELS, resolution_of, sidecar
from ..outputs.scanlog import failed_logs
from ..outputs.selection import Selection
from ..outputs.sidecars import space
from ..settings import Settings
from .citations import readable
from .design_warnings import checked_columns, design_warnings
from .methods_text import methods_text, software_versions
from .reports import study_name, write_subject_reports
from .site_effect_maps import site_effect_figures

__all__ = ["Variant", "answer_lines", "evaluate", "rewrite_group_report", "variants_of"]

LOGGER = logging.getLogger("pipelines")
MAX_LISTED = 10  # flagged images named in the summary
MAX_ANATOMY_CHANGE_FIGURES = 4  # in the report
SLOPPY_PERMUTATIONS = 20
PERMUTATIONS = 200
PROCESS_GB = 0.3  # of a process that compares images, without the images
GB_PER_VOXEL = 9e-8  # of a pair of images and their maps: 1.06 GB at 1 mm (docs/benchmarks.md)
SEGMENTER_GB = 0.3  # beyond that, where it segments: 1.33 GB were measured at 1 mm
TABLES_GB = 0.7  # of the process that holds the tables and starts the others


@dataclass(frozen=True)
class Variant:
    """One harmonized version of the cohort: images of one desc, method and target.

    Attributes
    ----------
    name : str
        Name in tables: the method, or the desc if a method occurs twice.
    desc : str
        Desc entity of its images.
    backend, target, model : str
        Method, target and model hash from the sidecars.
    items : tuple of Preprocessed
        Scans that have such an image.
    """

    name: str
    desc: str
    backend: str
    target: str
    model: str
    items: tuple[Preprocessed, ...]

    @property
    def cohort(self) -> Cohort:
        """Return its images as a cohort, with the masks of the scans."""
        return Cohort(tuple(replace(i.scan, image=i.paths.image(self.desc, template=True))
                            for i in self.items))


def evaluate(settings: Settings, selection: Selection) -> tuple[str, ...]:
    """Evaluate the harmonized scans; write tables, verdicts and reports; return lines.

    Raises
    ------
    InputError
        If nothing is preprocessed, or images of one desc come from several models.
    UsageError
        If a covariate or the reference site does not exist.
    """
    out = settings.output_dir
    found = selection.find_included()
    if not found:
        raise InputError(f"{out}: holds no preprocessed scan"
                         f"{' that is not excluded' if selection.excluded else ''}. Run the "
                         "participant level first.")
    cohort_of(found).to_tsv(out / "cohort.tsv")
    results = {}
    for modality in settings.modalities:
        scans = [item for item in found if item.scan.modality == modality]
        variants = variants_of(settings, scans)
        if variants:
            results[modality] = (variants, _evaluate_modality(settings, scans, variants))
    if not results:
        return ("Nothing to evaluate yet: no scan is harmonized. Run the participant level again "
                "now that a model is fitted.",)
    warnings = _design_warnings(settings, found)
    for text in warnings:
        LOGGER.warning("%s", text)
    result = EvaluationResult.join(result for _, result in results.values())
    result.metrics.to_tsv(out / "metrics.tsv")
    result.quantiles.to_tsv(out / "metrics_quantiles.tsv")
    result.statistics.to_tsv(out / "group_statistics.tsv")
    everything = [v for variants, _ in results.values() for v in variants]
    flagged = _write_verdicts(everything, result)
    if settings.anatomy_change_maps != "none":
        _write_anatomy_change_maps(everything, result, settings.anatomy_change_maps == "all")
    write_subject_reports(settings, selection)
    evaluated = {modality: variants for modality, (variants, _) in results.items()}
    path = render_group_report(out / "group.html", _group_report(
        settings, selection, found, evaluated, result, warnings))
    return (*answer_lines(evaluated, result.statistics),
            f"Metrics: {out / 'metrics.tsv'}; tests: {out / 'group_statistics.tsv'}",
            _guard_line(flagged, sum(len(v.items) for v in everything)),
            f"Group report: {path}")


def rewrite_group_report(settings: Settings, selection: Selection, folder: Path | None = None
                         ) -> Path:
    """Write ``group.html`` again from the tables of the last evaluation; measure nothing.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    selection : Selection
        Its scans.
    folder : Path, optional
        Folder of the report, with the reports of subjects that it links to; default: OUTPUT_DIR.

    Raises
    ------
    InputError
        If a table is missing or broken.
    """
    out = settings.output_dir
    found = selection.find_included()
    metrics = Metrics.from_tsv(out / "metrics.tsv")
    statistics = Statistics.from_tsv(out / "group_statistics.tsv")
    quantiles = QuantileTable.from_tsv(out / "metrics_quantiles.tsv")
    result = EvaluationResult(metrics, statistics, quantiles, verdicts_of(metrics, statistics), {})
    evaluated = {}
    for modality in settings.modalities:
        variants = variants_of(settings, [i for i in found if i.scan.modality == modality])
        if variants:
            evaluated[modality] = variants
    if not evaluated:
        raise InputError(f"{out}: holds no image desc-{settings.desc}. Run the group level, or "
                         "name another with --desc.")
    report = _group_report(settings, selection, found, evaluated, result,
                           _design_warnings(settings, found))
    folder = out if folder is None else folder
    links = {subject: page for subject, page in report.links.items() if (folder / page).is_file()}
    return render_group_report(folder / "group.html", replace(report, links=links))


def _design_warnings(settings: Settings, found: Sequence[Preprocessed]) -> tuple[str, ...]:
    """Return the warnings about the study design, each once."""
    texts = [text for modality in settings.modalities for text in design_warnings(
        settings, cohort_of([item for item in found if item.scan.modality == modality]))]
    return tuple(dict.fromkeys(texts))


def variants_of(settings: Settings, scans: Sequence[Preprocessed]) -> tuple[Variant, ...]:
    """Return the variants to evaluate: of the run's desc first, then others with ``--compare``."""
    descs = [settings.desc]
    if settings.compare:
        descs += sorted({desc for item in scans for desc in _descs_of(item)} - {settings.desc})
    variants = [made for desc in descs if (made := _variant(desc, scans)) is not None]
    names = [variant.backend for variant in variants]
    return tuple(replace(v, name=v.backend if names.count(v.backend) == 1 else v.desc)
                 for v in variants)


def _descs_of(item: Preprocessed) -> list[str]:
    """Return the desc labels of the harmonized images of a scan."""
    pattern = item.paths.image("*", template=True).name
    before, after = pattern.split("*")
    names = (path.name for path in item.paths.image("*", template=True).parent.glob(pattern))
    descs = [name.removeprefix(before).removesuffix(after) for name in names]
    return [desc for desc in descs if desc != "preproc"]


def _sidecar_of(item: Preprocessed, desc: str) -> dict[str, Any] | None:
    """Read the sidecar of a harmonized image on the template grid; None if there is none."""
    image = item.paths.image(desc, template=True)
    return read_json(sidecar(image)) if image.is_file() and sidecar(image).is_file() else None


def _variant(desc: str, scans: Sequence[Preprocessed]) -> Variant | None:
    """Collect the images of one desc; None if there are none.

    Raises
    ------
    InputError
        If they were made by several methods, to several targets, or with several models.
    """
    made: dict[tuple[str, str, str], list[Preprocessed]] = {}
    for item in scans:
        content = _sidecar_of(item, desc)
        if content is not None:
            key = (content["HarmonizationMethod"], content["Target"], content["ModelSHA256"])
            made.setdefault(key, []).append(item)
    if len(made) > 1:
        kinds = "; ".join(f"{len(items)} by {key[0]} to {key[1]} (model {key[2][:8]}), such as "
                          f"{items[0].scan_id}" for key, items in made.items())
        raise InputError(f"the images desc-{desc} come from different runs: {kinds}. "
                         "Run the harmonize stage again for all participants.")
    for (backend, target, model), items in made.items():
        return Variant(backend, desc, backend, target, model, tuple(items))
    return None


def _evaluate_modality(settings: Settings, scans: Sequence[Preprocessed],
                       variants: Sequence[Variant]) -> EvaluationResult:
    """Evaluate one modality."""
    before = cohort_of(scans)
    covariates = settings.covariates or tuple(
        name for name in ("age", "sex") if any(getattr(s, name) is not None for s in before))
    LOGGER.info("Evaluating %d scans: %s.", len(before), ", ".join(v.name for v in variants))
    with phases("evaluate") as progress:
        return evaluate_methods(
            before, {v.name: v.cohort for v in variants}, variants[0].target,
            covariates=covariates, reference_site=settings.reference_site,
            checked=_known_columns(settings, before),
            traveling=settings.traveling,
            segment=None if settings.sloppy else NetworkSegmenter(quick=True),
            priors=tissue_priors(resolution_of(settings.sloppy)),
            fitted_on=_fitted_on(settings, variants, before),
            permutations=SLOPPY_PERMUTATIONS if settings.sloppy else PERMUTATIONS,
            workers=_workers(settings, scans), progress=progress,
            cache=settings.work_dir / "evaluation", seed=settings.random_seed)


def _known_columns(settings: Settings, cohort: Cohort) -> tuple[str, ...]:
    """Return the columns to compare with the site that these scans have."""
    known = {name for scan in cohort for name in scan.covariates}
    return tuple(name for name in checked_columns(settings) if name in known)


def _workers(settings: Settings, scans: Sequence[Preprocessed]) -> int:
    """Return the number of worker processes that ``--nprocs`` and ``--mem`` allow, at least 1."""
    if settings.mem_gb is None:
        return settings.nprocs
    voxels = float(np.prod(load_nifti(scans[0].scan.mask).shape))
    each = PROCESS_GB + GB_PER_VOXEL * voxels + (0 if settings.sloppy else SEGMENTER_GB)
    workers = max(1, min(settings.nprocs, int((settings.mem_gb - TABLES_GB) / each)))
    if workers < settings.nprocs:
        LOGGER.info(
    "Evaluating in %d of %d processes: memory is limited to %.1f GB, each needs %.1f GB.",
    workers,
    settings.nprocs,
    settings.mem_gb,
     each)
    return workers


def _fitted_on(settings: Settings, variants: Sequence[Variant], before: Cohort
               ) -> dict[str, tuple[str, ...]]:
    """Return method -> subjects of the fit of its model, if the model is found."""
    subjects = {}
    for variant in variants:
        facts = _model_cohort(settings, variant, before.scans[0].modality)
        if facts:
            ids = set(facts.get("ScanIds", ()))
            subjects[variant.name] = tuple(sorted({s.subject for s in before if s.scan_id in ids}))
    return subjects


def _model_cohort(settings: Settings, variant: Variant, modality: str) -> dict[str, Any]:
    """Read cohort.json of the model of a variant; empty if the model is not found."""
    folder = settings.model or settings.output_dir / MODELS / variant.backend / modality
    folder = folder if is_model(folder) else folder / modality
    if not is_model(folder) or model_hash(folder) != variant.model:
        return {}
    return dict(read_json(folder / "cohort.json"))


def _fit_lines(settings: Settings, own: Mapping[str, Variant]) -> tuple[str, ...]:
    """Describe the covariates of each model, and the scans and sites that its fit left out."""
    lines = []
    for modality, variant in own.items():
        facts = _model_cohort(settings, variant, modality)
        rows = facts.get("Covariates", ())
        named = {row["Name"] for row in rows}
        lines += [f"{modality}, covariate {row['Summary']}." for row in rows]
        lines += [f"{modality}, covariate {name}: evaluated, but not preserved, because "
                  "--backend-option covariates of the fit does not name it."
                  for name in settings.covariates if rows and name not in named]
        lines += [f"{modality}: the fit used no scan of {site}."
                  for site in facts.get("SitesLeftOut", ())]
        lines += [f"{modality}: {scan} was left out of the fit: {why}."
                  for scan, why in facts.get("ScansLeftOut", {}).items()]
    return tuple(lines)


def _write_verdicts(variants: Sequence[Variant], result: EvaluationResult) -> list[str]:
    """Write the verdict of each image to its sidecars; return the flagged images."""
    flagged = []
    for variant in variants:
        verdicts: Mapping[str, Any] = result.anatomy_checks.get(variant.name, {})
        for item in variant.items:
            verdict = verdicts.get(item.scan_id)
            if verdict is None:
                continue
            for template in (False, True):
                path = sidecar(item.paths.image(variant.desc, template=template))
                write_json(path, {**read_json(path), "AnatomyGuard": verdict.as_dict()})
            if not verdict.ok:
                flagged.append(f"{item.scan_id} ({variant.name}: {'; '.join(verdict.reasons)})")
    return flagged


def _write_anatomy_change_maps(variants: Sequence[Variant], result: EvaluationResult,
                               every: bool) -> None:
    """Write the anatomy change map of each flagged image, or of every image.

    A constant image has no map.
    """
    for variant in variants:
        verdicts: Mapping[str, Any] = result.anatomy_checks.get(variant.name, {})
        for item, scan in zip(variant.items, variant.cohort):
            verdict = verdicts.get(item.scan_id)
            if verdict is None or (verdict.ok and not every):
                continue
            before, after = item.scan.read(), scan.read()
            if np.ptp(after.data[before.mask]) > 0:
                change_map = anatomy_change_map(before.data, after.data, before.require_mask(),
                                                tuple(before.spacing))
                destination = item.paths.anatomy_change(variant.desc)
                write_volume(destination, before.with_data(change_map), code=4)
                write_json(sidecar(destination), {
                    "Description": "Difference that a change of contrast or a bias field does not "
                                   "explain, averaged over 2.5 mm",
                    "Units": "fraction of the 0.5 to 99.5 % range of the harmonized image",
                    "Sources": [item.paths.uri(item.paths.image(desc, template=True))
                                for desc in ("preproc", variant.desc)],
                    **space(True, item.paths.resolution)})


def answer_lines(evaluated: Mapping[str, Sequence[Variant]], statistics: Statistics
                  ) -> tuple[str, ...]:
    """Return the answers of the run's own method, one line per modality.

    Parameters
    ----------
    evaluated : mapping of str to sequence of Variant
        Modality to variants, the run's own first.
    statistics : Statistics
        Tests of all modalities.

    Returns
    -------
    tuple of str
        One line per modality.
    """
    return tuple(
        f"{modality}, {variants[0].name}: " + "; ".join(
            f"{QUESTIONS[found.question]} {found.words}"
            for found in compute_verdicts(statistics, variants[0].name, modality)) + "."
        for modality, variants in evaluated.items())


def _guard_line(flagged: Sequence[str], total: int) -> str:
    if not flagged:
        return f"Anatomy guard: none of {total} harmonized images is flagged."
    more = f"; and {len(flagged) - MAX_LISTED} more" if len(flagged) > MAX_LISTED else ""
    return (f"Anatomy guard: {len(flagged)} of {total} harmonized images are flagged, check them "
            f"before use: {'; '.join(flagged[:MAX_LISTED])}{more}.")


def _group_report(
    settings: Settings, selection: Selection, found: Sequence[Preprocessed],
    evaluated: Mapping[str, Sequence[Variant]], result: EvaluationResult,
    doubts: Sequence[str] = (),
) -> GroupReport:
    """Collect the group report.

    `evaluated` has the variants of each modality, the run's own first.
    """
    out = settings.output_dir
    own = {modality: variants[0] for modality, variants in evaluated.items()}
    done = {i.scan_id for variants in evaluated.values() for v in variants for i in v.items}
    warnings = tuple(f"{item.scan_id} was preprocessed but not harmonized." for item in found
                     if item.scan_id not in done and item.scan.modality in evaluated)
    warnings += _changed_sites(evaluated)
    if unselected := len(selection.unselected()):  # not by name: a participant may have withdrawn
        warnings += (f"{unselected} other preprocessed scans are in the output folder and not in "
                     "this report. The run's log names them.",)
    if settings.sloppy:
        warnings += ("This was a sloppy run, for tests only: do not use it for science.",)
    rows = tuple(ScanRow(i.scan.scan_id, i.scan.subject, i.scan.site, i.scan.modality, i.scan.age,
                         i.scan.sex, covariates=i.scan.covariates) for i in found)
    named = _known_columns(settings, cohort_of(found))
    links = {subject: f"sub-{subject}.html" for subject in cohort_of(found).subjects
             if (out / f"sub-{subject}.html").is_file()}
    return GroupReport(
        rows, result.metrics, result.quantiles,
        backend=next(iter(own.values())).name, targets={m: v.target for m, v in own.items()},
        failures=tuple(FailureRow(log.scan_id, log.stage, log.message) for log in failed_logs(out)
                       if selection.concerns(log.scan_id)),
        warnings=warnings, critical_warnings=tuple(doubts), covariates=named,
        fit=_fit_lines(settings, own),
        links=links, methods=readable(methods_text(settings, found)),
        software=software_versions(), provenance=_provenance(settings, evaluated),
        statistics=result.statistics, verdicts=result.anatomy_checks,
        anatomy_changes=tuple(figure for v in own.values()
                              for figure in _anatomy_change_figures(v, result)),
        site_effects=_site_effect_figures(settings, own), slices=_wall_slices(own),
        excluded={scan: comment for scan, comment in selection.excluded.items()
                  if split_name(scan)[1] in own},
        study=study_name(settings))


def _wall_slices(own: Mapping[str, Variant]) -> dict[str, WallSlice]:
    """Return the slice of each scan that was drawn when it was harmonized."""
    found = {}
    for variant in own.values():
        for item in variant.items:
            slices = load_slices(item.paths, f"harmonize-{variant.desc}", ("axial",))
            if slices is not None:
                found[item.scan_id] = wall_slice(slices)
    return found


def _changed_sites(evaluated: Mapping[str, Sequence[Variant]]) -> tuple[str, ...]:
    """Name images that were harmonized with another site label than the scan has now."""
    lines = []
    for variant in (variant for variants in evaluated.values() for variant in variants):
        for item in variant.items:
            before = (_sidecar_of(item, variant.desc) or {}).get("SourceSite")
            if before != item.scan.site:
                lines.append(f"{item.scan_id} was harmonized as a scan of site {before}, and its "
                             f"site is {item.scan.site} now: run the fit and harmonize stages.")
    for line in lines:
        LOGGER.warning("%s", line)
    return tuple(lines)


def _site_effect_figures(settings: Settings, own: Mapping[str, Variant]) -> tuple[Figure, ...]:
    """Draw the site effect on each tissue, by modality if there are several."""
    return tuple(
        figure if len(own) == 1 else replace(figure, title=f"{modality}, {figure.title}")
        for modality, variant in own.items() for figure in site_effect_figures(
            replace(settings, backend=variant.backend, desc=variant.desc), variant.model,
            variant.items[0]))


def _anatomy_change_figures(variant: Variant, result: EvaluationResult) -> tuple[Figure, ...]:
    """Return anatomy-change figures of the flagged images with the largest changes."""
    verdicts = result.anatomy_checks.get(variant.name, {})
    flagged = [item for item in variant.items
               if item.scan_id in verdicts and not verdicts[item.scan_id].ok]
    flagged.sort(key=lambda item: -verdicts[item.scan_id].values.get("largest_change", 0.0))
    after = {scan.scan_id: scan for scan in variant.cohort}
    figures = []
    for item in flagged[:MAX_ANATOMY_CHANGE_FIGURES]:
        try:
            figures.append(anatomy_change_figure(
                item.scan_id, item.scan.read(), after[item.scan_id].read(),
                "; ".join(verdicts[item.scan_id].reasons)))
        except InputError as error:  # a constant image has no map
            LOGGER.warning("%s: no map of its anatomy change: %s", item.scan_id, error)
    return tuple(figures)


def _provenance(settings: Settings, evaluated: Mapping[str, Sequence[Variant]]) -> dict[str, str]:
    rows = {f"model of {v.name}, {modality} (SHA-256)": v.model
            for modality, variants in evaluated.items() for v in variants}
    return {**rows, "random seed of the evaluation": str(settings.random_seed),
            "output": os.fspath(Path(settings.output_dir))}
