"""The method `unet`: baseline at initialization, geometry, pairs, training, weights, commands."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harmonizer import __version__
from harmonizer.cohort import Cohort, Scan
from harmonizer.deep.training.settings import Resources
from harmonizer.errors import InputError, UnavailableError
from harmonizer.methods import registry
from harmonizer.methods.learned.unet import __main__ as command
from harmonizer.methods.learned.unet import pairs as pairs_module
from harmonizer.methods.learned.unet.backend import UNet, UNetConfig
from harmonizer.methods.learned.unet.channels import CHANNELS, CONDITIONS
from harmonizer.methods.learned.unet.network import ResidualUNet
from harmonizer.methods.learned.unet.packing import pack_weights
from harmonizer.methods.learned.unet.pairs import StudyKind, prepare_study
from harmonizer.methods.learned.unet.residual_map import ResidualMap
from harmonizer.methods.learned.unet.scan_card import CARD_NAMES, scan_card
from harmonizer.methods.learned.unet.store import PairStore, _permuted_conditions
from harmonizer.methods.learned.unet.training import PRESETS, relative_errors, train_unet
from harmonizer.methods.learned.unet.weights import WEIGHTS, read_weights, write_weights
from harmonizer.methods.statistical.tissue_matching import TissueMatching
from harmonizer.phantom import SCANNERS
from harmonizer.phantom.aligned import write_aligned
from harmonizer.simulation.anatomy import phantom_anatomy
from harmonizer.volume import Volume

TINY = (8, 8, 8)


def a_network(trained: bool = True) -> ResidualUNet:
    """A small network; `trained` gives its last layer weights."""
    torch.manual_seed(0)
    network = ResidualUNet(len(CHANNELS), len(CONDITIONS), TINY)
    if trained:
        torch.nn.init.normal_(network.head.weight, std=0.05)
        torch.nn.init.normal_(network.gains.weight, std=0.1)
    return network.eval()


def some_weights(path: Path, trained: bool = True, modality: str = "T1w") -> Path:
    return write_weights(path, a_network(trained), {"Modalities": {modality: 1.0},
                                                    "CardStd": [1e-3] * len(CARD_NAMES)})


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("aligned")
    return write_aligned(folder, SCANNERS[:2], subjects=2, design="nested", seed=4, resolution_mm=4)


def fitted(cohort: Cohort, weights: Path) -> UNet:
    return UNet(UNetConfig(weights=str(weights), segmenter="coarse")).fit(cohort)


# --- the map ----------------------------------------------------------------------------------


def test_an_untrained_network_returns_the_baseline(cohort, tmp_path):
    method = fitted(cohort, some_weights(tmp_path / "w.safetensors", trained=False))
    plain = TissueMatching(TissueMatching.Config(segmenter="coarse", texture="keep")).fit(cohort)
    scan = cohort.scans[0]
    target = next(site for site in cohort.sites if site != scan.site)
    ours = method.harmonize(scan.read(), method.target(target), source=scan.site)
    theirs = plain.harmonize(scan.read(), plain.target(target), source=scan.site)
    assert np.array_equal(ours.data, theirs.data)


def test_a_trained_network_changes_the_baseline_and_a_scan_of_the_target_keeps_it(cohort, tmp_path):
    method = fitted(cohort, some_weights(tmp_path / "w.safetensors"))
    plain = TissueMatching(TissueMatching.Config(segmenter="coarse", texture="keep")).fit(cohort)
    scan = cohort.scans[0]
    for site in cohort.sites:
        ours = method.harmonize(scan.read(), method.target(site), source=scan.site)
        theirs = plain.harmonize(scan.read(), plain.target(site), source=scan.site)
        assert np.array_equal(ours.data, theirs.data) == (site == scan.site)


@pytest.fixture(scope="module")
def change(cohort, tmp_path_factory) -> ResidualMap:
    method = fitted(cohort, some_weights(tmp_path_factory.mktemp("w") / "w.safetensors"))
    scan = cohort.scans[0]
    target = next(site for site in cohort.sites if site != scan.site)
    return method.intensity_map(scan.read(), method.target(target), source=scan.site)


def test_the_stored_order_of_axes_and_their_senses_do_not_matter(cohort, change):
    volume = cohort.scans[0].read()
    expected = change.apply(volume).data
    moved = volume.data.transpose(2, 0, 1)[::-1]
    turn = np.zeros((4, 4))
    turn[2, 0], turn[0, 1], turn[1, 2], turn[3, 3] = -1, 1, 1, 1
    turn[2, 3] = volume.shape[2] - 1
    other = Volume(moved, volume.affine @ turn, volume.mask.transpose(2, 0, 1)[::-1])
    found = change.apply(other).data[::-1].transpose(1, 2, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_an_oblique_grid_with_thick_slices_keeps_geometry_and_background(cohort, change):
    from scipy.spatial.transform import Rotation

    from harmonizer.preprocessing.transforms import resample

    volume = cohort.scans[0].read()
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix() @ np.diag([2., 2., 6.])
    affine[:3, 3] = -affine[:3, :3] @ np.array([40, 50, 14])
    native = resample(volume, Volume(np.zeros((80, 100, 28), np.float32), affine))
    after = change.apply(native)
    assert after.affine is native.affine and after.mask is native.mask
    assert np.array_equal(after.data[~native.mask], native.data[~native.mask])
    inside = after.data[native.mask]
    assert np.isfinite(inside).all() and inside.min() >= 0
    assert not np.array_equal(inside, change.change.apply(native).data[native.mask])


def test_slabs_give_what_the_whole_gives_away_from_their_ends(change, monkeypatch):
    from harmonizer.methods.learned.unet import residual_map

    stack = np.random.default_rng(0).random((6, 64, 16, 16), dtype=np.float32)
    numbers = np.zeros(len(CONDITIONS), np.float32)
    whole = residual_map._predict(change.network, stack, numbers)
    monkeypatch.setattr(residual_map, "WHOLE", 1)
    monkeypatch.setattr(residual_map, "SLAB", 48)  # steps of 16: multiples of 8
    monkeypatch.setattr(residual_map, "OVERLAP", 16)
    slabs = residual_map._predict(change.network, stack, numbers)
    assert np.abs(slabs - whole).max() < 0.1 * np.abs(whole).max()


# --- cards ------------------------------------------------------------------------------------


def test_a_card_does_not_depend_on_gain_and_tells_noise_and_blur(cohort):
    from scipy import ndimage

    volume = cohort.scans[0].read()
    probabilities = np.zeros((3, *volume.shape), np.float32)
    probabilities[2] = volume.mask
    rng = np.random.default_rng(0)
    noisy = volume.with_data(volume.data + 0.05 * volume.data.max()
                             * rng.standard_normal(volume.shape, dtype=np.float32) * volume.mask)
    smooth = volume.with_data(ndimage.gaussian_filter(volume.data, (1.5, 0, 0)))
    card, louder, softer = (scan_card(v, probabilities) for v in (volume, noisy, smooth))
    np.testing.assert_allclose(card, scan_card(volume.with_data(7 * volume.data), probabilities),
                               atol=1e-4)
    index = {name: i for i, name in enumerate(CARD_NAMES)}
    assert louder[index["noise_wm_A"]] > card[index["noise_wm_A"]] + 0.3
    along, across = (card[index[f"difference_1_{a}"]] - softer[index[f"difference_1_{a}"]]
                     for a in "RA")
    assert along > across > -0.2 and along > 0.2


def test_conditions_are_permuted_with_the_axes():
    order = np.array([2, 0, 1])
    read = _permuted_conditions(order)
    names = np.array(CONDITIONS)[read]
    at = CONDITIONS.index("voxel_R")
    assert list(names[at:at + 3]) == ["voxel_S", "voxel_R", "voxel_A"]
    assert names[CONDITIONS.index("scan_noise_wm_A")] == "scan_noise_wm_R"


# --- pairs and training -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Two training studies and one of validation, of phantom subjects at 4 mm."""
    patch = pytest.MonkeyPatch()
    kind = StudyKind(4.0, 4, True, False, 2, (2, 2), 1, 40)
    patch.setitem(pairs_module.KINDS, "coarse", kind)
    patch.setattr(pairs_module, "IDENTITY", 1.0)
    patch.setattr(pairs_module, "_noise_factor", lambda *_: 2.0)
    patch.setattr(pairs_module, "_anatomy", lambda rng, *rest: phantom_anatomy(
        int(rng.integers(70_000_000, 71_000_000)), 40.0, "F", 4.0))
    folder = tmp_path_factory.mktemp("pairs")
    for index in (0, 1, pairs_module.VALIDATION_FROM):
        prepare_study(folder, Path("maps"), 20, "coarse", 9, index)
    yield folder
    patch.undo()


