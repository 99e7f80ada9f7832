"""Every command in README.md and docs/ is one that works: its words are checked against the code.

make targets exist; command lines of the app, bare or inside docker and apptainer, are parsed by the
app's own parser; build arguments are in the Dockerfile; files that are linked are there. A command
of a kind that is not known here fails, so that none goes unchecked.
"""
from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import harmonizer
from harmonizer import errors
from harmonizer.evaluation.__main__ import main as evaluation
from harmonizer.phantom.__main__ import main as phantom
from harmonizer.reports.__main__ import main as reports
from harmonizer.segmentation.__main__ import main as segmentation
from pipelines.cli import build_parser, parse
from pipelines.settings import LEVEL_STAGES, STAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {"harmonizer.phantom": phantom, "harmonizer.segmentation": segmentation,
           "harmonizer.evaluation": evaluation, "harmonizer.reports": reports}
JOBS = sorted((ROOT / "docs" / "slurm").glob("*.sbatch"))
CONTAINER = re.compile(r"(?:harmonizer:[\w.-]+|harmonizer\.sif|\$IMAGE)")
VARIABLES = {"BIDS": "/data", "OUT": "/out", "IMAGE": "$IMAGE", "TMPDIR": "/tmp", "label": "01"}


def blocks(text: str, language: str = "bash") -> list[str]:
    """The fenced blocks of one language in a Markdown page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command in a shell text: continued lines joined, comments left out."""
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        for name, value in VARIABLES.items():
            line = re.sub(rf"\$\{{?{name}\b\}}?", value.replace("\\", r"\\"), line)
        line = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", line)
        words = shlex.split(line, comments=True)
        if words:
            yield words


def all_commands() -> list[tuple[str, list[str]]]:
    return [(page.relative_to(ROOT).as_posix(), words) for page in PAGES
            for block in blocks(page.read_text(encoding="utf-8")) for words in commands(block)]


def check_app(arguments: list[str]) -> None:
    settings = parse(arguments)
    assert settings.planned_stages


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    variables = re.findall(r"^([A-Z_]+) :=", (ROOT / "Makefile").read_text(), re.M)
    for word in words:
        name, equals, _ = word.partition("=")
        assert name in (variables if equals else targets), f"make knows no {word}"


def check_python(words: list[str]) -> None:
    if words[:1] == ["run.py"]:
        check_app(words[1:])
    else:
        assert words[0] == "-m" and words[1] in MODULES, words
        # Executed for real, with an error at the end of the line: all flags before it are known.
        with pytest.raises(SystemExit, match="2"):
            MODULES[words[1]]([*words[2:], "--no-such-flag"])


def app_arguments(words: list[str]) -> list[str]:
    """What follows the image's name."""
    (place,) = [i for i, word in enumerate(words) if CONTAINER.fullmatch(word)][-1:]
    return words[place + 1:]


def check_docker(words: list[str]) -> None:
    assert words[0] in ("build", "run", "save"), words
    if words[0] == "run":
        check_app(app_arguments(words))
    for argument in re.findall(r"--build-arg (\w+)=", " ".join(words)):
        assert re.search(rf"^ARG {argument}\b", (ROOT / "Dockerfile").read_text(), re.M), argument


def check_apptainer(words: list[str]) -> None:
    assert words[0] in ("build", "run"), words
    if words[0] == "run":
        check_app(app_arguments(words))
    else:
        assert (ROOT / words[-1]).is_file()


def check(words: list[str]) -> None:
    """Fail if a command is not one that works here."""
    while re.fullmatch(r"[A-Z]+=.*", words[0]):  # NAME=value before a command
        words = words[1:]
    name, rest = words[0], words[1:]
    if name == "make":
        check_make(rest)
    elif name in ("run.py", "harmonizer"):
        check_app(rest)
    elif name in ("python", ".venv/bin/python"):
        check_python(rest)
    elif name == "docker":
        check_docker(rest)
    elif name == "apptainer":
        check_apptainer(rest)
    elif name == "export":
        assert all("=" in word for word in rest)
    else:
        assert (ROOT / name).is_file(), f"{' '.join(words)}: a command that no test checks"


def test_the_readme_starts_with_the_two_commands_of_a_newcomer() -> None:
    first = [words for page, words in all_commands() if page == "README.md"][:2]
    assert first == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize(("page", "words"), all_commands(), ids=lambda x: str(x)[:60])
