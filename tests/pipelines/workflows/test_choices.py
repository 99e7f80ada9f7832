"""Decisions of the workflows that need no image: whom to fit on, what to aim at, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError, UnavailableError, UsageError
from pipelines.dataset.records import ScanRecord
from pipelines.outputs.selection import Selection, scan_of
from pipelines.settings import Settings
from pipelines.stages.fit_selection import chosen
from pipelines.stages.run import check_request
from pipelines.stages.targets import modality_of, model_folder_of, site_label
from pipelines.workflows.engine import batches, plugin_of


def scan(subject: str, site: str, group: str) -> Scan:
    return Scan(f"sub-{subject}_T1w", subject, None, "T1w", site, "test", Path("x"), Path("m"),
                30.0, "F" if subject < "03" else "M", {"group": group})


@pytest.fixture
def cohort() -> Cohort:
    return Cohort((scan("01", "A", "HC"), scan("02", "B", "HC"), scan("03", "A", "MS")))


@pytest.mark.parametrize("wanted, left", [
    ((), ["01", "02", "03"]), (("group=HC",), ["01", "02"]), (("03", "01"), ["01", "03"]),
    (("group=HC", "site=A"), ["01"]), (("sex=M",), ["03"]), (("group=HC", "02", "03"), ["02"]),
])
def test_who_is_fitted_on(cohort, wanted, left):
    assert list(chosen(cohort, wanted).subjects) == left


@pytest.mark.parametrize("wanted, message", [
    (("04",), "no selected participant '04'. .*Known: 01, 02, 03"),
    (("grup=HC",), "no column 'grup'. Did you mean 'group'"),
    (("group=AD",), "no scan matches. Values of group: HC, MS"),
])
def test_nobody_and_nothing_are_explained(cohort, wanted, message):
    with pytest.raises(UsageError, match=message):
        chosen(cohort, wanted)


def test_a_group_coded_by_numbers_is_selected_as_it_is_written():
    """0 and 1 of participants.tsv are read as 0.0 and 1.0; both spellings select the scans."""
    scans = Cohort(tuple(map(scan_of, (record("A", group=0.0), record("B", group=1.0)))))
    for text in ("group=1", "group=1.0"):
        assert scans.subjects == ("A", "B") and chosen(scans, (text,)).subjects == ("B",)
    with pytest.raises(UsageError, match="group=2: no scan matches. Values of group: 0, 1."):
        chosen(scans, ("group=2",))


def settings(*levels: str, **values) -> Settings:
    return Settings("/bids", "/out", levels or ("participant", "group"), **values)


def record(site: str, modality: str = "T1w", **covariates) -> ScanRecord:
    stem = f"sub-{site.replace('-', '')}"
    return ScanRecord(f"{stem}_{modality}", stem, stem[4:], None, modality, Path("x"), site, "test",
                      covariates=covariates)


def check_target(settings: Settings, records: tuple[ScanRecord, ...]) -> None:
    check_request(settings, Selection.of(settings, records))


def test_a_target_that_no_scan_is_of_is_refused_early():
    with pytest.raises(UsageError, match="no T1w scan is from that site. Did you mean 'NYU'"):
        check_target(settings(target=["NYUU"]), (record("NYU"), record("KKI")))
    check_target(settings(target=["NYU"]), (record("NYU"), record("KKI")))
    check_target(settings(target=["New York"]), (record("New-York"), record("KKI")))


def test_a_target_where_a_modality_was_not_taken_is_refused_early():
    records = (record("NYU"), record("KKI"), record("KKI", "FLAIR"), record("UCLA", "FLAIR"))
    both = {"modalities": ["T1w", "FLAIR"]}
    check_target(settings(target=["KKI"], **both), records)
    with pytest.raises(UsageError, match="no FLAIR scan is from that site.*run for FLAIR alone"):
        check_target(settings(target=["NYU"], **both), records)


def test_one_participants_job_may_aim_at_a_site_that_it_does_not_see():
    check_target(settings("participant", target=["KKI"]), (record("NYU"),))


def test_a_target_where_nobody_is_fitted_on_is_refused_before_the_fit():
    """The model would not know it, and would have taken the place of one that does."""
    records = (record("NYU", group="control"), record("KKI", group="patient"),
               record("UCLA", group="control"))
    asked = {"fit_participants": ["group=control"]}
    check_target(settings(target=["NYU"], **asked), records)
    with pytest.raises(UsageError, match="no T1w scan of --fit-participants is from that site"):
        check_target(settings(target=["KKI"], **asked), records)
    with pytest.raises(UsageError, match="--fit-participants group=contrl: no scan matches"):
        check_target(settings(fit_participants=["group=contrl"]), records)


def test_scans_of_one_site_are_refused_before_they_are_preprocessed():
    with pytest.raises(InputError, match="all 1 T1w scans are of one site, 'NYU'"):
        check_target(settings(), (record("NYU"),))
    check_target(settings("participant"), (record("NYU"),))


def test_options_and_targets_that_the_method_does_not_have_are_refused_early():
    with pytest.raises(UsageError, match="has no option 'bund'. Did you mean 'band'"):
        check_target(settings(backend="spectrum_swap", backend_option=["bund=0.1"]), ())
    with pytest.raises(UsageError, match="band: expected a number in"):
        check_target(settings(backend="spectrum_swap", backend_option=["band=7"]), ())
    with pytest.raises(UsageError, match="no scanner-free target"):
        check_target(settings(target=["scanner-free"]), ())


def test_a_file_that_an_option_names_is_looked_at_before_the_work_and_only_where_it_is_used(
        tmp_path):
    absent = {"backend": "ihf", "backend_option": [f"vgg={tmp_path / 'absent.safetensors'}"]}
    with pytest.raises(InputError, match="absent.safetensors: expected a safetensors file"):
        check_target(settings(**absent), ())
    check_target(settings(**absent, stages=["preprocess"]), ())


def test_what_is_made_of_the_brains_tissues_is_refused_for_whole_heads():
    head = {"backend": "disarm", "backend_option": ["region=head"]}
    with pytest.raises(UsageError, match="disarm harmonizes whole heads"):
        check_target(settings(**head, detail="guided"), ())
    check_target(settings(backend="disarm", detail="guided"), ())
    check_target(settings(**head), ())


def test_site_names_are_found_as_written_and_as_cleaned():
    assert site_label("Site-A", {"Site-A": 1}) == "Site-A"
    assert site_label("Site A", {"Site-A": 1}) == "Site-A"


def test_modality_of_a_reference_image():
    one = settings()
    assert modality_of(Path("/r/sub-01_FLAIR.nii.gz"), one) == "FLAIR"
    assert modality_of(Path("/r/mean.nii.gz"), one) == "T1w"
    with pytest.raises(UsageError, match="its modality is not known; the run has T1w, T2w"):
        modality_of(Path("/r/mean.nii.gz"), settings(modalities=["T1w", "T2w"]))


def test_a_given_model_of_another_modality_is_not_taken(tmp_path):
    assert model_folder_of(Settings("/bids", tmp_path, ["group"]), "T1w") is None
    for name in ("config.json", "cohort.json", "weights.safetensors"):
        (tmp_path / name).write_text('{"Modality": "T2w"}')
    given = Settings("/bids", "/out", ["participant"], model=tmp_path)
    assert model_folder_of(given, "T2w") == tmp_path
    with pytest.raises(UnavailableError, match="holds no fitted model for T1w"):
        model_folder_of(given, "T1w")


@dataclass(frozen=True)
class ScanJob:
    name: str


@pytest.mark.parametrize("nprocs, sizes", [(1, [1] * 5), (2, [5])])
def test_few_scans_are_on_the_way_at_once(nprocs, sizes):
    jobs = [ScanJob(str(i)) for i in range(5)]
    made = list(batches(jobs, settings(nprocs=nprocs)))
    assert [len(p) for p in made] == sizes
    assert [job for p in made for job in p] == jobs


def test_eight_scans_a_process_are_a_portion():
    jobs = [ScanJob(str(i)) for i in range(40)]
    assert [len(p) for p in batches(jobs, settings(nprocs=2))] == [16, 16, 8]


def test_one_node_at_a_time_takes_the_device(tmp_path, monkeypatch):
    """Nipype's own count is that of the machine's GPUs, but a run has chosen one of them."""
    monkeypatch.setenv("NIPYPE_CONFIG_DIR", "")  # plugin_of sets it; it is put back
    plugin, arguments = plugin_of(settings(nprocs=4, mem_gb=8.0, work_dir=tmp_path))
    assert plugin == "MultiProc"
    assert (arguments["n_procs"], arguments["n_gpu_procs"], arguments["memory_gb"]) == (4, 1, 8.0)
