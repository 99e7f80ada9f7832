"""The two ways of running that README.md shows, as it shows them, on a phantom: one command for
everything, and one `participant` command per subject with one `group` command at the end."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.road import ROOT, results, run_app

BEGINNING = ".venv/bin/python run.py /data/study /data/study-harmonized "


def ways() -> list[list[str]]:
    """The command lines of each way in README.md."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    return [block.splitlines() for block in blocks if block.startswith(BEGINNING)]


def run_as_written(line: str, study: Path, folder: Path) -> str:
    """Run a command line of the README on the phantom; returns what it logged."""
    words = shlex.split(line)
    words[:4] = [sys.executable, str(ROOT / "run.py"), str(study), str(folder / "out")]
    words += ["--sloppy", "--nprocs", "1", "-w", str(folder / "work"), "--skip-bids-validation"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def outputs(study: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[str]]]:
    """Output folder and logs of each way."""
    made = []
    for lines in ways():
        folder = tmp_path_factory.mktemp("way")
        made.append((folder / "out", [run_as_written(line, study, folder) for line in lines]))
    return made


def test_the_readme_shows_two_ways_and_both_give_the_same_results(outputs) -> None:
    (one, _), (two, logs) = outputs
    assert len(logs) == 3
    assert len(list(one.rglob("*_desc-harmonized_T1w.nii.gz"))) == 8
    assert results(one) == results(two)
    assert {path.name for path in two.glob("*.html")} == \
        {"group.html", "sub-01.html", "sub-02.html"}
    assert "Not harmonized yet" in logs[0] and "Run the group level" in logs[0]


def cohort(out: Path) -> dict[str, str]:
    """scan_id -> site of cohort.tsv."""
    with open(out / "cohort.tsv", newline="") as stream:
        return {row["scan_id"]: row["site"] for row in csv.DictReader(stream, delimiter="\t")}


def test_a_withdrawn_subject_and_a_repaired_site_reach_the_group_level(
    outputs, study: Path, tmp_path: Path
) -> None:
    """sub-02 leaves, and the sessions of sub-01 swap their sites; `group` alone is run."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(study, raw)
    shutil.copytree(outputs[0][0], out)
    shutil.rmtree(raw / "sub-02")
    table = raw / "sub-01/sub-01_sessions.tsv"
    table.write_text(table.read_text().replace("\tbirch", "\tcedar"))
    again = run_app(raw, out, "group", "--sloppy", "--nprocs", 1, "-w", tmp_path / "work",
                    "--backend", "tissue_matching", "--include-existing", "--dry-run")
    assert again.code == 0 and "4 scans of 2 participants at 3 sites" in again.said, again.said
    answer = run_app(raw, out, "group", "--sloppy", "--nprocs", 1, "-w", tmp_path / "work",
                     "--backend", "tissue_matching")
    assert answer.code == 0, answer.said
    assert "delete sub-02 and sub-02.html" in answer.said
    assert "sub-01_ses-birch_T1w birch -> cedar" in answer.said
    assert cohort(out) == {"sub-01_ses-aspen_T1w": "aspen", "sub-01_ses-birch_T1w": "cedar"}
    card = (out / "models/tissue_matching/T1w/card.md").read_text()
    assert "| cedar | 1 | 1 |" in card and "birch" not in card
    assert "sub-02" not in (out / "metrics.tsv").read_text()
    page = (out / "group.html").read_text()
    assert "sub-02.html" not in page.replace("delete sub-02 and sub-02.html", "")
