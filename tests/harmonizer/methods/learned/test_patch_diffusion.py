"""Patch diffusion beyond the contract: what guidance, tokens, patches and seeds may and may not do.

Networks here are drawn, not trained: identities hold for any weights.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError, UsageError
from harmonizer.methods.base import ScanContext
from harmonizer.methods.learned.patch_diffusion.backend import PatchDiffusion
from harmonizer.methods.learned.patch_diffusion.conditioning import make_view, schedule_of
from harmonizer.methods.target import Target
from tests.contract.brains import at_site_b, brain_of, scan_of


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    """Three subjects at site A, two at site B."""
    folder = tmp_path_factory.mktemp("patches")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 3 else "B") for p in range(5)))


@pytest.fixture(scope="module")
def fitted(cohort) -> PatchDiffusion:
    """Fitted for two steps, then given weights that do something."""
    tiny = PatchDiffusion.config_from({"preset": "tiny", "steps": 2, "validate_every": 0,
                                       "weight_residual": False})
    backend = PatchDiffusion(tiny).fit(cohort, seed=1)
    draw = torch.Generator().manual_seed(0)
    for network in backend.model_.networks.values():
        for parameter in network.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape, generator=draw))
    return backend


def with_config(fitted: PatchDiffusion, **values) -> PatchDiffusion:
    """The same networks under other settings of sampling."""
    other = copy(fitted)
    other.config = replace(fitted.config, **values)
    other.model_ = copy(fitted.model_)
    other.model_.config = other.config
    return other


@pytest.fixture(scope="module")
def stranger():
    return at_site_b(brain_of(50))


def change_of(backend: PatchDiffusion, volume, seed: int = 0) -> np.ndarray:
    target = backend.target("A")
    first = backend.baseline_only(volume, target)
    return (backend.harmonize(volume, target, seed=seed).data - first.data)[volume.mask]


def test_guidance_0_with_residual_changes_nothing(fitted, stranger):
    assert not change_of(with_config(fitted, guidance=0.0), stranger).any()
    assert np.abs(change_of(fitted, stranger)).max() > 0.01


def test_from_noise_the_result_itself_is_used(fitted, stranger):
    """A difference of two samples would cancel what the networks restore."""
    changes = [change_of(with_config(fitted, begin="noise", residual=residual), stranger)
               for residual in (True, False)]
    np.testing.assert_array_equal(*changes)
    unguided = with_config(fitted, begin="noise", guidance=0.0)
    assert np.abs(change_of(unguided, stranger)).max() > 0.01


def test_network_that_knows_nothing_is_the_baseline(cohort, stranger):
    tiny = PatchDiffusion.config_from({"preset": "tiny", "steps": 1, "learning_rate": 0.0,
                                       "weight_residual": False})
    change = change_of(PatchDiffusion(tiny).fit(cohort), stranger)
    np.testing.assert_allclose(change, 0, atol=1e-4)  # of 150 gray levels: rounding


def test_way_there_and_back_is_exact_enough(fitted):
    """Inverted and sampled under the same style: corrections bring the image back."""
    from harmonizer.deep.diffusion.samplers import ddim, ddim_inversion

    volume = brain_of(3)
    scan = fitted.inference.network_input(volume)
    schedule = schedule_of(fitted.config)
    patched = fitted.model_.patched(scan.image, scan.mask)
    x = torch.from_numpy(scan.image)[None, None]
    denoise = fitted.model_.denoiser(patched, fitted.model_.networks["style"].null)
    grid = schedule.grid(8, "quadratic", 0.4)
    off = []
    with torch.no_grad():
        for corrections in (0, 3):
            latent = ddim_inversion(denoise, schedule, x, grid, corrections)
            back = ddim(denoise, schedule, latent, grid)
            off.append(float((back - x)[patched.mask].abs().max()))
    assert off[1] < 0.02 and off[1] < 0.5 * off[0]


def test_seed_matters_where_noise_is_drawn_and_there_alone(fitted, stranger):
    noise = with_config(fitted, begin="noise", strength=1.0, residual=False)
    assert np.abs(change_of(noise, stranger, 1) - change_of(noise, stranger, 2)).max() > 0.1
    np.testing.assert_array_equal(change_of(fitted, stranger, 1), change_of(fitted, stranger, 2))


def test_of_several_noise_volumes_comes_the_mean_and_how_far_they_are_apart(fitted, stranger):
    noise = with_config(fitted, begin="noise", residual=False)
    target, rng, wanted = noise.target("A"), np.random.default_rng(5), []
    first = noise.baseline_only(stranger, target)
    for _ in range(2):
        one = noise.inference.residual(first, target.style, ScanContext(), rng)
        wanted.append(one.change)
        assert one.std is None
    both = with_config(noise, seeds=2)
    result = both.inference.residual(first, target.style, ScanContext(), np.random.default_rng(5))
    free = np.abs(wanted).max(axis=0) < 0.99 * np.abs(wanted).max()  # no change is held there
    assert free.mean() > 0.5
    np.testing.assert_allclose(result.change[free], np.mean(wanted, axis=0)[free], atol=1e-3)
    np.testing.assert_allclose(result.std[free], np.std(wanted, axis=0)[free], atol=1e-3)
    assert not result.std[~stranger.mask].any() and result.std[stranger.mask].mean() > 0.01
    harmonized = both.harmonize_with_uncertainty(stranger, target, seed=5)
    assert harmonized.uncertainty[stranger.mask].mean() > 0.01
    assert fitted.harmonize_with_uncertainty(stranger, target).uncertainty is None


class KilledError(Exception):
    """Ends a sampling in the middle of a volume."""


@pytest.mark.parametrize("begin, fusion, seeds", [
    ("inversion", "step", 1), ("inversion", "end", 1), ("noise", "step", 2)])
def test_a_killed_sampling_goes_on_in_the_middle_of_a_volume(
        fitted, stranger, tmp_path, monkeypatch, begin, fusion, seeds):
    other = with_config(fitted, begin=begin, fusion=fusion, seeds=seeds)
    whole = other.harmonize(stranger, other.target("A"), seed=3).data
    calls, plain = [], type(other.model_.networks["denoiser"]).forward

    def counted(network, *given):
        if len(calls) == stop:
            raise KilledError
        calls.append(1)
        return plain(network, *given)

    monkeypatch.setattr(type(other.model_.networks["denoiser"]), "forward", counted)
    stop = -1
    other.harmonize(stranger, other.target("A"), seed=3)
    total, stop = len(calls), len(calls) * 3 // 4
    calls.clear()
    resumable = dict(seed=3, checkpoint_folder=tmp_path / "sampling")
    with pytest.raises(KilledError):
        other.harmonize_with_uncertainty(stranger, other.target("A"), **resumable)
    calls.clear()
    stop = -1
    again = other.harmonize_with_uncertainty(stranger, other.target("A"), **resumable).volume
    np.testing.assert_array_equal(again.data, whole)
    assert 0 < len(calls) < total // 2


def test_blending_at_the_end_is_another_answer(fitted, stranger):
    end = change_of(with_config(fitted, fusion="end"), stranger)
    step = change_of(fitted, stranger)
    assert np.abs(end - step).max() > 1e-3
    assert np.corrcoef(end, step)[0, 1] > 0.5


def test_site_and_null_are_drawn_as_told(fitted, cohort):
    from harmonizer.deep.networks.tokens import StyleTokens

    table = StyleTokens(2, 3, 4, 2)
    torch.nn.init.normal_(table.bins)
    yes, no = torch.tensor([True, True]), torch.tensor([False, False])
    site, bins = torch.tensor([0, 1]), torch.tensor([1, 1])
    torch.testing.assert_close(table(site, bins, yes), table.sites + table.bins[1])
    torch.testing.assert_close(table(site, bins, no), table.null.expand(2, 3, 4))


def test_two_tokens_are_not_their_mean(fitted):
    """What cross-attention adds: with one token repeated, every voxel would get the same."""
    network = fitted.model_.networks["denoiser"]
    x = torch.randn(1, 6, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    t, tokens = torch.tensor([5]), 3 * torch.tensor([[[1.0, -1] * 4, [-1.0, 1] * 4]])
    with torch.no_grad():
        difference = network(x, t, tokens)
        mean = network(x, t, tokens.mean(dim=1, keepdim=True).expand_as(tokens))
        swapped = network(x, t, tokens.flip(1))
    assert float((difference - mean).abs().max()) > 1e-3
    torch.testing.assert_close(swapped, difference, atol=1e-5, rtol=1e-5)


def test_enrolling_new_scans_moves_the_tokens_alone(fitted, tmp_path):
    before = {name: {k: v.clone() for k, v in net.state_dict().items()}
              for name, net in fitted.model_.networks.items()}
    scans = [scan_of(tmp_path, p, "B") for p in (20, 21)]
    target = fitted.enroll(scans, "new")
    start = (
        fitted.model_.networks["style"].sites.mean(dim=0) + fitted.model_.networks["style"].bins[1]
    )
    assert np.abs(target.style["tokens"] - start.numpy()).max() > 0.01
    for name, net in fitted.model_.networks.items():
        assert all(torch.equal(v, before[name][k]) for k, v in net.state_dict().items())
    again = fitted.enroll(scans, "new")
    np.testing.assert_array_equal(again.style["tokens"], target.style["tokens"])


def test_fitted_tokens_explain_their_scans_better(fitted):
    scans = [fitted.inference.network_input(at_site_b(brain_of(p))) for p in (30, 31)]
    patient = with_config(fitted, enroll_steps=40)
    rng_of = lambda n: np.random.default_rng([9, n])  # noqa: E731

    def loss(tokens: np.ndarray) -> float:
        seen = [make_view(fitted.config, scan.image, scan.mask, (12, 12, 8)) for scan in scans]
        with torch.no_grad():
            return float(
                np.mean(
                    [
                        patient.model_.token_loss(seen, torch.from_numpy(tokens), rng_of(n))
                        for n in range(20)
                    ]
                )
            )

    table = fitted.model_.networks["style"]
    start = (table.sites.mean(dim=0) + table.bins[1]).numpy()
    assert loss(patient.model_.fit_tokens(scans)) < 0.995 * loss(start)


def test_a_card_of_other_sizes_is_refused(fitted, stranger):
    style = dict(fitted.target("A").style)
    bad = Target("site", "A", 3, fitted.name, "T1w", {**style, "tokens": np.zeros((1, 2))})
    with pytest.raises(InputError, match=r"tokens of shape \(1, 2\), expected \(2, 8\)"):
        fitted.harmonize(stranger, bad)


@pytest.mark.parametrize("values, message", [
    ({"begin": "middle"}, "begin: expected one of"),
    ({"strength": 0.0}, r"strength: expected a number in \(0, 1\]"),
    ({"patch": (12, 12, 7)}, "patch: expected sides that are multiples of 2"),
    ({"bins": (-0.3, 0.3)}, "bins: expected 0"),
    ({"seeds": 0}, "seeds: expected 1 or more"),
])
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        PatchDiffusion.config_from({"preset": "tiny", **values})


def test_presets_are_what_they_say():
    paper = PatchDiffusion.config_from({"preset": "paper"})
    assert (paper.begin, paper.fusion, paper.baseline, paper.guidance) == (
        "noise",
        "end",
        "none",
        0.6,
    )
    assert (paper.patch, paper.sampling_steps, paper.tokens) == ((80, 96, 80), 50, 1)
    assert paper.checkpointing and paper.warp and not (paper.residual or paper.coordinates)
    assert not (paper.weight_residual or paper.validate_every or paper.ema)
    assert PatchDiffusion.config_from({}) == PatchDiffusion.Config()


def test_the_prior_is_perturbed_anew_in_every_step(fitted, cohort, tmp_path):
    from harmonizer.deep.training.data import VolumeStore

    one = with_config(fitted, batch=1, patch=(64, 64, 64))  # at most the box: always one place
    store = VolumeStore.build(Cohort(cohort.scans[:1]), tmp_path, fitted.model_.multiple)
    task = one.model_.training_task(store, (0,), 3)
    priors = {task.batch(step, 0)["channels"][0, 0].double().sum().item() for step in range(12)}
    assert len(priors) == 12, "priors repeat"


def test_worker_processes_and_checkpointing_change_no_bit(cohort, tmp_path):
    def weights(workers: int, checkpointing: bool) -> dict[str, torch.Tensor]:
        backend = PatchDiffusion(PatchDiffusion.config_from({
            "preset": "tiny", "steps": 3, "validation_cases": 0, "warp": True, "ema": 0.0,
            "learning_rate": 1e-2, "checkpointing": checkpointing}))
        backend.resources = replace(backend.resources, workers=workers, precision="fp32")
        return backend.fit(cohort, seed=1).model_.networks["denoiser"].state_dict()

    alone = weights(0, False)
    for workers, checkpointing in ((2, False), (0, True)):
        other = weights(workers, checkpointing)
        assert all(torch.equal(other[name], value) for name, value in alone.items())


def test_training_draws_bins_flips_and_null_styles(fitted, cohort, tmp_path):
    from harmonizer.deep.training.data import VolumeStore

    store = VolumeStore.build(cohort, tmp_path, fitted.model_.multiple)
    wide = with_config(fitted, batch=4, warp=True)
    task = wide.model_.training_task(store, tuple(range(5)), 3)
    batches = [task.batch(step, 0) for step in range(15)]
    known = torch.cat([b["has_style"] for b in batches])
    assert 0 < int((~known).sum()) < 30  # of 60, 15 % expected
    assert set(torch.cat([b["bin"] for b in batches]).tolist()) == {0, 1, 2}
    assert set(torch.cat([b["site"] for b in batches]).tolist()) == {0, 1}
    assert all(b["x"].abs().max() <= 1 and b["channels"].shape[1] == 5 for b in batches)
    again = wide.model_.training_task(store, tuple(range(5)), 3).batch(4, 0)
    assert all(torch.equal(again[k], v) for k, v in batches[4].items())
    assert not torch.equal(task.batch(4, 1)["x"], batches[4]["x"])
