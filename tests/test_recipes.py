"""The recipes agree: Dockerfile, Singularity.def, Makefile, .ci/run and constraints.txt.

A recipe that names a file, an entry point or a version that setup.cfg has moved on from builds
something else than what is tested; nothing but a comparison would notice.
"""
from __future__ import annotations

import configparser
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Names that make a container build, or a run in it, differ from one hospital to the next.
NEEDED_ENV = {
    "HOME": "/tmp", "USER": "harmonizer", "MPLCONFIGDIR": "/tmp/", "NO_ET": "1",
    "NIPYPE_NO_ET": "1", "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "PYTHONNOUSERSITE": "1", "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456",
    "NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments on one line) of a Dockerfile, comments left out."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def arguments_of(name: str) -> list[str]:
    return [rest for word, rest in instructions(read("Dockerfile")) if word == name]


def pairs(instruction: str) -> dict[str, str]:
    """NAME=value pairs of all ENV or LABEL instructions, or of the ARGs that have a default."""
    words = [w for rest in arguments_of(instruction) for w in shlex.split(rest)]
    return dict(w.split("=", 1) for w in words if "=" in w)


def script_of(setup: configparser.ConfigParser) -> tuple[str, str]:
    """(name, target) of the one console script."""
    (line,) = lines(setup["options.entry_points"]["console_scripts"])
    name, _, target = line.partition("=")
    return name.strip(), target.strip()


def tracked(*paths: str) -> list[str]:
    """Files in git below some paths; the test is skipped in an unpacked archive."""
    listing = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True,
                             text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [f for f in listing.stdout.split("\0") if f]


# ---------------------------------------------------------------- setup.cfg


def test_the_console_script_is_what_run_py_calls(setup: configparser.ConfigParser) -> None:
    name, target = script_of(setup)
    module, _, function = target.removeprefix("harmonizer.").partition(":")
    assert name == "harmonizer"
    assert callable(getattr(import_module(module), function))
    assert f"from {module} import {function}" in read("run.py")


def test_no_recipe_names_a_version() -> None:
    """Versions come from git tags, so a number in a file would soon be another one."""
    for recipe in ("Dockerfile", "Singularity.def", "README.md", ".github/workflows/container.yml"):
        assert not re.findall(r"\bharmonizer:\d", read(recipe)), recipe
    assert "image.version" not in read("Singularity.def"), "the Docker image has the label"
    assert 'SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}"' in read("Dockerfile")


def test_data_files_are_packaged(setup: configparser.ConfigParser) -> None:
    patterns = {package: lines(text) for package, text in setup["options.package_data"].items()}
    files = [f for f in tracked("harmonizer", "pipelines") if not f.endswith(".py")]
    assert files, "no templates, no citations?"
    for file in files:
        packages = [p for p in Path(file).parents if (ROOT / p / "__init__.py").is_file()]
        inside = Path(file).relative_to(packages[0]).as_posix()
        own = patterns.get(".".join(packages[0].parts), [])
        found = inside in own or [p for p in patterns["*"] if fnmatch.fnmatch(inside, p)
                                  and inside.count("/") == 1]
        assert found, f"{file} would be missing from an installed package"


def test_no_file_in_git_is_large() -> None:
    sizes = {f: (ROOT / f).stat().st_size for f in tracked() if (ROOT / f).is_file()}
    weights = sizes.pop("harmonizer/segmentation/weights/segmenter.safetensors")
    assert 0 < weights <= 8 * 2**20
    assert max(sizes.values()) < 5 * 2**20, max(sizes, key=sizes.__getitem__)


# ---------------------------------------------------------------- constraints.txt


def constraints() -> list[Requirement]:
    return [Requirement(line) for line in lines(read("constraints.txt")) if line[0] != "#"]


def requirements(setup: configparser.ConfigParser) -> list[Requirement]:
    texts = (setup["options"]["install_requires"], *setup["options.extras_require"].values())
    return [Requirement(line) for text in texts for line in lines(text)]


def environment(python: str, system: str = "linux", machine: str = "x86_64") -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.9",
            "sys_platform": system, "platform_machine": machine}


def applies(marker: Marker | None, where: dict[str, str]) -> bool:
    return marker is None or marker.evaluate(where)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_to_one_release_that_fits(
    setup: configparser.ConfigParser, python: str, system: str
) -> None:
    where = environment(python, system)
    for wanted in requirements(setup):
        if not applies(wanted.marker, where):
            continue
        pins = [p for p in constraints()
                if canonical(p.name) == canonical(wanted.name) and applies(p.marker, where)]
        assert len(pins) == 1, f"{wanted.name} on Python {python}, {system}: {pins}"
        (specifier,) = pins[0].specifier
        assert specifier.operator == "=="
        assert wanted.specifier.contains(specifier.version), f"{pins[0]} does not fit {wanted}"


