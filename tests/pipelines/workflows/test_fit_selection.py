"""What keeps a scan out of a fit, and which doubts about a cohort are said before any work."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harmonizer.errors import InputError, UsageError
from harmonizer.files import write_json
from harmonizer.volume import Volume, write_mask, write_volume
from pipelines.dataset.records import ScanRecord
from pipelines.outputs.collect import find_preprocessed
from pipelines.outputs.names import ScanPaths, sidecar
from pipelines.outputs.selection import Selection
from pipelines.settings import Settings
from pipelines.stages import evaluation
from pipelines.stages.design_warnings import design_warnings, warn_before_work
from pipelines.stages.fit import check_fit, fit, select_scans_to_fit
from pipelines.stages.fit_selection import select_fit_scans

REASON = "overlap 0.40 is below 0.85"
BOX = np.zeros((6, 6, 6), bool)
BOX[1:5, 1:5, 1:5] = True


def preprocessed(
    out: Path,
    subject: str,
    site: str,
    low_confidence: bool = False,
     **covariates) -> None:
    """What the preprocess stage leaves of one scan, on a tiny grid."""
    paths = ScanPaths(out, Path(f"sub-{subject}/anat"), f"sub-{subject}", "T1w", 2)
    data = np.random.default_rng(len(subject)).uniform(1, 9, BOX.shape) * BOX
    for template in (True, False):
        write_volume(paths.image("preproc", template=template), Volume(data, np.eye(4)))
        write_mask(paths.mask(template=template), BOX, np.eye(4))
    write_json(sidecar(paths.mask()), {"QualityCheck": {
        "low_confidence": low_confidence,
        "reasons": [REASON] if low_confidence else []}})
    write_json(sidecar(paths.image("preproc", template=True)), {
        "Site": site, "SiteSource": "test", "Covariates": covariates, "ImageSHA256": "x",
        "SkullStripped": False})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for subject, site, low_confidence, group in (("a1", "A", False, "control"), ("a2", "A", True,
                                           "control"), ("b1", "B", False, "patient")):
        preprocessed(tmp_path, subject, site, low_confidence, group=group)
    return tmp_path


def settings(out: Path, **values) -> Settings:
    return Settings("/bids", out, ["participant", "group"], sloppy=True,
                    backend=values.pop("backend", "histogram_matching"), **values)


def chosen(out: Path, **values):
    return select_fit_scans(settings(out, **values), find_preprocessed(out, 2, ("T1w",)))


def test_a_mask_with_low_confidence_does_not_enter_a_fit_unless_asked(out, caplog):
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        found = chosen(out)
    assert found.cohort.subjects == ("a1", "b1") and list(found.scans) == ["sub-a2_T1w"]
    assert f"sub-a2_T1w is left out of the fit: its brain mask has low confidence ({REASON})" \
        in caplog.text
    asked = chosen(out, fit_low_confidence_masks=True)
    assert asked.cohort.subjects == ("a1", "a2", "b1") and not asked.scans
    with pytest.raises(InputError, match=r"all 1 scans to fit on .* --fit-low-confidence-masks"):
        chosen(out, fit_participants=("a2",))


def test_the_model_says_who_was_left_out(out, caplog):
    asked = settings(out, fit_participants=("group=control",))
    line, = fit(asked, Selection(asked, reads_bids_dir=False))
    assert "Model (T1w, 1 scans of 1 sites)" in line
    card = (out / "models" / "histogram_matching" / "T1w" / "card.md").read_text()
    assert f"* sub-a2_T1w: its brain mask has low confidence ({REASON})" in card
    assert "* site B: the selection of the fit took none of its scans" in card


def test_a_scan_rated_exclude_does_not_enter_the_fit(out, tmp_path):
    table = tmp_path / "ratings.tsv"
    table.write_text("scan_id\trating\tcomment\nsub-a1_T1w\tkeep\tn/a\n"
                     "sub-b1_T1w\texclude\tmoved\n")
    asked = settings(out, exclude=table, fit_low_confidence_masks=True, target=("A",))
    selection = Selection(asked, reads_bids_dir=False)
    assert [item.scan_id for item in selection.find_included()] == ["sub-a1_T1w", "sub-a2_T1w"]
    assert len(selection.find()) == 3  # it is harmonized
    with pytest.raises(InputError, match="all 2 T1w scans are of one site"):
        fit(asked, selection)
    preprocessed(out, "b2", "B", group="patient")
    line, = fit(asked, Selection(asked, reads_bids_dir=False))
    assert "Model (T1w, 3 scans of 2 sites)" in line
    card = (out / "models" / "histogram_matching" / "T1w" / "card.md").read_text()
    assert "* sub-b1_T1w: it is rated 'exclude' (moved)" in card
    assert "sub-b1_T1w" not in (out / "cohort.tsv").read_text()


def test_a_site_whose_scans_are_all_rated_exclude_is_named(out, tmp_path):
    preprocessed(out, "c1", "C", group="patient")
    table = tmp_path / "ratings.tsv"
    table.write_text("scan_id\trating\nsub-c1_T1w\texclude\n")
    asked = settings(out, exclude=table)
    found = select_scans_to_fit(asked, Selection(asked, reads_bids_dir=False), "T1w")
    assert found.sites == ("C",) and found.scans["sub-c1_T1w"] == "it is rated 'exclude'"


def test_a_study_of_excluded_scans_is_refused_before_work(out, tmp_path):
    table = tmp_path / "ratings.tsv"
    table.write_text("scan_id\trating\n" + "".join(
        f"sub-{name}_T1w\texclude\n" for name in ("a1", "a2", "b1")))
    asked = settings(out, exclude=table)
    with pytest.raises(InputError, match="all 3 T1w scans are rated 'exclude'"):
        check_fit(asked, Selection(asked, reads_bids_dir=False))


def records(**columns) -> tuple[ScanRecord, ...]:
    """Three subjects at A, three at B; `columns`: name -> six values."""
    return tuple(
        ScanRecord(f"sub-{n}_T1w", f"sub-{n}", str(n), None, "T1w", Path("x"), "AAABBB"[n], "test",
                   {}, {"age": 30.0 + n % 3, "sex": "FM"[n % 2],
                        **{name: values[n] for name, values in columns.items()}})
        for n in range(6))


def messages(caplog, one: Settings, given) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        warn_before_work(one, given)
    return [record.getMessage() for record in caplog.records]


def test_a_diagnosis_that_is_the_site_is_said_before_work(tmp_path, caplog):
    given = records(diagnosis=["HC"] * 3 + ["MS"] * 3)
    for flags in ({"covariates": ("age", "diagnosis")},
                  {"fit_participants": ("diagnosis=HC", "diagnosis=MS")[:1]},
                  {"backend": "tissue_matching",
                   "backend_option": ("covariates=age,sex,diagnosis",)}):
        first = messages(caplog, settings(tmp_path, **flags), given)[0]
        assert first.startswith("Diagnosis cannot be told from site: all subjects of a site have "
                                "the same value (A: 3 HC; B: 3 MS).")
    assert messages(caplog, settings(tmp_path), given) == []
    assert messages(caplog, settings(tmp_path, covariates=("diagnosis",),
                                 participant_label=("0",)), given) == []


def test_a_site_without_controls_is_said_before_work(tmp_path, caplog):
    given = records(group=["control"] * 3 + ["patient"] * 3)
    for flags, words in (({"backend": "tissue_matching"}, "left_out_sites=regional"),
                         ({"backend": "tissue_matching",
                           "backend_option": ("left_out_sites=regional",)}, "target regionally"),
                         ({}, "as those of an unseen scanner")):
        one = settings(tmp_path, fit_participants=("group=control",), **flags)
        assert any(text.startswith("--fit-participants group=control excludes all T1w scans of B")
                   and words in text for text in messages(caplog, one, given))
    both = records(group=["control", "patient", "patient"] * 2)
    assert messages(caplog, settings(tmp_path, fit_participants=("group=control",)), both) == []


def test_a_covariate_that_nobody_has_is_refused_before_work(tmp_path):
    one = settings(tmp_path, backend="tissue_matching", backend_option=("covariates=age,agee",))
    with pytest.raises(UsageError, match="covariate 'agee': no scan has a value.*'age'"):
        warn_before_work(one, records())


def test_a_judged_covariate_that_the_fit_does_not_keep_is_said(tmp_path, caplog):
    one = settings(tmp_path, backend="tissue_matching", covariates=("age", "group"))
    found = messages(caplog, one, records(group=["a", "b", "a"] * 2))
    assert found == ["group: evaluated (--covariates), but not preserved by the fit. Add "
                     "--backend-option covariates=age,sex,group to preserve its effect."]


def test_a_covariate_that_the_fit_cannot_model_is_said_before_work(tmp_path, caplog):
    """A row that is missing in participants.tsv costs age and sex; the user learns it at once."""
    given = tuple(replace(record, covariates={}) if n in (0, 3) else record
                  for n, record in enumerate(records()))
    one = settings(tmp_path, backend="tissue_matching")
    for name, found in zip(("age", "sex"), messages(caplog, one, given), strict=True):
        assert found.startswith(f"T1w, covariate {name}: not model")
        assert "missing for 2 of 6 scans" in found
    assert messages(caplog, settings(tmp_path), given) == []  # a method without covariates
    assert messages(caplog, replace(one, stages=("evaluate",)), given) == []


def test_the_report_of_an_evaluation_alone_says_what_the_fit_did_not_keep(tmp_path, monkeypatch):
    """The evaluate job of a cluster knows the model only, not the options of the fit."""
    facts = {"Covariates": [{"Name": "age", "Summary": "age: modeled (number)"}]}
    monkeypatch.setattr(evaluation, "_model_cohort", lambda *_: facts)
    one = settings(tmp_path, covariates=("age", "group"), stages=("evaluate",))
    own = {"T1w": evaluation.Variant("x", "harmonized", "x", "A", "hash", ())}
    kept, lost = evaluation._fit_lines(one, own)
    assert kept == "T1w, covariate age: modeled (number)."
    assert lost.startswith("T1w, covariate group: evaluated, but not preserved")
    facts.clear()  # a method that models no covariate
    assert evaluation._fit_lines(one, own) == ()


def test_scans_years_apart_are_said(out):
    for subject, site, age in (("l", "A", 60.0), ("l", "B", 74.0)):
        paths = Path(f"sub-{subject}/ses-{site}/anat")
        place = ScanPaths(out, paths, f"sub-{subject}_ses-{site}", "T1w", 2)
        write_volume(place.image("preproc", template=True), Volume(BOX * 1.0, np.eye(4)))
        write_mask(place.mask(template=True), BOX, np.eye(4))
        write_json(sidecar(place.image("preproc", template=True)), {
            "Site": site, "SiteSource": "test", "Covariates": {"age": age}})
    from pipelines.outputs.collect import cohort_of

    cohort = cohort_of(find_preprocessed(out, 2, ("T1w",)))
    assert design_warnings(settings(out), cohort) == (
        "sub-l: scanned at several sites more than 1 year apart. These 2 scans are not used "
        "as scans of traveling subjects, because the brain changes over years.",)
    assert design_warnings(settings(out, traveling="no"), cohort) == ()
