"""DISARM: every group moves its own, every weight learns, one style that is no scanner's."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from harmonizer.cohort import Cohort
from harmonizer.deep.augmentation.contrast import Gamma, View
from harmonizer.deep.training.data import VolumeStore
from harmonizer.deep.training.loop import train
from harmonizer.deep.training.settings import Resources, TrainingSchedule
from harmonizer.deep.training.stability import StabilityMonitor
from harmonizer.errors import InputError, InternalError, UsageError
from harmonizer.methods.learned.disarm.backend import Disarm
from harmonizer.methods.learned.disarm.config import DisarmConfig
from harmonizer.methods.learned.disarm.training import match_volumes
from harmonizer.methods.target import Target
from harmonizer.volume import Volume
from tests.contract.brains import brain_of, scan_of

NETWORKS = {"content": {"content"}, "critics": {"exemplar", "random"},
            "translation": {"anatomy", "scanner", "generator"},
            "random": {"anatomy", "generator"}, "simulation": {"anatomy", "scanner", "generator"}}


def tiny(**changes) -> DisarmConfig:
    return Disarm.config_from({"preset": "tiny", "weight_residual": False, **changes})


def seen_by_b(volume: Volume) -> Volume:
    """A scanner of another curve, gain and sharpness."""
    unit = np.where(volume.mask, np.clip(volume.data / 200, 0, 1), 0)
    data = 500 * ndimage.gaussian_filter(unit, 0.5) ** 0.6
    return volume.with_data(np.where(volume.mask, data + 1, 0).astype(np.float32))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 4 else "B") for p in range(8)))


@pytest.fixture(scope="module")
def fitted(cohort) -> Disarm:
    return Disarm(tiny()).fit(cohort, seed=1)


@pytest.fixture
def task(cohort, tmp_path):
    """A task past the zeros that networks start with."""
    backend = Disarm(tiny(batch=3, learning_rate=1e-2, content_rate=1e-2))
    backend.model_.sites = ("A", "B")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        backend.model_.networks = backend.model_.build_networks()
        for network in backend.model_.networks.values():
            for p in network.parameters():
                torch.nn.init.normal_(p, std=0.2)
        yield backend.model_.training_task(
            VolumeStore.build(cohort, tmp_path, (2, 2, 2)), tuple(range(8)), 0
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_group_moves_its_own_networks_and_no_other(task, tmp_path, name):
    before = {k: {n: p.clone() for n, p in net.named_parameters()}
              for k, net in task.networks.items()}
    groups = tuple(group for group in task.optimizer_groups() if group.name == name)
    task.optimizer_groups = lambda: groups
    train(task, TrainingSchedule(steps=1), Resources(precision="fp32"), tmp_path / "run", 0)
    moved = {k for k, net in task.networks.items()
             if any(not torch.equal(p, before[k][n]) for n, p in net.named_parameters())}
    assert moved == NETWORKS[name]


def test_every_weight_learns_from_some_group(task):
    batch = task.batch(3, 0)
    reached = set()
    for group in task.optimizer_groups():
        named = {f"{k}.{n}": p for k in group.networks
                 for n, p in task.networks[k].named_parameters()}
        total = sum(group.loss(batch).values())
        for key, g in zip(named, torch.autograd.grad(total, list(named.values()),
                                                     allow_unused=True)):
            reached |= {key} if g is not None and g.abs().sum() > 0 else set()
    assert reached == {f"{k}.{n}" for k, net in task.networks.items()
                       for n, _ in net.named_parameters()}


def test_no_label_is_seen_in_training_as_often_as_asked(task):
    rows = [task.batch(step, 0) for step in range(40)]
    for name in ("conditioning", "random_label"):
        empty = torch.cat([b[name] for b in rows]).sum(1) == 0
        assert empty.float().mean().item() == pytest.approx(task.config.label_dropout, abs=0.15)
    seen, label = (torch.cat([b[name] for b in rows]) for name in ("conditioning", "label"))
    assert (label.sum(1) == 1).all() and ((seen == label).all(1) | (seen == 0).all(1)).all()


def test_exchange_there_and_back_meets_its_own_style(task, monkeypatch):
    """With codes that are the images' means, image i comes back with the style of image i."""
    def style(x, label, mask):
        mean = x.mean(dim=(2, 3, 4)).expand(-1, 4)
        return mean, (mean, torch.zeros_like(mean))

    def generated(code, style, label, mask):
        return style[:, :1, None, None, None].expand(-1, 1, 8, 8, 8)

    monkeypatch.setattr(task, "sample_style", style)
    monkeypatch.setattr(task, "generate", generated)
    x = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1, 1, 1).expand(-1, -1, 8, 8, 8)
    batch = {"volume": x, "volume_mask": torch.ones_like(x), "conditioning": torch.eye(3),
             "mask": torch.ones_like(x)}
    made, _, _ = task.exchange(batch, x)
    torch.testing.assert_close(made, x.roll(1, 0))
    torch.testing.assert_close(task.exchange_back(batch, made), x)


