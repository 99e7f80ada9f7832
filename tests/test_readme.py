"""Every command in README.md and docs/ is one that works: its words are checked against the code.

make targets exist; command lines of the app, bare or inside docker and apptainer, are parsed by the
app's own parser; build arguments are in the Dockerfile; files that are linked are there. A command
of a kind that is not known here fails, so that none goes unchecked.
"""
from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harmonizer import errors
from harmonizer.evaluation.__main__ import main as evaluation
from harmonizer.phantom.__main__ import main as phantom
from harmonizer.reports.__main__ import main as reports
from harmonizer.segmentation.__main__ import main as segmentation
from pipelines.cli import build_parser, parse
from pipelines.outputs.raw_dataset import exported_name
from pipelines.settings import LEVEL_STAGES, STAGES

ROOT = Path(__file__).resolve().parents[1]
BUILT = ("build", "auto_tutorials", "generated")  # folders that `make docs` writes
PAGES = [ROOT / "README.md", *sorted(
    page for page in (ROOT / "docs").rglob("*.md")
    if page.parent.name != "research" and not set(BUILT) & set(page.relative_to(ROOT).parts))]
REFERENCE = ROOT / "docs" / "extensions" / "generated_reference.py"
OTHER_FLAGS = {  # of docker, apptainer, sbatch, compilers and other programs
    "--ignore", "--skull-strip-mode", "--skull-strip-t1w", "--subject-anatomical-reference",
    "--nv", "--containall", "--gres", "--gpus", "--flip", "--template", "--help"}
MODULES = {"harmonizer.phantom": phantom, "harmonizer.segmentation": segmentation,
           "harmonizer.evaluation": evaluation, "harmonizer.reports": reports}
JOBS = sorted((ROOT / "docs" / "slurm").glob("*.sbatch"))
CONTAINER = re.compile(r"(?:harmonizer:[\w.-]+|harmonizer\.sif|\$IMAGE)")
EXPORT = Path("/data/out/derivatives/raw-harmonized")  # of the page on other tools
OTHER_TOOLS = {  # flags that their parsers and documentation list: fMRIPrep 25.2, sMRIPrep 0.19
    "fmriprep": {"--participant-label", "--anat-only", "--fs-license-file", "--fs-subjects-dir",
                 "-d", "-w"},
    "smriprep": {"--participant-label", "--fs-license-file", "-w"},
    "recon-all": {"-i", "-s", "-sd", "-all", "-FLAIR", "-FLAIRpial"},
    "gunzip": {"-c"},
    "mkdir": {"-p"},
    "cat_standalone.sh": {"-s", "-m", "-b"},
    "mri_synthseg": {"--i", "--o", "--vol", "--parc", "--robust"},
}
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


def check_other_tool(name: str, words: list[str]) -> None:
    """Flags are known, and each image of the exported dataset has the name that export gives."""
    flags = {word for word in words if word.startswith("-")}
    assert flags <= OTHER_TOOLS[name], f"{name} has no {sorted(flags - OTHER_TOOLS[name])}"
    for path in map(Path, words):
        if EXPORT in path.parents:
            stem, _, modality = path.name.removesuffix(".nii.gz").rpartition("_")
            source = stem.replace("_rec-harmonized", "")
            assert path.name == exported_name(source, modality, "harmonized", "rec")
            assert path.parent.name == "anat" and path.name.startswith(
                "_".join(path.relative_to(EXPORT).parts[:-2]))
    if name.endswith("prep"):
        assert words[2] == "participant"


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
    elif name in OTHER_TOOLS:
        check_other_tool(name, rest)
    elif name == "export":
        assert all("=" in word for word in rest)
    else:
        assert (ROOT / name).is_file(), f"{' '.join(words)}: a command that no test checks"


def test_the_readme_starts_with_the_two_commands_of_a_newcomer() -> None:
    first = [words for page, words in all_commands() if page == "README.md"][:2]
    assert first == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize(("page", "words"), all_commands(), ids=lambda x: str(x)[:60])
