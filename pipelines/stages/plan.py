"""Plan of a run for ``--dry-run``: scans, steps, reused results, time, memory and disk.

The time of preprocessing is the median of the logs in OUTPUT_DIR, if there are any. Other times are
CPU seconds of one core, measured by the benchmarks.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harmonizer.methods import registry

from ..outputs.names import resolution_of, sidecar
from ..outputs.scanlog import read_log
from ..outputs.selection import Selection
from ..settings import Settings
from ..workflows.engine import SCANS_PER_PROCESS, count_steps
from .fit_selection import chosen
from .targets import existing_target, model_folder_of, planned_target, reason_of_default

if TYPE_CHECKING:
    from ..workflows.preprocessing import ScanJob

__all__ = ["describe_plan", "Estimate", "estimate"]

SECONDS_PER_SCAN = {  # on one core: at 1 mm, and in a sloppy run
    "preprocess": (80.0, 20.0),
    "fit": (3.0, 4.0),
    "harmonize": (15.0, 8.0),
    "evaluate": (36.0, 4.0),
}
NETWORK_SECONDS_PER_SCAN = {"ihf": 32.0, "disarm": 45.0, "cacd": 200.0, "patch_diffusion": 270.0}
SIMULATED_RESCANS_SECONDS = (700.0, 25.0)  # of an evaluation, once for each modality
BYTES_PER_VOXEL = 3.5  # of a compressed float32 image
WORK_BYTES_PER_SCAN = 250e6
TEMPLATE_VOXELS = {1: 8_530_000, 2: 1_070_000}
EVALUATION_GB = (1.4, 0.4)  # of one process
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Estimate:
    """Expected time, memory and disk of a run.

    Attributes
    ----------
    hours : float
        Wall-clock time, without training.
    memory_gb : float
        Peak over all processes.
    output_gb, work_gb : float
        New files in OUTPUT_DIR, and files in the work folder at one time.
    measured : bool
        Whether the time of preprocessing comes from logs of this OUTPUT_DIR.
    """

    hours: float
    memory_gb: float
    output_gb: float
    work_gb: float
    measured: bool


def describe_plan(settings: Settings, selection: Selection) -> tuple[str, ...]:
    """Describe what a run would do; writes nothing, except a requested graph."""
    stages = settings.planned_stages
    lines = [f"Dry run: nothing is executed. Stages: {', '.join(stages)}."]
    for modality in settings.modalities:
        lines += _scans_lines(settings, selection, modality)
    jobs: Sequence[ScanJob] = ()
    if "preprocess" in stages:
        preprocess_lines, jobs = _preprocess_lines(settings, selection)
        lines += preprocess_lines
    if "fit" in stages:
        lines += _fit_lines(settings, selection)
    if "harmonize" in stages:
        lines += _harmonize_lines(settings, selection)
    if "evaluate" in stages:
        count = sum(len(selection.included_cohort(modality)) for modality in settings.modalities)
        lines.append(f"evaluate: {count} scans before and after.")
    if "export" in stages:
        lines.append(f"export: the harmonized images, as a raw BIDS dataset in "
                     f"{settings.export_folder}.")
    return (*lines, *_cost_lines(settings, selection, jobs))


def _scans_lines(settings: Settings, selection: Selection, modality: str) -> list[str]:
    """Describe scans, sites, method and target of one modality."""
    cohort = selection.cohort(modality)
    if not len(cohort):
        return [f"{modality}: no scan."]
    sites = ", ".join(f"{site} {count}" for site, count in cohort.sites.items())
    text = (f"{modality}: {len(cohort)} scans of {len(cohort.subjects)} participants at "
            f"{len(cohort.sites)} sites ({sites})")
    if not {"fit", "harmonize"} & set(settings.planned_stages):
        return [f"{text}."]
    options = ", ".join(f"{name}={value}" for name, value in settings.backend_options.items())
    method = settings.backend + (f" ({options})" if options else "")
    return [f"{text}; method {method}; {_describe_target(settings, selection, modality)}."]


def _describe_target(settings: Settings, selection: Selection, modality: str) -> str:
    """Describe the target and where it comes from."""
    if "fit" in settings.planned_stages:
        sites = chosen(selection.included_cohort(modality), settings.fit_participants).sites
    else:
        folder = model_folder_of(settings, modality)
        if folder is None:
            return "target: none, because no model is fitted yet"
        sites = registry.get(settings.backend).load(folder).sites_
    kind, label = planned_target(settings, modality, sites)
    if settings.target:
        why = "--target"
    elif existing_target(settings, modality):
        why = "target of the images in OUTPUT_DIR"
    else:
        why = "default" if kind != "site" else f"default: {reason_of_default(sites)}"
    return f"target {kind} {label!r} ({why})"


def _preprocess_lines(settings: Settings, selection: Selection) -> tuple[list[str], list[ScanJob]]:
    """Describe which scans are preprocessed and which are reused; also return the jobs."""
    from ..workflows.preprocessing import init_preprocessing_wf, plan, write_graph

    jobs, failures, reused = plan(settings, selection.records, settings.output_dir)
    workflow = init_preprocessing_wf(settings, jobs)
    if settings.write_graph:
        write_graph(workflow, settings.output_dir, "preprocess")
    return [f"preprocess: {len(jobs)} scans in {count_steps(workflow)} steps, {reused} "
            f"reused, {len(failures)} not usable.",
            *(f"not usable: {failure.message}" for failure in failures)], jobs


def _fit_lines(settings: Settings, selection: Selection) -> list[str]:
    lines = []
    for modality in settings.modalities:
        count = len(chosen(selection.included_cohort(modality), settings.fit_participants))
        replaced = model_folder_of(settings, modality) is not None
        lines.append(f"fit: {modality} on {count} scans"
                     f"{', replacing the model in OUTPUT_DIR' if replaced else ''}.")
    return lines


def _harmonize_lines(settings: Settings, selection: Selection) -> list[str]:
    done = len(_harmonized(settings, selection))
    total = sum(len(selection.cohort(modality)) for modality in settings.modalities)
    again = ", and are repeated if the model changes" \
        if done and "fit" in settings.planned_stages else ""
    return [f"harmonize: {total} scans to desc-{settings.desc}; {done} exist already{again}."]


def _harmonized(settings: Settings, selection: Selection) -> list[Path]:
    images = [item.paths.image(settings.desc, template=True) for item in selection.find()]
    return [image for image in images if image.is_file() and sidecar(image).is_file()]


def estimate(settings: Settings, selection: Selection, jobs: Sequence[ScanJob]) -> Estimate:
    """Estimate time, memory and disk of a run.

    Parameters
    ----------
    settings : Settings
        Options of the run.
    selection : Selection
        Scans of the run.
    jobs : sequence of ScanJob
        Scans to be preprocessed, from `pipelines.workflows.preprocessing.plan`.
    """
    stages, sloppy = settings.planned_stages, int(settings.sloppy)
    total = sum(len(selection.cohort(modality)) for modality in settings.modalities)
    counts = {"preprocess": len(jobs), "fit": total, "harmonize": total, "evaluate": total}
    measured = _measured_seconds(settings, selection)
    each = {stage: seconds[sloppy] for stage, seconds in SECONDS_PER_SCAN.items()}
    each["harmonize"] = NETWORK_SECONDS_PER_SCAN.get(settings.backend, each["harmonize"])
    each["preprocess"] = measured or each["preprocess"]
    seconds = 0.0
    for stage in (stage for stage in stages if stage in counts):  # a copy takes no time
        workers = 1 if stage == "fit" else max(1, min(settings.nprocs, counts[stage]))
        seconds += counts[stage] * each[stage] / workers
    if "evaluate" in stages:
        seconds += len(settings.modalities) * SIMULATED_RESCANS_SECONDS[sloppy] / settings.nprocs
    template = TEMPLATE_VOXELS[resolution_of(settings.sloppy)]
    grids = template + max(map(_voxels, jobs), default=template)
    images = (counts["preprocess"] if "preprocess" in stages else 0) + \
        (total - len(_harmonized(settings, selection)) if "harmonize" in stages else 0)
    copies = total * (grids - template) * BYTES_PER_VOXEL / 1e9 if "export" in stages else 0.0
    at_once = min(len(jobs), 1 if settings.nprocs == 1 else SCANS_PER_PROCESS * settings.nprocs)
    return Estimate(
        seconds / SECONDS_PER_HOUR, _memory_gb(settings, jobs, total),
        images * BYTES_PER_VOXEL * grids / 1e9 + copies, at_once * WORK_BYTES_PER_SCAN / 1e9,
        measured is not None)


def _measured_seconds(settings: Settings, selection: Selection) -> float | None:
    """Return the median duration of preprocessing in OUTPUT_DIR; None without a log."""
    logs = [read_log(settings.output_dir, item.scan_id, "preprocess") for item in selection.find()]
    seconds = [sum(log.seconds.values()) for log in logs if log and log.seconds]
    return statistics.median(seconds) if seconds else None


def _voxels(job: ScanJob) -> int:
    """Count the voxels of the raw image of a job."""
    from harmonizer.volume import load_nifti

    return math.prod(load_nifti(job.record.path).shape[:3])


def _memory_gb(settings: Settings, jobs: Sequence[ScanJob], total: int) -> float:
    """Estimate the peak over all processes; ``--mem`` limits how many run at once."""
    from ..workflows.preprocessing import MEM_GB, memory_of

    one = [memory_of(step, job.record) for job in jobs for step in MEM_GB
           if not (settings.sloppy and step == "segment")]
    peaks = []
    if one:
        peaks.append(max(one) * min(settings.nprocs, len(jobs)))
    if "evaluate" in settings.planned_stages:
        peaks.append(EVALUATION_GB[settings.sloppy] * max(1, min(settings.nprocs, total)))
    peak = max(peaks, default=MEM_GB["save"])
    return peak if settings.mem_gb is None else max(max(one, default=0.0),
                                                    min(peak, settings.mem_gb))


def _cost_lines(settings: Settings, selection: Selection, jobs: Sequence[ScanJob]) -> list[str]:
    """Describe time, memory and disk, and warn if disk space is short."""
    cost = estimate(settings, selection, jobs)
    source = "preprocessing as logged in OUTPUT_DIR, other times" if cost.measured else "times"
    lines = [f"Estimate ({source} as in docs/benchmarks.md): {_duration(cost.hours)} with "
             f"--nprocs {settings.nprocs}, {cost.memory_gb:.1f} GB of memory, "
             f"{cost.output_gb:.1f} GB in OUTPUT_DIR, {cost.work_gb:.1f} GB at a time in the work "
             "folder."]
    trained = registry.get(settings.backend).capabilities.trained
    if trained and "fit" in settings.planned_stages:
        limit = "is not included; limit it with --max-minutes" if settings.max_minutes is None \
            else f"takes up to {settings.max_minutes:g} more minutes"
        lines.append(f"The training of {settings.backend} {limit}.")
    for folder, needed in ((settings.output_dir, cost.output_gb),
                           (settings.work_dir, cost.work_gb)):
        free = _free_gb(folder)
        if free < needed:
            lines.append(f"{folder}: {free:.1f} GB are free, about {needed:.1f} GB are needed. "
                         "Free disk space, or give another folder.")
    return lines


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"about {hours:.1f} hours"
    minutes = max(1, math.ceil(hours * 60))
    return f"about {minutes} {'minute' if minutes == 1 else 'minutes'}"


def _free_gb(folder: Path) -> float:
    """Return the free GB on the disk of a folder that may not exist yet."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free / 1e9
