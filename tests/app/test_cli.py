"""The command line: every flag arrives in the settings, and what is wrong ends with its code."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harmonizer import __version__
from harmonizer.errors import UnavailableError, UsageError
from pipelines.cli import build_parser, check_environment, named_folders, parse
from pipelines.flag_hints import HINTS
from pipelines.settings import Settings
from pipelines.workflows.engine import load_plugin

ROOT = Path(__file__).parents[2]
ANSWER_SECONDS = 0.5


def parsed(*flags: str, levels: tuple[str, ...] = ("participant",)) -> Settings:
    return parse(["/bids", "/out", *levels, *flags])


FLAGS: list[tuple[str, str, Any]] = [
    ("--participant-label sub-01 02", "participant_label", ("01", "02")),
    ("--participant_label 01", "participant_label", ("01",)),
    ("--participant-label 01 --participant-label 02", "participant_label", ("01", "02")),
    ("--participant-labels sub-01 02", "participant_label", ("01", "02")),
    ("--session-label ses-A B", "session_label", ("A", "B")),
    ("--session-id A", "session_label", ("A",)),
    ("--session_id A", "session_label", ("A",)),
    ("--modalities T2w FLAIR", "modalities", ("T2w", "FLAIR")),
    ("--bids-filter-file /f.json", "bids_filter_file", Path("/f.json")),
    ("--bids-database-dir /db", "bids_database_dir", Path("/db")),
    ("--skip-bids-validation", "skip_bids_validation", True),
    ("--skip_bids_validation", "skip_bids_validation", True),
    ("--skip_bids_validator", "skip_bids_validation", True),
    ("--include-existing", "include_existing", True),
    ("-d /x/fp ours=/y", "derivatives", {"fp": Path("/x/fp"), "ours": Path("/y")}),
    ("--derivatives a=/x -d b=/y", "derivatives", {"a": Path("/x"), "b": Path("/y")}),
    ("-w /w", "work_dir", Path("/w")),
    ("--work-dir /w", "work_dir", Path("/w")),
    ("--nprocs 3", "nprocs", 3),
    ("--nthreads 3", "nprocs", 3),
    ("--n-cpus 3", "nprocs", 3),
    ("--n_cpus 3", "nprocs", 3),
    ("--nprocs 9 --omp-nthreads 3", "omp_nthreads", 3),
    ("--mem 12", "mem_gb", 12.0),
    ("--mem 12000M", "mem_gb", 12.0),
    ("--mem 12000", "mem_gb", 12.0),  # as in fMRIPrep
    ("--mem 1000G", "mem_gb", 1000.0),
    ("--mem-gb 12", "mem_gb", 12.0),
    ("--mem_gb 12G", "mem_gb", 12.0),
    ("--sloppy", "sloppy", True),
    ("--use-plugin /p.yml", "use_plugin", Path("/p.yml")),
    ("--nipype-plugin-file /p.yml", "use_plugin", Path("/p.yml")),
    ("--stop-on-first-crash", "stop_on_first_crash", True),
    ("--random-seed 17", "random_seed", 17),
    ("-v", "verbose", 1),
    ("-vv", "verbose", 2),
    ("--dry-run", "dry_run", True),
    ("--write-graph", "write_graph", True),
    ("--reports-only", "reports_only", True),
    ("--boilerplate-only", "boilerplate_only", True),
    ("--clean-workdir", "clean_workdir", True),
    ("--clean_workdir", "clean_workdir", True),
    ("--notrack", "notrack", True),
    ("--backend moment_matching", "backend", "moment_matching"),
    ("--target NYU", "target", ("NYU",)),
    ("--target /a.nii /b.nii.gz", "target", ("/a.nii", "/b.nii.gz")),
    ("--target /card_of_KKI.safetensors", "target", ("/card_of_KKI.safetensors",)),
    ("--target scanner-free", "target", ("scanner-free",)),
    ("--model /m", "model", Path("/m")),
    ("--stages preprocess harmonize", "stages", ("preprocess", "harmonize")),
    ("--site-from ses", "site_from", "ses"),
    ("--site-column my_site", "site_column", "my_site"),
    ("--site my_site", "site", "my_site"),
    ("--skull-strip network", "skull_strip", "network"),
    ("--device cuda:1", "device", "cuda:1"),
    ("--backend-option a=b band=0.02", "backend_option", ("a=b", "band=0.02")),
    ("--covariates age group", "covariates", ("age", "group")),
    ("--reference-site KKI", "reference_site", "KKI"),
    ("--traveling no", "traveling", "no"),
    ("--compare", "compare", True),
    ("--anatomy-change-maps all", "anatomy_change_maps", "all"),
    ("--fit-low-confidence-masks", "fit_low_confidence_masks", True),
    ("--fit-participants sub-01 group=HC", "fit_participants", ("01", "group=HC")),
    ("--exclude /ratings.tsv", "exclude", Path("/ratings.tsv")),
    ("--desc toA", "desc", "toA"),
    ("--detail guided", "detail", "guided"),
    ("--texture keep", "texture", "keep"),
    ("--backend cacd --preset tiny", "preset", "tiny"),
    ("--backend cacd --max-minutes 2.5", "max_minutes", 2.5),
    ("--backend cacd --devices 2", "devices", 2),
    ("--backend cacd --num-nodes 3", "num_nodes", 3),
    ("--precision bf16", "precision", "bf16"),
]
EXPORT_FLAGS: list[tuple[str, str, Any]] = [  # at the group level
    ("--export raw", "export", "raw"),
    ("--export raw --export-dir /exp", "export_dir", Path("/exp")),
    ("--export raw --export-names original", "export_names", "original"),
]


@pytest.mark.parametrize(("flags", "name", "value"), FLAGS)
def test_every_flag_arrives(flags: str, name: str, value: Any) -> None:
    default = getattr(parsed(), name)
    assert default != value, "the test could not fail"
    assert getattr(parsed(*flags.split()), name) == value


@pytest.mark.parametrize(("flags", "name", "value"), EXPORT_FLAGS)
def test_every_flag_of_the_export_arrives(flags: str, name: str, value: Any) -> None:
    assert getattr(parsed(), name) != value, "the test could not fail"
    assert getattr(parsed(*flags.split(), levels=("group",)), name) == value


def test_every_setting_has_a_flag_and_every_flag_a_setting() -> None:
    flags = {action.dest for action in build_parser()._actions} - {"help", "version"}
    assert flags == {item.name for item in fields(Settings)}
    tested = {name for _, name, _ in FLAGS + EXPORT_FLAGS}
    assert flags - tested == {"bids_dir", "output_dir", "levels", "config_file"}


def test_no_flag_has_a_default_that_could_beat_the_file() -> None:
    for action in build_parser()._actions:
        if action.option_strings:
            assert action.default is argparse.SUPPRESS, action.option_strings


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("random-seed = 5\nsloppy = true\nwrite_graph = true\ndesc = 'x'\n"
                    "participant_label = ['sub-01']\n[derivatives]\na = '/a'\n", encoding="utf-8")
    made = parsed("--config-file", str(path), "--desc", "y", "--no-sloppy")
    assert (made.random_seed, made.write_graph) == (5, True)  # the file over the defaults
    assert (made.desc, made.sloppy) == ("y", False)  # the command line over the file
    assert (made.backend, made.skull_strip) == ("tissue_matching", "auto")  # the defaults
    assert (made.participant_label, made.derivatives) == (("01",), {"a": Path("/a")})
    assert made.config_file == path


def test_a_saved_run_can_be_repeated(tmp_path: Path) -> None:
    first = parsed("--backend", "moment_matching", "--nprocs", "3", "--site", "A", "-v")
    path = tmp_path / "settings.toml"
    path.write_text(first.to_toml(), encoding="utf-8")
    again = parsed("--config-file", str(path))
    assert {**again.to_dict(), "config_file": None} == {**first.to_dict(), "config_file": None}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--participant-lab 01", "Did you mean --participant-label?"),  # no abbreviations
        ("--participant 01", "Did you mean --participant-label?"),
        ("--bakend x", "Did you mean --backend?"),
        ("--resource-monitr", "--resource-monitor is not a flag of this app: memory and time"),
        ("--output-layout bids", "always is a BIDS derivative dataset. Drop it."),
        ("--output_layout=bids", "always is a BIDS derivative dataset. Drop it."),
        ("--debug", "-vv shows everything"),
        ("--fs-license-file /x --low-mem", "no FreeSurfer is run here.*--nprocs 1 takes"),
        ("--zzz", "--help lists all flags"),
        ("--nprocs four", "invalid int value"),
        ("--random-seed", "expected one argument"),
    ],
)
def test_what_argparse_refuses(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        parsed(*flags.split())
    error = capsys.readouterr().err
    assert re.search(message.replace("?", r"\?"), error)
    assert len(error.splitlines()) == 2, "the usage would push the error off the screen"


def test_what_is_suggested_is_there() -> None:
    """Every flag of a hint is one that the parser has, and no flag of the parser has a hint."""
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert not flags & set(HINTS)
    for flag, text in HINTS.items():
        assert set(re.findall(r"--[a-z][a-z-]+|(?<!-)-[a-z]\b", text)) - {"-vv"} <= flags, flag
        for page in re.findall(r"\b(?:docs|benchmarks)/[\w-]+\.\w+", text):
            assert (ROOT / page).is_file(), page
        for command in re.findall(r"`([^`]+)`", text):
            parse(["/bids", "/out", *command.split()])


def test_each_section_of_the_help_has_an_example_that_works() -> None:
    sections = [group for group in build_parser()._action_groups
                if group.title not in ("positional arguments", "options")]
    assert len(sections) >= 8
    for section in sections:
        example = section.description.removeprefix("Example: ")
        words = example.replace("BIDS_DIR", "/bids").replace("OUTPUT_DIR", "/out").split()
        flags = {flag for action in section._group_actions for flag in action.option_strings}
        assert words[0] == "run.py" and flags & set(words), section.title
        parse(words[1:])


def test_choices_are_in_braces_and_are_those_of_the_settings() -> None:
    """Each choice that the help shows is accepted; one that it does not show is refused."""
    shown = {action.dest: (action.option_strings, action.metavar[1:-1].split(","))
             for action in build_parser()._actions if str(action.metavar).startswith("{")}
    assert {"levels", "modalities", "site_from", "stages", "backend", "detail", "skull_strip",
            "device", "preset", "precision", "traveling", "anatomy_change_maps", "export",
            "export_names"} <= set(shown)
    for name, (flags, choices) in shown.items():
        if name in ("levels", "device", "backend", "preset"):
            continue  # more than what is listed, or checked elsewhere
        more = ["--export", "raw"] if name in ("export_names", "stages") else []
        for choice in choices:
            parsed(*more, flags[0], choice, levels=("participant", "group"))
        with pytest.raises(UsageError, match="is not known"):
            parsed(*more, flags[0], "nonsense", levels=("participant", "group"))


def test_flags_that_swallow_the_folders_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        parse(["--participant-label", "01", "/bids", "/out", "participant"])
    assert "first, then the flags" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mem-gb 16000", "State the unit"),
        ("--mem 16000G", "State the unit"),
        ("--mem 16M", "State the unit"),
        ("--mem lots", "expected a number and K, M, G or T"),
        ("--stages fit", "belongs to the analysis level 'group'"),
        ("-d /a/x /b/x", "are both named 'x'"),
        ("-d x=/a -d x=/b", "are both named 'x'"),
        ("-w /bids/work", "inside the input folder"),
        ("--config-file /nowhere.toml", "cannot be read"),
    ],
)
def test_what_the_settings_refuse(flags: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(*flags.split())


def test_folders_are_named_by_their_last_part() -> None:
    assert named_folders(["/x/fmriprep/", "b=/y=z"]) == {"fmriprep": "/x/fmriprep/", "b": "/y=z"}


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Path]:
    """An input with two participants, an output with one, and room for what a test adds."""
    for folder in ("bids/sub-01/ses-A", "bids/sub-02/ses-B", "out/sub-03", "model", "deriv"):
        (tmp_path / folder).mkdir(parents=True)
    return {"root": tmp_path, "bids": tmp_path / "bids", "out": tmp_path / "out"}


def checked(world: dict[str, Path], flags: str, levels: str = "participant") -> None:
    words = [word.replace("@", str(world["root"])) for word in flags.split()]
    check_environment(parse([str(world["bids"]), str(world["out"]), *levels.split(), *words]))


@pytest.mark.parametrize("flags", [
    "", "--participant-label 01 02", "--session-label A", "--backend spectrum_swap",
    "--model @/model", "-d @/deriv", "--fit-participants 99",  # 99 may come from an earlier job
])
def test_a_world_in_order(world: dict[str, Path], flags: str) -> None:
    checked(world, flags)


@pytest.mark.parametrize(
    ("flags", "levels", "message"),
    [
        ("--participant-label 01 2", "participant", r"sub-2 not in the dataset.*02"),
        ("--participant-label 01 --session-label B", "participant", "ses-B not in the dataset"),
        ("--backend histogram_match", "participant", "Did you mean 'histogram_matching'"),
        ("--bids-filter-file @/no.json", "participant", "no.json: cannot be read"),
        ("-d @/nothing", "participant", "nothing: expected a folder"),
        ("--target @/no.nii.gz", "participant", "no such file"),
        ("--target @/no.safetensors", "participant", "no such file"),
        ("--use-plugin @/no.yml", "participant", "cannot be read as YAML"),
        ("--fit-participants 99", "participant group", "sub-99 not in the dataset"),
    ],
)
def test_what_is_not_there(
    world: dict[str, Path], flags: str, levels: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        checked(world, flags, levels)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[]", "expected queries"), ('{"t1w": 3}', "expected queries"),
     ('{"t1": {"ceagent": null}}', "unknown query 't1'. Did you mean 't1w'"),
     ('{"t1w": {"acquisitoin": "x"}}', "not a recognized entity. Did you mean 'acquisition'")],
    ids=["no JSON", "a list", "no query", "unknown query", "unknown entity"],
)
def test_a_bad_filter_file(world: dict[str, Path], text: str, message: str) -> None:
    (world["root"] / "f.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=f"f.json: .*{message}"):
        checked(world, "--bids-filter-file @/f.json")


def test_without_input_only_later_stages_work(world: dict[str, Path]) -> None:
    world = {**world, "bids": world["root"] / "gone"}
    checked(world, "", "group")
    checked(world, "--participant-label 03 --stages harmonize")
    with pytest.raises(UsageError, match="gone: expected a folder, but it does not exist"):
        checked(world, "")
    with pytest.raises(UsageError, match="nowhere: no such folder, and the stages fit, harm"):
        checked({**world, "out": world["root"] / "nowhere"}, "", "group")


def test_a_missing_model_is_unavailable(world: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="no such folder. Expected a fitted model"):
        checked(world, "--model @/nothing")


@pytest.mark.parametrize(("device", "count", "there"), [
    ("cuda", 0, False), ("cuda", 1, True), ("cuda:1", 1, False), ("cuda:1", 2, True),
    ("cpu", 0, True), ("auto", 0, True),
])
def test_a_device_that_was_asked_for(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch, device: str, count: int, there: bool
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    if there:
        checked(world, f"--device {device}")
    else:
        with pytest.raises(UnavailableError, match=f"sees {count} CUDA devices"):
            checked(world, f"--device {device}")


def test_a_gpu_that_torch_is_not_built_for_is_refused_before_work(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    pascal_with(monkeypatch, torch, ["sm_75", "sm_80", "sm_90", "compute_90"])
    with pytest.raises(UnavailableError, match=r"P100 has compute capability 6\.0.*sm_75, sm_80"):
        checked(world, "--device cuda")
    pascal_with(monkeypatch, torch, ["sm_60", "sm_70"])
    checked(world, "--device cuda")


def test_auto_uses_the_cpu_with_a_warning_where_torch_is_not_built_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from pipelines.workflows import harmonization

    pascal_with(monkeypatch, torch, ["sm_75"])
    for _ in range(2):
        harmonization._first_device.cache_clear()
        assert harmonization._first_device() == "cpu"
    assert "P100 has compute capability 6.0" in caplog.text
    pascal_with(monkeypatch, torch, ["sm_60"])
    harmonization._first_device.cache_clear()
    assert harmonization._first_device() == "cuda:0"
    harmonization._first_device.cache_clear()


def pascal_with(monkeypatch: pytest.MonkeyPatch, torch: ModuleType, built_for: list[str]) -> None:
    """Pretend to have a Pascal GPU and a torch that is built for some architectures."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)