def test_all_python_versions_are_named_alike(setup: configparser.ConfigParser) -> None:
    assert setup["options"]["python_requires"] == ">=3.10"
    classifiers = setup["metadata"]["classifiers"]
    assert re.findall(r"Python :: (3\.\d+)", classifiers) == list(PYTHONS)
    assert "(3, 10) <= sys.version_info[:2] <= (3, 13)" in read("Makefile")
    assert re.search(r"Python 3\.10\s*(to|-|–)\s*3\.13", read("README.md"))


# ---------------------------------------------------------------- Makefile, .ci/run


def test_the_gate_calls_the_test_command_of_the_readme() -> None:
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    text = gate.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert re.search(r"^make test\b", text, re.M)
    assert re.search(r"^make lint\b", text, re.M)
    assert re.search(r"^make docs\b", text, re.M)


@pytest.mark.parametrize("script", [".ci/run", "tools/base_image.sh", "tools/constraints.sh",
                                    "tools/image.sh"])
def test_shell_scripts_parse(script: str) -> None:
    checked = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--no-print-directory", *words], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "MAKEFLAGS": ""})


@pytest.mark.parametrize("target", ["demo", "test", "docs", "help"])
def test_make_knows_the_words_of_a_newcomer(target: str, tmp_path: Path) -> None:
    answer = make("-n", target, f"VENV={tmp_path}/venv", f"DEMO={tmp_path}/demo")
    assert answer.returncode == 0, answer.stderr
    assert f"make {target}" in make("help").stdout


def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'raise SystemExit(1)'\n")
    old.chmod(0o755)
    answer = make("test", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert answer.returncode != 0
    assert "Python 3.10 to 3.13 is needed" in answer.stderr
    assert not (tmp_path / "venv").exists()


# ---------------------------------------------------------------- Dockerfile, Singularity.def


def test_the_image_copies_only_files_that_are_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in lines(read(".dockerignore")) if line.startswith("!")}
    for rest in arguments_of("COPY"):
        if rest.startswith("--from="):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), f"Dockerfile copies {source}, which is not there"
            assert source.split("/")[0] in allowed, f".dockerignore hides {source}"
    assert {a for a in allowed if not (ROOT / a).exists()} == set()


def test_the_image_has_every_package_and_license_file(setup: configparser.ConfigParser) -> None:
    copied = {s for rest in arguments_of("COPY") for s in rest.split()[:-1]}
    packages = {"harmonizer", "pipelines", "setup.py"}
    assert packages | {setup["metadata"]["license_files"], "constraints.txt"} <= copied


def test_the_image_starts_the_console_script_of_the_environment_that_it_built(
    setup: configparser.ConfigParser,
) -> None:
    name, _ = script_of(setup)
    prefix = re.search(r"python3 -m venv (\S+)", read("Dockerfile")).group(1)
    assert prefix.startswith("/")
    assert arguments_of("ENTRYPOINT") == [f'["{prefix}/bin/{name}"]']
    assert f"--from=build {prefix} {prefix}" in arguments_of("COPY")
    runscript = re.search(r"%runscript\n\s+(.*)", read("Singularity.def")).group(1)
    assert runscript == f'exec {prefix}/bin/{name} "$@"'
    assert f"{prefix}/bin/{name} --version" in read("Singularity.def").partition("%test")[2]


def test_one_recipe_builds_for_cpu_and_for_cuda() -> None:
    arguments = {rest.split("=")[0] for rest in arguments_of("ARG")}
    assert {"BASE_IMAGE", "DEVICE", "CUDA", "TORCH_INDEX", "VERSION", "REVISION", "CREATED",
            "SOURCE", "PIP_CERT"} <= arguments
    assert {rest.split()[0] for rest in arguments_of("FROM")} == {"${BASE_IMAGE}"}
    commands = [c for rest in arguments_of("RUN") for c in rest.split("&&")]
    installs = [c for c in commands if "/bin/pip install" in c]
    assert len(installs) == 3
    for install in installs:
        assert "-c constraints.txt" in install or "--no-deps --force-reinstall ." in install


@pytest.mark.parametrize(("device", "cuda", "index"), [
    ("cpu", "", "https://download.pytorch.org/whl/cpu"),
    ("cuda", "", "https://pypi.org/simple"),
    ("cuda", "126", "https://download.pytorch.org/whl/cu126"),
    ("cpu", "126", None),
    ("cuda", "12.6", None),
    ("rocm", "", None),
])
def test_the_image_takes_torch_from_the_index_of_its_device(
    device: str, cuda: str, index: str | None
) -> None:
    """The step is executed; only the commands that would install are replaced by echo."""
    (step,) = [rest for rest in arguments_of("RUN") if "TORCH_INDEX" in rest]
    step = step.replace("python3 -m venv", "echo").replace("/opt/harmonizer/bin/pip", "echo pip")
    done = subprocess.run(["sh", "-c", step], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], "DEVICE": device, "CUDA": cuda})
    assert done.returncode == (0 if index else 64), done.stderr
    found = re.findall(r"--extra-index-url (\S+)", done.stdout)
    assert found == ([index] if index else [])


