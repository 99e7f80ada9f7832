"""Settings: what is refused, what is tidied, and that TOML brings back the same value."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from harmonizer.errors import UsageError
from pipelines.settings import ONE_TIME_OPTIONS, Settings, available_cpus, load_toml, parse_memory


def settings(**changes: Any) -> Settings:
    return Settings(**{"bids_dir": "/bids", "output_dir": "/out", "levels": ["participant"],
                       "work_dir": "/work_folder", **changes})


EVERYTHING: dict[str, Any] = {
    "levels": ["participant", "group"], "participant_label": ["01"], "session_label": ["A"],
    "modalities": ["T1w", "FLAIR"], "bids_filter_file": "/filter.json", "bids_database_dir": "/db",
    "skip_bids_validation": True, "include_existing": True,
    "derivatives": {"fmriprep": "/fp", "ours": "/o"},
    "site_from": "sessions", "site_column": "scanner", "stages": ["preprocess", "evaluate"],
    "backend": "spectrum_swap", "target": ["/a.nii.gz", "/b.nii"], "model": "/model",
    "fit_participants": ["group=HC", "02"], "fit_low_confidence_masks": True,
    "exclude": "/ratings.tsv",
    "skull_strip": "force", "desc": "toSiteA",
    "backend_option": ["band=0.02"], "covariates": ["age", "group"], "reference_site": "KKI",
    "traveling": "no", "compare": True, "detail": "guided", "texture": "keep",
    "anatomy_change_maps": "flagged",
    "preset": "tiny", "max_minutes": 30.0, "devices": 2, "num_nodes": 3, "precision": "fp32",
    "device": "cuda:1", "random_seed": 7, "sloppy": True, "nprocs": 8, "omp_nthreads": 2,
    "mem_gb": 12.5, "use_plugin": "/plugin.yml", "stop_on_first_crash": True, "dry_run": True,
    "write_graph": True, "notrack": True, "verbose": 2, "config_file": "/old.toml",
}
EXPORT: dict[str, Any] = {"levels": ["group"], "export": "raw", "export_dir": "/exported",
                          "export_names": "original"}
ALONE: tuple[dict[str, Any], ...] = (  # what does not go together with everything
    {"site": "my site", "target": ["scanner-free"]}, EXPORT, {"reports_only": True},
    {"boilerplate_only": True, "clean_workdir": True},
)


def test_covariates_are_separated_by_spaces_or_commas() -> None:
    for entries in (["age", "sex", "group"], ["age,sex", "group"], ["age, sex,group,"]):
        assert settings(covariates=entries).covariates == ("age", "sex", "group")


def test_the_round_trip_covers_every_option() -> None:
    named = {"bids_dir", "output_dir", "work_dir", *EVERYTHING}
    named |= {name for changes in ALONE for name in changes}
    assert named == {item.name for item in fields(Settings)}


@pytest.mark.parametrize("changes", [{}, EVERYTHING, *ALONE])
def test_toml_brings_back_the_same_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = settings(**changes)
    path = tmp_path / "settings.toml"
    path.write_text(before.to_toml(), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    # a plan is saved to be carried out
    assert not [name for name in ONE_TIME_OPTIONS if name in text]
    again = Settings.from_dict(load_toml(path))
    assert again == replace(before, **dict.fromkeys(ONE_TIME_OPTIONS, False))


def test_settings_travel_to_other_processes() -> None:
    before = settings(**EVERYTHING)
    assert pickle.loads(pickle.dumps(before)) == before
    assert hash(before) == hash(settings(**EVERYTHING))


def test_one_option_more_is_another_value() -> None:
    for name, value in EVERYTHING.items():
        if name not in ("levels", "stages"):
            assert settings(**{name: value}) != settings(), name


def test_labels_are_tidied() -> None:
    made = settings(participant_label=["sub-01 02", "03,sub-01"], session_label=["ses-A", "A"],
                    fit_participants=["sub-02", "group=HC", "sub-02"])
    assert made.participant_label == ("01", "02", "03")
    assert made.session_label == ("A",)
    assert made.fit_participants == ("02", "group=HC")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = settings(bids_dir="bids", target=["ref.nii.gz"], derivatives={"x": "d"})
    assert made.bids_dir == tmp_path / "bids"
    assert made.target == (str(tmp_path / "ref.nii.gz"),)
    assert made.derivatives == {"x": tmp_path / "d"}
    assert made.target_kind == "images"


@pytest.mark.parametrize(
    ("target", "kind"),
    [([], "default"), (["NYU"], "site"), (["a.nii", "b.nii.gz"], "images"),
     (["kki.safetensors"], "card"), (["scanner-free"], "scanner-free")],
)
def test_target_kind(target: list[str], kind: str) -> None:
    assert settings(target=target).target_kind == kind


@pytest.mark.parametrize(
    ("levels", "changes", "planned"),
    [
        (["participant"], {}, ("preprocess", "harmonize")),
        (["group"], {}, ("fit", "harmonize", "evaluate")),
        (["group"], {"stages": ["harmonize"]}, ("harmonize",)),
        (["group"], {"model": "/m"}, ("harmonize", "evaluate")),
        (["group", "participant"], {}, ("preprocess", "fit", "harmonize", "evaluate")),
        (["participant"], {"stages": ["preprocess"]}, ("preprocess",)),
        (["participant", "group"], {"stages": ["evaluate", "fit"]}, ("fit", "evaluate")),
        (["participant", "group"], {"model": "/m"}, ("preprocess", "harmonize", "evaluate")),
        (["participant", "group"], {"export": "raw"},
         ("preprocess", "fit", "harmonize", "evaluate", "export")),
        (["group"], {"stages": ["evaluate"], "export": "raw"}, ("evaluate", "export")),
        (["group"], {"stages": ["export"], "export": "raw"}, ("export",)),
    ],
)
def test_planned_stages(levels: list[str], changes: dict[str, Any], planned: tuple) -> None:
    assert settings(levels=levels, **changes).planned_stages == planned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, "no analysis level"),
        ({"levels": ["partcipant"]}, "Did you mean 'participant'"),
        ({"stages": ["fit"]}, "belongs to the analysis level 'group'"),
        ({"levels": ["group"], "stages": ["fit"], "model": "/m"}, "Drop one"),
        ({"stages": ["harmonze"]}, "Did you mean 'harmonize'"),
        ({"modalities": ["T1"]}, "Did you mean 'T1w'"),
        ({"modalities": []}, "one or more of"),
        ({"site_from": "session"}, "Did you mean 'sessions'"),
        ({"site": "A", "site_from": "sidecar"}, "Drop one"),
        ({"skull_strip": "no"}, "--skull-strip"),
        ({"device": "gpu"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "expected auto, cpu"),
        ({"participant_label": ["0_1"]}, "letters, digits and .+. only"),
        ({"desc": "to-A"}, "letters, digits and .+. only"),
        ({"desc": "preproc"}, "our own preprocessed"),
        ({"target": ["A", "B"]}, "Give one kind"),
        ({"target": ["A", "b.nii"]}, "Give one kind"),
        ({"target": ["folder/x"]}, "looks like a path"),
        ({"fit_participants": ["group="]}, "column=value"),
        ({"nprocs": 0}, "--nprocs 0"),
        ({"nprocs": 2, "omp_nthreads": 3}, "more than --nprocs 2"),
        ({"random_seed": 0}, "--random-seed 0"),
        ({"mem_gb": 16000}, "State the unit"),
        ({"mem_gb": 0.016}, "State the unit"),
        ({"output_dir": "/bids"}, "is the input folder"),
        ({"output_dir": "/bids/../bids/"}, "is the input folder"),
        ({"output_dir": "/"}, "inside the output folder"),
        ({"work_dir": "/bids/work"}, "inside the input folder"),
        ({"work_dir": "/bids"}, "inside the input folder"),
        ({"nprocs": "four"}, "nprocs: expected a whole number, got 'four'"),
        ({"nprocs": True}, "expected a whole number, got True"),
        ({"sloppy": 1}, "expected true or false"),
        ({"participant_label": "01"}, "expected a list of texts"),
        ({"backend": ""}, "backend: expected text"),
        ({"export": "raw"}, "belongs to the analysis level 'group'"),
        ({"levels": ["group"], "export": "bids"}, "--export: 'bids' is not known"),
        ({"levels": ["group"], "stages": ["export"]}, "expected --export raw as well"),
        ({"export_dir": "/e"}, "have no effect without --export raw"),
        ({"export_names": "original"}, "have no effect without --export raw"),
        ({**EXPORT, "export_names": "desc"}, "--export-names: 'desc' is not known"),
        ({**EXPORT, "export_dir": "/out"}, "is or holds the output folder"),
        ({**EXPORT, "export_dir": "/"}, "is or holds the input folder"),
        ({**EXPORT, "export_dir": "/bids/x"}, "lies inside the input folder"),
        ({**EXPORT, "export_dir": "/out/x"}, "lies inside the output folder"),
        ({"reports_only": True, "boilerplate_only": True}, "Give one of them"),
        ({"reports_only": True, "dry_run": True}, "Give one of them"),
        ({"reports_only": True, "stages": ["preprocess"]}, "--stages asks for one"),
        ({"levels": ["group"], "boilerplate_only": True, "export": "raw"}, "--export asks for one"),
        ({"derivatives": ["/a"]}, "expected a table"),
        ({"mem_gb": "16"}, "expected a number"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**changes)


def test_the_exported_dataset_has_a_folder_for_each_desc() -> None:
    made = settings(levels=["group"], export="raw", desc="toSiteA")
    assert made.export_folder == Path("/out/derivatives/raw-toSiteA")
    given = settings(**EXPORT)
    assert given.export_folder == Path("/exported")
    inside = settings(**{**EXPORT, "export_dir": "/bids/derivatives/raw"})
    assert inside.export_folder == Path("/bids/derivatives/raw")


def test_a_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bids")
    with pytest.raises(UsageError, match="is the input folder"):
        settings(bids_dir=tmp_path / "bids", output_dir=tmp_path / "link")


def test_derivatives_inside_the_dataset_are_allowed() -> None:
    assert settings(output_dir="/bids/derivatives/harmonizer").output_dir.name == "harmonizer"


@pytest.mark.parametrize(
    ("text", "unit", "gigabytes"),
    [("16", "G", 16.0), ("16", "M", 0.016), ("16G", "M", 16.0), ("16GB", "G", 16.0),
     ("16000M", "G", 16.0), ("16000000k", "G", 16.0), ("1.5t", "G", 1500.0), (" 8 g ", "G", 8.0),
     ("16", "", 16.0), ("999", "", 999.0), ("1000", "", 1.0), ("16000", "", 16.0),
     ("16000", "G", 16000.0)],
)
def test_memory_units(text: str, unit: str, gigabytes: float) -> None:
    assert parse_memory(text, unit) == pytest.approx(gigabytes, rel=1e-12)


@pytest.mark.parametrize("text", ["", "G", "-1", "16X", "16 GiB", "1e3"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number and K, M, G or T"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("bakend = 'x'", "unknown option 'bakend'. Did you mean 'backend'"),
     ("nprocs = ", "not valid TOML")],
)
def test_a_broken_configuration_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_toml(path)


def test_a_missing_configuration_file() -> None:
    with pytest.raises(UsageError, match="/nowhere.toml: cannot be read"):
        load_toml("/nowhere.toml")


def test_an_incomplete_file_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("nprocs = 1", encoding="utf-8")
    with pytest.raises(UsageError, match="bids_dir, output_dir, levels not given"):
        Settings.from_dict(load_toml(path), origin=str(path))


def test_every_field_is_documented() -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(Settings)).body[0].body
    for field, after in zip(body, body[1:]):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{field.target.id} has no sentence under it"


def test_cpus_are_those_left_by_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert available_cpus() == 3


def test_backend_options_are_names_and_values() -> None:
    made = Settings("/bids", "/out", ["group"], backend_option=["band=0.02", "method=landmarks"])
    assert made.backend_options == {"band": 0.02, "method": "landmarks"}
    sized = Settings("/bids", "/out", ["group"], preset="tiny", backend_option=["steps=5"])
    assert sized.backend_options == {"preset": "tiny", "steps": 5}
    assert Settings("/bids", "/out", ["group"], texture="keep").backend_options == {
        "texture": "keep"}
    with pytest.raises(UsageError, match="--texture"):
        Settings("/bids", "/out", ["group"], texture="smooth")
    with pytest.raises(UsageError, match="expected name=value"):
        Settings("/bids", "/out", ["group"], backend_option=["band"])