def test_what_is_simulated_is_matched_and_of_one_place(task, monkeypatch):
    views = iter([View((Gamma(0.5),)), View((Gamma(-0.5),))] * 3)  # rising, as GIN need not be
    monkeypatch.setattr("harmonizer.methods.learned.disarm.training.draw_view",
                        lambda *args: next(views))
    task.config = replace(task.config, simulated=3)
    batch = task.batch(5, 0)
    for n in range(3):
        mask = batch["source_mask"][n] > 0
        seen, truth = batch["source"][n][mask], batch["truth"][n][mask]
        assert torch.corrcoef(torch.stack([seen, truth]))[0, 1].item() > 0.95
        assert float(seen.median()) == pytest.approx(float(truth.median()), abs=0.15)
        assert not torch.equal(seen, truth)


def test_the_target_of_a_simulated_pair_is_of_the_same_site(task):
    sites = [scan.site for scan in task.store.scans]
    for index in range(8):
        other = task._other_subject(np.random.default_rng(index), index)
        assert other != index and sites[other] == sites[index]
    task.scans = (0, 4)  # one subject at each site: no other has its contrast
    assert task._other_subject(np.random.default_rng(0), 0) == 0


def test_codes_in_training_are_those_at_inference(fitted, cohort, tmp_path):
    """The code that a training step gives a scan is the code that the scan has in use."""
    task = fitted.model_.training_task(VolumeStore.build(cohort, tmp_path, (2, 2, 2)),
                                       tuple(range(8)), 0)
    batch = task.batch(2, 0)
    assert batch["volume"].shape[2:] == task.store.box.shape != batch["x"].shape[2:]
    with torch.no_grad():
        _, (means, _) = task.sample_style(batch["volume"], torch.zeros(2, 2),
                                          batch["volume_mask"])
    for n, index in enumerate(task.sampler(2, 0)["scan"]):
        scan = fitted.inference.network_input(cohort.scans[index].read())
        code = fitted.model_.describe(scan, fitted.model_.options)["code"]
        np.testing.assert_allclose(means[n].numpy(), code, atol=2e-3)  # stored as float16


