"""IHF: starts at the baseline, leaves a site's own images alone, statistics of the whole volume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harmonizer.cohort import Cohort
from harmonizer.deep.networks.vgg import VggFeatures
from harmonizer.errors import InputError, UsageError
from harmonizer.methods import registry
from harmonizer.methods.base import ScanContext
from harmonizer.methods.learned.baseline import apply_baseline
from harmonizer.methods.learned.ihf.backend import Ihf
from harmonizer.methods.learned.ihf.config import IhfConfig
from harmonizer.methods.learned.ihf.training import to_network_unit
from harmonizer.methods.target import Target
from harmonizer.volume import Volume, write_mask
from tests.contract.brains import at_site_b, brain_of, scan_of
from tests.harmonizer.methods.learned import flows


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("ihf")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 4 else "B") for p in range(7)))


def tiny(**options) -> Ihf:
    """Whatever the networks do is used in full, without a validation."""
    return Ihf(Ihf.config_from({"preset": "tiny", "weight_residual": False, **options}))


@pytest.fixture(scope="module")
def untrained(cohort) -> Ihf:
    return tiny(steps=1, learning_rate=0.0, validation_cases=0).fit(cohort, seed=1)


@pytest.fixture(scope="module")
def shaken(untrained) -> Ihf:
    return flows.shaken(untrained, 11)


def value_range(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.005, 0.995])
    return float(high - low)


def rmse(one: Volume, two: Volume) -> float:
    """Of the range."""
    difference = one.in_mask().astype(np.float64) - two.in_mask()
    return float(np.sqrt(np.mean(difference ** 2)) / value_range(two.in_mask()))


@pytest.mark.parametrize("label", ["A", "B"])
def test_untrained_it_is_histogram_matching(untrained, cohort, label):
    matching = registry.get("histogram_matching")().fit(cohort)
    seen = at_site_b(brain_of(50))
    ours = untrained.harmonize(seen, untrained.target(label))
    theirs = matching.harmonize(seen, matching.target(label))
    np.testing.assert_allclose(ours.in_mask(), theirs.in_mask(), rtol=1e-5, atol=1e-3)


def test_an_image_is_its_own_target_whatever_was_learned(shaken, tmp_path):
    """Anchored: the change is zero where the statistics are the image's own."""
    scan = scan_of(tmp_path, 51, "A")
    target = shaken.enroll([scan], "itself")
    assert rmse(shaken.harmonize(scan.read(), target), scan.read()) < 1e-3
    other = shaken.enroll([scan_of(tmp_path, 52, "B")], "other")
    matched = shaken.baseline_only(scan.read(), other)
    assert rmse(shaken.harmonize(scan.read(), other), matched) > 1e-2, "it changes nothing at all"


def test_without_the_anchor_it_is_not(shaken, tmp_path):
    loose = flows.with_config(shaken, anchored=False)
    for norm in loose.model_.networks["flow"].norms:
        norm.anchored = False
    try:
        scan = scan_of(tmp_path, 51, "A")
        after = loose.harmonize(scan.read(), loose.enroll([scan], "itself"))
        assert rmse(after, scan.read()) > 0.01
    finally:
        for norm in loose.model_.networks["flow"].norms:
            norm.anchored = True


def test_a_scan_of_the_target_site_comes_back_as_it_is(shaken):
    scan = brain_of(53)
    target = shaken.target("A")
    unchanged = shaken.harmonize(scan, target, source="A")
    np.testing.assert_array_equal(unchanged.data, scan.data)
    assert not np.array_equal(shaken.harmonize(scan, target, source="B").data, scan.data)
    assert not np.array_equal(shaken.harmonize(scan, target).data, scan.data)


def test_a_reference_named_like_the_site_is_no_site(shaken, tmp_path):
    scan = scan_of(tmp_path, 54, "B")
    target = shaken.enroll([scan_of(tmp_path, 55, "A")], "B")
    assert not np.array_equal(shaken.harmonize(scan.read(), target, source="B").data,
                              scan.read().data)


