"""The adversaries' losses against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from harmonizer.deep.losses.disentangling import (
    adversarial_loss,
    code_l1,
    kl_to_normal,
    label_accuracy,
    label_confusion_loss,
    label_loss,
    masked_l1,
    realness_accuracy,
)

LOG2 = math.log(2)
LABEL = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def test_who_cannot_tell_pays_log_two():
    zero = torch.zeros(2, 2)
    for loss in (
        adversarial_loss(zero, True),
        adversarial_loss(zero, False),
        label_loss(zero, LABEL),
        label_confusion_loss(zero, LABEL),
    ):
        assert loss.item() == pytest.approx(LOG2, abs=1e-6)


def test_right_and_sure_costs_nothing_wrong_and_sure_much():
    assert adversarial_loss(torch.full((3,), 20.0), True).item() == pytest.approx(0, abs=1e-6)
    assert adversarial_loss(torch.full((3,), 20.0), False).item() == pytest.approx(20, abs=1e-4)
    assert label_loss(40 * LABEL - 20, LABEL).item() == pytest.approx(0, abs=1e-6)
    assert label_loss(20 - 40 * LABEL, LABEL).item() == pytest.approx(20, abs=1e-4)


def test_an_image_without_label_should_not_be_named():
    none = torch.zeros(1, 4)
    best = torch.full((1, 4), math.log(0.25 / 0.75), requires_grad=True)
    label_loss(best, none).backward()
    assert best.grad.abs().max().item() == pytest.approx(0, abs=1e-7)


def test_a_confusing_code_is_best_where_nothing_is_said_and_inverse_where_another_is():
    logits = torch.zeros(2, 2, requires_grad=True)
    label_confusion_loss(logits, LABEL).backward()
    assert not logits.grad.any()
    assert label_confusion_loss(20 - 40 * LABEL, LABEL, inverse=True).item() == pytest.approx(
        0, abs=1e-6
    )
    assert label_confusion_loss(20 - 40 * LABEL, LABEL).item() == pytest.approx(10, abs=1e-4)


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
    assert realness_accuracy(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -1.0])
                                ).item() == pytest.approx(0.75)
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 5.0]])
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # the last one has no label
    assert label_accuracy(logits, label).item() == pytest.approx(0.5)
    assert label_accuracy(logits, torch.zeros(3, 2)).item() == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_codes_come_no_nearer_to_each_other_by_shrinking(dims):
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn((2, 3, 4) + (6,) * dims, generator=generator)
    mask = torch.zeros((3, 1) + (12,) * dims)
    mask[:, :, 2:9] = 1
    assert code_l1(one, one, mask).item() == 0
    assert code_l1(one, two, mask).item() == pytest.approx(2 / math.sqrt(math.pi), rel=0.1)
    torch.testing.assert_close(code_l1(0.1 * one, 0.1 * two, mask), code_l1(one, two, mask),
                               rtol=1e-2, atol=0)
    beyond = two.clone()
    beyond[:, :, 5:] = 100
    torch.testing.assert_close(code_l1(one, beyond, mask), code_l1(one, two, mask))
    assert code_l1(one, two, 0 * mask).item() == 0
