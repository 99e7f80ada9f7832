"""Model folders and site cards of strangers: used, or refused with a reason, and never followed
out of their folder. Hashes are no protection: who makes a folder makes its hashes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from harmonizer.cohort import Cohort
from harmonizer.errors import HarmonizerError, InputError, UnavailableError
from harmonizer.files import sha256_of
from harmonizer.methods import model_folder, registry
from harmonizer.methods.base import Backend
from harmonizer.methods.statistical import tissue_matching
from harmonizer.methods.target import CARD_FORMAT, Target
from pipelines.settings import Settings
from pipelines.stages.targets import card_path
from tests.contract.brains import brain_of, scan_of, three_levels
from tests.hostile.strategies import (
    DEPTH,
    changed,
    changed_arrays,
    changed_bytes,
    fuzz,
    result_or_error,
)

BACKENDS = ("histogram_matching", "moment_matching", "spectrum_swap", "tissue_matching")
LEARNED = ("cacd", "disarm", "ihf", "patch_diffusion")
ONE_STEP = {"preset": "tiny", "steps": 1, "validate_every": 0, "weight_residual": False}
STRANGER = brain_of(50)


def test_every_method_is_here() -> None:
    assert {*BACKENDS, *LEARNED} == set(registry.BUILT_IN)


class Fitted(dict[str, Backend]):
    """Every method, fitted on two sites when it is first asked for; networks for one step."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort

    def __missing__(self, name: str) -> Backend:
        kind = registry.get(name)
        config = kind.config_from(ONE_STEP if name in LEARNED else {})
        return self.setdefault(name, kind(config).fit(self.cohort))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Backend]]:
    folder = tmp_path_factory.mktemp("brains")
    cohort = Cohort(tuple(scan_of(folder, p, "A" if p < 2 else "B") for p in range(4)))
    with pytest.MonkeyPatch.context() as patch:
        for name in tissue_matching.SEGMENTERS:
            patch.setitem(tissue_matching.SEGMENTERS, name, lambda: three_levels)
        yield Fitted(cohort)


def rehash(folder: Path) -> None:
    """Make the hashes in config.json fit, as a stranger would."""
    path = folder / "config.json"
    facts = json.loads(path.read_text())
    if isinstance(facts, dict):
        facts["WeightsSHA256"] = sha256_of(folder / "weights.safetensors")
        facts["CohortSHA256"] = sha256_of(folder / "cohort.json")
        path.write_text(json.dumps(facts))


def use(name: str, folder: Path) -> None:
    """All that the app does with a model folder."""
    backend = registry.get(name).load(folder)
    for label in list(backend.sites_)[:2]:
        aim(backend, backend.target(label))