def test_volumes_are_warped_as_often_as_in_the_paper(cohort, tmp_path):
    backend = Disarm(tiny(elastic=1.5))
    backend.model_.sites = ("A", "B")
    backend.model_.networks = backend.model_.build_networks()
    task = backend.model_.training_task(VolumeStore.build(cohort, tmp_path, (2, 2, 2)),
                                        tuple(range(8)), 0)
    stored = torch.from_numpy(task.store.image(0).astype(np.float32))[None, None]
    drawn = [task._draw_volume(np.random.default_rng(n), 0) for n in range(40)]
    warped = [not torch.equal(volume.image, stored) for volume in drawn]
    assert np.mean(warped) == pytest.approx(0.7, abs=0.2)
    for volume in drawn:
        assert (volume.image[volume.mask == 0] == -1).all()
        assert volume.image.abs().max() <= 1 and set(volume.mask.unique().tolist()) == {0.0, 1.0}
    batch = task.batch(4, 0)
    again = task.batch(4, 0)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_one_place_gets_one_code_whoever_scans_it(cohort):
    """Of subjects, and by a scanner, that the training never saw."""
    from harmonizer.deep.losses.disentangling import code_l1

    def between(weight: float) -> float:
        backend = Disarm(tiny(steps=40, batch=4, validate_every=0, same_weight=weight)
                         ).fit(cohort, seed=0)
        found = []
        for subject in (50, 51):
            scan = [
                backend.inference.network_input(v)
                for v in (brain_of(subject), seen_by_b(brain_of(subject)))
            ]
            with torch.no_grad():
                codes = [
                    backend.model_.networks["anatomy"].code(
                        backend.model_.tensor(s.image[None, None])
                    )
                    for s in scan
                ]
            found.append(float(code_l1(*codes, backend.model_.tensor(scan[0].mask[None, None]))))
        return float(np.mean(found))

    assert between(5.0) < 0.8 * between(0.0)


def test_matching_to_oneself_changes_nothing():
    x = torch.randn(1, 1, 8, 8, 8)
    mask = (x > -1).float()
    inside = (mask > 0) & (x < 2) & (x > -0.9)
    torch.testing.assert_close(
        match_volumes(x, mask, x, mask)[inside], x[inside], rtol=0, atol=0.02
    )
    torch.testing.assert_close(match_volumes(x, mask * 0, x, mask), x)


