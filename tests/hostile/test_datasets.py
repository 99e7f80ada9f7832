"""Sidecars, tables, filters, configurations, plugin files and image headers as they may come."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonizer.errors import InputError, UsageError
from harmonizer.preprocessing.conform import check_image, conform
from pipelines.cli import parse
from pipelines.dataset import index
from pipelines.dataset.checks import check_header
from pipelines.dataset.filters import load_filters
from pipelines.dataset.records import ScanRecord
from pipelines.outputs.sidecars import acquisition_metadata, scan_facts
from pipelines.settings import Settings, load_toml
from pipelines.workflows.engine import load_plugin
from tests.hostile.strategies import (
    DEPTH,
    JSON,
    TEXT,
    changed,
    changed_bytes,
    fuzz,
    result_or_error,
)

SIDECAR = {"Manufacturer": "Siemens", "ManufacturersModelName": "Trio", "MagneticFieldStrength": 3,
           "InstitutionName": "Hôpital", "DeviceSerialNumber": "1", "EchoTime": 0.003}
DICTIONARY = {"age": {"Units": "month"}, "sex": {"Levels": {"1": "female", "2": "male"}}}
CELLS = st.one_of(TEXT, st.sampled_from(("34", "034Y", ">89", "F", "1e999", "-1", "sub-01")))
STEM = "sub-01/ses-A/anat/sub-01_ses-A_T1w"


def write_image(path: Path) -> None:
    data = np.random.default_rng(1).integers(1, 1000, (9, 10, 11)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1.0])), path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One subject with one image; the tests write the other files."""
    root = tmp_path_factory.mktemp("bids")
    (root / STEM).parent.mkdir(parents=True)
    write_image(root / f"{STEM}.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    return root


@pytest.fixture(scope="module", autouse=True)
def _without_pybids(root: Path) -> Iterator[None]:
    """What is fuzzed comes after the index, and the index takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        found = [("T1w", root / f"{STEM}.nii.gz")]
        patch.setattr(index, "open_layout", lambda settings: None)
        patch.setattr(index, "find_images", lambda layout, settings: found)
        yield


def collect(root: Path, **changes: Any) -> tuple[ScanRecord, ...]:
    """Records that can be written into sidecars, names and tables."""
    settings = Settings(root, root.parent / "out", ["participant"], **changes)
    collection = index.collect(settings)
    for finding in collection.findings:
        assert finding.remedy and len(str(finding)) < 5000
    for record in collection.records:
        assert re.fullmatch(r"[0-9A-Za-z._-]{1,120}", record.site), record.site
        content = [scan_facts(record), acquisition_metadata(record.metadata)]
        text = json.dumps(content, allow_nan=False,
                          ensure_ascii=False)
        text.encode()
    return collection.records


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))


TABLE = st.lists(st.lists(CELLS, max_size=5), max_size=4).map(
    lambda rows: "\n".join("\t".join(row) for row in rows))
ROW = st.tuples(CELLS, CELLS, CELLS, CELLS).map(
    lambda cells: "participant_id\tsite\tage\tsex\tscore\nsub-01\t" + "\t".join(cells) + "\n")


@given(table=st.one_of(TABLE, ROW, ROW, st.binary(max_size=60)), sidecar=changed(DICTIONARY))
@fuzz(100)
def test_participants(root: Path, table: str | bytes, sidecar: Any) -> None:
    write(root / f"{STEM}.json", json.dumps(SIDECAR))
    write(root / "participants.tsv", table)
    write(root / "participants.json", json.dumps(sidecar))
    result_or_error(collect, root)


@given(table=st.one_of(TABLE, ROW.map(lambda t: t.replace("participant_id", "session_id")
                                      .replace("sub-01", "ses-A")), st.binary(max_size=60)))
@fuzz(60)
def test_sessions(root: Path, table: str | bytes) -> None:
    write(root / f"{STEM}.json", json.dumps(SIDECAR))
    write(root / "participants.tsv", "participant_id\tscore\nsub-01\t3\n")
    write(root / "sub-01/sub-01_sessions.tsv", table)
    result_or_error(collect, root)
    (root / "sub-01/sub-01_sessions.tsv").unlink()


@given(content=st.one_of(changed(SIDECAR).map(json.dumps), st.binary(max_size=60),
                         st.tuples(st.sampled_from(sorted(SIDECAR)), JSON).map(
                             lambda pair: json.dumps({**SIDECAR, pair[0]: pair[1]}))),
       source=st.sampled_from(("auto", "sidecar")))
@fuzz(120)
def test_sidecars(root: Path, content: str | bytes, source: str) -> None:
    write(root / f"{STEM}.json", content)
    write(root / "participants.tsv", "participant_id\nsub-01\n")
    result_or_error(lambda: collect(root, site_from=source))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Any:
    """A real index of the subject's folder."""
    return index._index(root)


FIND_IMAGES = index.find_images
QUERIES = {"t1w": {"session": "A", "acquisition": None, "run": "*"}, "bold": {"task": "rest"}}
ENTITIES = st.sampled_from(("session", "run", "return_type", "suffix", "scope", "target", "subject",
                            "invalid_filters", "regex_search", "self", "extension", "ce"))


@given(content=st.one_of(changed(QUERIES).map(json.dumps), st.binary(max_size=40),
                         st.dictionaries(ENTITIES, JSON, max_size=3).map(
                             lambda query: json.dumps({"t1w": query}))))
@fuzz(100)
def test_filters(root: Path, layout: Any, content: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "filter.json"
        write(path, content)
        settings = Settings(root, "/out", ["participant"], bids_filter_file=path)
        result_or_error(FIND_IMAGES, layout, settings)


VALUES = {"nprocs": 2, "sloppy": True, "modalities": ["T1w"], "mem_gb": 4.0, "desc": "x",
          "derivatives": {"a": "/a"}, "target": ["NYU"], "device": "cpu", "site": "A",
          "work_dir": "/w", "random_seed": 1, "backend_option": ["band=0.1"], "model": "/m"}


def as_toml(content: Any) -> bytes:
    import tomli_w

    try:
        return tomli_w.dumps(content).encode("utf-8", "surrogateescape")
    except (TypeError, ValueError, AttributeError, RecursionError):
        return repr(content).encode("utf-8", "replace")


@given(content=st.one_of(changed(VALUES).map(as_toml), st.binary(max_size=60),
                         st.dictionaries(st.sampled_from(sorted(VALUES)), JSON, max_size=3).map(
                             as_toml)))
@fuzz(150)
def test_configurations(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.toml"
        path.write_bytes(content)
        settings = result_or_error(
            parse, ["/bids", "/out", "participant", "--config-file", str(path)])
        if isinstance(settings, Settings):
            again = load_toml(result_or_error(_saved, settings, Path(folder)))
            assert Settings.from_dict(again) == settings


def _saved(settings: Settings, folder: Path) -> Path:
    (folder / "again.toml").write_text(settings.to_toml(), encoding="utf-8")
    return folder / "again.toml"


@given(content=st.one_of(
    st.binary(max_size=60), JSON.map(lambda content: repr(content).encode("utf-8", "replace")),
    JSON.map(lambda content: f"plugin: X\nplugin_args: {content!r}".encode("utf-8", "replace")),
))
@fuzz(60)
def test_plugin_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yml"
        path.write_bytes(content)
        result_or_error(load_plugin, path)


@pytest.fixture(scope="module")
def image_bytes(root: Path) -> bytes:
    return gzip.decompress((root / f"{STEM}.nii.gz").read_bytes())


@given(data=st.data())
@fuzz(150)
def test_image_headers(image_bytes: bytes, data: st.DataObject) -> None:
    content = bytearray(image_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 347))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sub-01_T1w.nii.gz"
        path.write_bytes(gzip.compress(bytes(content), 1, mtime=0))
        look_at(path)


@given(data=st.data())
@fuzz(100)
def test_image_bytes(image_bytes: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / data.draw(st.sampled_from(("a.nii", "a.nii.gz")))
        content = gzip.compress(image_bytes, 1, mtime=0) if path.suffix == ".gz" else image_bytes
        path.write_bytes(data.draw(changed_bytes(content)))
        look_at(path)


def look_at(path: Path) -> None:
    """The door, and the first step after it."""
    finding = result_or_error(check_header, path)
    result_or_error(check_image, path)
    conformed = result_or_error(conform, path)
    if not isinstance(conformed, InputError):
        assert np.isfinite(conformed.volume.data).all()
        assert np.isfinite(conformed.volume.affine).all()
    assert finding is None or finding.remedy


# Found, or thought of: each once by name.


def deep(path: Path, opening: str = "[", closing: str = "]", head: str = "") -> Path:
    path.write_text(head + opening * DEPTH + closing * DEPTH)
    return path


def test_deep_json_in_a_sidecar_takes_out_its_scan(root: Path) -> None:
    deep(root / f"{STEM}.json")
    write(root / "participants.tsv", "participant_id\tsite\nsub-01\tA\n")
    settings = Settings(root, "/out", ["participant"])
    collection = index.collect(settings)
    assert collection.records == ()
    assert any("its sidecar is broken" in f.finding for f in collection.findings)


@pytest.mark.parametrize("content", ['{"EchoTime": NaN}', '{"EchoTime": 1e999}',
                                     '{"InstitutionName": "\\ud800"}'])
def test_what_json_does_not_allow_takes_out_its_scan(root: Path, content: str) -> None:
    write(root / f"{STEM}.json", content)
    write(root / "participants.tsv", "participant_id\tsite\nsub-01\tA\n")
    assert collect(root) == ()


@pytest.mark.parametrize("text", ["1e999", "-1e999", "٣"])
def test_a_number_beyond_numbers_is_kept_as_text(root: Path, text: str) -> None:
    write(root / f"{STEM}.json", "{}")
    write(root / "participants.tsv", f"participant_id\tsite\tscore\nsub-01\tA\t{text}\n")
    (record,) = collect(root)
    assert record.covariates["score"] == text


def test_a_field_beyond_numbers_is_no_field(root: Path) -> None:
    write(root / "participants.tsv", "participant_id\nsub-01\n")
    write(root / f"{STEM}.json", json.dumps({**SIDECAR, "MagneticFieldStrength": 10 ** 400}))
    (record,) = collect(root)
    assert record.site == "Hopital_Siemens_Trio_1"


def test_a_filter_of_half_a_character(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"t1w": {"session": "\\ud800"}}')
    with pytest.raises(UsageError, match="f.json: is not valid JSON"):
        load_filters(tmp_path / "f.json")


def test_a_filter_of_several_values(root: Path, layout: Any, tmp_path: Path) -> None:
    for query, found in (({"session": ["A", "B"]}, 1), ({"session": ["B", ""]}, 0),
                         ({"run": [1, 2]}, 0)):
        write(tmp_path / "f.json", json.dumps({"t1w": query}))
        settings = Settings(root, "/out", ["participant"], bids_filter_file=tmp_path / "f.json")
        try:
            assert len(FIND_IMAGES(layout, settings)) == found
        except InputError:
            assert not found


def test_a_site_of_400_letters_still_names_a_file(root: Path) -> None:
    write(root / f"{STEM}.json", json.dumps({"InstitutionName": "x" * 400}))
    write(root / "participants.tsv", "participant_id\tsite\nsub-01\tn/a\n")
    (record,) = collect(root)
    assert record.site.startswith("xxxx") and len(record.site) <= 120
    write(root / "participants.tsv", "participant_id\tsite\nsub-01\t" + "y" * 400 + "\n")
    (record,) = collect(root)
    assert record.site.startswith("yyyy") and len(record.site) <= 120


def test_deep_json_in_a_filter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="f.json: is not valid JSON"):
        load_filters(deep(tmp_path / "f.json"))


@pytest.mark.parametrize(("query", "message"), [
    ({"return_type": "object"}, "'return_type' is no entity"),
    ({"scope": "derivatives"}, "'scope' is no entity"),
    ({"session": {"a": 1}}, "expected text, a number, null, or a list"),
    ({"session": [["a"]]}, "expected text, a number, null, or a list"),
    ({"run": [False, -1, ""]}, "run: expected text, a number, null, or a list"),
    ({"run": [0.0, ""]}, "of texts or of numbers"),
    ({"run": True}, "of texts or of numbers, got True"),
    ({"session": [None, None]}, "of texts or of numbers"),
    ({"session": ["A", "*"]}, "of texts or of numbers"),
    ({"session": []}, "of texts or of numbers"),
])
def test_filters_that_ask_for_something_else(
    tmp_path: Path, query: dict[str, Any], message: str
) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"t1w": query}))
    with pytest.raises(UsageError, match=message):
        load_filters(tmp_path / "f.json")


def test_a_deep_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="c.toml: is not valid TOML"):
        load_toml(deep(tmp_path / "c.toml", head="a = "))


def test_a_deep_plugin_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="p.yml: cannot be read as YAML"):
        load_plugin(deep(tmp_path / "p.yml"))


def test_yaml_does_not_run_python(tmp_path: Path) -> None:
    (tmp_path / "p.yml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/exploded']")
    with pytest.raises(UsageError, match="p.yml: cannot be read as YAML"):
        load_plugin(tmp_path / "p.yml")
    assert not (tmp_path / "exploded").exists()


def test_a_header_that_claims_a_terabyte(image_bytes: bytes, tmp_path: Path) -> None:
    content = bytearray(image_bytes)
    content[42:48] = np.array([10000, 10000, 10000], "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(InputError, match="claims 1e.12 voxels"):
        check_image(tmp_path / "a.nii.gz")


def test_a_link_to_a_device_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("/dev/zero")
    assert "is not a file" in str(check_header(tmp_path / "a.nii"))
    os.mkfifo(tmp_path / "b.nii.gz")
    assert "is not a file" in str(check_header(tmp_path / "b.nii.gz"))
