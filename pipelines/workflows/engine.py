"""Carrying out a workflow: plugin, memory, progress, and what failed.

Nipype does the work; here its settings are chosen, its progress is shown as one bar, and each
failed node is turned into a `ScanFailure` that says which scan and why.
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
PORTION = 8  # scans a process that are on the way at once; workers start anew after each portion
PROBE_BYTES = 1 << 20
GPU_NODES = 1  # at once: all of a run share the one device that `device_of` chose
WORK_FOLDERS = ("harmonize_wf", "nipype", "preprocess_wf", "referee", "sampling", "training")
PRELOAD = ["ants", "nipype.interfaces.base", "scipy.ndimage", "nibabel"]


@dataclass(frozen=True)
class ScanFailure:
    """One scan that a stage could not finish."""

    scan_id: str
    stage: str
    message: str


@dataclass
class RunResult:
    """What a run leaves: failures, and lines for the user."""

    failures: tuple[ScanFailure, ...] = ()
    summary_lines: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if all was done, 1 if a scan failed."""
        return 1 if self.failures else 0


@dataclass
class Monitor:
    """Nipype's status callback: moves the progress bar and collects failed nodes."""

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
    """Nodes that will run; Nipype drops the doors (`inputnode`, `outputnode`) of each workflow."""
    return sum(not name.endswith("putnode") for name in workflow.list_node_names())


def _message(node: Any) -> str:
    """The explained error that the node left, or that it was not an expected one."""
    from ..interfaces.base import ERROR_FILE

    path = Path(node.output_dir()) / ERROR_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return (f"the step {node.name} stopped unexpectedly; OUT/logs/crash-* holds the details. "
            "Please report it with that file.")


def execute(
    build: Callable[[Sequence[Any]], Workflow], jobs: Sequence[Any], settings: Settings, stage: str
) -> tuple[ScanFailure, ...]:
    """Run the workflow of each job; one failed scan does not stop the others.

    Nipype goes through a workflow breadth first, so 600 scans at once would all be half done for
    hours. They are run in portions instead: few scans are on the way, the others are finished or
    not begun, and the graph stays small.

    Parameters
    ----------
    build : some jobs -> a workflow with one sub-workflow each
    jobs : each with `name` (of its sub-workflow) and `scan_id`

    Raises
    ------
    UsageError
        If the plugin file is wrong.
    OutputError
        If scans fail because nothing can be written any more; more of them would fail, too.
    """
    plugin, arguments = plugin_of(settings)
    total = count_steps(build(jobs[:1])) * len(jobs)
    with progress_bar(total, stage) as bar:
        monitor = Monitor(bar, {job.name: job.scan_id for job in jobs}, stage)
        for portion in portions(jobs, settings):
            workflow = build(portion)
            _run(workflow, settings, plugin, {**arguments, "status_callback": monitor})
            _tidy(settings.work_dir / workflow.name, portion, monitor)
            if monitor.failures:
                require_room(settings.output_dir / "logs", settings.work_dir)
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


def require_room(*folders: Path) -> None:
    """Refuse to go on where not even a megabyte can be written.

    Raises
    ------
    OutputError
        That names the folder and the reason.
    """
    for folder in folders:
        try:
            with atomic_path(folder / "room") as probe, open(probe, "wb") as stream:
                stream.write(bytes(PROBE_BYTES))
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be written any more ({error.strerror}). Make room or repair the "
                "permissions, then give the same command again: finished work is kept."
            ) from error
        (folder / "room").unlink(missing_ok=True)


def _tidy(folder: Path, portion: Sequence[Any], monitor: Monitor) -> None:
    """Remove what finished scans left in the work folder; the results are in OUT, and a study of
    600 scans would leave 150 GB. What failed is kept, to be looked at and resumed."""
    for job in portion:
        if job.scan_id not in monitor.failures:
            shutil.rmtree(folder / job.name, ignore_errors=True)


def clean_work_dir(folder: Path) -> tuple[str, ...]:
    """Remove what runs of this app leave in the work folder; returns the names of what was there.

    Files of others stay: somebody may have given a folder that holds more.
    """
    found = tuple(name for name in WORK_FOLDERS if (folder / name).is_dir())
    for name in found:
        shutil.rmtree(folder / name)
    return found


def portions(jobs: Sequence[Any], settings: Settings) -> Iterator[Sequence[Any]]:
    """One job at a time on one process, eight a process on several, all for a cluster plugin."""
    size = 1 if settings.nprocs == 1 else PORTION * settings.nprocs
    size = len(jobs) if settings.use_plugin else size
    for start in range(0, len(jobs), size):
        yield jobs[start:start + size]


def configure(workflow: Workflow, settings: Settings) -> None:
    """Nipype's execution settings: text crash files in OUT/logs, no calls home."""
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
    """Nipype plugin and its arguments: the user's file, else one process or several here."""
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
    """Give worker processes a Nipype configuration of ours: their log lines would swamp the bar,
    and the default one lies in HOME, which a container may not have."""
    level = "INFO" if settings.verbose else "CRITICAL"
    names = ("workflow_level", "utils_level", "interface_level")
    lines = ["[logging]", *(f"{name} = {level}" for name in names),
             "[execution]", "check_version = false", ""]
    path = write_text(settings.work_dir / "nipype" / "nipype.cfg", "\n".join(lines))
    os.environ["NIPYPE_CONFIG_DIR"] = str(path.parent)


def load_plugin(path: Path) -> dict[str, Any]:
    """{'plugin': name, 'plugin_args': {...}} from a Nipype plugin file (YAML).

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
