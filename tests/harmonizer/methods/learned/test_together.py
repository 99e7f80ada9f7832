"""One set of networks for several modalities: each model has its own sites and baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.deep.training.data import VolumeStore
from harmonizer.errors import InputError, UnavailableError, UsageError
from harmonizer.methods import registry
from harmonizer.methods.base import ScanContext
from harmonizer.methods.learned.base import fit_together
from harmonizer.methods.learned.ihf.backend import Ihf
from harmonizer.methods.learned.ihf.model import IhfModel
from harmonizer.volume import Volume, read_volume, write_volume
from tests.contract.brains import at_site_b, brain_of, scan_of
from tests.harmonizer.methods.learned import flows

MODALITIES = ("T1w", "T2w")


def negative(volume: Volume) -> Volume:
    """A T2w-like look of the same brain."""
    top = float(volume.in_mask().max())
    return volume.with_data(np.where(volume.mask, top * 1.1 - volume.data, 0).astype(np.float32))


def t2w_of(folder, subject: int, site: str) -> Scan:
    scan = scan_of(folder, subject, site, "T2w")
    write_volume(scan.image, negative(read_volume(scan.image, scan.mask)))
    return scan


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("together")
    site = "AAAABBB"
    return Cohort(tuple(make(folder, p, site[p]) for make in (scan_of, t2w_of) for p in range(7)))


def tiny(**options) -> Ihf:
    return Ihf(Ihf.config_from({"preset": "tiny", "validation_fraction": 0.3, **options}))


def fitted(cohort: Cohort, **options) -> dict[str, Ihf]:
    backends = {modality: tiny(**options) for modality in MODALITIES}
    fit_together(backends, cohort, seed=1)
    return backends


@pytest.fixture(scope="module")
def both(cohort) -> dict[str, Ihf]:
    return fitted(cohort)


def test_the_networks_are_the_same_and_the_rest_is_each_ones_own(both, cohort):
    one, two = (both[m].model_.networks["flow"].state_dict() for m in MODALITIES)
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    for modality, backend in both.items():
        assert (backend.modality_, backend.model_.modalities) == (modality, MODALITIES)
        assert backend.sites_ == {"A": 4, "B": 3}
        assert backend.target("A").modality == modality
    difference = np.abs(both["T1w"].styles_["A"]["z_s"] - both["T2w"].styles_["A"]["z_s"])
    assert difference.max() > 0.01
    assert "on T1w, T2w together" in both["T2w"].training_facts()[0]


def test_each_modality_is_harmonized_by_its_own_model(both):
    stranger = at_site_b(brain_of(50))
    scans = {"T1w": stranger, "T2w": negative(stranger)}
    for modality, backend in both.items():
        result = backend.harmonize(scans[modality], backend.target("A"), source="B")
        assert np.isfinite(result.data).all()
        assert np.median(result.in_mask()) < np.median(scans[modality].in_mask())
    with pytest.raises(InputError, match="made for ihf on T1w"):
        both["T2w"].harmonize(scans["T2w"], both["T1w"].target("A"))


def test_a_model_is_a_folder_of_its_own(both, tmp_path):
    stranger = negative(at_site_b(brain_of(50)))
    again = Ihf.load(both["T2w"].save(tmp_path / "T2w"))
    assert again.model_.modalities == MODALITIES
    np.testing.assert_array_equal(again.harmonize(stranger, again.target("A")).data,
                                  both["T2w"].harmonize(stranger, both["T2w"].target("A")).data)


def test_networks_of_other_modalities_are_refused(both, tmp_path):
    backend = tiny()
    backend.__dict__.update(both["T2w"].__dict__)
    backend.modality_ = "FLAIR"
    with pytest.raises(UnavailableError, match="were not trained on FLAIR"):
        Ihf.load(backend.save(tmp_path / "FLAIR"))


def test_no_pair_is_of_two_modalities(cohort, tmp_path):
    model = IhfModel(tiny().config, ("A", "B"), MODALITIES)
    store = VolumeStore.build(cohort, tmp_path, model.multiple)
    task = model.training_task(store, tuple(range(len(cohort))), 3)
    seen = set()
    for n in range(40):
        rng = np.random.default_rng(n)
        _, one, two = task.draw_pair(rng)
        assert store.scans[one].modality == store.scans[two].modality
        seen.add(store.scans[one].modality)
    assert seen == set(MODALITIES)
    code = task.batch(0, 0)["code"]
    assert code.shape == (2, 2)
    assert (code.sum(1) == 1).all()


def test_the_code_decides_what_the_networks_do(both):
    """Random heads: the same image and target, told to be of the one and of the other modality."""
    backend = flows.shaken(both["T1w"], 5)
    changes, model = [], backend.model_
    for modality in MODALITIES:
        scan = backend.inference.network_input(at_site_b(brain_of(50)),
                                               ScanContext(modality=modality))
        changes.append(model.predict_residual(scan, both["T1w"].styles_["A"],
                                              np.random.default_rng(0), model.options).change)
    difference = np.abs(changes[0] - changes[1]).max()
    assert difference > 0.1 * np.abs(changes[0]).max() > 0


def test_a_modality_with_few_people_does_not_stop_the_others(cohort):
    few = Cohort(tuple(s for s in cohort if s.modality == "T1w" or s.subject in ("00", "05")))
    backends = fitted(few, steps=2)
    assert backends["T2w"].sites_ == {"A": 1, "B": 1}


@pytest.mark.parametrize(("backends", "message"), [
    (lambda: {m: registry.get("cacd")() for m in MODALITIES}, "cacd cannot be trained on several"),
    (lambda: {"T1w": tiny(), "FLAIR": tiny()}, "expected scans of FLAIR, T1w, got T1w, T2w"),
    (lambda: {"T1w": tiny(), "T2w": tiny(steps=3)}, "several methods or configs"),
    (dict, "this cannot be trained"),
])
def test_what_cannot_be_trained_together_is_said(cohort, backends, message):
    with pytest.raises(UsageError, match=message):
        fit_together(backends(), cohort)


def test_a_scan_of_another_grid_is_named(cohort, tmp_path):
    odd = scan_of(tmp_path, 9, "B", "T2w")
    volume = read_volume(odd.image, odd.mask)
    write_volume(odd.image, Volume(volume.data[:-1], volume.affine))
    scans = (*cohort, replace(odd, subject="99"))
    with pytest.raises(InputError, match="sub-09"):
        fit_together({m: tiny() for m in MODALITIES}, Cohort(scans))
