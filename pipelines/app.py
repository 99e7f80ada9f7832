"""From arguments to an exit code: the order of things, and what is said when they go wrong.

    parse -> environment -> check -> log -> dataset -> workflows -> exit code

| code | meaning |
|---|---|
| 0 | all done |
| 1 | some participants failed or were left out; the last line names them |
| 2 | usage |
| 65 | no usable input (EX_DATAERR) |
| 69 | a device or a model is not available (EX_UNAVAILABLE) |
| 70 | our own fault (EX_SOFTWARE); a crash file lies in OUT/logs |
| 74 | results cannot be written (EX_IOERR): disk full, folder not writable |
| 130 | interrupted (Ctrl-C) |
| 143 | terminated (SIGTERM: a scheduler's time limit, docker stop) |

Errors that we can explain are printed without a traceback; anything else is a fault of ours.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import shlex
import signal
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harmonizer import __version__
from harmonizer.errors import (
    HarmonizerError,
    InputError,
    InternalError,
    OutputError,
    Terminated,
    UsageError,
)
from harmonizer.files import write_text

from .cli import check_environment, parse
from .settings import Settings

if TYPE_CHECKING:
    import psutil

    from .dataset.index import Collection
    from .dataset.records import Finding, ScanRecord

__all__ = ["main", "prepare_environment"]

LOGGER = logging.getLogger("harmonizer")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
               errno.ESTALE)
OUR_LOGGERS = ("harmonizer", "pipelines")
HANDLER = "harmonizer-run"
INTERRUPTED = 130
TERMINATED = 143
MAX_LISTED_PARTICIPANTS = 20
SCHEDULER_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "PBS_JOBID",
                       "JOB_ID", "LSB_JOBID")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app on command-line arguments (without the program's name); returns the exit code."""
    prog = "harmonizer" if Path(sys.argv[0]).name == "harmonizer" else "run.py"
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "combat":  # a folder of that name is ./combat
        from harmonizer import combat_command

        return combat_command.main(argv[1:])
    try:
        settings = parse(argv, prog)
        prepare_environment(settings)  # first: the checks may import numpy or torch
        check_environment(settings)
        run = Run.start(settings, shlex.join([prog, *argv]))
    except SystemExit as stop:  # argparse has said what there is to say
        return int(stop.code or 0)
    except HarmonizerError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        with sigterm_raises():
            return run.finish()
    finally:
        stop_logging()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`; without it Python would end without a word.

    In the middle of a step of ANTs in this process (`--nprocs 1`) it is heard when the step ends.
    """
    def stop(signum: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only there are signals set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Run:
    """One run: its settings and the name that its log, settings and crash files share."""

    settings: Settings
    run_id: str
    command: str = ""

    @classmethod
    def start(cls, settings: Settings, command: str = "") -> Run:
        """Open the log files and save the settings; `command` is what the log shows was typed.

        Raises
        ------
        UsageError
            If the output folder cannot be written.
        """
        run = cls(settings, f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}", command)
        try:
            write_text(run.file("settings", "toml"), settings.to_toml())
            start_logging(settings.verbose, run.file("run", "log"))
        except OSError as error:
            raise UsageError(
                f"OUTPUT_DIR {settings.output_dir}: cannot be written ({error.strerror}). Check "
                "its permissions, or give another."
            ) from error
        return run

    def file(self, kind: str, extension: str) -> Path:
        """A file of this run in OUT/logs."""
        return self.settings.output_dir / "logs" / f"{kind}_{self.run_id}.{extension}"

    def finish(self) -> int:
        """Do the work, turn what happens into an exit code, and say it in the last line."""
        failed: set[str] = set()
        try:
            code = self._work(failed)
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            LOGGER.error("%s; the same command resumes from the work folder.",
                         "Terminated (SIGTERM)" if terminated else "Interrupted")
            stop_workers()
            code = TERMINATED if terminated else INTERRUPTED
        except InternalError as error:
            code = self._crash(error)
        except HarmonizerError as error:
            LOGGER.error("%s", error)
            code = error.exit_code
        except OSError as error:
            code = self._os_error(error)
        except Exception as error:
            code = self._crash(error)
        LOGGER.log(logging.ERROR if code else logging.INFO, "%s", last_line(code, failed))
        return code

    def _work(self, failed: set[str]) -> int:
        LOGGER.info("harmonizer %s: %s -> %s; stages %s; log %s", __version__,
                    self.settings.bids_dir, self.settings.output_dir,
                    ", ".join(self.settings.planned_stages), self.file("run", "log"))
        log_environment(self.command)
        self._clean()
        records, refused = self._records(failed)
        from .stages.run import run as run_workflows

        result = run_workflows(self.settings, records, refused)
        failed |= {participant(failure.scan_id) for failure in result.failures}
        for failure in result.failures:
            LOGGER.error("%s failed in %s: %s", failure.scan_id, failure.stage, failure.message)
        for line in result.summary_lines:
            LOGGER.info("%s", line)
        return result.exit_code or int(bool(failed))

    def _clean(self) -> None:
        """Empty the work folder where that was asked for."""
        if self.settings.clean_workdir and not self.settings.dry_run:
            from .workflows.engine import clean_work_dir

            found = clean_work_dir(self.settings.work_dir)
            LOGGER.info("Removed from %s: %s.", self.settings.work_dir,
                        ", ".join(found) or "nothing, it holds no work of earlier runs")

    def _records(self, failed: set[str]) -> tuple[tuple[ScanRecord, ...], frozenset[str]]:
        """The images selected in BIDS_DIR, and scan_ids of those that cannot be used; none where
        only the output folder is used."""
        from .dataset.labels import has_subjects

        from_output = self.settings.reports_only or self.settings.boilerplate_only
        needed = "preprocess" in self.settings.planned_stages and not from_output
        if not needed and not has_subjects(self.settings.bids_dir):
            self._log_use_of_output()
            return (), frozenset()
        from .dataset.index import collect

        collection = collect(self.settings)
        findings = list(collection.findings)
        try:
            findings += self._validate(collection) if needed else []
        finally:
            self._report(findings)
        failed |= {participant(f.scan_id) for f in collection.findings if f.scan_id}
        refused = [f for f in collection.findings if f.scan_id and f.fatal]
        if not self.settings.dry_run:
            self._keep_refusals(refused, collection.records)
        if not collection.records:
            raise InputError(
                f"{self.settings.bids_dir}: none of its images can be used; the lines above say "
                "why. Remedy one of them."
            )
        self._log_sites(collection.records)
        return collection.records, frozenset(str(f.scan_id) for f in refused)

    def _log_use_of_output(self) -> None:
        """Say that OUTPUT_DIR takes the place of BIDS_DIR, and which flags are without effect."""
        settings = self.settings
        LOGGER.info("BIDS_DIR %s %s: scans, sites and covariates are those of OUTPUT_DIR %s.",
                    settings.bids_dir, "holds no participant" if settings.bids_dir.is_dir()
                    else "is not there", settings.output_dir)
        ignored = [flag for flag, given in (
            ("--site", settings.site), ("--site-from", settings.site_from != "auto"),
            ("--site-column", settings.site_column != "site")) if given]
        if ignored:
            LOGGER.warning("%s: without effect, as sites are read from BIDS_DIR alone.",
                           ", ".join(ignored))

    def _validate(self, collection: Collection) -> list[Finding]:
        """Warnings of the BIDS validator; its errors in files that are read stop the run."""
        from .dataset.checks import require_valid, validator_path

        if self.settings.skip_bids_validation:
            return []
        if validator_path() is None:
            LOGGER.info("bids-validator-deno is not installed; the dataset is not validated.")
            return []
        return require_valid(self.settings.bids_dir, collection.images, collection.tables,
                             session_rows=collection.session_rows)

    def _report(self, findings: Iterable[Finding]) -> None:
        """Log what was found at the door, and keep it as a table in OUT/logs."""
        findings = list(findings)
        for finding in findings:
            LOGGER.log(logging.ERROR if finding.fatal else logging.WARNING, "%s", finding)
        if findings:
            rows = [("scan_id", "left_out", "path", "finding", "remedy")]
            rows += [(f.scan_id or "n/a", "yes" if f.fatal else "no", str(f.path), f.finding,
                      f.remedy) for f in findings]
            table = "".join("\t".join(" ".join(c.split()) for c in row) + "\n" for row in rows)
            write_text(self.file("findings", "tsv"), table)

    def _keep_refusals(self, refused: Iterable[Finding], accepted: Iterable[ScanRecord]) -> None:
        """Log images that cannot be used where the reports look for failures; remove the log of an
        image that can be used now."""
        from .outputs.scanlog import ScanLog, log_path, write_log

        for finding in refused:
            write_log(self.settings.output_dir, ScanLog(
                str(finding.scan_id), "check", "failed", message=str(finding)))
        for record in accepted:
            log_path(self.settings.output_dir, record.scan_id, "check").unlink(missing_ok=True)

    def _log_sites(self, records: Sequence[ScanRecord]) -> None:
        for record in records:
            LOGGER.debug("%s: site %s (%s)", record.scan_id, record.site, record.site_source)
        for modality in dict.fromkeys(record.modality for record in records):
            counts = Counter(r.site for r in records if r.modality == modality)
            sites = ", ".join(f"{site} {count}" for site, count in sorted(counts.items()))
            LOGGER.info("%d %s scans at %d sites: %s", sum(counts.values()), modality,
                        len(counts), sites)
            for doubt in site_doubts(self.settings, modality, counts):
                LOGGER.warning("%s", doubt)

    def _os_error(self, error: OSError) -> int:
        """A full disk or a missing permission is nobody's fault; anything else is ours."""
        if error.errno not in DISK_ERRORS:
            return self._crash(error)
        LOGGER.error("%s: %s. Make room or repair the permissions, then give the same command "
                     "again: finished work is kept.",
                     error.filename or self.settings.output_dir, error.strerror)
        return OutputError.exit_code

    def _crash(self, error: BaseException) -> int:
        """Write all that a report needs into a file; say little on the screen."""
        path = self.file("crash", "txt")
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        head = f"harmonizer {__version__}, Python {sys.version}\n\n"
        where: object = path
        try:
            write_text(path, head + text + "\n" + self.settings.to_toml())
        except OSError:  # a full disk must not hide the first error
            where = "standard error"
            print(text, file=sys.stderr)
        LOGGER.error("A fault of ours: %s: %s. Please report it with %s.",
                     type(error).__name__, error, where)
        return InternalError.exit_code


def site_doubts(settings: Settings, modality: str, counts: Mapping[str, int]) -> Iterator[str]:
    """Sites that a fit can learn little of, named before the hours of preprocessing."""
    if "fit" not in settings.planned_stages or settings.include_existing:
        return
    lone = [site for site, count in sorted(counts.items()) if count == 1]
    if lone and len(counts) > 1:
        yield (f"One {modality} scan alone at {', '.join(lone[:MAX_LISTED_PARTICIPANTS])}: what is the "
               "scanner's and what is the person's cannot be told apart there.")


def stop_workers() -> None:
    """End the worker processes: a step of ANTs takes minutes, a scheduler waits for seconds.

    What they were writing is a temporary file, so nothing is left half done. Python's tracker of
    semaphores stays, which is asked about them when this process ends; the pool that misses its
    workers says nothing.
    """
    import psutil

    logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL)
    children = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
                children.append(child)
    until = time.monotonic() + 5
    while time.monotonic() < until and not all(map(_has_ended, children)):
        time.sleep(0.02)


def _has_ended(process: psutil.Process) -> bool:
    """Without asking for its exit code: who waits for that, such as a pool, asks once."""
    import psutil

    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def participant(scan_id: str) -> str:
    """'sub-01' of 'sub-01_ses-A_T1w'."""
    return scan_id.partition("_")[0]


def last_line(code: int, failed: Iterable[str]) -> str:
    """The line that a log ends with: the exit code, what it means, and who failed."""
    meanings = {
        0: "all done", 1: "some participants failed", 2: "usage error", 65: "no usable input",
        69: "a device or model is not available", 70: "a fault of ours",
        74: "results cannot be written", 130: "interrupted", 143: "terminated",
    }
    names = sorted(failed)
    shown = ", ".join(names[:MAX_LISTED_PARTICIPANTS])
    more = f" and {len(names) - MAX_LISTED_PARTICIPANTS} more" if len(names) > MAX_LISTED_PARTICIPANTS else ""
    who = f"; failed: {shown}{more}" if names else ""
    return f"Exit code {code}: {meanings.get(code, 'failed')}{who}."


def start_logging(verbose: int, path: Path) -> None:
    """Log to the screen (stderr) and to a file.

    The screen has progress and warnings; with `-v` also Nipype's and our details, with `-vv`
    everybody's. The file always has our details. The handlers sit on the root logger, where
    Nipype's own set-up finds them and adds none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    screen, file = logging.StreamHandler(sys.stderr), logging.FileHandler(path, encoding="utf-8")
    file.handleError = lambda record: None  # on a full disk the screen has it still
    screen.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    screen.setLevel(logging.INFO if verbose == 0 else logging.DEBUG)
    screen.addFilter(lambda record: verbose > 0 or _is_for_everybody(record))
    root = logging.getLogger()
    stop_logging()
    for handler in (screen, file):
        handler.set_name(HANDLER)
        root.addHandler(handler)
    root.setLevel(logging.WARNING if verbose < 2 else logging.INFO)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.captureWarnings(True)


def log_environment(command: str) -> None:
    """Log what a bug report needs first: the command line, versions, machine and scheduler job."""
    from .stages.methods_text import software_versions

    LOGGER.info("Command: %s", command)
    versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
    LOGGER.debug("Versions: Python %s, %s", platform.python_version(), versions)
    LOGGER.debug("Machine: %s, %s", platform.node(), platform.platform())
    job = [f"{name}={os.environ[name]}" for name in SCHEDULER_VARIABLES if os.environ.get(name)]
    if job:
        LOGGER.debug("Scheduler: %s", " ".join(job))


def stop_logging() -> None:
    """Close our handlers, so that a second run in one process does not write into the first's."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.get_name() == HANDLER]:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk did not take, the screen has
            handler.close()


def _is_for_everybody(record: logging.LogRecord) -> bool:
    """Our own messages, and warnings of Nipype; the rest is in the file."""
    ours = record.name.partition(".")[0] in OUR_LOGGERS
    return ours or (record.levelno >= logging.WARNING and record.name != "py.warnings")


def prepare_environment(settings: Settings) -> None:
    """Set threads, determinism and silence on the network, before anything heavy is imported.

    One ITK thread: with more, N4 and registration give other bits from run to run. Child processes
    come from a fork server, because CUDA and threads do not survive a fork.
    """
    import multiprocessing

    threads = str(settings.omp_nthreads)
    os.environ.update(
        ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1",
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        OPENBLAS_NUM_THREADS=threads,
        NUMEXPR_NUM_THREADS=threads,
        NO_ET="1",
        NIPYPE_NO_ET="1",
        TEMPLATEFLOW_AUTOUPDATE="off",
        MPLBACKEND="Agg",
        CUBLAS_WORKSPACE_CONFIG=":4096:8",  # deterministic matrix products on CUDA
    )
    os.environ.setdefault("USER", "harmonizer")  # an unknown UID has no name, and libraries ask
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    multiprocessing.set_start_method(method, force=True)