@pytest.mark.parametrize(("answer", "code"), [("sha256:" + "0a" * 32, 0), ("", 65)])
def test_the_base_image_is_named_with_its_digest(tmp_path: Path, answer: str, code: int) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho '{answer}'\n")
    docker.chmod(0o755)
    done = subprocess.run([ROOT / "tools" / "base_image.sh"], capture_output=True, text=True,
                          env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == code, done.stderr
    name = pairs("ARG")["BASE_IMAGE"]
    assert done.stdout == ("" if code else f"{name}@{answer}\n")


def test_published_images_are_built_from_a_digest() -> None:
    workflow = read(".github/workflows/container.yml")
    assert workflow.count("tools/base_image.sh") == workflow.count("BASE_IMAGE=${{")


def test_the_image_has_no_root_and_needs_no_home() -> None:
    (user,) = arguments_of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number: Kubernetes cannot judge a name"
    env = pairs("ENV")
    for name, start in NEEDED_ENV.items():
        assert env.get(name, "").startswith(start), f"ENV {name}"


def test_the_image_says_what_it_is() -> None:
    labels = pairs("LABEL")
    for key in ("title", "description", "licenses", "version", "revision", "created", "source",
                "base.name"):
        assert labels.get(f"org.opencontainers.image.{key}"), key
    assert labels["org.opencontainers.image.version"] == "${VERSION}"


def test_the_image_tells_the_pipeline_about_itself() -> None:
    code = read("pipelines/outputs/dataset.py")
    names = set(re.findall(r"\bHARMONIZER_\w+", code))
    assert names, "the pipeline asks the environment about its container"
    assert names <= set(pairs("ENV"))
    assert "HARMONIZER_CONTAINER=singularity" in read("Singularity.def")


# Rules of hadolint (https://github.com/hadolint/hadolint) that matter here, kept without it.


def test_the_dockerfile_has_no_habit_that_a_linter_refuses() -> None:
    steps = instructions(read("Dockerfile"))
    words = [word for word, _ in steps]
    assert "ADD" not in words and "MAINTAINER" not in words  # DL3020, DL4000
    assert words.count("ENTRYPOINT") == 1 and "CMD" not in words  # DL4003, DL4004
    assert all(word.isupper() for word in words)
    for word, rest in steps:
        if word == "WORKDIR":
            assert rest.startswith("/"), rest  # DL3000
        if word == "FROM":
            assert ":latest" not in rest  # DL3007
        if word == "COPY":
            assert rest.split()[-2] not in (".", "./"), "a COPY of everything takes secrets along"
            assert len(rest.split()) <= 2 or rest.startswith("--") or rest.endswith("/")  # DL3021
        if word == "RUN":
            assert not re.search(r"\b(sudo|ssh|vim|shutdown)\b|apt |cd /", rest), rest  # DL3001-4
            assert "|" not in rest.replace("||", "") or "pipefail" in rest or "case" in rest  # 4006


def test_no_secret_is_handed_to_a_build() -> None:
    names = [rest.split("=")[0] for rest in arguments_of("ARG")] + list(pairs("ENV"))
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]


def test_the_base_has_a_tag_and_a_python_that_is_supported() -> None:
    image, _, tag = pairs("ARG")["BASE_IMAGE"].partition(":")
    assert image == "python"
    assert re.match(r"3\.\d+", tag).group(0) in PYTHONS


def test_the_singularity_recipe_has_its_sections_and_decides_nothing() -> None:
    text = read("Singularity.def")
    assert re.findall(r"^%(\w+)", text, re.M) == ["labels", "environment", "runscript", "test",
                                                  "help"]
    assert "%post" not in text, "what is installed is the Docker image's to decide"
    assert re.search(r"^Bootstrap: docker-archive$", text, re.M)
    test = text.partition("%test")[2].partition("%help")[0]
    assert "--version" in test and "import ants, bids, nipype, torch" in test
    own = set(re.findall(r"\b([A-Z][A-Z_]+)=", text.partition("%environment")[2]))
    assert own <= set(pairs("ENV")), "a variable that the Docker image does not have"


SCRIPTS = [".ci/run", "tools/base_image.sh", "tools/constraints.sh", "tools/image.sh",
           "docs/slurm/submit.sh",
           *(f"docs/slurm/{path.name}" for path in (ROOT / "docs/slurm").glob("*.sbatch"))]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_pass_the_linter(script: str) -> None:
    checked = subprocess.run(["shellcheck", "--shell=bash", ROOT / script], capture_output=True,
                             text=True)
    assert checked.returncode == 0, checked.stdout