def test_scanner_free_is_one_style_without_chance(fitted):
    target = fitted.target("scanner-free")
    assert target.kind == "scanner-free" and target.n_scans == 8
    assert not target.style["code"].any() and not target.style["label"].any()
    volume = brain_of(30)
    one, two = (fitted.harmonize(volume, target, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.data, two.data)


def test_scanner_free_brings_two_scans_of_one_person_together(tmp_path):
    """Site A and a B of another curve, gain and sharpness; subjects in the fit at one of both."""
    from harmonizer.volume import write_volume

    scans = []
    for subject in range(8):
        scan = scan_of(tmp_path, subject, "A")
        if subject >= 4:
            write_volume(scan.image, seen_by_b(brain_of(subject)))
            scan = replace(scan, site="B")
        scans.append(scan)
    backend = Disarm(tiny(steps=30, batch=4, validate_every=0)).fit(Cohort(tuple(scans)), seed=0)
    target = backend.target("scanner-free")

    def difference(one: Volume, two: Volume) -> float:
        a, b = (v.in_mask() / np.median(v.in_mask()) for v in (one, two))
        return float(np.sqrt(np.mean((a - b) ** 2)))

    before, after = [], []
    for subject in (50, 51):
        pair = brain_of(subject), seen_by_b(brain_of(subject))
        before.append(difference(*pair))
        after.append(difference(*(backend.harmonize(v, target) for v in pair)))
    assert all(0 < b < 0.6 * a for a, b in zip(before, after)), (before, after)


def test_a_site_is_the_mean_code_of_all_its_scans(fitted, cohort):
    scans = [fitted.inference.network_input(scan.read()) for scan in cohort.of_site("A")]
    codes = [fitted.model_.describe(scan, fitted.model_.options)["code"] for scan in scans]
    style = fitted.target("A").style
    np.testing.assert_allclose(style["code"], np.mean(codes, axis=0), atol=1e-5)
    np.testing.assert_allclose(style["std"], np.std(codes, axis=0), atol=1e-5)


def test_labels_are_told_to_the_generator_where_asked(cohort):
    backend = Disarm(tiny(label_at_target=True, validate_every=0)).fit(cohort, seed=0)
    assert backend.target("B").style["label"].tolist() == [0, 1]
    known = backend.enroll(cohort.of_site("A").scans[:2], "again").style["label"]
    assert known.tolist() == [1, 0]
    stranger = [replace(scan, site="C") for scan in cohort.scans[:2]]
    assert backend.enroll(stranger, "new").style["label"].tolist() == [0, 0]
    assert backend.target("scanner-free").style["label"].tolist() == [0, 0]


def change_of(backend: Disarm, scan, style) -> np.ndarray:
    rng, model = np.random.default_rng(0), backend.model_
    return model.predict_residual(scan, style, rng, model.options).change


def test_the_residual_is_no_difference_of_two_images(fitted, cohort):
    """What does not depend on the style, such as denoising, is part of the change."""
    scan = fitted.inference.network_input(brain_of(30))
    own = fitted.model_.describe(scan, fitted.model_.options)["code"]
    style = {"code": own, "std": np.zeros(4, np.float32), "label": np.zeros(2, np.float32)}
    change = change_of(fitted, scan, style)
    assert np.abs(change).max() > 1e-6
    other = change_of(fitted, scan, {**style, "code": own + 3})
    assert np.abs(other - change).max() > 1e-6
    untrained = Disarm(tiny(steps=0, validate_every=0)).fit(cohort, seed=1)
    np.testing.assert_array_equal(change_of(untrained, scan, style), 0)


def test_codes_are_sampled_as_in_the_paper_where_asked(cohort):
    backend = Disarm(tiny(sample_codes=True, residual=False, simulated_weight=0.0, steps=2,
                          validate_every=0)).fit(cohort, seed=0)
    target = backend.target("scanner-free")
    assert not target.style["code"].any() and (target.style["std"] == 1).all()
    for network in (backend.model_.networks["generator"],):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    one, two, again = (backend.harmonize(brain_of(30), target, seed=seed) for seed in (1, 2, 1))
    assert not np.array_equal(one.data, two.data)
    np.testing.assert_array_equal(one.data, again.data)


def test_the_code_discriminator_takes_turns_where_asked(cohort, tmp_path):
    backend = Disarm(tiny(alternate=True))
    backend.model_.sites = ("A", "B")
    backend.model_.networks = backend.model_.build_networks()
    task = backend.model_.training_task(VolumeStore.build(cohort, tmp_path, (2, 2, 2)),
                                        tuple(range(8)), 0)
    active = [{g.name for g in task.optimizer_groups() if g.is_active_at(step)} for step in (0, 1)]
    assert active == [{"content"}, {"critics", "translation", "random", "simulation"}]


@pytest.mark.parametrize("shape", [(9, 9, 5), (31, 20, 23)])
def test_any_size_of_volume_is_harmonized(fitted, shape):
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2, 1:-1] = True
    volume = Volume(np.where(mask, rng.normal(100, 20, shape), 0).astype(np.float32),
                    np.eye(4), mask)
    after = fitted.harmonize(volume, fitted.target("B"))
    assert after.shape == shape and not np.array_equal(after.data, volume.data)


def test_the_papers_way_makes_the_image_anew(cohort):
    backend = Disarm(
        tiny(
            residual=False,
            label_at_target=False,
            unshuffle=False,
            patch=None,
            simulated_weight=0.0,
            anatomy_weight=0.0,
            inverse_content=True,
            baseline="none",
            validate_every=0,
        )
    )
    backend.fit(cohort, seed=0)
    scan = backend.inference.network_input(brain_of(30))
    unit = scan.image
    change = change_of(backend, scan, backend.target("A").style)
    style = backend.target("A").style
    with torch.no_grad():
        code = backend.model_.networks["anatomy"].code(backend.model_.tensor(unit[None, None]))
        made = backend.model_.networks["generator"](code, *(
            backend.model_.tensor(style[name][None]) for name in ("code", "label")))[0, 0].numpy()
    np.testing.assert_allclose(unit + change, made, atol=1e-5)


