"""Execution of Nipype workflows: plugin, memory, progress and failures.

A progress bar shows finished nodes. Each failed node becomes a `ScanFailure` with scan and reason.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonizer.errors import OutputError, UsageError
from harmonizer.files import atomic_path, write_text
from harmonizer.progress import progress_bar

from ..settings import Settings

if TYPE_CHECKING:
    from nipype import Workflow

__all__ = ["ScanFailure", "RunResult", "clean_work_dir", "execute", "load_plugin"]

LOGGER = logging.getLogger("pipelines")
SCANS_PER_PROCESS = 8  # in one workflow; workers are restarted after each
PROBE_BYTES = 1 << 20
GPU_NODES = 1  # at once: all nodes of a run use one device (`device_of`)
WORK_FOLDERS = ("harmonize_wf", "nipype", "preprocess_wf", "evaluation", "sampling", "tmp",
                "training")
PRELOAD = ["ants", "nipype.interfaces.base", "scipy.ndimage", "nibabel"]


@dataclass(frozen=True)
class ScanFailure:
    """A scan that failed in a stage.

    Attributes
    ----------
    scan_id, stage : str
        Scan and stage.
    message : str
        Expected and found values, and what to do.
    """

    scan_id: str
    stage: str
    message: str


@dataclass
class RunResult:
    """Result of a run: failures, and lines for the user."""

    failures: tuple[ScanFailure, ...] = ()
    summary_lines: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 0 if all scans were processed, 1 if a scan failed."""
        return 1 if self.failures else 0


@dataclass
class Monitor:
    """Status callback of Nipype: updates the progress bar and collects failures.

    Attributes
    ----------
    bar : tqdm
        Progress bar.
    scan_ids : mapping of str to str
        Name of a scan's workflow -> scan_id.
    stage : str
        Stage of the failures.
    failures : dict of str to ScanFailure
        Failure of each scan.
    """

    bar: Any
    scan_ids: Mapping[str, str]
    stage: str
    failures: dict[str, ScanFailure] = field(default_factory=dict)

    def __call__(self, node: Any, status: str) -> None:
        scan_id = self.scan_ids.get(node.fullname.split(".")[1], node.fullname)
        if status == "start":
            self.bar.set_postfix_str(f"{scan_id} {node.name}", refresh=False)
        elif status == "end":
            self.bar.update(1)
        elif status == "exception" and scan_id not in self.failures:
            self.failures[scan_id] = ScanFailure(scan_id, self.stage, _message(node))
            self.bar.write(f"{scan_id} failed in {node.name}: {_message(node)}", file=sys.stderr)


def count_steps(workflow: Workflow) -> int:
    """Count the nodes that will run; Nipype drops `inputnode` and `outputnode` of workflows."""
    return sum(not name.endswith("putnode") for name in workflow.list_node_names())


def _message(node: Any) -> str:
    """Return the error message that the node stored, or a message about an internal error."""
    from ..interfaces.base import ERROR_FILE

    path = Path(node.output_dir()) / ERROR_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return (f"the step {node.name} stopped unexpectedly; OUT/logs/crash-* holds the details. "
            "Please report it with that file.")


def execute(
    build: Callable[[Sequence[Any]], Workflow], jobs: Sequence[Any], settings: Settings, stage: str
) -> tuple[ScanFailure, ...]:
    """Run the workflow of each job; a failed scan does not stop the others.

    Nipype executes a workflow breadth first, so that no scan of 600 would be finished for hours.
    Scans are therefore run in batches, which also keeps the graph small.

    Parameters
    ----------
    build : callable
        Makes a workflow of some jobs, with one sub-workflow each.
    jobs : sequence
        Jobs with the attributes `name` (of the sub-workflow) and `scan_id`.
    settings : Settings
        Options of the run.
    stage : str
        Name of the stage, for progress and failures.

    Raises
    ------
    UsageError
        If the plugin file is wrong.
    OutputError
        If scans fail because the disk is full or not writable.
    """
    plugin, arguments = plugin_of(settings)
    total = count_steps(build(jobs[:1])) * len(jobs)
    with progress_bar(total, stage) as bar:
        monitor = Monitor(bar, {job.name: job.scan_id for job in jobs}, stage)
        for batch in batches(jobs, settings):
            workflow = build(batch)
            _run(workflow, settings, plugin, {**arguments, "status_callback": monitor})
            _remove_intermediate(settings.work_dir / workflow.name, batch, monitor)
            if monitor.failures:
                require_disk_space(settings.output_dir / "logs", settings.work_dir)
            if monitor.failures and settings.stop_on_first_crash:
                break
    return tuple(monitor.failures.values())