def test_batches_of_slices_change_memory_alone(shaken):
    seen = at_site_b(brain_of(50))
    one = shaken.harmonize(seen, shaken.target("A"))
    other = flows.with_config(shaken, batch_slices=3)
    assert rmse(other.harmonize(seen, other.target("A")), one) < 1e-5


def test_equal_slices_change_equally(shaken):
    """No flicker: statistics are the volume's, so a slice's change does not know its neighbors'
    area. Slices far from the others, with the same content, are changed alike.
    """
    volume = at_site_b(brain_of(56))
    middle = volume.data[:, :, 5]
    data, mask = np.repeat(middle[:, :, None], 11, 2), np.repeat(volume.mask[:, :, 5:6], 11, 2)
    mask[4:, :, 7:] = False  # slices 7 to 10 show a part of the brain only
    same = Volume(np.where(mask, data, 0).astype(np.float32), volume.affine, mask)
    scan, model = shaken.inference.network_input(same), shaken.model_
    inside = scan.mask
    change = model.predict_residual(scan, shaken.styles_["A"], np.random.default_rng(0),
                                    model.options).change
    assert np.abs(change[inside]).mean() > 1e-2
    np.testing.assert_allclose(change[:, :, 2], change[:, :, 4], atol=1e-5)


def test_all_pairs_may_be_real(cohort, tmp_path):
    """Shares that add up to one but for rounding: 1 - 0.9 - 0.1 is below zero."""
    from harmonizer.deep.training.data import VolumeStore

    backend = tiny(cross_site_fraction=0.9, same_site_fraction=0.1)
    task = backend.model_.training_task(
        VolumeStore.build(cohort, tmp_path, backend.model_.multiple), tuple(range(7)), 3
    )
    kinds = {task.draw_pair(np.random.default_rng(n))[0] for n in range(30)}
    assert kinds == {"site", "same"}


def test_pairs_are_as_asked_and_in_the_unit_of_the_network(cohort, tmp_path):
    from harmonizer.deep.training.data import VolumeStore

    backend = tiny(pairs=8, cross_site_fraction=0.4, same_site_fraction=0.3)
    backend.model_.networks = backend.model_.build_networks()
    store = VolumeStore.build(cohort, tmp_path, backend.model_.multiple)
    task = backend.model_.training_task(store, tuple(range(7)), 0)
    batch = task.batch(3, 0)
    kinds = np.stack([batch[k] for k in ("view", "site", "same")])
    assert (kinds.sum(0) == 1).all() and (kinds.sum(1) > 0).all()
    for name in ("source", "truth", "target"):
        image, mask = batch[name], batch["target_mask" if name == "target" else "mask"]
        assert image.shape == mask.shape == (16, 3, *store.box.shape[:2])
        assert image.min() >= -1 and image.max() <= 1
        assert (image[mask == 0] == -1).all() and image[mask > 0].std() > 0.2
    again = task.batch(3, 0)
    assert all((batch[k] == again[k]).all() for k in batch if k != "pairs")


def test_the_truth_of_a_simulated_pair_has_the_contrast_of_its_target(tmp_path):
    """All subjects are one brain, which site B shows inverted: then truth and target are equal."""
    from harmonizer.deep.training.data import VolumeStore
    from harmonizer.volume import write_volume

    brain, scans = brain_of(0), []
    inverted = brain.with_data(np.where(brain.mask, 220 - brain.data, 0).astype(np.float32))
    for subject in range(6):
        scan = scan_of(tmp_path, subject, "A")
        write_volume(scan.image, brain if subject < 3 else inverted)
        write_mask(scan.mask, brain.mask, brain.affine)
        scans.append(dataclasses.replace(scan, site="A" if subject < 3 else "B"))
    backend = tiny(pairs=6, cross_site_fraction=0.0, same_site_fraction=0.0, baseline="none")
    store = VolumeStore.build(Cohort(tuple(scans)), tmp_path / "store", backend.model_.multiple)
    task = backend.model_.training_task(store, tuple(range(6)), 0)
    for step in range(3):
        batch = task.batch(step, 0)
        torch.testing.assert_close(batch["truth"], batch["target"])
        assert not torch.equal(batch["source"], batch["truth"])


