"""Entry point of the app: from arguments to an exit code.

    parse -> environment -> check -> log -> dataset -> workflows -> exit code

| code | meaning |
|---|---|
| 0 | all done |
| 1 | some participants failed or were excluded; the last line names them |
| 2 | usage |
| 65 | no usable input (EX_DATAERR) |
| 69 | a device or a model is not available (EX_UNAVAILABLE) |
| 70 | internal error (EX_SOFTWARE); a crash file is written to OUT/logs |
| 74 | results cannot be written (EX_IOERR): disk full, folder not writable |
| 130 | interrupted (Ctrl-C) |
| 143 | terminated (SIGTERM: a scheduler's time limit, docker stop) |

Expected errors are printed without a traceback; any other exception is an internal error.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shlex
import sys
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
from .process import prepare_environment, sigterm_raises, stop_workers, temporary_files_in
from .run_log import log_environment, start_logging, stop_logging
from .settings import Settings

if TYPE_CHECKING:
    from .dataset.index import Collection
    from .dataset.records import Finding, ScanRecord

__all__ = ["main"]

LOGGER = logging.getLogger("harmonizer")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
               errno.ESTALE)
INTERRUPTED = 130
TERMINATED = 143
MAX_LISTED_PARTICIPANTS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app on command-line arguments (without the name of the program).

    Returns
    -------
    int
        Exit code; see the table above.
    """
    prog = "harmonizer" if Path(sys.argv[0]).name == "harmonizer" else "run.py"
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "combat":  # a folder of that name is ./combat
        from harmonizer import combat_command

        return combat_command.main(argv[1:])
    try:
        settings = parse(argv, prog)
        prepare_environment(settings)  # first: the checks may import numpy or torch
        check_environment(settings)
        run = Run.create(settings, shlex.join([prog, *argv]))
    except SystemExit as stop:  # argparse has printed the message
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


