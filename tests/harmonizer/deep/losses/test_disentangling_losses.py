"""The adversaries' losses against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from harmonizer.deep.losses.disentangling import (
    accuracy_of_label,
    accuracy_of_realness,
    apart,
    belongs,
    kl_to_normal,
    masked_l1,
    realness,
    untold,
)

LOG2 = math.log(2)
LABEL = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def test_who_cannot_tell_pays_log_two():
    zero = torch.zeros(2, 2)
    for loss in (realness(zero, True), realness(zero, False), belongs(zero, LABEL),
                 untold(zero, LABEL)):
        assert loss.item() == pytest.approx(LOG2, abs=1e-6)


def test_right_and_sure_costs_nothing_wrong_and_sure_much():
    assert realness(torch.full((3,), 20.0), True).item() == pytest.approx(0, abs=1e-6)
    assert realness(torch.full((3,), 20.0), False).item() == pytest.approx(20, abs=1e-4)
    assert belongs(40 * LABEL - 20, LABEL).item() == pytest.approx(0, abs=1e-6)
    assert belongs(20 - 40 * LABEL, LABEL).item() == pytest.approx(20, abs=1e-4)


def test_an_image_without_label_should_not_be_named():
    none = torch.zeros(1, 4)
    best = torch.full((1, 4), math.log(0.25 / 0.75), requires_grad=True)
    belongs(best, none).backward()
    assert best.grad.abs().max().item() == pytest.approx(0, abs=1e-7)


def test_an_untold_code_is_best_where_nothing_is_said_and_inverse_where_another_is():
    said = torch.zeros(2, 2, requires_grad=True)
    untold(said, LABEL).backward()
    assert not said.grad.any()
    assert untold(20 - 40 * LABEL, LABEL, inverse=True).item() == pytest.approx(0, abs=1e-6)
    assert untold(20 - 40 * LABEL, LABEL).item() == pytest.approx(10, abs=1e-4)


def test_kl_is_that_of_two_normals():
    assert kl_to_normal(torch.zeros(3, 8), torch.zeros(3, 8)).item() == 0
    from torch.distributions import Normal, kl_divergence
    mean, logvar = torch.randn(3, 8), torch.randn(3, 8)
    truth = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_to_normal(mean, logvar), truth)


def test_l1_counts_the_mask_alone_and_survives_an_empty_one():
    a, b = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([2.0, 4.0, 0.0])
    assert masked_l1(a, b, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(1.5)
    assert masked_l1(a, b, torch.zeros(3)).item() == 0


def test_accuracies_are_shares_of_right_answers():
    assert accuracy_of_realness(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -1.0])
                                ).item() == pytest.approx(0.75)
    said = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 5.0]])
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # the last one has no label
    assert accuracy_of_label(said, label).item() == pytest.approx(0.5)
    assert accuracy_of_label(said, torch.zeros(3, 2)).item() == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_codes_come_no_nearer_to_each_other_by_shrinking(dims):
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn((2, 3, 4) + (6,) * dims, generator=generator)
    mask = torch.zeros((3, 1) + (12,) * dims)
    mask[:, :, 2:9] = 1
    assert apart(one, one, mask).item() == 0
    assert apart(one, two, mask).item() == pytest.approx(2 / math.sqrt(math.pi), rel=0.1)
    torch.testing.assert_close(apart(0.1 * one, 0.1 * two, mask), apart(one, two, mask),
                               rtol=1e-2, atol=0)
    beyond = two.clone()
    beyond[:, :, 5:] = 100
    torch.testing.assert_close(apart(one, beyond, mask), apart(one, two, mask))
    assert apart(one, two, 0 * mask).item() == 0
