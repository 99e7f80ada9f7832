"""CACD: the paper's facts, the exact ends of its formulas, a trained tiny model, resuming."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from harmonizer.cohort import Cohort
from harmonizer.deep.training.data import VolumeStore
from harmonizer.deep.training.loop import train
from harmonizer.deep.training.settings import Resources, TrainingSchedule
from harmonizer.errors import UsageError
from harmonizer.methods.learned.cacd.backend import Cacd
from harmonizer.methods.learned.cacd.config import CacdConfig
from harmonizer.methods.learned.cacd.model import smooth_across_slices, smooth_vectors
from tests.contract.brains import at_site_b, brain_of, scan_of


def tiny(**values) -> Cacd:
    return Cacd(Cacd.config_from({"preset": "tiny", **values}))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    """Six subjects at A, six others at B: one of each is held out."""
    folder = tmp_path_factory.mktemp("cohort")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 6 else "B") for p in range(12)))


@pytest.fixture(scope="module")
def trained(cohort) -> Cacd:
    return tiny(steps=60, validate_every=30, log_every=30, validation_fraction=0.2).fit(
        cohort, seed=1
    )


def test_the_papers_preset_is_the_papers(tmp_path):
    """The values of the paper."""
    config = Cacd.config_from({"preset": "paper"})
    assert (config.subjects, config.views, config.contrast, config.anatomy) == (9, 9, 256, 256)
    assert (config.timesteps, config.prediction) == (1000, "eps")
    assert (config.temperature, config.contrast_weight, config.anatomy_weight) == (0.07, 0.5, 0.5)
    assert (config.learning_rate, config.clip, config.ema, config.steps) == (1e-4, 1, .999, 2500000)
    assert (config.max_offset, config.sampling_steps, config.strength) == (10, 250, 1.0)
    assert config.gin == "release" and not config.volume_contrast
    assert not (config.weight_residual or config.validate_every)
    assert config.clip_inversion and config.clip_sampling
    assert not (config.masked_pool or config.residual or config.corrections)
    assert config.baseline == "none"
    backend = Cacd(config)
    assert backend.model_.multiple == (16, 16, 1)
    with torch.device("meta"):
        networks = backend.model_.build_networks()
    sizes = {k: sum(p.numel() for p in n.parameters()) / 1e6 for k, n in networks.items()}
    assert sizes == pytest.approx({"denoiser": 20.3, "encoder": 9.2}, abs=0.05)


def test_presets_and_options():
    assert Cacd.config_from({}) == CacdConfig() == Cacd.config_from({"preset": "small"})
    assert Cacd.config_from({"preset": "tiny", "steps": 7}).steps == 7
    with pytest.raises(UsageError, match="no preset 'huge'.*Known: paper, small, tiny"):
        Cacd.config_from({"preset": "huge"})
    with pytest.raises(UsageError, match="prediction: expected one of"):
        Cacd.config_from({"prediction": "noise"})
    with pytest.raises(UsageError, match="strength: expected a number in"):
        Cacd.config_from({"strength": 0})
    with pytest.raises(UsageError, match="baseline 'cacd' is not a training-free method"):
        Cacd(CacdConfig(baseline="cacd"))


def test_the_condition_is_contrast_first(trained):
    """Swapped halves are another condition."""
    contrast, anatomy = np.arange(8.0), np.arange(100.0, 116).reshape(2, 8)
    condition = trained.model_.condition(np.repeat(contrast[None], 2, 0), anatomy).numpy()
    np.testing.assert_array_equal(condition[:, :8], [contrast, contrast])
    np.testing.assert_array_equal(condition[:, 8:], anatomy)
    x = torch.rand(2, 1, 24, 24) * 2 - 1
    swapped = torch.from_numpy(np.concatenate([condition[:, 8:], condition[:, :8]], 1)).float()
    t = torch.tensor([10, 10])
    network = trained.model_.networks["denoiser"]
    assert not torch.allclose(network(x, t, torch.from_numpy(condition)), network(x, t, swapped))


def slices_of(backend: Cacd, subject: int) -> tuple[torch.Tensor, torch.Tensor]:
    scan, model = backend.inference.network_input(brain_of(subject)), backend.model_
    contrast, anatomy = model.vectors(scan, model.options)
    at, x, _ = next(model.slices(scan, model.options))
    return x, model.condition(contrast[at], anatomy[at])


def test_the_same_condition_in_and_out_returns_the_slice(trained):
    """40 dB or better without clipping; clipping loses it; with `residual` it is exact."""
    x, own = slices_of(trained, 40)
    exact = tiny(sampling_steps=10, corrections=2, residual=False)
    exact.model_.networks = trained.model_.networks
    error = float(exact.model_.swap(x, own, own).square().mean().sqrt())
    assert 40 < 20 * np.log10(2 / error) < 120
    clipped = tiny(sampling_steps=10, residual=False, clip_inversion=True, clip_sampling=True,
                   strength=1.0, corrections=0)
    clipped.model_.networks = trained.model_.networks
    assert float(clipped.model_.swap(x, own, own).square().mean().sqrt()) > 2 * error
    assert not trained.model_.swap(x, own, own).any()


def test_another_contrast_changes_the_slice(trained):
    x, own = slices_of(trained, 40)
    other = own.clone()
    other[:, :8] += 3
    assert float(trained.model_.swap(x, own, other).abs().mean()) > 1e-4


def test_every_parameter_learns(cohort, tmp_path):
    store = VolumeStore.build(cohort, tmp_path / "store", tiny().model_.multiple)
    backend = tiny(dropout=0.1)
    backend.model_.networks = backend.model_.build_networks()
    before = {n: {k: p.detach().clone() for k, p in net.named_parameters()}
              for n, net in backend.model_.networks.items()}
    task = backend.model_.training_task(store, tuple(range(12)), 1)
    task.identity = {}
    train(task, TrainingSchedule(6), Resources(precision="fp32"), tmp_path, 1)
    for name, network in backend.model_.networks.items():
        still = [k for k, p in network.named_parameters() if torch.equal(p, before[name][k])]
        assert not still, f"{name} does not learn {still}"


def test_views_are_shared_by_the_whole_batch(cohort, tmp_path):
    """Two subjects that are the same slice look alike under every view, and views differ."""
    backend = tiny(subjects=3, views=2)
    backend.model_.networks = backend.model_.build_networks()
    store = VolumeStore.build(cohort, tmp_path, backend.model_.multiple)
    task = backend.model_.training_task(store, tuple(range(12)), 1)
    draw = task.sampler

    def same(step, rank=0):
        drawn = draw(step, rank)
        drawn["image"][1], drawn["mask"][1] = drawn["image"][0], drawn["mask"][0]
        return drawn

    task.sampler = same
    x = task.batch(3, 0)["x"].reshape(3, 2, *store.box.shape[:2])
    torch.testing.assert_close(x[0], x[1])
    assert not torch.allclose(x[0, 0], x[0, 1]) and not torch.allclose(x[0], x[2])


def test_contrast_is_compared_within_a_scanner(cohort, tmp_path):
    """Subjects of one site fill a batch first; no pair of contrast vectors is of two sites."""
    backend = tiny(subjects=4, subjects_per_site=2, views=2)
    backend.model_.networks = backend.model_.build_networks()
    store = VolumeStore.build(cohort, tmp_path, backend.model_.multiple)
    task = backend.model_.training_task(store, tuple(range(12)), 1)
    for step in range(5):
        assert sorted(np.bincount(task.batch(step, 0)["site"])) == [2, 2]
    one_each = tiny(subjects=2, subjects_per_site=1, views=2)
    one_each.model_.networks = backend.model_.networks
    task = one_each.model_.training_task(store, tuple(range(12)), 1)
    batch = task.batch(0, 0)
    assert sorted(batch["site"].tolist()) == [0, 1]
    assert float(task.loss(batch)["contrast"].detach()) == 0, "contrast compared across scanners"


def test_in_the_paper_each_slice_has_its_own_contrast(trained):
    from copy import copy

    model = copy(trained.model_)
    model.config = dataclasses.replace(model.config, volume_contrast=False)
    scan = trained.inference.network_input(brain_of(40))
    own, shared = model.vectors(scan, model.options)[0], trained.model_.vectors(
        scan, model.options)[0]
    area = scan.mask.sum(axis=(0, 1))
    assert np.ptp(own[area > 0], axis=0).max() > 1e-4
    np.testing.assert_allclose(shared, np.tile(np.average(own, axis=0, weights=area),
                                               (len(area), 1)), atol=1e-5)


def test_pool_is_the_plain_mean_and_tells_homogeneity():
    z = [{"contrast": np.array(v, np.float32)} for v in ([1, 0], [0, 3])]
    plain = tiny().model_.pool(z)
    np.testing.assert_allclose(plain["contrast"], [0.5, 1.5])
    assert plain["homogeneity"][0] == pytest.approx(np.sqrt(0.5))
    assert tiny().model_.pool(z[:1] * 3)["homogeneity"][0] == pytest.approx(1)


def test_slices_do_not_flicker(trained):
    """The through-plane gradient of log(output / input) stays below the input's own."""
    volume = at_site_b(brain_of(41))
    after = trained.harmonize(volume, trained.target("A"))
    inside = volume.mask & (volume.data > 20) & (after.data > 20)
    pairs = inside[:, :, 1:] & inside[:, :, :-1]
    ratio = np.log(np.where(inside, after.data / np.where(inside, volume.data, 1), 1))
    own = np.log(np.where(inside, volume.data, 1))
    steps = [np.abs(np.diff(x, axis=2))[pairs].mean() for x in (ratio, own)]
    assert 0 < steps[0] < steps[1]