def test_pairs_are_made_once_and_from_their_seed_alone(pairs, tmp_path):
    stamp = (pairs / "study_000000_000.npy").stat().st_mtime_ns
    prepare_study(pairs, Path("maps"), 20, "coarse", 9, 0)
    assert (pairs / "study_000000_000.npy").stat().st_mtime_ns == stamp
    prepare_study(tmp_path, Path("maps"), 20, "coarse", 9, 0)
    for file in sorted(tmp_path.glob("study_000000*")):
        assert file.read_bytes() == (pairs / file.name).read_bytes()


def test_the_truth_is_another_image_than_the_scan_and_identity_pairs_are_the_scan(pairs):
    store = PairStore(pairs)
    assert len(store.training) == 16 and len(store.validation) == 8
    scan, truth = CHANNELS.index("scan"), len(CHANNELS)
    for pair in store.training:
        arrays = pair.open()
        assert arrays.shape[0] == len(CHANNELS) + 1 and arrays.dtype == np.float16
        assert np.array_equal(arrays[scan], arrays[truth]) == pair.identity
        outside = arrays[CHANNELS.index("mask")] == 0
        assert not np.asarray(arrays)[:, outside].any()


def test_training_resumes_to_the_same_weights(pairs, tmp_path):
    settings = replace(PRESETS["tiny"], steps=6, validate_every=3)
    resources = Resources(precision="fp32", threads=1)
    whole, network = train_unet(tmp_path / "a", pairs, settings, resources)
    # decay depends on the steps in all, so the interrupted run has the same number of them
    stopped = replace(resources, max_minutes=0.0)
    for _ in range(2):
        train_unet(tmp_path / "b", pairs, settings, stopped)
    again, _ = train_unet(tmp_path / "b", pairs, settings, resources)
    assert whole.steps == again.steps == 6 and "gain_db" in whole.metrics
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, again.weights[name]), name
    history = (tmp_path / "a" / "history.tsv").read_text().splitlines()
    assert {"seconds/data", "seconds/step", "gain_db"} <= set(history[0].split("\t"))


