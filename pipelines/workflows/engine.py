"""Carrying out a workflow: plugin, memory, progress, and what failed.

Nipype does the work; here its settings are chosen, its progress is shown as one bar, and each
failed node is turned into a `Failure` that says which scan and why.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonizer.errors import UsageError

from ..settings import Settings

if TYPE_CHECKING:
    from nipype import Workflow

__all__ = ["Failure", "RunResult", "execute", "progress_bar"]

LOGGER = logging.getLogger("pipelines")
PRELOAD = ["ants", "nipype.interfaces.base", "scipy.ndimage", "nibabel"]


@dataclass(frozen=True)
class Failure:
    """One scan that a stage could not finish."""

    scan_id: str
    stage: str
    message: str


@dataclass
class RunResult:
    """What a run leaves: failures, and lines for the user."""

    failures: tuple[Failure, ...] = ()
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
    failures: dict[str, Failure] = field(default_factory=dict)

    def __call__(self, node: Any, status: str) -> None:
        scan_id = self.scan_ids.get(node.fullname.split(".")[1], node.fullname)
        if status == "start":
            self.bar.set_postfix_str(f"{scan_id} {node.name}", refresh=False)
        elif status == "end":
            self.bar.update(1)
        elif status == "exception" and scan_id not in self.failures:
            self.failures[scan_id] = Failure(scan_id, self.stage, _message(node))
            self.bar.write(f"{scan_id} failed in {node.name}: {_message(node)}", file=sys.stderr)


def _message(node: Any) -> str:
    """The explained error that the node left, or that it was not an expected one."""
    from ..interfaces.base import ERROR_FILE

    path = Path(node.output_dir()) / ERROR_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return (f"the step {node.name} stopped unexpectedly; OUT/logs/crash-* holds the details. "
            "Please report it with that file.")


def execute(
    workflow: Workflow, settings: Settings, stage: str, scan_ids: Mapping[str, str]
) -> tuple[Failure, ...]:
    """Run a workflow whose sub-workflows are scans; one failed scan does not stop the others.

    Parameters
    ----------
    scan_ids : name of a scan's sub-workflow -> scan_id

    Raises
    ------
    UsageError
        If the plugin file is wrong.
    """
    configure(workflow, settings)
    nodes = len(workflow._get_all_nodes()) if hasattr(workflow, "_get_all_nodes") else None
    with progress_bar(nodes or len(workflow.list_node_names()), stage) as bar:
        monitor = Monitor(bar, scan_ids, stage)
        plugin, arguments = plugin_of(settings)
        try:
            workflow.run(plugin=plugin, plugin_args={**arguments, "status_callback": monitor})
        except Exception as error:
            if not monitor.failures:
                raise
            LOGGER.debug("nipype: %s", error)
    return tuple(monitor.failures.values())


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
        return _from_file(settings.use_plugin)
    if settings.nprocs == 1:
        return "Linear", {}
    import multiprocessing

    multiprocessing.set_forkserver_preload(PRELOAD)
    arguments: dict[str, Any] = {"n_procs": settings.nprocs, "raise_insufficient": False}
    if settings.mem_gb is not None:
        arguments["memory_gb"] = settings.mem_gb
    return "MultiProc", arguments


def _from_file(path: Path) -> tuple[str, dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(content["plugin"]), dict(content.get("plugin_args") or {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: expected YAML with the keys 'plugin' and 'plugin_args' "
                         f"({error}). See docs/usage.md.") from error


def progress_bar(total: int, label: str) -> Any:
    """A bar with an estimate on stderr; on no terminal a line every half minute."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 30.0)


def reporter(label: str) -> tuple[Any, Callable[[int, int], None]]:
    """(bar, callback) for functions that report (done, total)."""
    bar = progress_bar(0, label)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, report