def test_smoothing_across_slices_keeps_constants_and_ends():
    valid = np.array([False, True, True, True, False])
    vectors = np.array([[9.0], [2], [2], [2], [9]], np.float32)
    np.testing.assert_allclose(smooth_vectors(vectors, valid, 1.5)[valid], 2, rtol=1e-6)
    assert smooth_vectors(vectors, valid, 0) is vectors
    mask = np.zeros((2, 2, 6), bool)
    mask[:, :, 1:5] = True
    change = np.where(mask, 0.5, 99.0).astype(np.float32)
    np.testing.assert_allclose(smooth_across_slices(change, mask, 2)[mask], 0.5, rtol=1e-5)


def test_the_error_is_reported_with_the_baselines(trained, tmp_path):
    facts = trained.training_
    assert (facts.validation_scans, facts.test_scans, facts.steps) == (1, 1, 60)
    assert 0 < facts.error < 1 and 0 < facts.baseline_error < 1
    card = (trained.save(tmp_path) / "card.md").read_text()
    assert f"{facts.error:.4f} of the intensity range; histogram_matching alone" in card
    history = (tmp_path / "history.tsv").read_text().splitlines()
    assert history[0].startswith("step\tminutes\tcacd/denoise") and len(history) == 3


def test_a_fit_goes_on_where_it_stopped(cohort, tmp_path):
    quick = dict(steps=6, validate_every=0, save_every=100)
    whole = tiny(**quick).fit(cohort, seed=2)
    begun = tiny(**{**quick, "steps": 3})
    begun.resources = Resources(folder=tmp_path)
    begun.fit(cohort, seed=2)
    rest = tiny(**quick)
    rest.resources = Resources(folder=tmp_path)
    rest.fit(cohort, seed=2)
    assert rest.training_.steps == 6
    for name, value in whole._state().items():
        np.testing.assert_array_equal(rest._state()[name], value, err_msg=name)
    other = tiny(**quick, subjects=3)
    other.resources = Resources(folder=tmp_path)
    with pytest.raises(UsageError, match="is of another training"):
        other.fit(cohort, seed=2)