def test_plugin_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text("plugin: MultiProc\nplugin_args: {n_procs: 2}\n", encoding="utf-8")
    assert load_plugin(path) == {"plugin": "MultiProc", "plugin_args": {"n_procs": 2}}
    path.write_text("n_procs: 2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="expected the keys plugin and plugin_args"):
        load_plugin(path)


def run_app(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "run.py"), *words], capture_output=True,
                          text=True, check=False)


@pytest.mark.parametrize(("flag", "answer"), [
    ("--version", f"harmonizer {__version__}\n"), ("--help", "--participant-label"),
])
def test_help_and_version_answer_at_once(flag: str, answer: str) -> None:
    seconds = []
    for _ in range(3):  # CPU seconds: on a busy machine the clock tells of other programs
        before = os.times()
        done = run_app(flag)
        seconds.append(sum(os.times()[2:4]) - sum(before[2:4]))
        assert (done.returncode, done.stderr) == (0, "")
        assert answer in done.stdout
    assert 0 < min(seconds) < ANSWER_SECONDS


def test_the_parser_imports_nothing_heavy() -> None:
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import pipelines.app; "
            "pipelines.app.main(['/nope', '/out', 'participant', '--mem', '0']); "
            "import json; print(json.dumps(sorted(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True,
                          check=True)
    heavy = {"numpy", "nibabel", "torch", "ants", "bids", "nipype", "matplotlib", "pandas"}
    assert not heavy & set(json.loads(done.stdout))
