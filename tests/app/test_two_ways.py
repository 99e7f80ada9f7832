"""Both ways of running give the same results: one command for everything (the fixture `full_run`),
and the commands of docs/concepts/stages.md, `participant` for each subject followed by `group`."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.app.conftest import FullRun
from tests.app.running import ROOT, command, results, run_app

BEGINNING = "run.py /data/study /data/out "
TIMEOUT_S = 1800


def documented_lines() -> list[str]:
    """Return the command lines of docs/concepts/stages.md, without program and folders."""
    text = (ROOT / "docs" / "concepts" / "stages.md").read_text()
    block = re.search(r"^```bash\n(.*?)^```", text, re.M | re.S)
    assert block, "docs/concepts/stages.md shows no commands"
    return [line.removeprefix(BEGINNING) for line in block[1].splitlines()]


@pytest.fixture(scope="module")
def by_participant(
    full_run: FullRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Output folder and logs of the second way, with participants in parallel."""
    folder = tmp_path_factory.mktemp("participants")
    flags = ("--sloppy", "--nprocs", 1, "--target", "birch")

    def launch(line: str, number: int) -> subprocess.Popen[str]:
        words = command(full_run.raw, folder / "out", *shlex.split(line), *flags, "-w",
                        folder / f"work{number}")
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(job: subprocess.Popen[str]) -> str:
        output = job.communicate(timeout=TIMEOUT_S)[1]
        assert job.returncode == 0, output
        return output

    *participants, group = documented_lines()
    jobs = [launch(line, number) for number, line in enumerate(participants)]
    logs = [finish(job) for job in jobs]
    return folder / "out", [*logs, finish(launch(group, len(jobs)))]


def test_the_documentation_shows_participants_and_then_the_group() -> None:
    assert documented_lines() == ["participant --participant-label 01",
                                  "participant --participant-label 02", "group"]


def test_participants_one_by_one_and_then_group_give_what_one_command_gives(
    full_run: FullRun, by_participant: tuple[Path, list[str]]
) -> None:
    out, logs = by_participant
    assert "Not harmonized yet" in logs[0] and "Run the group level" in logs[0]
    assert "Harmonized (T1w): 4 of 4 scans to 'birch'" in logs[2]
    assert len(list(out.rglob("*_desc-harmonized_T1w.nii.gz"))) == 8
    assert {path.name for path in out.glob("*.html")} == \
        {"group.html", "sub-01.html", "sub-02.html"}
    assert results(out) == results(full_run.out)


def test_a_withdrawn_subject_and_a_repaired_site_reach_the_group_level(
    full_run: FullRun, copy: Path, tmp_path: Path
) -> None:
    """sub-02 leaves, one session of sub-01 gets another site, and `group` alone is run."""
    raw = tmp_path / "raw"
    shutil.copytree(full_run.raw, raw)
    shutil.rmtree(raw / "sub-02")
    table = raw / "sub-01/sub-01_sessions.tsv"
    table.write_text(re.sub(r"\baspen$", "cedar", table.read_text(), flags=re.M))
    answer = run_app(raw, copy, "group", "--sloppy", "--nprocs", 1, "-w", tmp_path / "work")
    assert answer.code == 0, answer.output
    assert "delete sub-02, sub-02.html and" in answer.output
    assert "sub-01_ses-aspen_T1w aspen -> cedar" in answer.output
    with open(copy / "cohort.tsv", newline="") as stream:
        sites = {row["scan_id"]: row["site"] for row in csv.DictReader(stream, delimiter="\t")}
    assert sites == {"sub-01_ses-aspen_T1w": "cedar", "sub-01_ses-birch_T1w": "birch"}
    card = (copy / "models/histogram_matching/T1w/card.md").read_text()
    assert "| cedar | 1 | 1 |" in card and "| birch | 1 | 1 |" in card and "aspen" not in card
    assert "sub-02" not in (copy / "metrics.tsv").read_text()
    page = (copy / "group.html").read_text()
    assert "sub-02" not in page and "2 other preprocessed scans are in the output folder" in page