def aim(backend: Backend, target: Target) -> None:
    """Harmonize towards a target, and keep its card where the app would."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        card = card_path(Settings("/bids", out, ["group"]), "T1w", target.kind,
                         target.label)
        assert card.resolve().is_relative_to(out.resolve()), "a card outside the output folder"
        target.save(card)
    result = backend.harmonize(STRANGER, target)
    assert np.isfinite(result.data).all()
    if backend.capabilities.intensity_map:
        json.dumps(backend.intensity_map(STRANGER, target).describe(), allow_nan=False)


def with_changed_facts(models: dict[str, Backend], name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models[name].save(folder)
        for file in ("config.json", "cohort.json"):
            path = Path(folder) / file
            content = json.loads(path.read_text())
            path.write_text(json.dumps(data.draw(changed(content), label=file)))
        rehash(Path(folder))
        result_or_error(use, name, Path(folder))


def with_changed_weights(models: dict[str, Backend], name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models[name].save(folder)
        arrays = data.draw(changed_arrays(models[name]._state()))
        save_file(arrays, Path(folder) / "weights.safetensors")
        rehash(Path(folder))
        result_or_error(use, name, Path(folder))


@given(data=st.data())
@fuzz(60)
def test_a_models_bytes(models: dict[str, Backend], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models["moment_matching"].save(folder)
        path = Path(folder) / data.draw(st.sampled_from(model_folder.FILES))
        path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
        if path.name != "config.json" and data.draw(st.booleans()):
            rehash(Path(folder))
        result_or_error(use, "moment_matching", Path(folder))


def with_a_changed_card(models: dict[str, Backend], name: str, data: st.DataObject) -> None:
    facts = {"format": CARD_FORMAT, "kind": "site", "label": "A", "n_scans": "2", "backend": name,
             "modality": "T1w"}
    arrays = dict(models[name].target("A").style)
    content = save(data.draw(changed_arrays(arrays)),
                   {"card": json.dumps(data.draw(changed(facts)))})
    if data.draw(st.integers(0, 3)) == 0:
        content = data.draw(changed_bytes(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card.safetensors"
        path.write_bytes(content)
        result_or_error(lambda: aim(models[name], Target.load(path)))


WAYS = [with_changed_facts, with_changed_weights, with_a_changed_card]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BACKENDS)
@given(data=st.data())
@fuzz(60)
def test_a_method(models: dict[str, Backend], name: str, way: Any, data: st.DataObject) -> None:
    way(models, name, data)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LEARNED)
@given(data=st.data())
@fuzz(8)
def test_a_method_with_networks(
    models: dict[str, Backend], name: str, way: Any, data: st.DataObject
) -> None:
    way(models, name, data)


# Found, or thought of: each once by name.


def card(folder: Path, style: dict[str, np.ndarray] | None = None, **facts: Any) -> Path:
    """A card of moment matching, as a stranger changed it."""
    facts = {"format": CARD_FORMAT, "kind": "site", "label": "A", "n_scans": "2",
             "backend": "moment_matching", "modality": "T1w"} | facts
    path = folder / "card.safetensors"
    save_file({"moments": np.array([100.0, 20])} if style is None else style, path,
              {"card": json.dumps(facts)})
    return path


def test_the_card_that_the_others_differ_from(models: dict[str, Backend], tmp_path: Path) -> None:
    aim(models["moment_matching"], Target.load(card(tmp_path)))


@pytest.mark.parametrize("facts", [
    {"label": "../../../../home/x"}, {"label": "/etc/cron.d/x"}, {"label": ".."}, {"label": "a/b"},
    {"label": ""}, {"label": "x" * 400}, {"label": ["A"]}, {"label": "a\x00b"}, {"kind": "../x"},
    {"kind": None}, {"n_scans": "-1"}, {"n_scans": "many"}, {"modality": {}}, {"backend": 3},
], ids=str)
def test_facts_of_a_card_that_are_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="card.safetensors: is not a site card"):
        Target.load(card(tmp_path, **facts))


@pytest.mark.parametrize(("moments", "message"), [
    ([np.nan, 20], "'moments' holds NaN"), ([100, np.inf], "'moments' holds NaN or infinity"),
    ([100, 20, 3], "expected a mean and a deviation"), ([[100, 20]], "expected a mean and a dev"),
    ([-100, 20], "above 0 and below"), ([100, 0], "above 0 and below"),
    ([1e300, 20], "above 0 and below 1e"), (np.array([1, 2j], "c8"), "not real numbers"),
])
def test_numbers_of_a_card_that_are_refused(
    models: dict[str, Backend], tmp_path: Path, moments: list, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        aim(models["moment_matching"], Target.load(card(tmp_path, {"moments": np.array(moments)})))


def test_a_card_without_the_numbers_of_the_method(
    models: dict[str, Backend], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="its numbers do not belong to moment_matching"):
        aim(models["moment_matching"], Target.load(card(tmp_path, {"other": np.ones(2)})))


def test_a_card_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = card(tmp_path)
    os.truncate(path, 1 << 30)  # sparse
    with pytest.raises(InputError, match="larger than 256 MiB"):
        Target.load(path)


def test_a_card_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    target = Target("site", "a/b", 1, "moment_matching", "T1w", {"moments": np.ones(2)})
    with pytest.raises(InputError, match="cannot be saved: label 'a/b' is not made of"):
        target.save(tmp_path / "card.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(models: dict[str, Backend], tmp_path: Path) -> Path:
    """A sound model of moment matching."""
    return models["moment_matching"].save(tmp_path / "model")


def refused(folder: Path, message: str, kind: type[HarmonizerError] = UnavailableError) -> None:
    rehash(folder)
    with pytest.raises(kind, match=message):
        use("moment_matching", folder)


def change(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_the_model_that_the_others_differ_from(folder: Path) -> None:
    rehash(folder)
    use("moment_matching", folder)


@pytest.mark.parametrize("file", model_folder.FILES)
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match=f"{file} is a link that leads out of the folder"):
        use("moment_matching", folder)


def test_a_link_to_the_whole_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    use("moment_matching", tmp_path / "link")


def test_a_device_is_no_file(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UnavailableError, match="weights.safetensors missing"):
        use("moment_matching", folder)


def test_weights_of_a_terabyte_are_not_read(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 1 << 40)  # sparse
    with pytest.raises(UnavailableError, match="more than 8 GiB"):
        use("moment_matching", folder)


def test_a_header_that_claims_more_than_the_file_has(folder: Path) -> None:
    header = json.dumps({"A/moments": {"dtype": "F64", "shape": [1 << 40],
                                       "data_offsets": [0, 1 << 43]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(16)
    (folder / "weights.safetensors").write_bytes(content)
    refused(folder, "weights.safetensors: cannot be used")


def test_pickles_are_not_opened(folder: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(folder / "exploded"),)

    (folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "weights.safetensors: cannot be used")
    assert not (folder / "exploded").exists()


def test_weights_that_are_not_finite(folder: Path) -> None:
    save_file({"A/moments": np.array([np.nan, 1]), "B/moments": np.ones(2)},
              folder / "weights.safetensors")
    refused(folder, "'A/moments' holds NaN")


@pytest.mark.parametrize("arrays", [
    {"A/moments": np.ones(2)}, {"A/moments": np.ones(2), "B/moments": np.ones(5)},
    {"A/moments": np.ones(2), "C/moments": np.ones(2)}, {"moments": np.ones(2)}, {},
], ids=["a site less", "shape", "other site", "no site", "nothing"])
def test_weights_that_do_not_fit(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(arrays, folder / "weights.safetensors")
    refused(folder, "its weights do not fit its config")


@pytest.mark.parametrize(("shape", "message"), [
    ((17, 15, 11), "is not a multiple of"), ((2048, 2048, 2048), "with sides"),
    ((-16, 16, 16), "with sides"),
])
def test_a_box_that_networks_cannot_take(
    models: dict[str, Backend], tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    models["patch_diffusion"].save(tmp_path)
    arrays = models["patch_diffusion"]._state()
    start, _, grid = arrays["box"]
    save_file({**arrays, "box": np.array([start, shape, grid])},
              tmp_path / "weights.safetensors")
    rehash(tmp_path)
    with pytest.raises(UnavailableError, match=message):
        use("patch_diffusion", tmp_path)


@pytest.mark.parametrize("sites", [
    None, [], 3, {"A": 2}, {"A": {"Scans": "2"}}, {"A": {"Scans": -1}}, {"A": {"Scans": True}},
    {"../A": {"Scans": 2}}, {"": {"Scans": 2}},
], ids=str)
def test_sites_that_are_none(folder: Path, sites: Any) -> None:
    change(folder / "cohort.json", Sites=sites)
    refused(folder, "cohort.json does not list sites")


@pytest.mark.parametrize("facts", [
    {"Backend": ["x"]}, {"BackendVersion": 1}, {"Modality": {}}, {"Config": [1]}, {"Config": None},
], ids=str)
def test_facts_of_another_type(folder: Path, facts: dict[str, Any]) -> None:
    change(folder / "config.json", **facts)
    refused(folder, f"lacks {next(iter(facts))}, or they have another type")


@pytest.mark.parametrize("file", ["config.json", "cohort.json"])
def test_json_deeper_than_a_stack(folder: Path, file: str) -> None:
    (folder / file).write_text("[" * DEPTH + "]" * DEPTH)
    if file == "cohort.json":
        rehash(folder)
    with pytest.raises(UnavailableError, match=f"{file}: is not valid JSON"):
        use("moment_matching", folder)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "\xff"])
def test_json_that_could_not_be_written_again(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnavailableError, match="config.json: is not valid JSON"):
        use("moment_matching", folder)