def test_an_untrained_network_is_the_baseline(cohort):
    from harmonizer.methods.statistical.histogram_matching import HistogramMatching

    baseline = HistogramMatching().fit(cohort)
    blank = tiny(steps=0, validate_every=0).fit(cohort, seed=1)
    volume = at_site_b(brain_of(42))
    np.testing.assert_allclose(
        blank.harmonize(volume, blank.target("A")).in_mask(),
        baseline.harmonize(volume, baseline.target("A")).in_mask(),
        rtol=1e-5,
    )


def test_config_is_kept_in_the_model(trained, tmp_path):
    loaded = Cacd.load(trained.save(tmp_path))
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(trained.config)
    facts = [model.describe_target(model.target("A")) for model in (loaded, trained)]
    assert facts[0] == facts[1] and 0.5 < facts[0]["TargetHomogeneity"] <= 1
    assert "Homogeneity" in trained.training_facts()[-1] and "A 0." in trained.training_facts()[-1]


def test_after_the_memory_ended_a_quarter_of_the_slices_goes_at_once(trained, monkeypatch):
    monkeypatch.setattr(trained, "residual_weight_", 1.0)
    brain, sizes, fewer = at_site_b(brain_of(50)), [], trained.config.batch_slices // 4

    def limited(_, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] > fewer:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    usual = trained.harmonize(brain, trained.target("A"))
    hook = trained.model_.networks["encoder"].register_forward_pre_hook(limited)
    try:
        after = trained.harmonize(brain, trained.target("A"))
    finally:
        hook.remove()
    assert sizes[0] > fewer and max(sizes[1:]) == fewer
    np.testing.assert_allclose(after.data, usual.data, rtol=1e-4, atol=1e-3)
