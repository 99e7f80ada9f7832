"""`main`: exit codes, what is said last, and what is left in OUT/logs."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harmonizer.errors import InternalError, UnavailableError
from pipelines import app, run_log
from pipelines.settings import Settings
from tests.pipelines.conftest import write_image

TREE: dict[str, Any] = {
    "participants.tsv": "participant_id\tsite\nsub-01\tNYU\nsub-02\tKKI\n",
    "sub-01/anat/sub-01_T1w.nii.gz": None,
    "sub-02/anat/sub-02_T1w.nii.gz": None,
}


@dataclass
class ScanFailure:
    scan_id: str
    stage: str = "preprocess"
    message: str = "it did not work"


@dataclass
class Result:
    failures: tuple[ScanFailure, ...] = ()
    exit_code: int = 0
    summary_lines: tuple[str, ...] = ("report: group.html",)


@dataclass
class Workflows:
    """Stands in for the workflows: remembers what it was given, answers what a test wants."""

    answer: Callable[[], Result] = Result
    calls: list[tuple[Settings, tuple]] = field(default_factory=list)

    def run(self, settings: Settings, records: tuple, refused: frozenset[str]) -> Result:
        self.calls.append((settings, records))
        return self.answer()


@pytest.fixture
def workflows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workflows]:
    """The app with stand-in workflows, and the process as it was when the test ends."""
    stand_in = Workflows()
    module = types.ModuleType("pipelines.stages.run")
    module.run = stand_in.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.stages.run", module)
    environment, method = dict(os.environ), multiprocessing.get_start_method(allow_none=True)
    level = logging.getLogger().level
    yield stand_in
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(method, force=True)
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)


def run(root: Path, *flags: str, levels: str = "participant") -> int:
    work = str(root.parent / "work")
    return app.main([str(root), str(root.parent / "out"), *levels.split(), "-w", work,
                     "--skip-bids-validation", *flags])


def logs(root: Path, kind: str) -> list[str]:
    paths = sorted((root.parent / "out" / "logs").glob(f"{kind}_*"))
    return [path.read_text(encoding="utf-8") for path in paths]


def last_line(root: Path) -> str:
    return logs(root, "run")[-1].splitlines()[-1]


def test_all_done(make_tree: Any, workflows: Workflows) -> None:
    root = make_tree(TREE)
    assert run(root) == 0
    settings, records = workflows.calls[0]
    assert [record.site for record in records] == ["NYU", "KKI"]
    assert last_line(root).endswith("Exit code 0: all done.")
    log = logs(root, "run")[0]
    assert "report: group.html" in log
    assert "2 T1w scans at 2 sites: KKI 1, NYU 1" in log
    assert "sub-01_T1w: site NYU (participants.tsv: site = NYU)" in log
    assert logs(root, "settings") == [settings.to_toml()]
    assert logs(root, "crash") == logs(root, "findings") == []


def test_the_log_holds_command_versions_and_job(
    make_tree: Any, workflows: Workflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "17")
    root = make_tree(TREE)
    assert run(root, "--desc", "toNYU", "--site-column", "my site") == 65  # no such column
    log = logs(root, "run")[0]
    words = f"Command: .+ {root} .+ --desc toNYU --site-column 'my site'"
    assert re.search(words, log)
    python = platform.python_version()
    assert re.search(rf"Versions: Python {python}, harmonizer \d.*nipype \d", log)
    assert "Machine: " in log and "SLURM_ARRAY_TASK_ID=17" in log


def test_clean_workdir_removes_our_folders_and_no_other(
    make_tree: Any, workflows: Workflows
) -> None:
    root = make_tree(TREE)
    work = root.parent / "work"
    for name in ("preprocess_wf/scan_x", "sampling/a", "photos"):
        (work / name).mkdir(parents=True)
    assert run(root) == 0
    assert {path.name for path in work.iterdir()} >= {"preprocess_wf", "sampling", "photos"}
    assert run(root, "--clean-workdir") == 0
    assert {path.name for path in work.iterdir()} == {"photos"}
    assert any("Removed from" in text and "preprocess_wf" in text for text in logs(root, "run"))
    assert [setting.clean_workdir for setting, _ in workflows.calls] == [False, True]
    assert not any("clean_workdir =" in text for text in logs(root, "settings"))


@pytest.mark.parametrize("flag", ["--reports-only", "--boilerplate-only"])
def test_what_is_written_from_the_output_needs_no_dataset(
    make_tree: Any, workflows: Workflows, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(TREE)
    monkeypatch.setattr("pipelines.dataset.checks.require_valid", lambda root: 1 / 0)
    gone = root.parent / "gone"
    (root.parent / "out").mkdir()
    assert app.main([str(gone), str(root.parent / "out"), "group", flag]) == 0
    assert workflows.calls[0][1] == ()
    assert app.main([str(root), str(root.parent / "out"), "participant", flag]) == 0
    assert [record.scan_id for record in workflows.calls[1][1]] == ["sub-01_T1w", "sub-02_T1w"]


def test_failed_participants_are_named_last(make_tree: Any, workflows: Workflows) -> None:
    root = make_tree(TREE)
    workflows.answer = lambda: Result((ScanFailure("sub-02_T1w"), ScanFailure("sub-01_T1w")), 1)
    assert run(root) == 1
    assert last_line(root).endswith("some participants failed; failed: sub-01, sub-02.")
    assert "sub-02_T1w failed in preprocess: it did not work" in logs(root, "run")[0]


def test_a_failure_is_never_a_success(make_tree: Any, workflows: Workflows) -> None:
    workflows.answer = lambda: Result((ScanFailure("sub-02_T1w"),), 0)
    assert run(make_tree(TREE)) == 1


def test_an_image_left_out_is_told_and_counted(make_tree: Any, workflows: Workflows) -> None:
    root = make_tree({**TREE, "sub-02/anat/sub-02_T1w.nii.gz": b""})
    assert run(root) == 1
    assert [record.subject for record in workflows.calls[0][1]] == ["01"]
    assert last_line(root).endswith("failed: sub-02.")
    header, row = logs(root, "findings")[0].splitlines()
    assert header.split("\t") == ["scan_id", "excluded", "path", "finding", "remedy"]
    assert row.split("\t")[:2] == ["sub-02_T1w", "yes"]
    refusal = root.parent / "out/logs/scans/sub-02_T1w_check.json"
    assert "is an empty file" in refusal.read_text()
    write_image(root / "sub-02/anat/sub-02_T1w.nii.gz")
    assert run(root) == 0
    assert not refusal.exists()  # the reports name it no longer


def test_no_usable_image_is_65(make_tree: Any, workflows: Workflows) -> None:
    root = make_tree({**TREE, "participants.tsv": "participant_id\nsub-01\nsub-02\n"})
    assert run(root) == 65
    assert workflows.calls == []
    assert last_line(root).endswith("no usable input; failed: sub-01, sub-02.")
    assert run(root, "--modalities", "FLAIR") == 65


def test_an_invalid_dataset_is_65(
    make_tree: Any, workflows: Workflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.dataset.checks import Issue

    root = make_tree(TREE)
    monkeypatch.setattr("pipelines.dataset.checks.validate_bids",
                        lambda root: [Issue("BAD_NAME", "/participants.tsv", "BAD_NAME: /x")])
    monkeypatch.setattr("pipelines.dataset.checks.validator_path", lambda: "/validator")
    assert run(root, "--no-skip-bids-validation") == 65
    assert "BAD_NAME: /x" in logs(root, "run")[0]
    assert run(root) == 0


def raising(error: BaseException) -> Callable[[], Result]:
    def answer() -> Result:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "code", "crashes"),
    [
        (UnavailableError("no model of FLAIR"), 69, 0),
        (KeyboardInterrupt(), 130, 0),
        (ValueError("shapes do not match"), 70, 1),
        (InternalError("the mask moved"), 70, 1),
        (OSError("no space left"), 70, 1),
    ],
)
def test_errors_become_codes(
    make_tree: Any,
    workflows: Workflows,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    crashes: int,
) -> None:
    root = make_tree(TREE)
    workflows.answer = raising(error)
    assert run(root) == code
    assert f"Exit code {code}: " in last_line(root)
    assert "Traceback" not in capsys.readouterr().err
    crash = logs(root, "crash")
    assert len(crash) == crashes
    for text in crash:
        assert "Traceback" in text and str(error) in text and "backend = " in text


def test_usage_errors_are_2_and_write_nothing(
    make_tree: Any, workflows: Workflows, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(TREE)
    assert run(root, "--participant-label", "03") == 2
    assert run(root, "--unknown-flag") == 2
    assert run(root, "--backend", "nothing") == 2
    assert run(root, levels="partcipant") == 2
    assert "error: analysis level: 'partcipant' is not known" in capsys.readouterr().err
    assert not (root.parent / "out").exists()
    assert app.main(["--version"]) == 0


def test_an_output_that_cannot_be_written_is_2(
    make_tree: Any, workflows: Workflows, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(TREE)
    (root.parent / "out").write_text("a file, not a folder", encoding="utf-8")
    assert run(root) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_group_level_needs_no_raw_data(make_tree: Any, workflows: Workflows) -> None:
    root = make_tree(TREE)
    (root.parent / "out").mkdir()
    gone = root.parent / "gone"
    assert run(gone, "--site-column", "scanner", levels="group") == 0
    assert "--site-column: without effect" in logs(root, "run")[-1]
    assert run(gone, "--stages", "harmonize") == 0
    assert [records for _, records in workflows.calls] == [(), ()]
    assert run(root, "--stages", "harmonize") == 0
    assert len(workflows.calls[-1][1]) == 2
    assert run(root, levels="group") == 0  # sites and selection are those of the raw data again
    assert len(workflows.calls[-1][1]) == 2
    (root.parent / "empty").mkdir()
    assert run(root.parent / "empty", levels="group") == 0
    assert workflows.calls[-1][1] == ()
    assert sum("holds no participant: scans, sites and covariates are those of" in log
               for log in logs(root, "run")) == 1


def test_two_runs_leave_two_logs(make_tree: Any, workflows: Workflows) -> None:
    root = make_tree(TREE)
    assert [run(root), run(root)] == [0, 0]
    assert [len(logs(root, kind)) for kind in ("run", "settings")] == [2, 2]
    assert [log.count("Exit code 0") for log in logs(root, "run")] == [1, 1]


def test_the_environment_is_set_for_equal_bits(
    make_tree: Any, workflows: Workflows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    run(make_tree(TREE), "--nprocs", "4", "--omp-nthreads", "3")
    wanted = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "3",
              "MKL_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "NO_ET": "1",
              "NIPYPE_NO_ET": "1", "TEMPLATEFLOW_AUTOUPDATE": "off", "MPLBACKEND": "Agg"}
    assert {name: os.environ[name] for name in wanted} == wanted
    assert os.environ["USER"]
    assert multiprocessing.get_start_method() == "forkserver"


@pytest.mark.parametrize(("flags", "shown"), [([], False), (["-v"], True)])
def test_verbosity(
    make_tree: Any,
    workflows: Workflows,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    shown: bool,
) -> None:
    root = make_tree(TREE)

    def answer() -> Result:
        logging.getLogger("nipype.workflow").log(logging.INFO, "a node begins")
        return Result()

    logging.getLogger("nipype.workflow").setLevel(logging.INFO)
    workflows.answer = answer
    run(root, *flags)
    assert ("a node begins" in capsys.readouterr().err) is shown
    assert "a node begins" in logs(root, "run")[0]


def test_long_lists_of_failures_are_cut() -> None:
    line = app.last_line(1, {f"sub-{n:02d}" for n in range(25)})
    assert line.endswith("sub-18, sub-19 and 5 more.")


@pytest.mark.parametrize(("number", "code", "words"), [
    (errno.ENOSPC, 74, "No space left on device"), (errno.EROFS, 74, "Read-only file system"),
    (errno.EACCES, 74, "Permission denied"), (errno.ENOENT, 70, "Internal error"),
])
def test_a_disk_that_takes_no_more(
    make_tree: Any, workflows: Workflows, number: int, code: int, words: str
) -> None:
    def fail() -> Result:
        raise OSError(number, os.strerror(number), "/out/file")

    workflows.answer = fail
    root = make_tree(TREE)
    assert run(root) == code
    assert words in logs(root, "run")[-1]
    assert bool(logs(root, "crash")) is (code == 70)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_closed_changes_no_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    run_log.start_logging(0, tmp_path / "run.log")
    logging.getLogger("pipelines").error("the last words")
    run_log.stop_logging()
    assert "the last words" in capsys.readouterr().err


def test_sigterm_is_answered_and_ends_the_workers(make_tree: Any, workflows: Workflows) -> None:
    workers: list[subprocess.Popen[bytes]] = []

    def wait() -> Result:
        workers.append(subprocess.Popen(["sleep", "60"]))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return Result()

    workflows.answer = wait
    before = signal.getsignal(signal.SIGTERM)
    root = make_tree(TREE)
    assert run(root) == 143
    assert last_line(root).endswith("Exit code 143: terminated.")
    assert "Terminated (SIGTERM); the same command resumes" in logs(root, "run")[-1]
    assert workers[0].poll() == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) is before