def test_packed_weights_carry_what_was_validated_and_a_card(pairs, tmp_path):
    train_unet(tmp_path, pairs, replace(PRESETS["tiny"], steps=4, validate_every=2),
               Resources(precision="fp32", threads=1))
    path = pack_weights(tmp_path, pairs, tmp_path / "w.safetensors")
    facts = read_weights(path).facts
    assert 0 <= facts["Modalities"]["T1w"] <= 1 and len(facts["CardStd"]) == len(CARD_NAMES)
    card = path.with_suffix(".md").read_text()
    assert "Apache-2.0" in card and __version__ in card and "SHA-256" in card


def test_noise_is_learned_from_few_steps(pairs, tmp_path):
    """Noisy scans of the pairs get nearer to the noise-free truth than the baseline is."""
    settings = replace(PRESETS["tiny"], steps=60, batch=4, learning_rate=2e-3)
    store = PairStore(pairs)
    _, network = train_unet(tmp_path, pairs, settings, Resources(precision="fp32", threads=1))
    fine = [relative_errors(network, pair)[1] for pair in store.training if not pair.identity]
    assert np.exp(np.mean(np.log(fine))) < 0.99


# --- weights and models -----------------------------------------------------------------------


def test_damaged_weights_are_refused_by_name(tmp_path, cohort):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(UnavailableError, match="bad.safetensors"):
        fitted(cohort, bad)
    with pytest.raises(UnavailableError, match="none.safetensors"):
        UNet(UNetConfig(weights=str(tmp_path / "none.safetensors"))).check_settings_files()


def test_a_modality_without_validation_gets_the_baseline_and_a_message(cohort, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "harmonizer"):
        method = fitted(cohort, some_weights(tmp_path / "w.safetensors", modality="T2w"))
    assert "not validated on T1w" in caplog.text
    scan = cohort.scans[0]
    target = next(site for site in cohort.sites if site != scan.site)
    change = method.intensity_map(scan.read(), method.target(target), source=scan.site)
    assert change.weight == 0 and change.describe()["ResidualWeight"] == 0


def test_a_model_is_loaded_with_its_own_weights(cohort, tmp_path):
    method = fitted(cohort, some_weights(tmp_path / "w.safetensors"))
    method.save(tmp_path / "model")
    (tmp_path / "w.safetensors").unlink()
    again = UNet.load(tmp_path / "model")
    scan: Scan = cohort.scans[0]
    target = next(site for site in cohort.sites if site != scan.site)
    one, two = (m.harmonize(scan.read(), m.target(target), source=scan.site)
                for m in (method, again))
    assert np.array_equal(one.data, two.data)


def test_the_method_is_built_in_only_with_validated_weights():
    """Without weights in the package, `--backend unet` is not offered."""
    assert ("unet" in registry.BUILT_IN) == WEIGHTS.is_file()
    if WEIGHTS.is_file():
        assert WEIGHTS.stat().st_size <= 8 << 20 and WEIGHTS.with_suffix(".md").is_file()
        assert read_weights(WEIGHTS).facts["Modalities"].get("T1w", 0) > 0


# --- commands ---------------------------------------------------------------------------------


def test_mistakes_on_the_command_line_are_explained(tmp_path, capsys):
    assert command.main(["prepare", str(tmp_path), str(tmp_path / "p")]) == 65
    assert "no label maps" in capsys.readouterr().err
    assert command.main(["prepare", str(tmp_path), str(tmp_path), "--worker", "2/2"]) == 2
    assert "K/N" in capsys.readouterr().err
    with pytest.raises(InputError, match="no training pairs"):
        train_unet(tmp_path / "out", tmp_path, PRESETS["tiny"], Resources())