def test_command(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if page == "docs/writing-a-backend.md" and words[0] in ("pip", "cd"):
        pytest.skip("run by the test of that page")
    check(words)


@pytest.mark.parametrize("words", [
    ["make", "dmeo"],
    ["make", "demo", "PYTHONN=python3"],
    ["docker", "build", "--build-arg", "DEVIC=cpu", "."],
    ["rm", "-rf", "/"],
], ids=" ".join)
def test_the_check_sees_a_wrong_command(words: list[str]) -> None:
    with pytest.raises(AssertionError, match="knows no|DEVIC|no test checks"):
        check(words)


@pytest.mark.parametrize("line", [
    "run.py /data /out particpant",
    "run.py /data /out group --stages preprocess",
    "docker run harmonizer:0.1.0 /data /out participant -w /work --backend",
    "apptainer run --nv harmonizer.sif /data /out participant --divice cuda",
    "python run.py /data /out participant group --mem 16X",
])
def test_the_check_sees_a_wrong_command_line_of_the_app(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, errors.UsageError), match=r"2|levels?|stage|memory|--mem"):
        check(shlex.split(line))


def test_usage_has_every_flag_and_no_other() -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(--?[a-z][a-z-]*)", text)) - {"-vv"}
    actions = build_parser()._actions
    flags = {flag for action in actions for flag in action.option_strings}
    assert told <= flags, f"usage.md tells of {sorted(told - flags)}"
    untold = [action.option_strings for action in actions
              if action.option_strings and not told & set(action.option_strings)]
    assert not untold, "usage.md lacks these flags"


def test_usage_has_every_exit_code() -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", text.partition("\n## ")[0], re.M)}
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, errors.HarmonizerError)]
    assert told == {0, 1, 130, 143} | {kind.exit_code for kind in kinds}


def test_usage_has_every_stage_in_order() -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`(?:, `(\w+)`)? \|", text, re.M)[:len(STAGES)]
    assert tuple(stage for stage, *_ in rows) == STAGES
    for level, stages in LEVEL_STAGES.items():
        assert tuple(stage for stage, *levels in rows if level in levels) == stages


def test_every_backend_is_in_the_readme() -> None:
    from harmonizer.methods.registry import BUILT_IN

    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert set(told) == set(BUILT_IN)


def test_usage_has_every_option_of_every_backend_with_its_default() -> None:
    from harmonizer.methods import registry

    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8")
                   for page in ("usage.md", "learned-options.md"))
    told = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([^`]+)` \|", text, re.M))
    told -= {row for row in told if row[0] in STAGES}
    assert told == {(name, field.name, str(field.default)) for name in registry.BUILT_IN
                    for field in dataclasses.fields(registry.get(name).Config)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_tree_of_the_architecture_is_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = blocks(text, "")[0]
    folder = ROOT
    for line in tree.splitlines():
        names = re.match(r"(\s*)((?:[\w.-]+/?(?:  ?|$))*[\w.-]+/?)(?:\s{2,}|$)", line)
        names_here = names.group(2).split()
        if not names.group(1):
            folder = ROOT / names_here[0] if names_here[0].endswith("/") else ROOT
            names_here = [] if folder != ROOT else names_here
            assert folder.is_dir(), f"{folder} is not there"
        for name in names_here:
            assert (folder / name).exists(), f"architecture.md names {folder.name}/{name}"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
@pytest.mark.parametrize("flags", ["", "--site-from ses --backend disarm"])
def test_cluster_jobs_call_the_app_as_it_is(job: Path, flags: str, tmp_path: Path) -> None:
    container = tmp_path / "apptainer"
    container.write_text('#!/bin/sh\nprintf "%s\\n" apptainer "$@"\n')
    container.chmod(0o755)
    (tmp_path / "labels").write_text("01\n02\n")
    given = {"BIDS": "/data/study", "OUT": str(tmp_path / "out"), "IMAGE": "harmonizer.sif",
             "LABELS": str(tmp_path / "labels"), "SLURM_ARRAY_TASK_ID": "2", "FLAGS": flags,
             "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", job], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = parse(app_arguments(done.stdout.splitlines()))
    stage = job.stem.partition("-")[2]
    assert settings.planned_stages == (stage,)
    assert settings.participant_label == (("02",) if stage in ("preprocess", "harmonize") else ())
    if flags:
        assert (settings.site_from, settings.backend) == ("ses", "disarm")
    assert (tmp_path / "out-work").is_dir() == (stage == "fit")  # a training goes on from there


def test_cluster_jobs_are_submitted_in_the_order_of_the_stages() -> None:
    script = ROOT / "docs" / "slurm" / "submit.sh"
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    submitted = re.findall(r"/(\d-\w+)\.sbatch", script.read_text(encoding="utf-8"))
    assert submitted == [f"{i}-{stage}" for i, stage in enumerate(STAGES, 1)]
    assert [job.stem for job in JOBS] == submitted


def test_the_readme_names_this_version() -> None:
    tags = set(re.findall(r"harmonizer:(\d+\.\d+\.\d+)", (ROOT / "README.md").read_text()))
    assert tags == {harmonizer.__version__}