def test_a_subject_alone_at_its_site_is_its_own_target(cohort, tmp_path):
    from harmonizer.deep.training.data import VolumeStore

    few = Cohort((cohort.scans[0], cohort.scans[4]))  # one at each site
    backend = tiny(cross_site_fraction=0.0, same_site_fraction=0.0)
    store = VolumeStore.build(few, tmp_path, backend.model_.multiple)
    task = backend.model_.training_task(store, (0, 1), 3)
    for n in range(6):
        kind, one, two = task.draw_pair(np.random.default_rng(n))
        assert kind == "view" and one == two


def test_the_baseline_of_a_batch_is_that_of_a_volume(cohort, tmp_path):
    """What the network sees in training is what it sees in use."""
    import torch

    from harmonizer.contrast.intensity import IntensityScale
    from harmonizer.deep.training.data import VolumeStore

    backend = tiny()
    store = VolumeStore.build(cohort, tmp_path, backend.model_.multiple)
    task = backend.model_.training_task(store, tuple(range(7)), 0)
    one, two = (Volume(np.float32(1) + store.image(i), np.eye(4), store.mask(i) > 0)
                for i in (0, 5))
    slabs = [torch.from_numpy(np.ascontiguousarray(a.transpose(2, 0, 1)))[:, None] for v in
             (one, two) for a in (v.data - 1, v.mask.astype(np.float32))]
    source, _, _ = task.apply_baseline(slabs[0], slabs[1], slabs[0], slabs[2], slabs[3], None)
    style = {
        f"baseline.{k}": v
        for k, v in backend.baseline_._pool([backend.baseline_._summary(two)]).items()
    }
    first = apply_baseline(backend.baseline_, one,
                           Target("reference", "two", 1, "ihf", "T1w", style), ScanContext())
    truth = to_network_unit(first.data, IntensityScale.of(first.in_mask()), slabs[1])
    torch.testing.assert_close(source, truth)