@pytest.mark.parametrize("after_step", [0, 6])
def test_a_training_that_diverges_leaves_the_last_good_model(cohort, monkeypatch, caplog,
                                                             after_step):
    calls = []

    def lost(self, name, value):
        calls.append(value)
        if len(calls) > after_step:
            raise InternalError("training diverged: lost.")

    monkeypatch.setattr(StabilityMonitor, "check_divergence", lost)
    backend = Disarm(tiny(save_every=4, validate_every=0))
    if not after_step:  # nothing was saved yet
        with pytest.raises(InternalError, match="training diverged: lost"):
            backend.fit(cohort)
        return
    with caplog.at_level(logging.WARNING, logger="harmonizer"):
        backend.fit(cohort)
    assert "diverged: lost. The best model before that is kept." in caplog.text
    assert (backend.training_.steps, backend.training_.stop_reason) == (4, "divergence")
    assert backend.resources.folder is None and backend.resources.max_minutes is None
    assert np.isfinite(backend.harmonize(brain_of(30), backend.target("A")).data).all()


@pytest.mark.parametrize("name, array", [
    ("code", np.zeros(3)), ("label", np.full(2, np.nan)), ("baseline.percentiles", np.zeros(1)),
    ("baseline.quantiles", np.zeros(4)),
])
def test_a_style_of_other_numbers_is_refused(fitted, name, array):
    good = fitted.target("A")
    bad = Target(good.kind, good.label, good.n_scans, good.backend, good.modality,
                 {**good.style, name: array})
    with pytest.raises(InputError, match="its numbers do not belong to disarm"):
        fitted.harmonize(brain_of(30), bad)


@pytest.mark.parametrize("values, message", [
    ({"patch": [7, 8, 8]}, "expected three even sides"), ({"patch": [8, 8]}, "tuple.int, int, int"),
    ({"batch": 0}, "batch: expected 1 or more"),
    ({"label_dropout": 1.5}, r"label_dropout: expected a number in \[0, 1\]"),
    ({"preset": "huge"}, "has no preset 'huge'"),
    ({"region": "neck"}, "region: expected one of"),
    ({"region": "head", "baseline": "tissue_matching"}, "other tissues than brains"),
    ({"simulated_weight": 0.0}, "residual: is learned from simulated scanners"),
])
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Disarm.config_from(values)


def test_whole_heads_start_without_tissues():
    head = Disarm.config_from({"region": "head"})
    assert (head.baseline, Disarm(head).region) == ("histogram_matching", "head")
    assert Disarm.config_from({"region": "head", "preset": "paper"}).baseline == "none"
    assert Disarm.config_from({"region": "head", "baseline": "moment_matching"}).baseline == \
        "moment_matching"
    assert Disarm(Disarm.config_from({})).region == "brain"


def test_the_papers_numbers_are_those_of_the_authors_code():
    """The values of the paper."""
    c = Disarm.config_from({"preset": "paper"})
    assert (c.self_weight, c.cycle_weight) == (10, 10)
    assert (c.realness_weight / c.batch, c.critic_weight / c.batch, c.kl_weight / c.batch,
            c.content_weight) == (1, 1, 0.01, 1)  # sums over the batch
    assert (c.generated_label_weight, c.real_label_weight, c.latent_weight) == (10, 3, 8)
    assert (c.learning_rate, c.content_rate, c.elastic) == (1e-4, 4e-5, 8)
    assert (c.steps // 2, c.batch, c.noise, c.code, c.style) == (100_000, 2, 1.0, 8, 8)
    assert c.alternate and c.sample_codes and c.label_at_target and not c.label_dropout
    assert c.baseline == "none" and not (c.weight_residual or c.validate_every or c.ema)