def _run(workflow: Workflow, settings: Settings, plugin: str, arguments: dict[str, Any]) -> None:
    configure(workflow, settings)
    known = len(arguments["status_callback"].failures)
    try:
        workflow.run(plugin=plugin, plugin_args=arguments)
    except Exception as error:
        if len(arguments["status_callback"].failures) == known:
            raise
        LOGGER.debug("nipype: %s", error)


def require_disk_space(*folders: Path) -> None:
    """Check that a megabyte can be written to each folder.

    Raises
    ------
    OutputError
        Names the folder and the reason.
    """
    for folder in folders:
        try:
            with atomic_path(folder / "disk-space-probe") as probe, open(probe, "wb") as stream:
                stream.write(bytes(PROBE_BYTES))
        except OSError as error:
            raise OutputError(
    f"{folder}: cannot be written any more ({error.strerror}). Free disk space or repair "
    "the permissions, then run the same command again; finished results are kept." ) from error
        (folder / "disk-space-probe").unlink(missing_ok=True)


def _remove_intermediate(folder: Path, batch: Sequence[Any], monitor: Monitor) -> None:
    """Remove the intermediate results of finished scans (600 scans would leave 150 GB).

    Those of failed scans are kept for debugging and for a rerun.
    """
    for job in batch:
        if job.scan_id not in monitor.failures:
            shutil.rmtree(folder / job.name, ignore_errors=True)


def clean_work_dir(folder: Path) -> tuple[str, ...]:
    """Remove the folders of this app from a work folder; return their names.

    Other files are kept.
    """
    found = tuple(name for name in WORK_FOLDERS if (folder / name).is_dir())
    for name in found:
        shutil.rmtree(folder / name)
    return found


def batches(jobs: Sequence[Any], settings: Settings) -> Iterator[Sequence[Any]]:
    """Yield one job at a time for one process, eight for each of several, all for a plugin."""
    size = 1 if settings.nprocs == 1 else SCANS_PER_PROCESS * settings.nprocs
    size = len(jobs) if settings.use_plugin else size
    for start in range(0, len(jobs), size):
        yield jobs[start:start + size]


def configure(workflow: Workflow, settings: Settings) -> None:
    """Set Nipype's execution options: text crash files in OUT/logs, no network access."""
    import nipype

    logs = settings.output_dir / "logs"
    workflow.config["execution"] = {
        "crashdump_dir": str(logs),
        "crashfile_format": "txt",
        "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
        "check_version": "false",
        "remove_unnecessary_outputs": "false",
        "hash_method": "timestamp",
        "poll_sleep_duration": "0.2",
    }
    nipype.config.update_config({"execution": workflow.config["execution"]})
    quiet = logging.INFO if settings.verbose else logging.CRITICAL
    for name in ("nipype.workflow", "nipype.utils", "nipype.interface"):
        logging.getLogger(name).setLevel(quiet)


def plugin_of(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Return Nipype plugin and arguments: of the user's file, else Linear or MultiProc."""
    if settings.use_plugin is not None:
        content = load_plugin(settings.use_plugin)
        return content["plugin"], content["plugin_args"]
    if settings.nprocs == 1:
        return "Linear", {}
    import multiprocessing

    _quiet_workers(settings)
    multiprocessing.set_forkserver_preload(PRELOAD)
    arguments: dict[str, Any] = {"n_procs": settings.nprocs, "raise_insufficient": False,
                                 "n_gpu_procs": GPU_NODES}
    if settings.mem_gb is not None:
        arguments["memory_gb"] = settings.mem_gb
    return "MultiProc", arguments


def _quiet_workers(settings: Settings) -> None:
    """Write a Nipype configuration for worker processes.

    It hides log lines that would disturb the progress bar. The default configuration lies in HOME,
    which a container may not have.
    """
    level = "INFO" if settings.verbose else "CRITICAL"
    names = ("workflow_level", "utils_level", "interface_level")
    lines = ["[logging]", *(f"{name} = {level}" for name in names),
             "[execution]", "check_version = false", ""]
    path = write_text(settings.work_dir / "nipype" / "nipype.cfg", "\n".join(lines))
    os.environ["NIPYPE_CONFIG_DIR"] = str(path.parent)


def load_plugin(path: Path) -> dict[str, Any]:
    """Read a Nipype plugin file (YAML) with the keys plugin and plugin_args.

    Raises
    ------
    UsageError
        If the file cannot be read or has no `plugin`.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"--use-plugin {path}: cannot be read as YAML ({error}).") from error
    given = content if isinstance(content, dict) else {}
    arguments = given.get("plugin_args") or {}
    if not isinstance(given.get("plugin"), str) or not isinstance(arguments, dict):
        raise UsageError(f"--use-plugin {path}: expected the keys plugin and plugin_args.")
    return {"plugin": given["plugin"], "plugin_args": arguments}
