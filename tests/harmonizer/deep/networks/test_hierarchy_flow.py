"""The hierarchy flow: exact inversion, and the residual of the paper's way back in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harmonizer.deep.networks.hierarchy_flow import (
    ArtifactAwareNorm,
    FlowNetwork,
    HierarchyFlow,
    Stage,
    mean_and_std,
    moments,
)

DEPTHS = [(Stage(1, 1, 6),), (Stage(2, 4, 8),), (Stage(2, 4, 8), Stage(2, 2, 8)),
          (Stage(1, 3, 6), Stage(2, 2, 6), Stage(2, 3, 6))]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        yield


def loud(network: nn.Module, aan: bool = False) -> nn.Module:
    """Random weights everywhere (AAN's heads only on request), random alphas."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("logits"):
                parameter.normal_(0, 3)
            elif "heads" not in name or aan:
                parameter.normal_(0, 0.25)
    return network


def round_trip(network: FlowNetwork, x: torch.Tensor) -> torch.Tensor:
    encoded = network.encode(x)
    sums = network.statistics(encoded, torch.ones(len(x), 1, *x.shape[2:]))
    return network.decode(encoded, sums, torch.randn(len(x), 5), torch.randn(len(x), 5))


@pytest.mark.parametrize("stages", DEPTHS)
@pytest.mark.parametrize("instance", [False, True])
def test_exact_fusion_inverts_for_random_weights_depths_and_alphas(stages, instance):
    network = loud(FlowNetwork(3, stages, 5, 4, instance=instance))
    x = torch.rand(2, 3, 16, 12) * 2 - 1
    with torch.no_grad():
        assert all(a.abs().mean() > 0.05 for _, a in network.encode(x)), "nothing was subtracted"
        assert (round_trip(network, x) - x).abs().max() < 1e-5


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_the_papers_way_back_leaves_a_residual_in_closed_form(splits):
    """x_hat = x - sum over k < n of (1 - alpha)^k a_k."""
    flow = loud(HierarchyFlow(3, splits, 8, fusion="paper"))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        z, a = flow(x)
        parts = a.unflatten(1, (splits, -1)).unbind(1)
        alpha = torch.sigmoid(flow.logits[:max(splits - 1, 1)].mean()) if splits > 1 else 1.0
        residual = sum(((1 - alpha) ** k * parts[k - 1] for k in range(1, splits)), 0 * x)
        torch.testing.assert_close(flow.reverse(z, a), x - residual, atol=2e-6, rtol=0)
        assert splits == 1 or residual.abs().max() > 0.05


def test_at_alpha_one_the_papers_way_back_is_exact_and_later_splits_are_idle():
    flow = loud(HierarchyFlow(3, 4, 8, fusion="paper"))
    with torch.no_grad():
        flow.logits.fill_(40.0)
    x = torch.rand(1, 3, 8, 8)
    z, a = flow(x)
    back = flow.reverse(z, a)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    (used,) = torch.autograd.grad(flow.reverse(z.detach(), a).square().sum(), a)
    assert used[:, :3].abs().max() > 0 and used[:, 3:].abs().max() == 0


def test_every_split_of_the_exact_way_back_gets_a_gradient():
    flow = loud(HierarchyFlow(3, 4, 8))
    with torch.no_grad():
        flow.logits.normal_(0, 1)
    z, a = flow(torch.rand(1, 3, 8, 8))
    (used,) = torch.autograd.grad((flow.reverse(1.5 * z, a) ** 2).sum(), a)
    assert used.unflatten(1, (4, 3)).abs().amax((0, 2, 3, 4)).min() > 1e-4


@pytest.mark.parametrize("fusion", ["exact", "paper"])
def test_an_untrained_network_is_the_identity(fusion):
    network = FlowNetwork(3, DEPTHS[2], 5, 4, fusion=fusion, anchored=False)
    x = torch.rand(2, 3, 16, 12)
    torch.testing.assert_close(round_trip(network, x), x, atol=1e-6, rtol=0)


def test_anchored_aan_is_the_identity_for_its_own_statistics_and_not_for_others():
    norm = loud(ArtifactAwareNorm(6, 5, 4), aan=True)
    z, own, other = torch.randn(2, 6, 4, 4), torch.randn(2, 5), torch.randn(2, 5)
    stats = mean_and_std(moments(z, torch.ones(2, 1, 4, 4)))
    torch.testing.assert_close(norm(z, stats, own, own), z, atol=0, rtol=0)
    assert (norm(z, stats, other, own) - z).abs().max() > 0.01


def test_aan_sets_mean_and_std_as_it_says():
    """Eq. 2: what comes out has the predicted mean and std, channel by channel."""
    norm = loud(ArtifactAwareNorm(6, 5, 4, anchored=False), aan=True)
    z, z_s, mask = torch.randn(2, 6, 9, 9) * 3 + 1, torch.randn(2, 5), torch.ones(2, 1, 9, 9)
    mean, std = mean_and_std(moments(z, mask))
    log_factor, shift = norm._parameters_for((mean, std), z_s).chunk(2, dim=1)
    after = mean_and_std(moments(norm(z, (mean, std), z_s, z_s), mask))
    torch.testing.assert_close(after[0], mean + shift * std, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(after[1], std * torch.exp(2 * torch.tanh(log_factor / 2)),
                               atol=1e-4, rtol=1e-3)


def test_moments_of_slices_add_up_to_those_of_the_volume_and_see_the_brain_alone():
    x, mask = torch.randn(4, 3, 8, 8), (torch.rand(4, 1, 8, 8) > 0.4).float()
    mean, std = mean_and_std(moments(x, mask).sum(0, keepdim=True))
    inside = x.movedim(1, -1)[mask[:, 0] > 0]
    torch.testing.assert_close(mean[0], inside.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(std[0], inside.std(0, unbiased=False), atol=1e-5, rtol=1e-4)
    spoiled = torch.where(mask > 0, x, torch.full_like(x, 99.0))
    torch.testing.assert_close(moments(spoiled, mask), moments(x, mask))


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match="fusion: expected one of .*exact.*paper.*, got 'half'"):
        HierarchyFlow(3, 2, 4, fusion="half")