def test_simulated_pairs_teach_the_flow_what_histograms_cannot(tmp_path):
    """On two batches seen again and again the error falls below the baseline's."""
    import torch

    from harmonizer.deep.training.data import VolumeStore

    subjects = Cohort(tuple(scan_of(tmp_path, p, "A") for p in range(4)))
    backend = tiny(
        cross_site_fraction=0.0,
        same_site_fraction=0.0,
        noise=0.2,
        bias=0.0,
        gamma=0.0,
        hidden=(16,),
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        backend.model_.networks = backend.model_.build_networks()
    store = VolumeStore.build(subjects, tmp_path / "store", backend.model_.multiple)
    task = backend.model_.training_task(store, tuple(range(4)), 0)
    batches = [task.batch(step, 0) for step in range(2)]
    adam = torch.optim.Adam(backend.model_.networks["flow"].parameters(), 1e-2)
    errors = []
    for step in range(30):
        adam.zero_grad()
        terms = task.loss(batches[step % 2])
        sum(terms.values()).backward()
        adam.step()
        errors.append(float(terms["truth"].detach()) / backend.config.truth_weight)
    baseline = np.mean([float((b["source"] - b["truth"]).abs()[b["mask"] > 0].mean())
                    for b in batches])
    assert np.mean(errors[:2]) == pytest.approx(baseline, rel=0.2)
    assert np.mean(errors[-4:]) < 0.85 * baseline


@pytest.mark.parametrize("options, message", [
    ({"fusion": "half"}, "fusion: expected one of .*, got 'half'"),
    ({"splits": (2, 2)}, "one number for each stage"),
    ({"cross_site_fraction": 0.9, "same_site_fraction": 0.2}, "a sum of at most 1"),
    ({"kept_fraction": 0.0}, r"kept_fraction: expected a number in \(0, 1\], got 0.0"),
    ({"slices": 0}, "slices: expected 1 or more"),
    ({"preset": "huge"}, "has no preset 'huge'"),
])
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        tiny(**options)


def test_presets_build_and_the_paper_has_its_numbers():
    with pytest.raises(UsageError, match="preset paper uses features of VGG-19.*vgg=FILE"):
        Ihf.config_from({"preset": "paper"})
    paper = Ihf.config_from({"preset": "paper", "vgg": "none"})
    assert (paper.baseline, paper.fusion, paper.cross_site_fraction) == ("none", "paper", 1.0)
    assert not (paper.weight_residual or paper.validate_every or paper.anchored or paper.equalized)
    assert not (paper.truth_weight or paper.gradient_weight or paper.identity_weight or paper.ema)
    assert (paper.splits, paper.anatomy_weight, paper.artifact_weight, paper.kept_fraction) == (
        (10, 4), 1.0, 2.0, 0.9)
    assert paper.pairs * paper.slices == 32 and paper.learning_rate == 1e-4
    assert 2 * sum(paper.pyramid) == 1920  # the size of VGG's z_s
    assert Ihf.config_from({"preset": "small"}) == IhfConfig()
    flow = Ihf(paper).model_.build_networks()["flow"]
    assert [f.affine.layers[-1].out_channels for f in flow.flows] == [30, 480]


def test_statistics_of_each_slab_as_in_the_paper(cohort):
    """A target has its mean z_s at several heights, and slabs are normalized one by one."""
    backend = tiny(heights=3, anchored=False, fusion="paper", instance=True, pairs=4, slices=1,
                   cross_site_fraction=1.0, same_site_fraction=0.0, equalized=False,
                   baseline="none", steps=2, validation_cases=0, learning_rate=1e-2).fit(cohort)
    target = backend.target("A")
    assert target.style["z_s"].shape == (3, 24)
    assert np.abs(np.diff(target.style["z_s"], axis=0)).max() > 1e-3
    volume = at_site_b(brain_of(50))
    whole = backend.harmonize(volume, target)
    assert np.isfinite(whole.data).all() and not np.array_equal(whole.data, volume.data)
    fewer = flows.with_config(backend, batch_slices=3)
    assert rmse(fewer.harmonize(volume, fewer.target("A")), whole) < 1e-5
    scan = brain_of(53)
    assert not np.array_equal(backend.harmonize(scan, target, source="A").data, scan.data)


def test_vggs_features_stay_in_the_model_and_the_fit_alone_reads_the_file(cohort, tmp_path):
    path = tmp_path / "vgg.safetensors"
    torch.manual_seed(0)
    save_file({name: torch.randn(value.shape) / 50
               for name, value in VggFeatures().state_dict().items()}, path)
    fitted = tiny(vgg=str(path), steps=1, validation_fraction=0.0, validate_every=0).fit(cohort)
    path.unlink()
    loaded = Ihf.load(fitted.save(tmp_path / "model"))
    assert loaded.target("A").style["z_s"].shape == (1920,)
    seen = at_site_b(brain_of(50))
    np.testing.assert_array_equal(*(b.harmonize(seen, b.target("A")).data
                                    for b in (fitted, loaded)))
    with pytest.raises(InputError, match="vgg.safetensors: expected a safetensors file"):
        tiny(vgg=str(path), steps=1).fit(cohort)


def test_a_card_of_other_features_is_refused(shaken, untrained):
    target = shaken.target("A")
    wrong = dataclasses.replace(target, style={**target.style, "z_s": np.zeros(5, np.float32)})
    with pytest.raises(InputError, match="expected 24 statistics of features"):
        shaken.harmonize(brain_of(50), wrong)