@dataclass(frozen=True)
class Run:
    """A run of the app.

    Attributes
    ----------
    settings : Settings
        Its options.
    run_id : str
        Part of the names of its log, settings and crash files.
    command : str
        Command line that the log shows.
    """

    settings: Settings
    run_id: str
    command: str = ""

    @classmethod
    def create(cls, settings: Settings, command: str = "") -> Run:
        """Open the log files and save the settings of a new run.

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
        """Return the path of a file of this run in OUT/logs."""
        return self.settings.output_dir / "logs" / f"{kind}_{self.run_id}.{extension}"

    def finish(self) -> int:
        """Do the work; return the exit code, which the last line of the log states."""
        failed: set[str] = set()
        try:
            with self._temporary_files():
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

    def _temporary_files(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that puts temporary files into the work folder, if one is used."""
        settings = self.settings
        if settings.dry_run or settings.reports_only or settings.boilerplate_only:
            return contextlib.nullcontext()
        return temporary_files_in(settings.work_dir)

    def _clean(self) -> None:
        """Clean the work folder if requested."""
        if self.settings.clean_workdir and not self.settings.dry_run:
            from .workflows.engine import clean_work_dir

            found = clean_work_dir(self.settings.work_dir)
            LOGGER.info("Removed from %s: %s.", self.settings.work_dir,
                        ", ".join(found) or "nothing; it holds no results of earlier runs")

    def _records(self, failed: set[str]) -> tuple[tuple[ScanRecord, ...], frozenset[str]]:
        """Return the images selected in BIDS_DIR, and scan_ids of those that cannot be used.

        Both are empty if only the output folder is used.
        """
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
                f"{self.settings.bids_dir}: none of its images can be used; the messages above "
                "state the reasons."
            )
        self._log_sites(collection.records)
        return collection.records, frozenset(str(f.scan_id) for f in refused)

    def _log_use_of_output(self) -> None:
        """Log that OUTPUT_DIR replaces BIDS_DIR, and which flags have no effect."""
        settings = self.settings
        LOGGER.info("BIDS_DIR %s %s: scans, sites and covariates are those of OUTPUT_DIR %s.",
                    settings.bids_dir, "holds no participant" if settings.bids_dir.is_dir()
                    else "does not exist", settings.output_dir)
        ignored = [flag for flag, given in (
            ("--site", settings.site), ("--site-from", settings.site_from != "auto"),
            ("--site-column", settings.site_column != "site")) if given]
        if ignored:
            LOGGER.warning("%s: without effect, because sites are only read from BIDS_DIR.",
                           ", ".join(ignored))

    def _validate(self, collection: Collection) -> list[Finding]:
        """Run the BIDS validator; return warnings. Errors in files that are read stop the run."""
        from .dataset.checks import require_valid, validator_path

        if self.settings.skip_bids_validation:
            return []
        if validator_path() is None:
            LOGGER.info("bids-validator-deno is not installed; the dataset is not validated.")
            return []
        return require_valid(self.settings.bids_dir, collection.images, collection.tables,
                             session_rows=collection.session_rows)

    def _report(self, findings: Iterable[Finding]) -> None:
        """Log findings about the dataset, and write them as a table to OUT/logs."""
        findings = list(findings)
        for finding in findings:
            LOGGER.log(logging.ERROR if finding.fatal else logging.WARNING, "%s", finding)
        if findings:
            rows = [("scan_id", "excluded", "path", "finding", "remedy")]
            rows += [(f.scan_id or "n/a", "yes" if f.fatal else "no", str(f.path), f.finding,
                      f.remedy) for f in findings]
            table = "".join("\t".join(" ".join(c.split()) for c in row) + "\n" for row in rows)
            write_text(self.file("findings", "tsv"), table)

    def _keep_refusals(self, refused: Iterable[Finding], accepted: Iterable[ScanRecord]) -> None:
        """Write a failure log for images that cannot be used, which the reports show.

        The failure log of an image that can be used now is removed.
        """
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
            for text in single_scan_warnings(self.settings, modality, counts):
                LOGGER.warning("%s", text)

    def _os_error(self, error: OSError) -> int:
        """Log a full disk or missing permissions; any other error is internal."""
        if error.errno not in DISK_ERRORS:
            return self._crash(error)
        LOGGER.error("%s: %s. Free disk space or repair the permissions, then run the same command "
                     "again; finished results are kept.",
                     error.filename or self.settings.output_dir, error.strerror)
        return OutputError.exit_code

    def _crash(self, error: BaseException) -> int:
        """Write traceback and settings to a crash file; log a short message."""
        path = self.file("crash", "txt")
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        head = f"harmonizer {__version__}, Python {sys.version}\n\n"
        where: object = path
        try:
            write_text(path, head + text + "\n" + self.settings.to_toml())
        except OSError:  # a full disk must not hide the first error
            where = "standard error"
            print(text, file=sys.stderr)
        LOGGER.error("Internal error: %s: %s. Please report it with %s.",
                     type(error).__name__, error, where)
        return InternalError.exit_code


def single_scan_warnings(settings: Settings, modality: str, counts: Mapping[str, int]
                         ) -> Iterator[str]:
    """Warn of sites with a single scan, before hours of preprocessing."""
    if "fit" not in settings.planned_stages or settings.include_existing:
        return
    single = [site for site, count in sorted(counts.items()) if count == 1]
    if single and len(counts) > 1:
        sites = ', '.join(single[:MAX_LISTED_PARTICIPANTS])
        each = "" if len(single) == 1 else "each of "
        yield (f"Only one {modality} scan at {each}{sites}: the effects "
               "of scanner and subject cannot be separated there.")


def participant(scan_id: str) -> str:
    """Return the participant of a scan.

    >>> participant("sub-01_ses-A_T1w")
    'sub-01'
    """
    return scan_id.partition("_")[0]


def last_line(code: int, failed: Iterable[str]) -> str:
    """Return the last line of the log: the exit code, its meaning, and failed participants."""
    meanings = {
        0: "all done", 1: "some participants failed", 2: "usage error", 65: "no usable input",
        69: "a device or model is not available", 70: "internal error",
        74: "results cannot be written", 130: "interrupted", 143: "terminated",
    }
    names = sorted(failed)
    shown = ", ".join(names[:MAX_LISTED_PARTICIPANTS])
    hidden = len(names) - MAX_LISTED_PARTICIPANTS
    more = f" and {hidden} more" if hidden > 0 else ""
    who = f"; failed: {shown}{more}" if names else ""
    return f"Exit code {code}: {meanings.get(code, 'failed')}{who}."
