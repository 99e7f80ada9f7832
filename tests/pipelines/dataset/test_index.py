"""`collect`: which scans come out of a dataset, one by one, and what is said of the others."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from harmonizer.errors import InputError, UsageError
from pipelines.dataset.index import DATABASE_FILE, DATABASE_NOTE, collect, open_layout
from pipelines.dataset.records import ScanRecord, entities_of, split_name
from pipelines.settings import Settings

PEOPLE = "participant_id\tage\tsex\tsite\nsub-01\t30\tF\tNYU\nsub-02\t89+\tM\tKKI\n"
TREE: dict[str, Any] = {
    "participants.tsv": PEOPLE,
    "T1w.json": {"Manufacturer": "GE", "EchoTime": 0.003, "RepetitionTime": 2.0},
    "sub-01/ses-A/anat/sub-01_ses-A_acq-hi_run-1_T1w.nii.gz": None,
    "sub-01/ses-A/anat/sub-01_ses-A_acq-hi_run-1_T1w.json": {"RepetitionTime": 2.3},
    "sub-01/ses-A/anat/sub-01_ses-A_acq-hi_run-2_T1w.nii.gz": None,
    "sub-01/ses-A/anat/sub-01_ses-A_rec-norm_T1w.nii.gz": None,
    "sub-01/ses-B/anat/sub-01_ses-B_T1w.nii.gz": None,
    "sub-01/ses-B/anat/sub-01_ses-B_FLAIR.nii.gz": None,
    "sub-02/anat/sub-02_T1w.nii": None,
    "sub-02/anat/sub-02_part-phase_T1w.nii.gz": None,
    "sub-02/func/sub-02_task-rest_bold.nii.gz": (3, 3, 3, 4),
    "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz": None,
    "sourcedata/sub-09/anat/sub-09_T1w.nii.gz": None,
}
ALL_T1W = [
    "sub-01_ses-A_acq-hi_run-1_T1w", "sub-01_ses-A_acq-hi_run-2_T1w",
    "sub-01_ses-A_rec-norm_T1w", "sub-01_ses-B_T1w", "sub-02_T1w",
]


def settings(root: Path, **changes: Any) -> Settings:
    return Settings(**{"bids_dir": root, "output_dir": root.parent / "out",
                       "levels": ["participant"], "work_dir": root.parent / "work", **changes})


def ids(root: Path, **changes: Any) -> list[str]:
    return [record.scan_id for record in collect(settings(root, **changes)).records]


def fatal(root: Path, **changes: Any) -> dict[str | None, str]:
    return {f.scan_id: str(f) for f in collect(settings(root, **changes)).findings if f.fatal}


def test_every_image_is_its_own_record(make_tree: Any) -> None:
    assert ids(make_tree(TREE)) == ALL_T1W


def test_only_runs_of_one_session_become_rescans(make_tree: Any) -> None:
    """A reconstruction (rec-norm) and another session set no limits of the anatomy guard."""
    from harmonizer.evaluation.questions.traveling import rescans
    from pipelines.outputs.selection import Selection

    given = settings(make_tree(TREE))
    cohort = Selection.of(given, collect(given).records).cohort("T1w")
    assert [scan.scan_id for scan in cohort] == ALL_T1W
    assert [(pair.first.scan_id, pair.second.scan_id) for pair in rescans(cohort)] == [
        ("sub-01_ses-A_acq-hi_run-1_T1w", "sub-01_ses-A_acq-hi_run-2_T1w")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"participant_label": ["02"]}, ["sub-02_T1w"]),
        ({"session_label": ["B"]}, ["sub-01_ses-B_T1w"]),
        ({"session_label": ["A", "B"], "participant_label": ["01"]}, ALL_T1W[:4]),
        ({"modalities": ["FLAIR"]}, ["sub-01_ses-B_FLAIR"]),
        ({"modalities": ["T1w", "FLAIR"], "session_label": ["B"]},
         ["sub-01_ses-B_FLAIR", "sub-01_ses-B_T1w"]),
    ],
)
def test_selection(make_tree: Any, changes: dict, expected: list[str]) -> None:
    assert ids(make_tree(TREE), **changes) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"acquisition": "hi"}, ALL_T1W[:2]),
        ({"acq": "hi", "run": 2}, ALL_T1W[1:2]),
        ({"acquisition": None}, ALL_T1W[2:]),
        ({"reconstruction": "*"}, ALL_T1W[2:3]),
        ({"session": ["A"]}, ALL_T1W[:3]),
        ({"session": None}, ALL_T1W[4:]),
    ],
)
def test_filter_file(make_tree: Any, query: dict, expected: list[str]) -> None:
    root = make_tree(TREE)
    path = root.parent / "filter.json"
    path.write_text(json.dumps({"t1w": query, "bold": {"task": "rest"}}), encoding="utf-8")
    assert ids(root, bids_filter_file=path) == expected


@pytest.mark.parametrize(
    ("changes", "folders"),
    [({}, {"sub-01/ses-A/anat", "sub-01/ses-B/anat", "sub-02/anat"}),
     ({"participant_label": ["02"]}, {"sub-02/anat"}),
     ({"participant_label": ["0"]}, set()),
     ({"session_label": ["B"]}, {"sub-01/ses-B/anat", "sub-02/anat"})],
)
def test_only_what_is_needed_is_indexed(make_tree: Any, changes: dict, folders: set[str]) -> None:
    root = make_tree(TREE)
    paths = open_layout(settings(root, **changes)).get(return_type="filename")
    assert {str(Path(path).parent.relative_to(root)) for path in paths} == folders


def test_sidecars_are_inherited_by_the_images_that_they_name(make_tree: Any) -> None:
    root = make_tree({
        **TREE,
        "acq-hi_T1w.json": {"EchoTime": 1, "FlipAngle": 1},
        "sub-01/ses-A/sub-01_ses-A_T1w.json": {"FlipAngle": 2},
        "sub-01/ses-A/anat/sub-01_ses-A_FLAIR.json": {"FlipAngle": 3},
        "sub-01/ses-A/anat/sub-01_ses-A_run-2_T1w.json": {"FlipAngle": 4},
    })
    got = {r.scan_id: (r.metadata["EchoTime"], r.metadata.get("FlipAngle"))
           for r in collect(settings(root)).records}
    assert got == dict(zip(ALL_T1W, [(1, 2), (1, 4), (0.003, 2), (0.003, None), (0.003, None)]))


def test_a_note_on_a_participant_is_made_once(make_tree: Any) -> None:
    root = make_tree({**TREE, "participants.tsv": PEOPLE.replace("30", "old")})
    texts = [str(finding) for finding in collect(settings(root)).findings]
    assert sum("sub-01: age 'old' is not a number" in text for text in texts) == 1


def test_filters_that_contradict(make_tree: Any) -> None:
    root = make_tree(TREE)
    path = root.parent / "filter.json"
    path.write_text('{"t1w": {"session": "A"}}', encoding="utf-8")
    with pytest.raises(UsageError, match="both --session-label and the filter file"):
        collect(settings(root, bids_filter_file=path, session_label=["B"]))
    path.write_text('{"t1w": {"sesion": "A"}}', encoding="utf-8")
    with pytest.raises(UsageError, match="'sesion' is not a recognized entity"):
        collect(settings(root, bids_filter_file=path))


def test_a_record_knows_its_scan(make_tree: Any) -> None:
    root = make_tree(TREE)
    record = collect(settings(root)).records[0]
    assert (record.subject, record.session, record.modality) == ("01", "A", "T1w")
    assert record.stem == "sub-01_ses-A_acq-hi_run-1"
    assert record.path == root / "sub-01/ses-A/anat/sub-01_ses-A_acq-hi_run-1_T1w.nii.gz"
    assert record.folder == Path("sub-01/ses-A/anat")
    assert (record.site, record.site_source) == ("NYU", "participants.tsv: site = NYU")
    assert record.covariates == {"age": 30.0, "sex": "F"}
    assert (record.age, record.sex) == (30.0, "F")
    assert record.metadata == {"Manufacturer": "GE", "EchoTime": 0.003, "RepetitionTime": 2.3}


def test_records_are_values(make_tree: Any) -> None:
    records = collect(settings(make_tree(TREE))).records
    assert pickle.loads(pickle.dumps(records)) == records
    assert len(set(records)) == len(records)
    with pytest.raises(TypeError, match="does not support item assignment"):
        records[0].metadata["EchoTime"] = 1  # type: ignore[index]


def test_sites_of_travelling_people(make_tree: Any) -> None:
    root = make_tree({
        "participants.tsv": "participant_id\tsite\nsub-01\tn/a\n",
        "sub-01/sub-01_sessions.tsv": "session_id\tsite\nses-x\tA\nses-y\tB\n",
        "sub-01/ses-x/anat/sub-01_ses-x_T1w.nii.gz": None,
        "sub-01/ses-y/anat/sub-01_ses-y_T1w.nii.gz": None,
    })
    records = collect(settings(root)).records
    assert [record.site for record in records] == ["A", "B"]


BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is an empty file"),
    "text": ("no image", "cannot be opened as an image"),
    "slice": ((8, 8, 1), r"expected a 3D image, got shape \(8, 8, 1\)"),
    "flat": ((8, 8), r"got shape \(8, 8\)"),
    "series": ((4, 4, 4, 3), r"got 4D with shape \(4, 4, 4, 3\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_takes_only_itself_out(make_tree: Any, kind: str) -> None:
    content, message = BAD[kind]
    root = make_tree({"sub-01/anat/sub-01_T1w.nii.gz": content,
                      "sub-02/anat/sub-02_T1w.nii.gz": None})
    assert ids(root, site="A") == ["sub-02_T1w"]
    messages = fatal(root, site="A")["sub-01_T1w"]
    assert re.search(message, messages), messages
    assert messages.startswith(str(root / "sub-01/anat/sub-01_T1w.nii.gz"))


def test_an_image_of_one_volume_may_have_four_axes(make_tree: Any) -> None:
    root = make_tree({"sub-01/anat/sub-01_T1w.nii.gz": (4, 4, 4, 1)})
    assert ids(root, site="A") == ["sub-01_T1w"]


def test_an_image_without_place_is_refused(make_tree: Any) -> None:
    root = make_tree({"sub-01/anat/sub-01_T1w.nii.gz": None, "sub-02/anat/sub-02_T1w.nii.gz": None})
    path = root / "sub-01/anat/sub-01_T1w.nii.gz"
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.int16), None)
    image.header.set_sform(np.diag([0, 2, 2, 1.0]), 1)
    nib.save(image, path)
    assert "no position in space" in fatal(root, site="A")["sub-01_T1w"]


def test_a_link_into_nothing_is_explained(make_tree: Any) -> None:
    root = make_tree({"sub-02/anat/sub-02_T1w.nii.gz": None, "sub-01/anat/x.txt": ""})
    (root / "sub-01/anat/sub-01_T1w.nii.gz").symlink_to("../.git/annex/objects/none.nii.gz")
    assert "datalad get" in fatal(root, site="A")["sub-01_T1w"]


@pytest.mark.parametrize("name", ["sub-01/anat/sub-01_T1w.json", "T1w.json",
                                  "sub-01/anat/sub-01_T1w.nii.gz"])
@pytest.mark.parametrize("pointer", ["link", "text"])
def test_what_was_not_fetched_is_to_be_fetched(make_tree: Any, name: str, pointer: str) -> None:
    root = make_tree({"sub-01/anat/sub-01_T1w.nii.gz": None, "sub-01/anat/sub-01_T1w.json": {},
                      "sub-02/anat/sub-02_T2w.nii.gz": None})
    (root / name).unlink(missing_ok=True)
    if pointer == "link":
        (root / name).symlink_to(root / ".git/annex/objects/x/SHA256E-s1--0.gz")
    else:
        (root / name).write_text("/annex/objects/SHA256E-s1--0.gz\n")
    messages = fatal(root, site="A")["sub-01_T1w"]
    assert "was not fetched" in messages and "datalad get" in messages and name in messages


def test_a_sessions_table_that_was_not_fetched_gives_no_other_site(make_tree: Any) -> None:
    root = make_tree(TREE)
    table = root / "sub-01/sub-01_sessions.tsv"
    table.symlink_to(".git/annex/objects/none")
    assert ids(root) == ["sub-02_T1w"]
    assert "was not fetched" in fatal(root)["sub-01_ses-B_T1w"]
    assert ids(root, site_from="participants") == ALL_T1W


def test_a_participants_table_that_was_not_fetched_stops(make_tree: Any) -> None:
    root = make_tree({key: value for key, value in TREE.items() if key != "participants.tsv"})
    (root / "participants.tsv").symlink_to(".git/annex/objects/none")
    with pytest.raises(InputError, match="participants.tsv: was not fetched. .*datalad get"):
        collect(settings(root))


def test_a_participants_table_of_others_stops_unless_sites_are_read_elsewhere(
    make_tree: Any
) -> None:
    scanner = {"ManufacturersModelName": "Trio"}
    root = make_tree({**TREE, "participants.tsv": "participant_id\tsite\n1\tNYU\n2\tKKI\n",
                      "T1w.json": scanner})
    with pytest.raises(InputError, match="none of its 2 participants has a folder.*Write sub-01 "
                                         "where it has '1'.*--site-from sidecar"):
        collect(settings(root))
    collection = collect(settings(root, site_from="sidecar"))
    assert {record.site for record in collection.records} == {"Trio"}
    assert any("none of its 2 participants has a folder" in str(f) for f in collection.findings)


def test_folders_without_row_and_rows_without_folder_are_counted(make_tree: Any) -> None:
    tree = {**TREE, "participants.tsv": PEOPLE.replace("sub-02", "sub-09")}
    texts = [str(f) for f in collect(settings(make_tree(tree))).findings]
    assert any("1 of 2 participants with images have no row: sub-02." in text for text in texts)
    assert any("1 of 2 participants have a row and no folder: sub-09." in text for text in texts)


def test_rows_of_sessions_give_sites_and_say_which_are_lacking(make_tree: Any) -> None:
    subjects = ("participant_id\tsession_id\tsite\tage\nsub-01\tses-A\tNYU\t30\n"
              "sub-01\tses-Z\tKKI\t31\nsub-02\tn/a\tKKI\t40\n")
    root = make_tree({**TREE, "participants.tsv": subjects})
    collection = collect(settings(root))
    assert [(r.scan_id, r.site, r.age) for r in collection.records] == [
        *((name, "NYU", 30.0) for name in ALL_T1W[:3]), ("sub-02_T1w", "KKI", 40.0)]
    assert "its site is not known" in fatal(root)["sub-01_ses-B_T1w"]
    assert any("1 sessions have no row, where others have: sub-01_ses-B." in str(f)
               for f in collection.findings)


def test_bidsignore_takes_images_out_and_says_so(make_tree: Any) -> None:
    root = make_tree({**TREE, ".bidsignore": "*_acq-hi_*\nsub-02/\n"})
    assert ids(root) == ALL_T1W[2:4]
    texts = [str(f) for f in collect(settings(root)).findings]
    assert sum("3 images are not used, because they are listed here" in t for t in texts) == 1
    assert not any("no row" in text or "no folder" in text for text in texts)
    with pytest.raises(InputError, match="no image matches.* 1 images are not used, because they"):
        collect(settings(root, participant_label=["02"]))


def test_mp2rage_alone_is_named_with_what_to_do(make_tree: Any) -> None:
    unit1 = {"sub-03/ses-A/anat/sub-03_ses-A_UNIT1.nii.gz": None}
    with pytest.raises(InputError, match=r"1 participants have MP2RAGE images \(UNIT1\), which "
                                         r"are not supported.*sub-03.*_acq-mp2rage_T1w"):
        collect(settings(make_tree(unit1, "alone"), site="A"))
    texts = [str(f) for f in collect(settings(make_tree({**TREE, **unit1}))).findings]
    assert sum("UNIT1" in text for text in texts) == 1


def test_labels_with_a_plus_sign(make_tree: Any) -> None:
    name = "sub-0+1/ses-a+b/anat/sub-0+1_ses-a+b_acq-x+y_T1w.nii.gz"
    root = make_tree({name: None, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz": None})
    chosen = {"participant_label": ["0+1"], "session_label": ["a+b"], "site_from": "ses"}
    (record,) = collect(settings(root, **chosen)).records
    assert (record.scan_id, record.site) == ("sub-0+1_ses-a+b_acq-x+y_T1w", "a+b")
    path = root.parent / "filter.json"
    path.write_text('{"t1w": {"acquisition": "x+y"}}', encoding="utf-8")
    assert ids(root, site="A", bids_filter_file=path) == [record.scan_id]


def test_implausible_voxels_are_refused_at_the_door(make_tree: Any) -> None:
    root = make_tree({"sub-01/anat/sub-01_T1w.nii.gz": None, "sub-02/anat/sub-02_T1w.nii.gz": None})
    path = root / "sub-01/anat/sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.diag([2e3, 2e3, 2e3, 1])), path)
    assert ids(root, site="A") == ["sub-02_T1w"]
    assert re.search("sub-01_T1w.nii.gz: expected voxels of 0.05 to 20 mm .* got voxels of 2000 x "
                     "2000 x 2000", fatal(root, site="A")["sub-01_T1w"])


def test_a_broken_sidecar_takes_out_its_own_scan(make_tree: Any) -> None:
    tree = {**TREE, "sub-01/ses-B/anat/sub-01_ses-B_T1w.json": "{"}
    root = make_tree(tree)
    assert ids(root) == [name for name in ALL_T1W if "ses-B" not in name]
    assert "is not valid JSON" in fatal(root)["sub-01_ses-B_T1w"]


def test_an_unknown_site_takes_out_its_own_scan(make_tree: Any) -> None:
    root = make_tree({**TREE, "participants.tsv": PEOPLE.replace("KKI", "n/a")})
    assert ids(root) == ALL_T1W[:4]
    assert "its site is not known" in fatal(root)["sub-02_T1w"]
    assert "participants.tsv" in fatal(root)["sub-02_T1w"]


def test_two_files_of_one_name_are_both_left_out(make_tree: Any) -> None:
    root = make_tree({**TREE, "sub-02/anat/sub-02_T1w.nii.gz": None})
    assert "sub-02_T1w" not in ids(root)
    assert "Keep one of the files" in fatal(root)["sub-02_T1w"]


def test_a_requested_participant_without_image_is_missed(make_tree: Any) -> None:
    root = make_tree({**TREE, "sub-03/func/sub-03_task-rest_bold.nii.gz": (3, 3, 3, 4)})
    assert "sub-03" in fatal(root, participant_label=["02", "03"])
    assert fatal(root) == {}


def test_warnings_leave_nobody_out(make_tree: Any) -> None:
    root = make_tree({**TREE, "participants.tsv": PEOPLE.replace("KKI", "nyu")})
    twin = root / "sub-01/ses-A/anat/sub-01_ses-A_acq-hi_run-2_T1w.nii.gz"
    twin.write_bytes((twin.parent / twin.name.replace("run-2", "run-1")).read_bytes())
    collection = collect(settings(root))
    assert len(collection.records) == len(ALL_T1W)
    texts = [str(finding) for finding in collection.findings]
    for part in ("'89+' is a lower limit", "is the same file as", "NYU and nyu look alike"):
        assert sum(part in text for text in texts) == 1, part
    assert len(texts) == 3


def test_two_vocabularies_are_pointed_out(make_tree: Any) -> None:
    scanner = {"ManufacturersModelName": "Trio", "MagneticFieldStrength": 3}
    root = make_tree({**TREE, "participants.tsv": PEOPLE.replace("KKI", "n/a"),
                      "sub-02/anat/sub-02_T1w.json": scanner})
    texts = [str(finding) for finding in collect(settings(root)).findings]
    assert sum("the sites of 1 scans come from sidecars, those of 4 from tables" in text
               for text in texts) == 1


@pytest.mark.parametrize("changes", [{"modalities": ["PDw"]}, {"session_label": ["Z"]}])
def test_nothing_fits(make_tree: Any, changes: dict) -> None:
    with pytest.raises(InputError, match="no image matches"):
        collect(settings(make_tree(TREE), **changes))


def test_a_database_is_made_once_and_shared(make_tree: Any) -> None:
    root = make_tree(TREE)
    database = root.parent / "db"
    assert ids(root, bids_database_dir=database, participant_label=["02"]) == ["sub-02_T1w"]
    assert {p.name for p in database.iterdir()} == {DATABASE_FILE, DATABASE_NOTE}
    before = (database / DATABASE_FILE).read_bytes()
    new = root / "sub-02/anat/sub-02_run-9_T1w.nii.gz"
    new.write_bytes((root / "sub-02/anat/sub-02_T1w.nii").read_bytes())
    assert ids(root, bids_database_dir=database) == ALL_T1W  # everybody, and as it was then
    assert (database / DATABASE_FILE).read_bytes() == before


def test_a_database_of_another_pybids_is_refused(make_tree: Any) -> None:
    root = make_tree(TREE)
    database = root.parent / "db"
    ids(root, bids_database_dir=database)
    (database / DATABASE_NOTE).write_text('{"pybids": "0.1"}', encoding="utf-8")
    with pytest.raises(InputError, match="written by pybids 0.1.*Delete"):
        ids(root, bids_database_dir=database)


def test_a_database_of_another_dataset_is_refused(make_tree: Any) -> None:
    first, second = make_tree(TREE, "first"), make_tree(TREE, "second")
    database = first.parent / "db"
    ids(first, bids_database_dir=database)
    with pytest.raises(InputError, match="the pybids database is of .*first, the input is"):
        ids(second, bids_database_dir=database)


def test_a_database_that_is_none_is_refused(make_tree: Any) -> None:
    root = make_tree(TREE)
    database = root.parent / "db"
    database.mkdir()
    (database / DATABASE_FILE).write_text("not a database", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be opened.*Delete"):
        ids(root, bids_database_dir=database)


def test_a_database_older_than_a_participant_says_so(make_tree: Any) -> None:
    root = make_tree(TREE)
    database = root.parent / "db"
    ids(root, bids_database_dir=database)
    with pytest.raises(InputError, match="does not know sub-03"):
        ids(root, bids_database_dir=database, participant_label=["03"])


def test_no_database_is_written_into_the_input(make_tree: Any) -> None:
    root = make_tree(TREE)
    with pytest.raises(UsageError, match="inside the input folder"):
        ids(root, bids_database_dir=root / "db")
    assert not (root / "db").exists()


def test_the_input_is_not_touched(make_tree: Any) -> None:
    root = make_tree(TREE)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    ids(root, bids_database_dir=root.parent / "db")
    ids(root)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_output_inside_the_dataset_is_not_input(make_tree: Any) -> None:
    tree = {**TREE, "results/sub-02/anat/sub-02_desc-preproc_T1w.nii.gz": None}
    assert ids(make_tree(tree)) == ALL_T1W


def test_a_derivative_is_no_raw_image(make_tree: Any) -> None:
    tree = {**TREE, "sub-02/anat/sub-02_desc-preproc_T1w.nii.gz": None,
            "sub-02/anat/sub-02_space-MNI_T1w.nii.gz": None}
    assert ids(make_tree(tree)) == ALL_T1W


def test_names_come_apart() -> None:
    assert split_name("sub-01_run-1_T1w.nii.gz") == ("sub-01_run-1", "T1w", ".nii.gz")
    assert entities_of("sub-01_ses-A_acq-b1_T1w.nii") == {"sub": "01", "ses": "A", "acq": "b1"}
    assert entities_of("T1w.json") == {}


def test_a_record_freezes_what_it_is_given() -> None:
    metadata = {"EchoTime": 1}
    record = ScanRecord("a", "b", "c", None, "T1w", Path("p"), "s", "x", metadata)
    metadata["EchoTime"] = 2
    assert record.metadata["EchoTime"] == 1