def test_command(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if page == "docs/extend/backend.md" and words[0] in ("pip", "cd"):
        pytest.skip("run by the test of that page")
    check(words)


@pytest.mark.parametrize("words", [
    ["make", "dmeo"],
    ["make", "demo", "PYTHONN=python3"],
    ["docker", "build", "--build-arg", "DEVIC=cpu", "."],
    ["rm", "-rf", "/"],
    ["recon-all", "-i", "/data/t1.nii.gz", "-subject", "sub-01"],
    ["recon-all", "-i", f"{EXPORT}/sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz"],
], ids=" ".join)
def test_the_check_sees_a_wrong_command(words: list[str]) -> None:
    with pytest.raises(AssertionError, match="knows no|DEVIC|no test checks|has no|harmonized"):
        check(words)


@pytest.mark.parametrize("line", [
    "run.py /data /out particpant",
    "run.py /data /out group --stages preprocess",
    "docker run harmonizer:cpu /data /out participant -w /work --backend",
    "apptainer run --nv harmonizer.sif /data /out participant --divice cuda",
    "python run.py /data /out participant group --mem 16X",
])
def test_the_check_sees_a_wrong_command_line_of_the_app(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, errors.UsageError), match=r"2|levels?|stage|memory|--mem"):
        check(shlex.split(line))


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The module that writes the reference pages."""
    spec = importlib.util.spec_from_file_location("generated_reference", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [
    page for page in PAGES if page.parent.name in ("how-to", "concepts", "reference")
    or page.name in ("README.md", "start.md", "choose-a-method.md")], ids=lambda page: page.name)
def test_pages_name_only_flags_that_exist(page: Path) -> None:
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", page.read_text(encoding="utf-8"))) - OTHER_FLAGS
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert named <= flags, f"{page.name} names {sorted(named - flags)}"


def test_the_reference_has_every_flag(reference: ModuleType) -> None:
    named = set(re.findall(r"`(--?[a-z][a-z-]*)`", reference.command_line()))
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert flags - {"-h", "--help"} == named


def test_the_reference_has_every_exit_code(reference: ModuleType) -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", reference.exit_codes(), re.M)}
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, errors.HarmonizerError)]
    assert documented == {0, 1, 130, 143} | {kind.exit_code for kind in kinds}


def test_the_stages_are_in_order() -> None:
    text = (ROOT / "docs" / "concepts" / "stages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`(?:, `(\w+)`)? \|", text, re.M)[:len(STAGES)]
    assert tuple(stage for stage, *_ in rows) == STAGES
    for level, stages in LEVEL_STAGES.items():
        assert tuple(stage for stage, *levels in rows if level in levels) == stages


def test_every_backend_is_in_the_readme() -> None:
    from harmonizer.methods.registry import BUILT_IN

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert set(documented) == set(BUILT_IN)


def test_the_reference_has_every_option_of_every_backend(reference: ModuleType) -> None:
    from harmonizer.methods import registry

    text = reference.method_options()
    documented = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([^`]+)` \|", text, re.M))
    assert documented == {(name, field.name, str(field.default)) for name in registry.BUILT_IN
                    for field in dataclasses.fields(registry.get(name).Config)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MyST and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([\w./-]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        known = anchors(target)
        if target.name == "method-options.md":  # its headings are generated
            known |= {"tissue_matching"}
        assert anchor in known, f"{page.name} links to {link}#{anchor}"


def test_code_names_only_pages_that_exist() -> None:
    files = [file for top in ("harmonizer", "pipelines", "benchmarks", "tools", "tests")
             for file in (ROOT / top).rglob("*") if file.suffix in (".py", ".sh", ".md")]
    assert len(files) > 100
    named = {(file.name, page) for file in [*files, ROOT / "Makefile", ROOT / "setup.cfg"]
             for page in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8"))}
    missing = {(name, page) for name, page in named if not (ROOT / page).is_file()}
    assert {name for name, page in missing if page != "docs/a.md"} == set(), missing


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


def job_environment(tmp_path: Path, flags: str = "", apptainer_code: int = 0) -> dict[str, str]:
    """What a job script sees; apptainer is a stand-in that prints its arguments."""
    container = tmp_path / "apptainer"
    container.write_text(f'#!/bin/sh\nprintf "%s\\n" apptainer "$@"\nexit {apptainer_code}\n')
    container.chmod(0o755)
    (tmp_path / "labels").write_text("01\n02 03\n")
    return {"BIDS": "/data/study", "OUT": str(tmp_path / "out"), "IMAGE": "harmonizer.sif",
            "LABELS": str(tmp_path / "labels"), "SLURM_ARRAY_TASK_ID": "2", "FLAGS": flags,
            "SLURM_MEM_PER_NODE": "6000", "SLURM_CPUS_PER_TASK": "3",
            "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
@pytest.mark.parametrize("flags", ["", "--site-from ses --backend disarm"])
def test_cluster_jobs_call_the_app_as_it_is(job: Path, flags: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", job], env=job_environment(tmp_path, flags), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    settings = parse(app_arguments(done.stdout.splitlines()))
    stage = job.stem.partition("-")[2]
    assert settings.planned_stages == (stage,)
    per_participant = stage in ("preprocess", "harmonize")
    assert settings.participant_label == (("02", "03") if per_participant else ())
    assert (settings.mem_gb, settings.nprocs) == (6.0, 3)  # what SLURM gives, no other number
    if flags:
        assert (settings.site_from, settings.backend) == ("ses", "disarm")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_that_the_time_limit_ends_keeps_its_work(job: Path, tmp_path: Path) -> None:
    """A training, a sampling and an evaluation resume; a preprocessing starts again."""
    given = job_environment(tmp_path, apptainer_code=143)
    done = subprocess.run(["bash", job], env=given, capture_output=True, text=True)
    assert done.returncode == 143
    mounted = re.search(r"^(.+):/work$", done.stdout, re.M).group(1)
    assert Path(mounted).is_dir() == (job.stem != "1-preprocess")
    work = {"1-preprocess": mounted, "3-harmonize": str(tmp_path / "out-work" / "sub-02")}
    assert mounted == work.get(job.stem, str(tmp_path / "out-work"))
    again = subprocess.run(["bash", job], env=given, capture_output=True, text=True)
    same = f"{mounted}:/work" in again.stdout.splitlines()
    assert same == (job.stem != "1-preprocess")


def test_a_finished_harmonization_leaves_no_work(tmp_path: Path) -> None:
    job = next(job for job in JOBS if job.stem == "3-harmonize")
    subprocess.run(["bash", job], env=job_environment(tmp_path), check=True, capture_output=True)
    assert list((tmp_path / "out-work").iterdir()) == []


def submitted(tmp_path: Path, scans: list[str], **more: str) -> tuple[list[list[str]], Path]:
    """What submit.sh gives to sbatch for a dataset of these images, and the labels file."""
    for name in scans:
        subject, *session = [part for part in name.split("_") if part[:3] in ("sub", "ses")]
        path = tmp_path.joinpath("bids", subject, *session, "anat", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    derived = tmp_path / "bids" / "derivatives" / "x" / "sub-99" / "anat" / "sub-99_T1w.nii.gz"
    derived.parent.mkdir(parents=True)  # is no image of the dataset
    derived.touch()
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\nprintf "%s\\t" "$@" >> {tmp_path}/calls\n'
                      f'echo >> {tmp_path}/calls\necho "$(wc -l < {tmp_path}/calls);cluster"\n')
    sbatch.chmod(0o755)
    given = {"BIDS": str(tmp_path / "bids"), "OUT": str(tmp_path / "out"), "IMAGE": "h.sif",
             "PATH": f"{tmp_path}:{os.environ['PATH']}", **more}
    done = subprocess.run(["bash", ROOT / "docs" / "slurm" / "submit.sh"], env=given,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [line.split("\t")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]
    (labels,) = (tmp_path / "out-work").glob("labels-*.txt")
    return calls, labels


def options(call: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in call if "=" in word)


def test_cluster_jobs_are_submitted_in_the_order_of_the_stages(tmp_path: Path) -> None:
    scans = ["sub-01_T1w.nii.gz", "sub-02_ses-A_T1w.nii"]
    calls, labels = submitted(tmp_path, scans)
    cluster_stages = [stage for stage in STAGES if stage != "export"]
    assert [Path(call[-1]).stem for call in calls] == [
        f"{i}-{stage}" for i, stage in enumerate(cluster_stages, 1)]
    assert [Path(call[-1]) for call in calls] == JOBS
    assert [options(call).get("dependency") for call in calls] == [
        None, "afterany:1", "afterok:2", "afterany:3"]
    assert labels.read_text() == "01\n02\n"
    arrays = [options(call).get("array") for call in calls]
    assert arrays == ["1-2%50", None, "1-2%50", None]
    logs = tmp_path / "out" / "logs" / "slurm"
    assert logs.is_dir()
    names = [Path(options(call)["output"]) for call in calls]
    assert {path.parent for path in names} == {logs}
    assert [path.name for path in names] == ["%x_%A_%a.out", "%x_%j.out"] * 2


def test_time_and_memory_of_jobs_grow_with_the_scans(tmp_path: Path) -> None:
    def asked(name: str, scans: list[str], **more: str) -> list[dict[str, str]]:
        (tmp_path / name).mkdir()
        calls, _ = submitted(tmp_path / name, scans, **more)
        return [options(call) for call in calls]

    few = [f"sub-{i:03d}_T1w.nii.gz" for i in range(10)]
    many = [f"sub-{i:03d}_{m}.nii.gz" for i in range(600) for m in ("T1w", "T2w", "FLAIR")]
    small = asked("few", few)
    t1w = asked("t1w", many)
    large = asked("large", many, FLAGS="--modalities T1w T2w FLAIR --max-minutes 90")
    minutes = [int(job["time"]) for job in large]
    assert minutes[3] > 1.5 * 4.5 * 60  # 1,800 scans take 4.5 hours on four processors
    assert minutes[0] > int(t1w[0]["time"]) == int(small[0]["time"])  # of one participant
    assert minutes[1] >= 90 + 60
    assert int(large[3]["time"]) > int(t1w[3]["time"]) > int(small[3]["time"])
    assert int(large[3]["mem"]) > int(small[3]["mem"])
    slow = asked("slow", few, TIME_FACTOR="2", CPUS="8", THROTTLE="5")
    assert [int(job["time"]) for job in slow[:1]] == [2 * int(small[0]["time"])]
    assert slow[3]["cpus-per-task"] == "8" and slow[0]["array"] == "1-10%5"


def test_an_array_is_never_longer_than_the_cluster_allows(tmp_path: Path) -> None:
    calls, labels = submitted(tmp_path, [f"sub-{i}_T1w.nii.gz" for i in range(1, 8)],
                              MAX_TASKS="3")
    assert options(calls[0])["array"] == "1-3%50"
    assert labels.read_text() == "1 2 3\n4 5 6\n7\n"


def test_a_dataset_without_images_is_not_submitted(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no image"):
        submitted(tmp_path, ["sub-01_T2w.nii.gz"])
